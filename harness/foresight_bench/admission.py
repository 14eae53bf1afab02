"""Which files of a results folder a board may speak of. Whatever it leaves out it names, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foresight_bench.cells import Cell
from foresight_bench.errors import DataError
from foresight_bench.intake import Intake, Problem, plain, problem, take
from foresight_bench.judging import estimate
from foresight_bench.recomputing import agree, key
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores
from foresight_bench.store import Store
from foresight_bench.tables import combination, gating, suite_experiments
from foresight_bench.validating import foreign


@dataclass(frozen=True)
class Admitted:
    """One cell that a board speaks of."""

    cell: Cell
    """As it was read, but every text in it is printable: whatever a plugin may have named is text, and one line."""
    source: Cell
    """As it was read: what the files beside it are found by."""
    scores: Mapping[str, Scores]
    """Of the metrics that its verdict rests on; empty unless it is ok."""


@dataclass(frozen=True)
class Admission:
    """What a results folder holds for a board."""

    taken: Intake
    admitted: tuple[Admitted, ...]
    """Of every experiment of every system on every kind of machine one, whatever became of it; in order of path."""
    left_out: tuple[Problem, ...]
    """Every file that is not spoken of, in order of path."""


def admit(root: Path, registry: Registry) -> Admission:
    """Read a results folder and leave out what cannot be trusted or compared.

    Left out are files that are altered, cut short, misplaced, of another schema or no results; cells of a cohort that
    is not that of the installed suite, so that its thresholds and controls do not speak of them; cells that were judged
    by other thresholds or whose scores do not give their numbers; and of several runs of the same, all but the latest.

    Raises:
        DataError: there is no such folder.
    """
    taken = take(root)
    left_out = [*taken.faults, *taken.strays]
    sound: list[Admitted] = []
    for cell in taken.cells:
        try:
            sound.append(_admitted(cell, taken, registry))
        except DataError as error:
            left_out.append(problem(root, taken.path(cell), error.message))
    latest: dict[tuple[object, ...], Admitted] = {}
    for each in sorted(sound, key=_precedence):
        latest[_question(each.cell)] = each
    for each in sound:
        if (last := latest[_question(each.cell)]) is not each:
            text = f"{last.cell.id}, the same computed later or to the end, stands for it"
            left_out.append(problem(root, taken.path(each.source), text))
    kept = {id(each) for each in latest.values()}
    admitted = tuple(each for each in sound if id(each) in kept)
    return Admission(taken, admitted, tuple(sorted(left_out, key=lambda each: each.path)))


def _precedence(each: Admitted) -> tuple[bool, str, str]:
    return each.cell.status == "ok", each.cell.provenance.finished, each.cell.id


def _question(cell: Cell) -> tuple[object, ...]:
    return cell.identity.cohort, cell.provenance.machine, cell.identity.experiment, *combination(cell)


def _admitted(cell: Cell, taken: Intake, registry: Registry) -> Admitted:
    """Return ``cell`` with its gating scores; raise :class:`DataError`, why it is left out."""
    for reason in foreign(cell, registry):
        raise DataError(reason)
    scores: dict[str, Scores] = {}
    if cell.status == "ok":
        spec = suite_experiments(registry.suites[cell.identity.suite].spec)[cell.identity.experiment]
        thresholds = {each.metric: each.threshold for each in spec.criteria if each.threshold is not None}
        if {result.metric: result.threshold for result in gating(cell)} != thresholds:
            raise DataError("it was not judged by the thresholds of the installed suite")
        if not cell.scores_sha256:
            raise DataError("it vouches for no scores")
        found = Store(taken.root).scores(cell)
        for result in gating(cell):
            each = found.get(key(result))
            if result.estimate.value is not None and (each is None or not agree(estimate(each), result.estimate)):
                raise DataError(f"its scores do not give its {result.metric}")
            if each is not None:
                scores[result.metric] = each
    return Admitted(Cell.model_validate(_printable(cell.model_dump())), cell, scores)


def _printable(value: Any) -> Any:
    """Return plain data with every text in it printable, keys too."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {_printable(name): _printable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_printable, value))
    return value
