"""Paired contrasts over clips: a tap against those before it, tokens against their mean, training against chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.judging import estimate
from foresight_bench.packing import Key
from foresight_bench.recomputing import key
from foresight_bench.scores import COVERAGE, Scores
from foresight_bench.tables import gating

POOLED = "pooled"
"""The readout beside the one that gates: the mean over the tokens of a frame."""


@dataclass(frozen=True)
class Contrast:
    """One metric under two conditions, on the same clips."""

    experiment: str
    metric: str
    direction: str
    ours: Estimate
    theirs: tuple[Estimate, ...]
    difference: Estimate
    """Ours minus (the mean of) theirs."""


@dataclass(frozen=True)
class Fall:
    """What becomes of one quantity over the taps, in order of depth."""

    metric: str
    direction: str
    best: str
    """The tap where it is best."""
    value: Estimate
    """Its value there."""
    before: str
    """The last tap before the fall; empty if no fall can be told."""
    at: str
    """The first tap where the fall can be told."""
    against: str
    """The best tap before ``at``."""
    change: Estimate | None
    """At ``at`` minus at ``against``."""
    last: Estimate | None
    """At the last tap minus at the best one; None if they are the same."""


def widened(difference: Estimate, comparisons: int) -> Estimate:
    """Return ``difference`` with an interval that holds at 95 % for all of ``comparisons`` together (Bonferroni).

    The half-widths are stretched by the ratio of the normal quantiles: a thousand replicates do not reach as far out.
    """
    if difference.value is None or difference.low is None or difference.high is None:
        return difference
    quantile = NormalDist().inv_cdf
    stretch = quantile(1 - (1 - COVERAGE) / (2 * max(1, comparisons))) / quantile((1 + COVERAGE) / 2)
    low = difference.value - stretch * (difference.value - difference.low)
    high = difference.value + stretch * (difference.high - difference.value)
    return difference.model_copy(update={"low": low, "high": high})


def sense(difference: Estimate, direction: str) -> int:
    """Return 1 if ``difference`` is for the better by its interval, -1 if for the worse, 0 if it cannot be told."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return 0
    return 1 if (difference.low > 0) == (direction == "higher") else -1


def falls(cell: Cell, scores: Mapping[Key, Scores]) -> tuple[list[Fall], int]:
    """Return what becomes of each gated metric over the taps at which it was read, and how many differences count.

    Whichever earlier tap is the best, its difference is one of all pairs of taps; all of them, for all metrics, share
    the 5 %, so that a search through many taps does not find a fall where there is none.
    """
    curves = [_curve(cell, result, scores) for result in gating(cell)]
    comparisons = sum(len(curve) * (len(curve) - 1) // 2 for curve in curves)
    found = []
    for result, curve in zip(gating(cell), curves, strict=True):
        if len(curve) > 1:
            found.append(_fall(result, curve, comparisons))
    return found, comparisons


def _curve(cell: Cell, result: MetricResult, scores: Mapping[Key, Scores]) -> list[tuple[str, Scores]]:
    """Return the finite scores of a metric by tap, in order of depth, at the readout that gates."""
    read = [(tap, scores.get(Key(result.metric, tap, cell.readout))) for tap in cell.identity.taps]
    return [(tap, each) for tap, each in read if each is not None and each.finite and each.n == result.estimate.n]


def _fall(result: MetricResult, curve: Sequence[tuple[str, Scores]], comparisons: int) -> Fall:
    sign = 1 if result.direction == "higher" else -1

    def best(some: Sequence[tuple[str, Scores]]) -> tuple[str, Scores]:
        return max(some, key=lambda each: sign * each[1].value)

    def change(one: Scores, other: Scores) -> Estimate:
        return widened(estimate(one.minus(other)), comparisons)

    top, last = best(curve), curve[-1]
    whole = change(last[1], top[1]) if last[0] != top[0] else None
    told: tuple[str, str, str, Estimate | None] = ("", "", "", None)
    for place in range(1, len(curve)):
        tap, here = curve[place]
        against, before = best(curve[:place])
        difference = change(here, before)
        if sense(difference, result.direction) < 0:
            told = curve[place - 1][0], tap, against, difference
            break
    return Fall(result.metric, result.direction, top[0], estimate(top[1]), *told, whole)


def pooling(cell: Cell, scores: Mapping[Key, Scores]) -> list[Contrast]:
    """Return each gated metric read from the tokens against the same read from their mean, at the tap that gates."""
    found = []
    for result in gating(cell):
        ours, theirs = scores.get(key(result)), scores.get(Key(result.metric, result.tap, POOLED))
        if cell.readout != POOLED and ours and theirs:
            found.append(_contrast(cell, result, ours, [theirs]))
    return found


def training(
    cell: Cell, scores: Mapping[Key, Scores], untrained: Sequence[tuple[Cell, Mapping[Key, Scores]]]
) -> list[Contrast]:
    """Return each gated metric against its mean over the cells of random weights, each at its own tap."""
    found = []
    for result in gating(cell):
        ours = scores.get(key(result))
        theirs = [
            others[key(other)]
            for random, others in untrained
            for other in gating(random)
            if other.metric == result.metric and key(other) in others
        ]
        if ours and theirs and len(theirs) == len(untrained):
            found.append(_contrast(cell, result, ours, theirs))
    return found


def _contrast(cell: Cell, result: MetricResult, ours: Scores, theirs: Sequence[Scores]) -> Contrast:
    """Return ours against the mean of theirs, replicate by replicate; nulls if they do not pair."""
    if {(each.n, len(each.replicates)) for each in theirs} == {(ours.n, len(ours.replicates))}:
        value = float(np.mean([each.value for each in theirs]))
        mean = Scores(value, np.mean([each.replicates for each in theirs], axis=0), ours.n)
        difference = estimate(ours.minus(mean))
    else:
        difference = Estimate(value=None, low=None, high=None, n=ours.n)
    others = tuple(estimate(each) for each in theirs)
    return Contrast(cell.identity.experiment, result.metric, result.direction, estimate(ours), others, difference)
