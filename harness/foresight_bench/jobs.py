"""What one worker computes, as data that travels to another process or machine. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from foresight_bench import names
from foresight_bench.cells import CellIdentity, Provenance
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.plan import Plan, PlannedCell, Row
from foresight_bench.registry import Registry
from foresight_bench.specs import Precision

CELL_UNITS = 150
"""Progress units of one cell, in frames through an encoder: on a CPU an experiment takes 5 to 30 s, a frame .1 s."""


class Message(BaseModel):
    """Base of what is sent: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsRecord(Message):
    """Weights that the parent resolved."""

    path: str
    sha256: str
    source: str
    files: dict[str, str]

    @classmethod
    def of(cls, weights: ResolvedWeights) -> WeightsRecord:
        """Return the record of ``weights``."""
        return cls(path=str(weights.path), sha256=weights.sha256, source=weights.source, files=dict(weights.files))

    def resolved(self) -> ResolvedWeights:
        """Return what the record was made of."""
        return ResolvedWeights(Path(self.path), self.sha256, self.source, self.files)


class JobCell(Message):
    """A planned cell."""

    identity: CellIdentity
    controls: dict[str, str]


class JobRow(Message):
    """A row of the plan, with the cells of it that are missing."""

    label: str
    control: bool
    cells: tuple[JobCell, ...]

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders in it."""
        return tuple(stream.name for stream in names.parse(self.label))

    @classmethod
    def of(cls, row: Row, ids: frozenset[str]) -> JobRow:
        """Return ``row`` with those of its cells whose id is among ``ids``."""
        cells = tuple(
            JobCell(identity=cell.identity, controls=dict(cell.controls)) for cell in row.cells if cell.id in ids
        )
        return cls(label=row.label, control=row.control, cells=cells)

    def planned(self, registry: Registry) -> Row:
        """Return the row as the plan had it."""
        cells = tuple(PlannedCell(cell.identity, cell.controls) for cell in self.cells)
        return Row(self.label, registry.resolve(self.label), self.control, cells)


class Job(Message):
    """Some rows, for one worker."""

    suite: str
    limit: int
    """Clips of each block that are used at most; 0 for all."""
    cohort: str
    rows: tuple[JobRow, ...]
    weights: dict[str, WeightsRecord]
    results: str
    """Folder that cells are written to, and controls are read from."""
    provenance: Provenance
    device: str
    precision: Precision
    compiled: bool | None
    """Whether encoders are compiled; None for where it pays."""
    threads: int
    """Of a CPU, for torch and the libraries below it: sums depend on how many there are."""

    @property
    def ids(self) -> frozenset[str]:
        """Ids of its cells."""
        return frozenset(cell.identity.cell_id() for row in self.rows for cell in row.cells)

    @property
    def awaits(self) -> frozenset[str]:
        """Ids of the control cells of other jobs that its own are judged beside."""
        named = {control for row in self.rows for cell in row.cells for control in cell.controls.values()}
        return frozenset(named) - self.ids

    def without(self, done: Iterable[str]) -> Job:
        """Return what is left of the job once the cells ``done`` are settled."""
        settled = frozenset(done)
        rows = []
        for row in self.rows:
            cells = tuple(cell for cell in row.cells if cell.identity.cell_id() not in settled)
            if cells:
                rows.append(row.model_copy(update={"cells": cells}))
        return self.model_copy(update={"rows": tuple(rows)})


@dataclass(frozen=True)
class Event:
    """What a worker says; one JSON object a line."""

    text: str = ""
    """What is going on."""
    units: int = 0
    """Work that just ended, in frames through an encoder."""
    began: str = ""
    """Id of the cell, or label of the row, that is worked on from now on, and to blame if the worker dies."""
    ended: str = ""
    """Id of the cell whose file was just written."""
    error: str = ""
    """What a user must mend, one sentence."""
    hint: str = ""
    exit_code: int = 0
    fatal: bool = False
    """Whether the error concerns every cell."""
    died: str = ""
    """Status of what the worker was working on when it ended without a word; said by its supervisor."""

    def line(self) -> str:
        """Return the event as a line; fields that say nothing are left out."""
        return json.dumps({key: value for key, value in vars(self).items() if value}) + "\n"

    @classmethod
    def read(cls, line: bytes) -> Event | None:
        """Return the event of a line, None if the line is none."""
        try:
            record = json.loads(line)
            return cls(**record)
        except (ValueError, TypeError, RecursionError):
            return None


@dataclass(frozen=True)
class Settings:
    """What all jobs of a run have in common, beside the plan."""

    results: Path
    provenance: Provenance
    device: str
    compiled: bool | None = None
    threads: int = 1


def cut(plan: Plan, missing: frozenset[str], settings: Settings, slots: int) -> list[Job]:
    """Return the jobs that compute the cells ``missing``: one for each encoder, whose rows share a worker.

    Args:
        slots: how many jobs run at once. If one, the controls go with the first encoder, whose worker then has what
            controls and encoders share; else they are dealt out to as many jobs, since all encoders await them.
    """
    groups: dict[object, list[Row]] = {}
    dealt = 0
    for row in plan.rows:
        if missing.isdisjoint(cell.id for cell in row.cells):
            continue
        if row.control:
            groups.setdefault(f"controls {dealt % slots}", []).append(row)
            dealt += 1
        else:
            groups.setdefault(tuple(stream.backbone for stream in row.streams), []).append(row)
    rows = list(groups.values())
    if slots == 1 and dealt and len(rows) > 1 and _environment(rows[0][0]) == _environment(rows[1][0]):
        rows = [rows[0] + rows[1], *rows[2:]]
    records = {name: WeightsRecord.of(weights) for name, weights in plan.weights.items()}
    return [
        Job(
            suite=plan.suite,
            limit=plan.limit,
            cohort=plan.cohort,
            rows=tuple(JobRow.of(row, missing) for row in group),
            weights=records,
            results=str(settings.results),
            provenance=settings.provenance,
            device=settings.device,
            precision=plan.precision,
            compiled=settings.compiled,
            threads=settings.threads,
        )
        for group in rows
    ]


def _environment(row: Row) -> Mapping[str, str]:
    return row.cells[0].identity.libraries


def units(rows: Iterable[Row], missing: frozenset[str], frames: int) -> int:
    """Return the units of work in the cells ``missing``, of a suite of ``frames`` frames."""
    passes: set[object] = set()
    cells = 0
    for row in rows:
        wanted = [cell for cell in row.cells if cell.id in missing]
        cells += len(wanted)
        if wanted:
            seed = wanted[0].identity.seed
            passes.update((stream.backbone, seed if stream.random else 0) for stream in row.streams)
    return CELL_UNITS * cells + frames * len(passes)


def frame_count(blocks: Mapping[str, Sequence[tuple[int, int]]]) -> int:
    """Return the frames in all blocks (clips, frames) of all splits."""
    return sum(clips * frames for split in blocks.values() for clips, frames in split)
