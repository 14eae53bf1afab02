"""What is wrong with a results folder: everything that can be told without running anything again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from foresight_bench.cells import FINISHED, Cell, Estimate, MetricResult
from foresight_bench.errors import PluginError
from foresight_bench.identities import LIMITED, cohort
from foresight_bench.intake import Intake, Problem, problem, take
from foresight_bench.judging import estimate
from foresight_bench.merging import missing_shards
from foresight_bench.recomputing import ROUNDING, agree, altered, key
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores
from foresight_bench.specs import MetricSpec
from foresight_bench.store import Store
from foresight_bench.tables import suite_experiments

SMOKE = re.compile(rf"(?P<cohort>.*){re.escape(LIMITED)}(?P<limit>[0-9]+)")
"""Name of a cohort that only some of the clips were used for."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def validate(root: Path, registry: Registry) -> list[Problem]:
    """Return every problem of the results in ``root``, in order of path.

    Raises:
        DataError: there is no such folder.
    """
    taken = take(root)
    found = [*taken.faults, *taken.strays]
    for cell in taken.cells:
        found += [problem(root, taken.path(cell), text) for text in _cell_problems(cell, taken, registry)]
    finished = {cell.id for cell in taken.cells if cell.status in FINISHED}
    found += [Problem(".", text) for text in missing_shards(list(taken.shards.values()), finished)]
    return sorted(found, key=lambda each: each.path)


def _cell_problems(cell: Cell, taken: Intake, registry: Registry) -> Iterator[str]:
    yield from _origin_problems(cell, registry)
    if cell.status != "ok":
        return
    if not cell.metrics:
        yield "it is ok and holds no metrics"
    digests = [*cell.identity.weights.values(), *(code.digest for code in cell.identity.code.values())]
    if not cell.identity.code or not all(map(_SHA256.fullmatch, digests)):
        yield "it lacks the digest of its code, or of some weights"
    if not cell.scores_sha256:
        yield "it lacks the digest of its scores"
        return
    scores = Store(taken.root).scores(cell)
    names = [key(result) for result in cell.metrics]
    if len(set(names)) < len(names):
        yield "a metric stands twice at one tap and readout"
    for result in cell.metrics:
        for text in _result_problems(result, scores.get(key(result)), registry):
            yield f"{result.metric} at {result.tap} {result.readout} {text}"
    for name in scores:
        if name.row == "score" and name not in names:
            yield f"the scores {name} belong to none of its metrics"
    for text in altered(registry, cell, scores):
        yield f"the scores {text} are not those of its clips"


def foreign(cell: Cell, registry: Registry) -> Iterator[str]:
    """Say why the installed suite cannot speak of a cell: it is of another cohort, or of no experiment of the suite."""
    identity = cell.identity
    smoke = SMOKE.fullmatch(identity.cohort)
    if smoke:
        yield f"a smoke cohort, of at most {smoke['limit']} clips a block"
    try:
        suite = registry.suites[identity.suite].spec
        expected = cohort(registry, suite)
    except PluginError as error:
        yield f"its suite cannot be checked: {error.message}"
    else:
        if (smoke["cohort"] if smoke else identity.cohort) != expected:
            yield f"its cohort is not that of the installed suite, {expected}"
        if identity.experiment not in suite_experiments(suite):
            yield f"{identity.experiment} is no experiment of the suite {suite.name}"


def _origin_problems(cell: Cell, registry: Registry) -> Iterator[str]:
    """Say what is wrong with where a cell comes from, whatever it holds."""
    yield from foreign(cell, registry)
    if cell.provenance.dirty:
        yield "computed from a tree with uncommitted changes"


def _result_problems(result: MetricResult, scores: Scores | None, registry: Registry) -> Iterator[str]:
    try:
        spec = registry.metrics[result.metric].spec
    except PluginError as error:
        yield f"cannot be checked: {error.message}"
        return
    if (spec.version, spec.direction) != (result.implementation, result.direction):
        yield f"is not of the installed implementation, {spec.version}, {spec.direction} is better"
    if scores is None:
        if result.estimate.value is not None or not result.gates:
            yield "has no scores"
    elif not agree(estimate(scores), result.estimate):
        yield f"is {_numbers(result.estimate)}, and its scores give {_numbers(estimate(scores))}"
    if result.verdict != "NOT RUN" and result.estimate.value is None:
        yield "is not finite"
    others = {"its ceiling": result.ceiling, **{f"its floor {name}": each for name, each in result.floors.items()}}
    for name, each in {"": result.estimate, **others}.items():
        if each is not None:
            for text in _estimate_problems(each, spec):
                yield f"{name}{', ' if name else ''}{text}"


def _estimate_problems(found: Estimate, spec: MetricSpec) -> Iterator[str]:
    if found.value is None or found.low is None or found.high is None:
        if (found.value, found.low, found.high) != (None, None, None):
            yield "lacks its value or its interval"
        return
    slack = ROUNDING * max(abs(found.low), abs(found.high), abs(found.value))
    if not found.low - slack <= found.value <= found.high + slack:
        yield f"{_numbers(found)} does not lie in its interval"
    if spec.range is not None and not spec.range[0] - ROUNDING <= found.value <= spec.range[1] + ROUNDING:
        yield f"{found.value:g} lies outside of what it can be, {spec.range[0]:g} to {spec.range[1]:g}"


def _numbers(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return f"not finite over {found.n} clips"
    return f"{found.value:.6g} [{found.low:.6g}, {found.high:.6g}] over {found.n} clips"
