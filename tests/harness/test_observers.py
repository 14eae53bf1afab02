"""Observers are told what happens in a run, in order and in plain data; what becomes of them is their own affair."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from foresight_bench import execution
from foresight_bench.cells import Cell, CellIdentity, Estimate, MetricResult, Provenance
from foresight_bench.cli import main
from foresight_bench.errors import ForesightError
from foresight_bench.execution import RunResult, execute
from foresight_bench.jobs import Event, Job, Settings
from foresight_bench.plan import Plan, Selection, plan
from foresight_bench.registry import Registry
from foresight_bench.store import Store

PROVENANCE = Provenance(
    device="", machine="here", commit="", dirty=False, python="", libraries={}, weights_sources={}, finished=""
)
RECORDER = """
import json, os
from foresight_bench import hookimpl

def record(hook, **facts):
    with open(os.environ["OBSERVED"], "a") as file:
        file.write(json.dumps({"hook": hook, "pid": os.getpid(), **facts}) + "\\n")

@hookimpl
def foresight_run_started(plan):
    record("run_started", plan=plan)
    plan.clear()

@hookimpl
def foresight_run_finished(cells):
    record("run_finished", cells=cells)

@hookimpl
def foresight_cell_started(id, identity):
    record("cell_started", id=id, identity=identity)

@hookimpl
def foresight_cell_finished(cell):
    print("an observer prints")
    record("cell_finished", cell=cell)
    cell.clear()
"""
WRITER = """
class SummaryWriter:
    '''Stands for that of tensorboard: same calls, one line of text a scalar.'''

    def __init__(self, log_dir):
        self.file = open(log_dir, "w")

    def add_scalar(self, tag, scalar_value, global_step):
        self.file.write(f"{tag} {scalar_value} {global_step}\\n")

    def close(self):
        self.file.write("closed\\n")
        self.file.close()
"""
BOARD = """
import os
from foresight_bench import hookimpl

@hookimpl
def foresight_run_started():
    global writer, step
    from summary_writer_1 import SummaryWriter
    writer, step = SummaryWriter(os.environ["BOARD"]), 0

@hookimpl
def foresight_cell_finished(cell):
    global step
    for result in cell["metrics"]:
        tag = f"{cell['identity']['encoder']}/{cell['identity']['experiment']}/{result['metric']}"
        writer.add_scalar(tag, result["estimate"]["value"], step)
    step += 1

@hookimpl
def foresight_run_finished():
    writer.close()
"""
FAILING = """
import sys
from foresight_bench import hookimpl

@hookimpl
def foresight_run_started():
    raise RuntimeError("no")

@hookimpl
def foresight_cell_started(identity):
    sys.exit(7)

@hookimpl
def foresight_cell_finished(cell):
    raise RuntimeError("never")

@hookimpl
def foresight_run_finished(cells):
    sys.exit(7)
"""


class Acting:
    """An executor whose workers do nothing but say so, on every cell; ``dies`` names a cell's encoder that kills it."""

    def __init__(self, store: Store, dies: str = "", fatal: str = "", slots: int = 1) -> None:
        self.slots, self._store, self._dies, self._fatal = slots, store, dies, fatal

    def run(self, job: Job, slot: int) -> Iterator[Event]:
        """Yield what a worker would."""
        for row in job.rows:
            yield Event(began=row.label)
            for cell in row.cells:
                yield Event(began=cell.identity.cell_id())
                if row.label == self._dies:
                    yield Event(died="killed", text="It was killed.")
                    return
                if row.label == self._fatal:
                    yield Event(error="All is lost.", fatal=True)
                    return
                self._store.write(finished(cell.identity))
                yield Event(ended=cell.identity.cell_id())

    def last_words(self, slot: int) -> str:
        """Return nothing."""
        return ""

    def stop(self) -> None:
        """Do nothing."""


def finished(identity: CellIdentity) -> Cell:
    half = Estimate(value=0.5, low=0.4, high=0.6, n=3)
    result = MetricResult(
        metric="psnr",
        tap="t",
        readout="tokens",
        direction="higher",
        implementation="1",
        estimate=half,
        details={},
        gates=False,
    )
    return Cell(id=identity.cell_id(), identity=identity, status="ok", metrics=(result,), provenance=PROVENANCE)


