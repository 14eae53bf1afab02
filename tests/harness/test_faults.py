"""What is killed, filled up, written twice or altered: the same command finishes, as if nothing had been."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from foresight_bench.cells import Cell
from foresight_bench.cli import main
from foresight_bench.store import FAILURE, TEMPORARY, Store

ROWS = ("-e", "sound", "-e", "sound~pooled", "-e", "sound:shift=0.5", "-x", "C1", "-x", "Q2", "-a", "tiny")
PHASES = ("features", "training", "metric", "replace")
Key = tuple[str, str]


def command(results: Path, *arguments: str) -> list[str]:
    return ["run", "--suite", "toy", "--device", "cpu", "--results", str(results), *arguments]


def run(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, command(results, *arguments))


def start(results: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    whole = [sys.executable, "-m", "foresight_bench", *command(results, *arguments)]
    return subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def key(cell: Cell) -> Key:
    return cell.identity.encoder, cell.identity.experiment


def cells(results: Path) -> dict[Key, Cell]:
    """Return the cells that `undisturbed` has too; reading them checks each file."""
    return {key(cell): cell for cell in Store(results).cells() if cell.identity.adapter != "linear"}


def figures(results: Path, *encoders: str) -> dict[Key, object]:
    """Return all that a run is for: what every cell, or every one of ``encoders``, says of its encoder."""
    return {
        key: (cell.id, cell.status, cell.scores_sha256, cell.metrics, cell.decision, cell.tap, cell.details)
        for key, cell in cells(results).items()
        if key[0] in encoders or not encoders
    }


def stamps(results: Path) -> dict[Path, int]:
    """Return when each finished cell was written."""
    found = Store(results)
    return {found.path(cell): found.path(cell).stat().st_mtime_ns for cell in found.cells() if cell.status == "ok"}


def leftovers(results: Path) -> list[Path]:
    return list(results.rglob(f"{TEMPORARY}*"))


def computed(done: Result) -> int:
    """Return how many cells a run did not find finished."""
    said = re.search(r"^(\d+) cells, (\d+) reused", done.stderr, re.MULTILINE)
    assert said is not None
    return int(said[1]) - int(said[2])


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the toy plugin leaves its marks."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(folder))
    return folder


@pytest.mark.slow
def test_a_parent_killed_in_every_phase_takes_all_its_processes_along_and_nothing_is_lost(
    beside: Path, undisturbed: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ("-e", "sound", "-x", "C1", "-x", "Q2", "-a", "tiny")
    finished = stamps(beside)
    for phase in PHASES:
        monkeypatch.setenv("TOY_STRIKES", f"{phase}:parent")
        process = start(beside, *one)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors
        assert all(ends(int(pid)) for pid in (marks / phase).read_text().split()), phase
        # What was complete is as it was; what was not, is not there.
        assert finished.items() <= stamps(beside).items()
        finished = stamps(beside)
    assert leftovers(beside)  # of the last phase
    assert ("sound", "C1") in cells(beside)  # it was complete when Q2 was struck
    done = run(beside, *one)
    assert done.exit_code == 0, done.output
    assert computed(done) == 1
    assert not leftovers(beside)
    assert finished.items() <= stamps(beside).items()
    assert figures(beside, "sound") == figures(undisturbed, "sound")


@pytest.mark.slow
def test_a_worker_killed_in_every_phase_ends_one_cell_and_the_run_goes_on(
    beside: Path, undisturbed: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STRIKES", ",".join(f"{phase}:worker" for phase in PHASES))
    done = run(beside, *ROWS)
    assert done.exit_code == 1, done.output
    assert {path.name for path in marks.iterdir()} == set(PHASES)
    assert all(ends(int(pid)) for phase in PHASES for pid in (marks / phase).read_text().split())
    found = cells(beside)
    killed = {
        ("sound", "C1"),  # the feature pass ends every cell that rests on it
        ("sound", "Q2"),
        ("sound~pooled", "C1"),  # training
        ("sound~pooled", "Q2"),  # metric
        ("sound:shift=0.5", "C1"),  # the cell was written, and not yet in place
    }
    assert {key for key, cell in found.items() if cell.status == "killed"} == killed
    assert all(found[key].status == "ok" for key in found.keys() - killed)
    for name in killed:
        assert found[name].reason.startswith("The worker was killed by SIGKILL.")
        assert found[name].reason in Store(beside).path(found[name]).with_suffix(FAILURE).read_text()
        assert f"{name[0]} {name[1]} killed" in done.stderr
    finished = stamps(beside)
    again = run(beside, *ROWS)
    assert again.exit_code == 0, again.output
    assert computed(again) == len(killed)
    assert finished.items() <= stamps(beside).items()
    assert figures(beside) == figures(undisturbed)
    assert not list(beside.rglob(f"*{FAILURE}"))
    assert not leftovers(beside)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is refused: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_and_a_read_only_disk_are_said_so_and_lose_nothing(beside: Path, undisturbed: Path, disk: Path) -> None:
    results = disk / "results"
    shutil.copytree(beside, results)
    whole = {path: path.read_bytes() for path in results.rglob("*.*") if path.suffix in (".json", ".safetensors")}
    arguments = ("-e", "sound", "-x", "Q2")

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = run(results, *arguments)
    assert (done.exit_code, done.stdout) == (4, "")
    assert re.fullmatch(r"error: Cannot write .*: Read-only file system\.\n.*\n", done.stderr)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)

    filler = disk / "filler"
    room = os.statvfs(disk)
    filler.write_bytes(b"0" * (room.f_bavail * room.f_bsize - 8192))  # the scores of a cell take more
    done = run(results, *arguments)
    assert (done.exit_code, done.stdout) == (4, "")
    assert re.fullmatch(r"error: Cannot write .*: No space left on device\.\n.*\n", done.stderr)
    assert not leftovers(results)
    assert {path: path.read_bytes() for path in whole} == whole
    filler.unlink()
    done = run(results, *arguments)
    assert done.exit_code == 0, done.output
    assert figures(results)["sound", "Q2"] == figures(undisturbed)["sound", "Q2"]


@pytest.mark.slow
def test_two_runs_at_once_share_a_folder(beside: Path, undisturbed: Path) -> None:
    both = [start(beside, "-e", "sound", "-x", "Q2") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert figures(beside, "sound") == {("sound", "Q2"): figures(undisturbed)["sound", "Q2"]}
    for cell in Store(beside).cells():
        assert Store(beside).scores(cell)
    assert not leftovers(beside)


def test_a_flipped_byte_in_a_cell_is_noticed_and_the_cell_computed_again(toy: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, toy)
    path = Store(toy).path(cells(toy)["sound:shift=0.5", "Q2"])
    text = path.read_text()
    at = re.search(r'"value": \d+\.(\d)', text)
    assert at is not None
    digit = str((int(at[1]) + 1) % 10)
    path.write_text(text[: at.start(1)] + digit + text[at.end(1) :])
    finished = {where: stamp for where, stamp in _stamps(toy).items() if where != path}
    done = run(toy, *ROWS)
    assert done.exit_code == 0, done.output
    assert computed(done) == 1
    assert figures(toy) == figures(undisturbed)
    assert finished.items() <= stamps(toy).items()


def _stamps(results: Path) -> dict[Path, int]:
    """Return when each cell's file was written, readable or not."""
    return {path: path.stat().st_mtime_ns for path in results.rglob("*.json")}


@pytest.mark.slow
def test_a_control_that_was_killed_leaves_no_verdict_without_it(
    beside: Path, undisturbed: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(beside).path(cells(beside)["blank", "Q2"]).unlink()
    monkeypatch.setenv("TOY_STRIKES", "replace:worker")
    done = run(beside, "-e", "sound", "-x", "Q2")
    assert done.exit_code == 1, done.output
    found = cells(beside)
    assert found["blank", "Q2"].status == "killed"
    assert found["sound", "Q2"].status == "error"
    assert found["sound", "Q2"].reason == "The control blank, which it is judged beside, is not finished."
    again = run(beside, "-e", "sound", "-x", "Q2")
    assert again.exit_code == 0, again.output
    assert figures(beside, "sound", "blank") == {
        key: found for key, found in figures(undisturbed, "sound", "blank").items() if key != ("sound", "C1")
    }
