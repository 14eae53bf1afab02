"""From an outcome and the controls beside it to the metric results of a cell."""

from __future__ import annotations

import math
from collections.abc import Mapping

from foresight_bench.cells import Estimate, MetricResult
from foresight_bench.contracts import Measurement, Outcome
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores
from foresight_bench.specs import Criterion, ExperimentSpec
from foresight_bench.verdicts import judge

OWN_FLOOR = "shuffled"
"""The floor that a row makes of itself; every other floor is a control row."""


def metric_results(
    spec: ExperimentSpec,
    outcome: Outcome,
    registry: Registry,
    controls: Mapping[str, Mapping[str, Scores]] | None,
) -> tuple[MetricResult, ...]:
    """Return one result per measurement, the gating ones judged.

    Args:
        controls: gating scores by control row and metric; None for a control row, which is not judged.

    A gated metric that was measured twice at the gating tap and readout, or not at all, is NOT RUN.
    """
    results = []
    gated = {criterion.metric: criterion for criterion in spec.criteria if criterion.threshold is not None}
    seen: dict[str, int] = {}
    gating = outcome.tap, outcome.readout
    for m in outcome.measurements:
        if (m.tap, m.readout) == gating:
            seen[m.metric] = seen.get(m.metric, 0) + 1
    own = {m.metric: m.scores for m in outcome.shuffled if (m.tap, m.readout) == gating}
    for m in outcome.measurements:
        result = _plain(m, registry)
        gates = m.metric in gated and (m.tap, m.readout) == gating
        if gates:
            once = m.scores if seen[m.metric] == 1 else None
            result = _judged(result, once, gated[m.metric], own, controls)
        results.append(result)
    for metric, criterion in gated.items():
        if metric not in seen:
            missing = Measurement(metric, outcome.tap, outcome.readout, _absent())
            results.append(_judged(_plain(missing, registry), None, criterion, own, controls))
    return tuple(results)


def _plain(m: Measurement, registry: Registry) -> MetricResult:
    spec = registry.metrics[m.metric].spec
    return MetricResult(
        metric=m.metric,
        tap=m.tap,
        readout=m.readout,
        direction=spec.direction,
        implementation=spec.version,
        estimate=estimate(m.scores),
        details={name: value if math.isfinite(value) else None for name, value in m.scores.details.items()},
        gates=False,
    )


def _judged(
    result: MetricResult,
    scores: Scores | None,
    criterion: Criterion,
    own: Mapping[str, Scores],
    controls: Mapping[str, Mapping[str, Scores]] | None,
) -> MetricResult:
    assert criterion.threshold is not None
    update: dict[str, object] = {"gates": True, "threshold": criterion.threshold}
    if controls is None:
        floors: dict[str, Scores | None] = {OWN_FLOOR: own.get(criterion.metric)}
        update["floors"] = {name: estimate(floor) for name, floor in floors.items() if floor is not None}
        return result.model_copy(update=update)
    floors = {
        name: own.get(criterion.metric) if name == OWN_FLOOR else controls.get(name, {}).get(criterion.metric)
        for name in criterion.floors
    }
    ceiling = controls.get(criterion.ceiling, {}).get(criterion.metric)
    judgement = judge(scores, criterion.threshold, result.direction, floors, ceiling)
    update |= {
        "ceiling": estimate(ceiling) if ceiling is not None else None,
        "ceiling_name": criterion.ceiling,
        "floors": {name: estimate(floor) for name, floor in floors.items() if floor is not None},
        "best_floor": judgement.floor,
        "skill": judgement.skill,
        "verdict": str(judgement.verdict),
        "reason": judgement.reason,
        "clips_needed": judgement.clips_needed,
    }
    return result.model_copy(update=update)


def estimate(scores: Scores) -> Estimate:
    """Return the value and interval of ``scores``; null where not finite."""
    if not scores.finite:
        return Estimate(value=None, low=None, high=None, n=scores.n)
    low, high = scores.interval()
    return Estimate(value=scores.value, low=low, high=high, n=scores.n)


def _absent() -> Scores:
    import numpy as np

    return Scores(float("nan"), np.full(1, np.nan), 0)
