"""The doctor finds what is planted: it says what cannot be used, and is silent about what can."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from foresight_bench import devices, doctor
from foresight_bench.cli import main
from foresight_bench.devices import Device
from foresight_bench.plugins import Plugin
from foresight_bench.registry import Registry
from foresight_bench.specs import DecoderSpec, EncoderSpec, HubFile, PackageFolder, RegistryArchive, Variant, Weights

ARCHIVE = RegistryArchive("no-such-distribution", "1.0", "wheel", "a" * 64, "member", "no_such_module:convert")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without GPUs, with an empty cache."""
    monkeypatch.setenv("FORESIGHT_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(devices, "_gpus", list)
    return tmp_path


def invoke(here: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["doctor", "--json", "--results", str(here / "results"), *arguments])
    return done.exit_code, json.loads(done.stdout)


def section(found: Mapping[str, Any], title: str) -> tuple[Any, list[str], list[str]]:
    return found[title]["facts"], found[title]["remarks"], found[title]["problems"]


def test_a_sound_machine_has_no_problems(here: Path) -> None:
    code, found = invoke(here)
    assert code == 0
    assert not any(found[title]["problems"] for title in found if title != "plugins")
    assert {plugin["name"]: plugin["status"] for plugin in found["plugins"]} == {
        "foresight_gates": "ok",
        "foresight_plugins": "ok",
    }
    assert list(section(found, "device")[0]["devices"]) == ["cpu"]
    assert section(found, "device")[0]["cpu threads"] >= 1
    assert set(section(found, "software")[0]["libraries"]) >= {"torch", "numpy", "scipy"}
    assert section(found, "cache")[0]["entries"] == 0
    assert section(found, "cache")[0]["limit"] == "100 GB"
    assert section(found, "results")[:2] == ({**section(found, "results")[0], "cells": {}, "unreadable": 0}, [])
    facts, (remark,), _ = section(found, "weights")
    assert facts["ltx-tiny"] == "package foresight_plugins"
    assert facts["dinov2-small"] == "missing"
    assert "sets of weights are not here" in remark


def test_nothing_is_written_or_fetched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foresight_bench.weights._download", lambda *rest: pytest.fail("fetched an archive"))
    monkeypatch.setattr("foresight_bench.hub.fetched", lambda *rest: pytest.fail("asked the hub"))
    assert invoke(here)[0] == 0
    assert list(here.iterdir()) == []


def test_text_says_the_same(here: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--results", str(here / "results")])
    assert done.exit_code == 0
    for line in ("  foresight_gates (foresight-bench", "\ndevice\n  devices: cpu ", "\n  dinov2-small: missing\n"):
        assert line in done.output
    assert "Nothing stands in the way of a run." in done.stderr


def test_a_missing_device_is_a_problem(here: Path) -> None:
    code, found = invoke(here, "--device", "cuda:3")
    assert code == 4
    (problem,) = section(found, "device")[2]
    assert "cuda:3 is not available" in problem
    assert section(found, "weights")[0]


def test_a_gpu_and_a_torch_for_the_cpu_only(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    for name, built, problems in (("cuda:0", "12.8", 0), ("cuda:0", "", 1), ("cpu", "", 0)):
        monkeypatch.setattr(doctor, "find_devices", lambda wanted, name=name: (Device(name, "its model"),))
        monkeypatch.setattr(doctor, "_torch_cuda", lambda built=built: built)
        code, found = invoke(here)
        assert code == 4 * problems
        assert len(section(found, "device")[2]) == problems


@pytest.mark.parametrize(
    ("line", "built"), [("cuda: Optional[str] = '13.2'", "13.2"), ("cuda = None", ""), ("cuda = '11.8'", "11.8")]
)
def test_what_torch_was_built_for_is_read(
    line: str, built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"debug = False\n{line}\nhip = '1.0'\n")

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec)
    assert doctor._torch_cuda() == built


def test_a_library_that_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "KEYED_LIBRARIES", ("numpy", "no-such-library"))
    code, found = invoke(here)
    assert code == 4
    assert section(found, "software")[2] == ["Not installed: no-such-library. Install foresight-bench again."]


def test_folders_that_cannot_be_written(here: Path) -> None:
    (here / "cache").write_text("a file where a folder should be")
    (here / "blocked").write_text("another")
    (here / "blocked").chmod(0o755)  # even one that seems to be open
    code, found = invoke(here, "--results", str(here / "blocked/results"))
    assert code == 4
    for title, setting in (("cache", "FORESIGHT_BENCH_CACHE"), ("results", "--results")):
        (problem,) = section(found, title)[2]
        assert problem.startswith("Nothing can be written to ")
        assert problem.endswith(f"with {setting}.")


def test_a_bad_limit_of_the_cache(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESIGHT_BENCH_CACHE_LIMIT", "lots")
    code, found = invoke(here)
    assert code == 4
    assert "is no number of GB" in section(found, "cache")[2][0]


def test_what_cannot_be_read_is_remarked(here: Path) -> None:
    key = "ab" + "0" * 30
    (here / "cache/features/ab" / key).mkdir(parents=True)
    (here / "cache/features/ab" / key / "identity.json").write_text("{}")
    (here / "results/cohort/machine/encoder").mkdir(parents=True)
    (here / "results/cohort/machine/encoder/cell.json").write_text("{}")
    code, found = invoke(here)
    assert code == 0
    facts, remarks, _ = section(found, "cache")
    assert (facts["entries"], facts["unreadable"], facts["size"]) == (1, 1, "2e-09 GB")
    assert "cache verify" in remarks[0]
    facts, remarks, _ = section(found, "results")
    assert facts["unreadable"] == 1
    assert "cell.json is no readable cell file. Delete it" in remarks[0]


def test_cells_are_counted(here: Path) -> None:
    committed = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("*/*/*/*.json"))[:3]
    folder = here / "results/cohort/machine/encoder"
    folder.mkdir(parents=True)
    for path in committed:
        (folder / path.name).write_bytes(path.read_bytes())
    assert sum(section(invoke(here)[1], "results")[0]["cells"].values()) == 3


def test_weights_are_found_where_they_lie(here: Path) -> None:
    there = Weights("packed", package=PackageFolder("foresight_plugins", "decoders/ltx_tiny", "X"))
    gone = Weights("unpacked", package=PackageFolder("foresight_plugins", "no_such_folder", "X"))
    hub = Weights("hub", hub=HubFile("owner/name", "model.safetensors"))
    archived = Weights("archived", archive=ARCHIVE)
    snapshot = here / "hub/models--owner--name/snapshots/main"
    decoders = tuple(
        DecoderSpec(w.name, "a:B", "", weights=w)
        for w in (there, gone, hub, archived, Weights("trap", package=7))  # type: ignore[arg-type]
    )
    encoder = EncoderSpec("e", "a:B", "", (Variant("v", ("t",), ("t",), weights=Weights("variant", hub=hub.hub)),))
    plugin = Plugin(
        "p", "p", "1", "p", contributions=(("foresight_decoders", decoders), ("foresight_encoders", (encoder,)))
    )

    def look() -> dict[str, Any]:
        return dict(doctor._weights(Registry([plugin])).facts)

    before = look()
    assert before.pop("trap").startswith("not usable: ")  # type: ignore[union-attr]
    assert before == {
        "packed": "package foresight_plugins",
        **dict.fromkeys(("unpacked", "hub", "archived", "variant"), "missing"),
    }
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    from foresight_bench.weights import _cache_files

    for file in _cache_files(archived, ARCHIVE):
        assert look()["archived"] == "missing"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    after = look()
    assert after["archived"] == "cache"
    assert after["hub"] == after["variant"] == "Hugging Face cache, owner/name"


def test_one_look_that_fails_does_not_end_the_others(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cache", lambda: 1 / 0)
    code, found = invoke(here)
    assert code == 4
    assert section(found, "cache")[2] == ["It cannot be examined (ZeroDivisionError: division by zero)."]
    assert section(found, "weights")[0]


def test_broken_plugins_are_shown_and_are_no_problem(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Plugin("bad", "bad-dist", "1.0", "bad", "it is broken; uninstall it.", "Traceback")
    monkeypatch.setattr("foresight_bench.plugins.load", lambda: (broken,))
    code, found = invoke(here)
    assert code == 0
    (record,) = found["plugins"]
    assert (record["status"], record["reason"]) == ("quarantined", "it is broken; uninstall it.")
    text = CliRunner().invoke(main, ["doctor"]).stdout
    assert "bad (bad-dist 1.0, installed)\n    quarantined: it is broken" in text
