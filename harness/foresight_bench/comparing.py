"""Two systems on the same clips: paired differences, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.errors import DataError, UsageError
from foresight_bench.judging import estimate
from foresight_bench.recomputing import key
from foresight_bench.store import Store, read_scores
from foresight_bench.tables import combination, with_interval

SHORTEST = 4
"""Digits of a cell's id that name it at least; with fewer, a word may be taken for an id."""


@dataclass(frozen=True)
class Found:
    """A cell and where its scores lie."""

    cell: Cell
    scores: Path


@dataclass(frozen=True)
class Difference:
    """One metric of two cells."""

    experiment: str
    system: tuple[str, str]
    """What A and B are, where they are not the encoders alone: adapter, decoder and seed."""
    metric: str
    gates: bool
    a: Estimate
    b: Estimate
    difference: Estimate
    """A minus B, paired clip by clip, with its 95 % interval; null where either is not finite."""
    better: str
    """``A``, ``B``, ``not separated`` if the interval holds 0, or empty where no direction is better."""


def find(name: str, root: Path, experiment: str | None = None) -> list[Found]:
    """Return the finished cells that ``name`` names: a cell's file, the start of its id, or an encoder as in results.

    Raises:
        DataError: it is a file that is no cell, or nothing in ``root`` is called so.
        UsageError: several ids start so.
    """
    store = Store(root)
    if name.endswith(".json"):
        path = Path(name)
        cell = store.read(path)
        if cell.status != "ok":
            raise DataError(f"{path} holds no scores: {cell.reason or cell.status}.", "Name a cell that is ok.")
        return [Found(cell, path.with_suffix(".safetensors"))]
    cells = [cell for cell in store.cells() if cell.status == "ok"]
    chosen = [cell for cell in cells if cell.identity.encoder == name]
    if not chosen and len(name) >= SHORTEST:
        chosen = [cell for cell in cells if cell.id.startswith(name)]
        if len(chosen) > 1:
            raise UsageError(f"{len(chosen)} cells have an id that starts with {name}.", "Name the file of one.")
    chosen = [cell for cell in chosen if experiment in (None, cell.identity.experiment)]
    if not chosen:
        labels = sorted({cell.identity.encoder for cell in cells})
        where = f" of {experiment}" if experiment else ""
        raise DataError(
            f"{root} holds no finished cell{where} called {name}.", f"It holds {', '.join(labels) or 'none'}."
        )
    return [Found(cell, store.path(cell).with_suffix(".safetensors")) for cell in chosen]


def pairs(a: Sequence[Found], b: Sequence[Found]) -> list[tuple[Found, Found]]:
    """Return the cells of A and B that answer the same: all that are equal but for the encoder, or the only two.

    Raises:
        UsageError: there are none, there is more than one choice, or the two are of different cohorts.
    """
    if len(a) == len(b) == 1:
        matched = [(a[0], b[0])]
    else:
        matched = [(one, other) for one in a for other in b if _question(one.cell) == _question(other.cell)]
    if not matched or any(one.cell.identity.experiment != other.cell.identity.experiment for one, other in matched):
        raise UsageError(
            "The two have no experiment in common with equal adapter, decoder and seed.",
            "Name two cells of one experiment by their ids.",
        )
    if len({_question(one.cell) for one, _ in matched}) < len(matched):
        raise UsageError(
            "More than one cell answers the same for one of the two, on another machine or by other code.",
            "Name two cells by their ids.",
        )
    for one, other in matched:
        if one.cell.identity.cohort != other.cell.identity.cohort:
            raise UsageError(
                f"{one.cell.identity.cohort} and {other.cell.identity.cohort} are different cohorts.",
                "Scores on other data or by other metrics cannot be compared; run both on one suite.",
            )
    return sorted(matched, key=lambda pair: _question(pair[0].cell))


def _question(cell: Cell) -> tuple[str, str, str, int]:
    return cell.identity.experiment, *combination(cell)[1:]


def compare(one: Found, other: Found) -> list[Difference]:
    """Return the difference of every metric that both cells have at their gating tap and readout, gated ones first.

    Raises:
        UsageError: they are over different clips.
        DataError: the scores of one are missing, or not those it vouches for.
    """
    a, b = _gating(one.cell), _gating(other.cell)
    scores, others = read_scores(one.scores, one.cell), read_scores(other.scores, other.cell)
    found = []
    for metric in sorted(a.keys() & b.keys(), key=lambda name: (not a[name].gates, list(a).index(name))):
        x, y = scores.get(key(a[metric])), others.get(key(b[metric]))
        if x is None or y is None:
            continue
        try:
            difference = estimate(x.minus(y))
        except ValueError as error:
            raise UsageError(
                f"{metric} is over {x.n} clips in {one.cell.id} and over {y.n} in {other.cell.id}, which do not pair.",
                "Only scores over the same clips can be compared.",
            ) from error
        found.append(
            Difference(
                one.cell.identity.experiment,
                (_system(one.cell), _system(other.cell)),
                metric,
                a[metric].gates,
                estimate(x),
                estimate(y),
                difference,
                _better(difference, a[metric].direction),
            )
        )
    return found


def _gating(cell: Cell) -> dict[str, MetricResult]:
    return {r.metric: r for r in cell.metrics if (r.tap, r.readout) == (cell.tap, cell.readout)}


def _system(cell: Cell) -> str:
    _, adapter, decoder, seed = combination(cell)
    return " + ".join(part for part in (adapter, decoder, f"seed {seed}" if seed else "") if part)


def _better(difference: Estimate, direction: str) -> str:
    if difference.low is None or difference.high is None or direction == "none":
        return ""
    if difference.low <= 0 <= difference.high:
        return "not separated"
    return "A" if (difference.low > 0) == (direction == "higher") else "B"


def record(a: str, b: str, differences: Sequence[Difference]) -> dict[str, object]:
    """Return the comparison of ``a`` and ``b`` as plain data; ``comparisons`` says how many were made, uncorrected."""
    found = [
        {
            "experiment": each.experiment,
            "system_a": each.system[0],
            "system_b": each.system[1],
            "metric": each.metric,
            "gates": each.gates,
            "a": each.a.model_dump(),
            "b": each.b.model_dump(),
            "difference": each.difference.model_dump(),
            "better": each.better,
        }
        for each in differences
    ]
    return {"a": a, "b": b, "comparisons": len(found), "differences": found}


def text(differences: Sequence[Difference]) -> str:
    """Return a table with one row a metric."""
    rows = [
        [
            each.experiment,
            each.system[0] if each.system[0] == each.system[1] else " / ".join(each.system),
            each.metric + ("" if each.gates else " (reported)"),
            with_interval(each.a),
            with_interval(each.b),
            with_interval(each.difference),
            each.better or "-",
        ]
        for each in differences
    ]
    headers = ["experiment", "through", "metric", "A", "B", "A - B", "better"]
    return tabulate(rows, headers, disable_numparse=True)
