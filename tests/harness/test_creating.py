"""Packages that `new` writes: whole, of the right names, and never half there."""

from __future__ import annotations

import tomllib
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from foresight_bench.cli import main
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import DataError
from foresight_bench.hookspecs import PROJECT
from foresight_bench.plugins import load_one

KINDS = ("encoder", "adapter", "decoder", "metric")


def new(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments, "--output", str(folder)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_brings_its_plugin(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = new(tmp_path, kind, f"my-{kind}.1")
    assert done.exit_code == 0, done.output
    folder = tmp_path / f"foresight-my-{kind}-1"
    package = f"foresight_my_{kind}_1"
    assert done.stdout.strip() == str(folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        "pyproject.toml",
        ".github/workflows/test.yml",
        f"{package}/__init__.py",
        f"{package}/{kind}.py",
        f"tests/test_{package}.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][PROJECT] == {package: package}
    monkeypatch.syspath_prepend(str(folder))
    plugin = load_one(metadata.EntryPoint(package, package, PROJECT))
    assert not plugin.quarantine, plugin.traceback
    ((hook, (spec,)),) = plugin.contributions
    assert (hook, spec.name) == (f"foresight_{kind}s", f"my-{kind}.1")
    module, _, name = spec.target.partition(":")
    assert module == f"{package}.{kind}"
    assert f"class {name}" in (folder / package / f"{kind}.py").read_text()
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert "$" not in path.read_text().replace("$ pip", "").replace("$ pytest", "").replace("$ foresight", "")


def test_a_new_encoder_says_of_frames_what_it_does_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new(tmp_path, "encoder", "vit-of-mine").exit_code == 0
    monkeypatch.syspath_prepend(str(tmp_path / "foresight-vit-of-mine"))
    package = import_module("foresight_vit_of_mine")
    ((spec,), made) = package.foresight_encoders(), import_module("foresight_vit_of_mine.encoder")
    encoder = made.VitOfMine(EncoderSetup(taps=("patch_embed",)), **spec.variants[0].params)
    fed: list[torch.Tensor] = []
    encoder.model.patch_embed.register_forward_pre_hook(lambda module, inputs: fed.extend(inputs))
    frames = np.zeros((1, 2, 32, 48, 3), np.uint8)
    frames[0, 1] = 255
    encoder.encode(ClipBatch(frames, ("a",)), ("patch_embed",))
    assert spec.preprocessing == (
        f"Every frame by itself, in its own size; sides must be multiples of {encoder.patch}. "
        f"RGB in {fed[0][0].min():.0f} .. {fed[0][1].max():.0f}."
    )
    assert fed[0].shape == (2, 3, 32, 48)
    with pytest.raises(DataError, match=f"multiples of {encoder.patch}"):
        encoder.encode(ClipBatch(frames[:, :, :, :40], ("a",)), ("patch_embed",))


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    assert new(tmp_path, "metric", "mine").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = new(tmp_path, "encoder", "mine")
    assert (again.exit_code, "is there already" in again.stderr) == (4, True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["../x", "My", "a b", "a--b", "-a", "a_b", ""])
def test_a_name_that_no_plugin_can_have_is_refused(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["new", "--output", str(tmp_path), "encoder", "--", name])
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, []), done.output


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = new(tmp_path / "file" / "folder", "metric", "mine")
    assert (done.exit_code, "Traceback" in done.output) == (4, False)
    assert "Cannot write" in done.stderr