@pytest.fixture
def site(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plugins are installed in; ``toy_plugin`` is there."""
    monkeypatch.setenv("OBSERVED", str(toy.parent / "observed"))
    monkeypatch.setenv("BOARD", str(toy.parent / "board"))
    return toy.parent / "site"


def install(site: Path, name: str, source: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[foresight_bench]\n{name} = {name}\n")
    (site / f"{name}.py").write_text(textwrap.dedent(source))


def observed(site: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (site.parent / "observed").read_text().splitlines()]


def ran(site: Path, make: Callable[[Store], Acting], *encoders: str) -> tuple[Plan, RunResult]:
    registry = Registry.installed()
    found = plan(registry, Selection("toy", encoders, ("Q2",), controls=False))
    store = Store(site.parent / "results")
    settings = Settings(store.root, PROVENANCE, "cpu")
    return found, execute(found, settings, make(store), store, 1, plugins=registry.plugins)


def test_an_observer_is_told_everything_in_order(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "recorder_1", RECORDER)
    found, done = ran(site, Acting, "sound", "slow")
    one, two = (cell for cell in found.cells)
    told = observed(site)
    assert [(each["hook"], each.get("id") or each.get("cell", {}).get("id")) for each in told] == [  # type: ignore[attr-defined]
        ("run_started", None),
        ("cell_started", one.id),
        ("cell_finished", one.id),
        ("cell_started", two.id),
        ("cell_finished", two.id),
        ("run_finished", None),
    ]
    assert {each["pid"] for each in told} == {os.getpid()}
    identities = [cell.identity.model_dump(mode="json") for cell in (one, two)]
    cells = [{"id": c.id, "identity": i, "reused": False} for c, i in zip((one, two), identities, strict=True)]
    assert told[0]["plan"] == {"suite": "toy", "cohort": found.cohort, "cells": cells}
    assert told[1]["identity"] == identities[0]
    whole = [done.cells[cell.id].model_dump(mode="json") for cell in (one, two)]
    assert told[2]["cell"] == whole[0]
    assert told[5]["cells"] == whole
    assert capsys.readouterr() == ("", "an observer prints\n" * 2)


def test_finished_cells_are_reused_and_neither_start_nor_finish(site: Path) -> None:
    install(site, "recorder_2", RECORDER)
    ran(site, Acting, "sound")
    (site.parent / "observed").unlink()
    ran(site, Acting, "sound")
    started, ended = observed(site)
    assert [cell["reused"] for cell in started["plan"]["cells"]] == [True]  # type: ignore[index]
    assert [cell["status"] for cell in ended["cells"]] == ["ok"]  # type: ignore[attr-defined]


def test_a_cell_whose_worker_died_is_told_too(site: Path) -> None:
    install(site, "recorder_3", RECORDER)
    ran(site, lambda store: Acting(store, dies="sound"), "sound", "slow")
    told = observed(site)
    ends = [each["cell"]["status"] for each in told if each["hook"] == "cell_finished"]  # type: ignore[index]
    assert ends == ["killed", "ok"]
    assert [cell["status"] for cell in told[-1]["cells"]] == ["killed", "ok"]  # type: ignore[attr-defined]


def test_the_end_of_a_run_that_fails_is_told(site: Path) -> None:
    install(site, "recorder_4", RECORDER)
    with pytest.raises(ForesightError, match="All is lost"):
        ran(site, lambda store: Acting(store, fatal="slow"), "sound", "slow")
    last = observed(site)[-1]
    assert last["hook"] == "run_finished"
    assert [cell["status"] for cell in last["cells"]] == ["ok"]  # type: ignore[attr-defined]


def test_an_observer_that_logs_scalars(site: Path) -> None:
    (site / "summary_writer_1.py").write_text(WRITER)
    install(site, "board_1", BOARD)
    ran(site, Acting, "sound", "slow")
    lines = (site.parent / "board").read_text().splitlines()
    assert lines == ["sound/Q2/psnr 0.5 0", "slow/Q2/psnr 0.5 1", "closed"]


def test_an_observer_that_fails_is_a_warning_and_nothing_more(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "failing_1", FAILING)
    install(site, "recorder_5", RECORDER)
    _, done = ran(site, lambda store: Acting(store, slots=2), "sound", "slow")
    assert [cell.status for cell in done.cells.values()] == ["ok", "ok"]
    assert len(observed(site)) == 6
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "failing_1" in line]
    assert warning == "Observer failing_1 failed in foresight_run_started (RuntimeError: no); the run goes on."


def test_the_command_tells_the_observers(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "recorder_6", RECORDER)
    store = Store(site.parent / "results")
    monkeypatch.setattr("foresight_bench.executors.LocalExecutor", lambda *rest: Acting(store, dies="sound"))
    monkeypatch.setattr(execution, "current_provenance", lambda *rest: PROVENANCE)
    done = CliRunner().invoke(
        main, ["run", "-e", "sound", "-x", "Q2", "--suite", "toy", "--device", "cpu", "--results", str(store.root)]
    )
    assert done.exit_code == 1, done.output
    assert {each["hook"] for each in observed(site)} == {"run_started", "cell_started", "cell_finished", "run_finished"}
