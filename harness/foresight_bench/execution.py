"""The parent's side of a run: which cells are missing, workers for them, and what becomes of each. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import cast

from foresight_bench.cells import Cell, Provenance, Status, outcome_line
from foresight_bench.devices import Device
from foresight_bench.errors import EnvironmentFault, ForesightError
from foresight_bench.executors import Executor
from foresight_bench.identities import library_versions
from foresight_bench.jobs import CELL_UNITS, Event, Job, Settings, cut, units
from foresight_bench.memory import check_room
from foresight_bench.observing import Observers
from foresight_bench.plan import Plan
from foresight_bench.plugins import Plugin
from foresight_bench.progress import Progress
from foresight_bench.store import Store


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    cells: Mapping[str, Cell]
    """Every cell of the plan that has a file, by id."""
    reused: int
    """How many were finished before."""
    faults: tuple[ForesightError, ...] = ()
    """What kept an encoder from running at all; its cells have failed."""


def execute(
    plan: Plan,
    settings: Settings,
    executor: Executor,
    store: Store,
    frames: int,
    refused: Mapping[str, EnvironmentFault] = MappingProxyType({}),
    plugins: Sequence[Plugin] = (),
) -> RunResult:
    """Compute the missing cells of ``plan`` and return all of them.

    Finished cells are reused, failed ones retried. If a worker dies, what it was working on ends with a typed status,
    and another worker takes up the rest.

    Args:
        frames: in the suite, for the progress bar.
        refused: why a row is not tried, by its label: see :func:`refusals`.
        plugins: the observers among them are told how the run goes on.

    Raises:
        ForesightError: something that concerns every cell: data, disk, plugins.
        KeyboardInterrupt: interrupted; the workers are gone, finished cells are on disk.
    """
    store.check_writable()
    machine = settings.provenance.machine
    finished = store.finished(plan.cohort, machine)
    missing = frozenset(cell.id for cell in plan.cells) - finished.keys()
    observers = Observers(plugins)
    run = _Run(plan, settings, executor, store, observers)
    observers.run_started(plan, missing)
    try:
        if missing:
            able = missing - run.give_up(missing, refused)
            with Progress(units(plan.rows, able, frames)) as progress:
                run.finish(cut(plan, able, settings, executor.slots), progress)
    finally:
        observers.run_finished(lambda: list(_present(plan, store, machine).values()))
    cells = _present(plan, store, machine)
    return RunResult(cells, len({cell.id for cell in plan.cells} - missing), tuple(run.faults))


def _present(plan: Plan, store: Store, machine: str) -> dict[str, Cell]:
    """Return the cells of ``plan`` that have a file, by id."""
    readable = store.readable(plan.cohort, machine)
    return {cell.id: readable[cell.id] for cell in plan.cells if cell.id in readable}


def refusals(plan: Plan, device: Device) -> dict[str, EnvironmentFault]:
    """Return why a row cannot run, by its label: the device has no room for the weights of an encoder.

    Raises:
        EnvironmentFault: that goes for every encoder that was asked for.
    """
    found: dict[str, EnvironmentFault] = {}
    for row in plan.rows:
        if row.weights_bytes:
            try:
                check_room(f"The weights of {row.label}", row.weights_bytes, device)
            except EnvironmentFault as error:
                found[row.label] = error
    if found and all(row.label in found for row in plan.rows if not row.control):
        raise next(iter(found.values()))
    return found


class _Run:
    """The jobs of one run, in the slots of an executor."""

    def __init__(self, plan: Plan, settings: Settings, executor: Executor, store: Store, observers: Observers) -> None:
        self.faults: list[ForesightError] = []
        self.failed: dict[str, Cell] = {}
        self._planned = {cell.id: (row, cell) for row in plan.rows for cell in row.cells}
        self._settings, self._executor, self._store, self._observers = settings, executor, store, observers
        self._settled: set[str] = set()
        self._stopped = False

    def give_up(self, missing: frozenset[str], refused: Mapping[str, EnvironmentFault]) -> frozenset[str]:
        """Fail the cells that cannot be computed here, and return their ids."""
        given_up = set()
        for cell_id in missing:
            row, cell = self._planned[cell_id]
            if cell.lacking is not None:
                self._fail(cell_id, "weights_missing", cell.lacking)
            elif row.label in refused:
                self._fail(cell_id, "oom", refused[row.label])
            else:
                continue
            given_up.add(cell_id)
        return frozenset(given_up)

    def finish(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Run ``jobs``, each as soon as there is a slot and the controls that it awaits are settled.

        Raises:
            ForesightError: what concerns every cell.
        """
        waiting, running = list(jobs), dict[Future[None], int]()
        coming = frozenset[str]().union(*(job.ids for job in jobs))
        free = list(range(self._executor.slots))
        with ThreadPoolExecutor(self._executor.slots) as pool:
            try:
                while waiting or running:
                    for job in list(waiting):
                        if free and not (job.awaits & coming) - self._settled:
                            waiting.remove(job)
                            slot = free.pop(0)
                            running[pool.submit(self._finish, job, slot, progress)] = slot
                    done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                    for future in done:
                        free.append(running.pop(future))
                        future.result()
            except BaseException:
                self._stopped = True
                self._executor.stop()
                raise

    def _finish(self, job: Job, slot: int, progress: Progress) -> None:
        """Run one job to its end, with another worker for what is left whenever one dies."""
        while job.rows:
            at, death = "", None
            for event in self._executor.run(job, slot):
                progress.show(event)
                at = event.began or at
                if event.began in self._planned:
                    self._observers.cell_started(self._planned[event.began][1])
                if event.ended:
                    self._settled.add(event.ended)
                    self._observers.cell_finished(partial(self._written, event.ended))
                if event.error:
                    error = ForesightError(event.error, event.hint)
                    error.exit_code = event.exit_code
                    if event.fatal:
                        raise error
                    self.faults.append(error)
                if event.died:
                    death = event
            if self._stopped:  # that the worker was killed says nothing of its cell
                return
            job = job.without(self._settled)
            if death is None:
                death = Event(died="error", text="The worker ended before the cell did.")
            for cell_id in self._blamed(job, at):
                self._fail(cell_id, death.died, ForesightError(death.text), self._executor.last_words(slot))
                progress.show(Event(outcome_line(self.failed[cell_id]), CELL_UNITS, ended=cell_id))
            job = job.without(self._settled)

    def _blamed(self, job: Job, at: str) -> frozenset[str]:
        """Return the ids of the cells that end when a worker died at ``at``, a cell or a row; all if at neither."""
        if at in job.ids:
            return frozenset({at})
        mine = [cell.identity.cell_id() for row in job.rows if row.label == at for cell in row.cells]
        return frozenset(mine) or job.ids

    def _written(self, cell_id: str) -> Cell | None:
        identity, machine = self._planned[cell_id][1].identity, self._settings.provenance.machine
        return self._store.find(identity.cohort, machine, identity.encoder, cell_id)

    def _fail(self, cell_id: str, status: str, error: ForesightError, printed: str = "") -> None:
        """Write the cell of what ended without one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        cell = Cell(
            id=cell_id,
            identity=self._planned[cell_id][1].identity,
            status=cast(Status, status),
            reason=error.message,
            provenance=self._settings.provenance.model_copy(update={"finished": now}),
        )
        self._store.write(cell, failure=f"{error.message}\n\n{printed or 'The worker printed nothing.'}\n")
        self.failed[cell_id] = cell
        self._settled.add(cell_id)
        self._observers.cell_finished(lambda: cell)
        if isinstance(error, EnvironmentFault) and error.message not in [fault.message for fault in self.faults]:
            self.faults.append(error)


def usable_threads() -> int:
    """Return how many threads a worker computes with on a CPU: as many as there are cores for this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))


def current_provenance(device: Device, weights_sources: Mapping[str, str]) -> Provenance:
    """Return where and with what a cell is computed now."""
    commit, dirty = _source_tree()
    return Provenance(
        device=device.model,
        machine=device.machine,
        commit=commit,
        dirty=dirty,
        python=".".join(map(str, sys.version_info[:3])),
        libraries=dict(library_versions(minor=False)),
        weights_sources=dict(weights_sources),
        finished="",
    )


def _source_tree() -> tuple[str, bool]:
    """Return the commit of the tree this package is run from, and whether it has changes; ``""`` if none."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        # Only a tree that tracks this file: an installed copy may lie inside somebody's unrelated repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False
