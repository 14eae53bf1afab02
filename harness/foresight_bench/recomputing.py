"""Whether a cell and the scores beside it say the same, as far as scores in float32 can tell."""

from __future__ import annotations

import numpy as np

from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.packing import Key
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores, mean_scores

ROUNDING = 1e-6
"""Of the largest of the numbers compared. Replicates and per-clip scores are stored in float32: it moves the ends of an
interval by up to 6e-8 of the replicates, and replicates that are computed anew from the clips by up to 7e-8."""


def agree(one: Estimate, other: Estimate) -> bool:
    """Return whether two estimates are the same but for rounding."""
    pairs = [(one.value, other.value), (one.low, other.low), (one.high, other.high)]
    numbers = [(a, b) for a, b in pairs if a is not None and b is not None]
    if one.n != other.n or any((a is None) != (b is None) for a, b in pairs):
        return False
    scale = max((abs(number) for pair in numbers for number in pair), default=0.0)
    return all(abs(a - b) <= ROUNDING * scale for a, b in numbers)


def key(result: MetricResult) -> Key:
    """Return where the scores of ``result`` stand in the file beside its cell."""
    return Key(result.metric, result.tap, result.readout)


def is_mean(registry: Registry, metric: str) -> bool:
    """Return whether the statistic is the mean of the per-clip scores, as that of every metric of frames is."""
    return registry.metrics[metric].spec.kind == "frames"


def follows(scores: Scores) -> bool:
    """Return whether value and replicates are those of the mean over ``per_clip``; True where either is not finite."""
    if scores.per_clip is None or not scores.finite:
        return True
    if scores.per_clip.ndim != 1 or not len(scores.per_clip):
        return False
    mean = mean_scores(scores.per_clip)
    if len(mean.replicates) != len(scores.replicates):
        return False
    found, expected = np.append(scores.replicates, scores.value), np.append(mean.replicates, mean.value)
    return bool(np.abs(found - expected).max() <= ROUNDING * np.abs(scores.per_clip).max())


def altered(registry: Registry, cell: Cell, scores: dict[Key, Scores]) -> list[str]:
    """Return the names of the scores of ``cell`` whose value or replicates are not those of their per-clip scores."""
    return [
        str(each)
        for each, found in scores.items()
        if each.metric in registry.metrics.names() and is_mean(registry, each.metric) and not follows(found)
    ]
