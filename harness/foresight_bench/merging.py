"""Joining results folders: everything is looked at before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foresight_bench.cells import FINISHED, Cell
from foresight_bench.errors import DataError
from foresight_bench.intake import Intake, take
from foresight_bench.sharding import ShardRecord, plan_digest
from foresight_bench.store import Store

INCIDENTAL = {"cost", "provenance", "warnings", "picture_sha256"}
"""What may differ between two runs of one cell that found the same."""


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    cells: int
    """Cells in the folder afterwards."""
    added: int
    """Those of them that were not there before."""


def merge(sources: Sequence[Path], out: Path) -> Merged:
    """Join the cells in ``sources``, their scores and their pictures, into the folder ``out``, new or not.

    Of a cell that several folders hold, the finished one is taken, and of several that found the same the first.

    Raises:
        DataError: a folder holds a file that is not sound, the cells are not of one cohort, two contradict each other,
            or a shard is missing; nothing is written.
        EnvironmentFault: ``out`` cannot be written.
    """
    before = take(out) if out.exists() else Intake(out)
    taken = [before, *map(take, sources)]
    faults = [f"{intake.root}/{fault}" for intake in taken for fault in intake.faults]
    _refuse(faults, "Run `foresight-bench validate` on the folder, and delete or restore what it names.")
    cohorts = sorted({cell.identity.cohort for intake in taken for cell in intake.cells})
    if not cohorts:
        raise DataError("The folders hold no cells.", "Name results folders, as `run --results` writes them.")
    if len(cohorts) > 1:
        raise DataError(
            f"The folders hold cells of {len(cohorts)} cohorts: {', '.join(cohorts)}.",
            "Only one cohort can be compared; merge each into a folder of its own.",
        )
    chosen, conflicts = _choose(taken)
    _refuse(conflicts, "Equal identities must give equal scores; find out which of the two is wrong, and delete it.")
    finished = {cell.id for _, cell in chosen if cell.status in FINISHED}
    shards = [record for intake in taken for record in intake.shards.values()]
    _refuse(missing_shards(shards, finished), "Name the folders of all shards, or run the missing ones.")

    store = Store(out)
    store.check_writable()
    new = [(intake, cell) for intake, cell in chosen if intake is not before]
    for intake, cell in new:
        store.write(cell, intake.beside(cell, ".safetensors"), intake.beside(cell, ".png"))
    return Merged(len(chosen), len(new))


def _choose(taken: Sequence[Intake]) -> tuple[list[tuple[Intake, Cell]], list[str]]:
    """Return the one cell to keep of each id and machine with where it is from, and what contradicts what.

    The first of ``taken`` is the folder that is written to: what is finished there is never changed.
    """
    found: dict[tuple[str, str], list[tuple[Intake, Cell]]] = {}
    for intake in taken:
        for cell in intake.cells:
            found.setdefault((cell.provenance.machine, cell.id), []).append((intake, cell))
    chosen, conflicts = [], []
    for same in found.values():
        done = [(intake, cell) for intake, cell in same if cell.status in FINISHED]
        for intake, cell in done[1:]:
            if _substance(cell) != _substance(done[0][1]):
                conflicts.append(
                    f"{intake.path(cell)} and {done[0][0].path(done[0][1])} are one cell and hold different results"
                )
        kept = [(intake, cell) for intake, cell in done if intake is taken[0]]
        chosen.append(min(kept or done or same, key=lambda each: each[1].provenance.finished))
    return chosen, conflicts


def _substance(cell: Cell) -> dict[str, object]:
    return cell.model_dump(exclude=INCIDENTAL)


def missing_shards(shards: Sequence[ShardRecord], finished: set[str]) -> list[str]:
    """Return what of the plans that ``shards`` are part of is not there, given the ids of the finished cells."""
    plans: dict[tuple[str, int], list[ShardRecord]] = {}
    for record in shards:
        plans.setdefault((record.plan, record.of), []).append(record)
    missing = []
    for (plan, of), records in plans.items():
        here = {record.shard for record in records}
        # Of at most as many as are here, whatever `of` claims: a file can ask for a billion.
        absent = [shard for shard in range(1, min(of, len(here) + 3) + 1) if shard not in here]
        if absent:
            names = ", ".join(map(str, absent[:3]))
            missing.append(f"of plan {plan} in {of} shards there are {len(here)}, not {names}")
        for record in records:
            lacking = sorted(set(record.cells) - finished)
            if lacking:
                missing.append(
                    f"shard {record.shard} of {of} of plan {plan} has {len(lacking)} unfinished cells, as {lacking[0]}"
                )
        if not absent and plan_digest(cell for record in records for cell in record.cells) != plan:
            missing.append(f"the shards of plan {plan} do not hold the cells of that plan")
    return missing


def _refuse(problems: Sequence[str], hint: str) -> None:
    """Raise a :class:`DataError` for the first of ``problems`` that counts the others, if there are any."""
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"Cannot merge: {problems[0]}{more}.", hint)
