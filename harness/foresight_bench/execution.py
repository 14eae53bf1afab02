"""The parent's side of a run: which cells are missing, one worker for them, and a progress bar. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from foresight_bench.cells import Cell, Provenance
from foresight_bench.devices import Device
from foresight_bench.errors import ForesightError
from foresight_bench.memory import check_room
from foresight_bench.plan import Plan, PlannedCell, Selection, library_versions
from foresight_bench.store import Store
from foresight_bench.worker import Job

ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=134217728:glibc.malloc.trim_threshold=536870912"
"""Lets the worker keep and reuse its memory, in huge pages. By default every tensor over 32 MB is mapped and
unmapped anew: one control row of `quick` took 11.2 s in the kernel and 36.9 s in all, against 5.1 s and 31.0 s."""


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    cells: Mapping[str, Cell]
    """Every cell of the plan that has a file, by id."""
    reused: int
    """How many were finished before."""
    faults: tuple[ForesightError, ...] = ()
    """What kept an encoder from running at all; its cells have failed."""


def execute(plan: Plan, selection: Selection, device: Device, store: Store) -> RunResult:
    """Compute the missing cells of ``plan`` and return all of them.

    Finished cells are reused, failed ones retried. If the worker dies, its unfinished cells get status
    ``error`` and everything it finished is kept.

    Raises:
        ForesightError: something that concerns every cell: data, disk, plugins.
        EnvironmentFault: the device has no room for the weights of an encoder.
        KeyboardInterrupt: interrupted; the worker is gone, finished cells are on disk.
    """
    store.check_writable()
    finished = store.finished(plan.cohort, device.machine)
    wanted = plan.cells
    missing = [cell for cell in wanted if cell.id not in finished]
    faults: tuple[ForesightError, ...] = ()
    if missing:
        ids = {cell.id for cell in missing}
        for row in plan.rows:
            if row.weights_bytes and not ids.isdisjoint(cell.id for cell in row.cells):
                check_room(f"The weights of {row.label}", row.weights_bytes, device)
        provenance = current_provenance(device, {name: w.source for name, w in plan.weights.items()})
        job = Job.of(selection, dict(plan.weights), [cell.id for cell in missing], store.root, provenance)
        log = store.root / plan.cohort / device.machine / "worker.log"
        faults = _run_worker(job, log)
        finished = {**store.finished(plan.cohort, device.machine), **_failed(store, plan, device)}
        for cell in missing:
            if cell.id not in finished:
                finished[cell.id] = _died(store, cell, provenance, log)
    cells = {cell.id: finished[cell.id] for cell in wanted if cell.id in finished}
    return RunResult(cells, len(wanted) - len(missing), faults)


def _run_worker(job: Job, log: Path) -> tuple[ForesightError, ...]:
    """Run the worker to its end, showing its progress; return what kept single encoders from running.

    Raises:
        ForesightError: the worker reported one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "foresight_bench.worker"]
    bar = tqdm(
        total=1,
        file=sys.stderr,
        disable=None,  # silent when stderr is not a terminal
        bar_format="{percentage:3.0f}% {bar:30} {elapsed}<{remaining} {desc}",
        dynamic_ncols=True,
        leave=False,
    )
    failure: ForesightError | None = None
    faults = []
    with (
        bar,
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ},
        ) as worker,
    ):
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(job.model_dump_json())
            worker.stdin.close()
            for line in worker.stdout:
                event = json.loads(line)
                if "error" in event:
                    error = ForesightError(event["error"], event["hint"])
                    error.exit_code = event["exit_code"]
                    if event["fatal"]:
                        failure = error
                    else:
                        faults.append(error)
                    continue
                if event["total"] is not None:
                    bar.reset(event["total"])
                bar.set_description_str(event["text"], refresh=False)
                bar.update(event["units"])
                bar.refresh()
            worker.wait()
        except BaseException:
            worker.kill()
            raise
    if failure is not None:
        raise failure
    return tuple(faults)


def _failed(store: Store, plan: Plan, device: Device) -> dict[str, Cell]:
    ids = {cell.id for cell in plan.cells}
    found = store.cells(plan.cohort, device.machine)
    return {cell.id: cell for cell in found if cell.id in ids and cell.status not in ("ok", "skipped")}


def _died(store: Store, planned: PlannedCell, provenance: Provenance, log: Path) -> Cell:
    """Write and return the cell of a worker that ended before it could."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    cell = Cell(
        id=planned.id,
        identity=planned.identity,
        status="error",
        reason="The worker ended before this cell did.",
        provenance=provenance.model_copy(update={"finished": now}),
    )
    store.write(cell)
    return cell


def current_provenance(device: Device, weights_sources: Mapping[str, str]) -> Provenance:
    """Return where and with what a cell is computed now."""
    commit, dirty = _source_tree()
    return Provenance(
        device=device.model,
        machine=device.machine,
        commit=commit,
        dirty=dirty,
        python=".".join(map(str, sys.version_info[:3])),
        libraries=library_versions(minor=False),
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
