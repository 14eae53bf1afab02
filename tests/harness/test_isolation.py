"""Settings of the process that a plugin changes: named, and put back; through the real worker, others are unharmed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from foresight_bench.cells import Cell
from foresight_bench.cli import main
from foresight_bench.isolation import _GETTERS, _SETTERS, restored
from foresight_bench.store import FAILURE, Store

CHANGES: dict[str, Callable[[], object]] = {
    "torch.get_default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch.get_default_device": lambda: torch.set_default_device("meta"),
    "torch.is_grad_enabled": lambda: torch.set_grad_enabled(False),
    "torch.get_num_threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch.get_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.are_deterministic_algorithms_enabled": lambda: torch.use_deterministic_algorithms(True),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "torch.backends.cudnn.allow_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "torch.backends.cuda.flash_sdp_enabled": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "torch.backends.cuda.mem_efficient_sdp_enabled": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "torch.backends.cuda.math_sdp_enabled": lambda: torch.backends.cuda.enable_math_sdp(False),
    "os.getcwd": lambda: os.chdir("/"),
}


def settings() -> dict[str, object]:
    return {name: get() for name, get in _GETTERS.items()}


def test_every_setting_that_is_watched_is_tried_here() -> None:
    assert CHANGES.keys() == _GETTERS.keys() == _SETTERS.keys()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("fails", [False, True])
def test_a_setting_is_named_and_put_back_however_the_plugin_ends(name: str, fails: bool) -> None:
    before, said = settings(), list[str]()
    with suppress(ZeroDivisionError), restored(said.append):
        CHANGES[name]()
        changed = settings()
        assert changed[name] != before[name]
        if fails:
            raise ZeroDivisionError
    assert settings() == before
    assert f"{name} was changed from {before[name]} to {changed[name]} and put back." in said
    # Two names of one setting may both be said; nothing else is.
    assert {sentence.split()[0] for sentence in said} == {each for each in before if changed[each] != before[each]}


def test_a_plugins_failure_is_passed_on() -> None:
    with pytest.raises(ZeroDivisionError), restored(lambda _: None):
        raise ZeroDivisionError


def test_the_environment_is_put_back_and_each_variable_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.delenv("ADDED", raising=False)
    before, said = dict(os.environ), list[str]()
    with restored(said.append):
        os.environ.update(CHANGED="2", ADDED="1")
        del os.environ["REMOVED"]
    assert dict(os.environ) == before
    assert subprocess.run(["printenv", "CHANGED"], capture_output=True).stdout == b"1\n"
    assert said == [
        f"The environment variable {name} was changed and put back." for name in ("ADDED", "CHANGED", "REMOVED")
    ]


def test_what_torch_tells_itself_through_the_environment_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    said: list[str] = []
    with restored(said.append):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "somewhere"
    assert said == []


def test_random_generators_go_on_as_if_the_plugin_had_not_been_and_that_is_no_fault() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = draw()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    said: list[str] = []
    with restored(said.append):
        assert draw() == expected
        torch.manual_seed(6)
    assert draw() == expected
    assert said == []


def test_a_folder_that_is_gone_by_the_end_is_left() -> None:
    here, said = os.getcwd(), list[str]()
    with restored(said.append), TemporaryDirectory() as folder:
        os.chdir(folder)
    assert os.getcwd() == here
    assert [sentence.split()[0] for sentence in said] == ["os.getcwd"]


def test_what_changes_nothing_is_not_mentioned() -> None:
    said: list[str] = []
    with restored(said.append):
        torch.set_default_dtype(torch.float64)
        torch.set_default_dtype(torch.float32)
    assert said == []


def cells(results: Path) -> dict[str, Cell]:
    """Return the cells of Q2 by encoder."""
    return {cell.identity.encoder: cell for cell in Store(results).cells() if cell.identity.experiment == "Q2"}


def ends(pid: int) -> bool:
    """Return whether a process is gone, or about to be waited for, within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_every_mischief_of_an_encoder_is_its_own_and_spares_the_others(
    beside: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_MARKS", str(tmp_path))
    arguments = ["run", "--suite", "toy", "--device", "cpu", "--results", str(beside), "-x", "Q2"]
    names = ("meddles", "meddles~pooled", "segfault", "slow", "chatty")
    for name in names:
        arguments += ["-e", name]
    # `slow` sleeps for 60 s; imports alone take some 3 s, several times that on a busy machine.
    done = CliRunner().invoke(main, [*arguments, "--timeout", "20"])
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    found, sound = cells(beside), cells(undisturbed)
    assert {name: found[name].status for name in names} == {
        "meddles": "ok",
        "meddles~pooled": "ok",
        "segfault": "killed",
        "slow": "timeout",
        "chatty": "ok",
    }
    # What these say of the clips is what `sound` says, and so are their scores.
    for name in ("meddles", "chatty"):
        assert found[name].scores_sha256 == sound["sound"].scores_sha256, name
        assert found[name].metrics == sound["sound"].metrics, name
    assert found["meddles~pooled"].scores_sha256 == sound["sound~pooled"].scores_sha256
    said = "\n".join(found["meddles"].warnings)
    for name in ("torch.get_default_dtype", "torch.backends.cudnn.benchmark", "os.getcwd", "TOY_MEDDLED"):
        assert f"{name} was changed" in said
    assert len(found["meddles"].warnings) == 4
    assert all(not cell.warnings for name, cell in found.items() if name != "meddles")

    assert found["segfault"].reason == "The worker was killed by SIGSEGV."
    assert found["slow"].reason == "The worker said nothing for 20 s and was killed."
    for name in names:
        failed = Store(beside).path(found[name]).with_suffix(FAILURE).exists()
        assert failed is (found[name].status != "ok"), name
    assert ends(int((tmp_path / "spawned").read_text()))
    (log,) = beside.rglob("worker.log")  # of the last worker, which printed 100 MB
    assert 1_000_000 < log.stat().st_size < 1_200_000
    assert "bytes left out" in log.read_text()
