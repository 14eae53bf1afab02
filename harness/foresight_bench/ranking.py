"""Ranks that are shared where systems cannot be told apart, and what is best for its price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foresight_bench.scores import COVERAGE, Scores


@dataclass(frozen=True)
class Rank:
    """The place of one row by one metric."""

    place: int
    """1 + the number of rows that are better by a paired interval that leaves 0 out."""
    shared: bool
    """Whether another row has the same place."""

    def __str__(self) -> str:
        return f"{self.place}{'=' if self.shared else ''}"


def better(rows: Sequence[Scores], direction: str) -> NDArray[np.bool_]:
    """Return [m, m] whether row i is better than row j: the 95 % interval of their paired difference leaves 0 out.

    It is the interval that ``compare`` shows, :meth:`Scores.minus` and :meth:`Scores.interval`, for all pairs at once.

    Args:
        rows: finite scores from one plan over the same clips, see :func:`alike`.
        direction: ``higher`` or ``lower`` is better; by ``none`` no row is better than another.
    """
    count = len(rows)
    found = np.zeros((count, count), dtype=bool)
    if direction == "none" or count < 2:
        return found
    values = np.array([row.value for row in rows])
    replicates = np.stack([row.replicates for row in rows])
    tails = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
    for i in range(count - 1):
        spread = replicates[i] - replicates[i + 1 :]
        spread -= spread.mean(axis=1, keepdims=True)
        low, high = values[i] - values[i + 1 :] + np.quantile(spread, tails, axis=1, overwrite_input=True)
        over, under = (low > 0, high < 0) if direction == "higher" else (high < 0, low > 0)
        found[i, i + 1 :], found[i + 1 :, i] = over, under
    return found


def alike(rows: Sequence[Scores | None]) -> list[bool]:
    """Return which of ``rows`` can be ranked together: finite, and over the clips and replicates that most are over."""
    plans = [(row.n, len(row.replicates)) if row is not None and row.finite else None for row in rows]
    counts = Counter(plan for plan in plans if plan is not None)
    most = max(counts, key=lambda plan: (counts[plan], plan), default=None)
    return [plan is not None and plan == most for plan in plans]


def ranks(rows: Sequence[Scores | None], direction: str) -> list[Rank | None]:
    """Return the rank of every row, None for one that cannot be compared with the others.

    Not being separated is not transitive: of A, B and C, it may be only A and C that can be told apart. If A is the
    better, A and B share the first place, for nothing beats either, and C takes the second.
    """
    ranked = [i for i, can in enumerate(alike(rows)) if can]
    wins = better([row for i in ranked if (row := rows[i]) is not None], direction)
    places = 1 + wins.sum(axis=0) if direction != "none" else np.array([], dtype=int)
    times = Counter(places.tolist())
    found: list[Rank | None] = [None] * len(rows)
    for i, place in zip(ranked, places.tolist(), strict=False):
        found[i] = Rank(place, times[place] > 1)
    return found


def front(costs: Sequence[float], values: Sequence[float], direction: str) -> list[bool]:
    """Return which points no other one dominates: none is as cheap and as good, and cheaper or better.

    Points that are equal stand on the front together. Intervals are not looked at: ranks do that.
    """
    sign = 1 if direction == "higher" else -1
    qualities = [sign * value for value in values]
    order = sorted(range(len(qualities)), key=lambda i: (costs[i], -qualities[i]))
    found, best, at = [False] * len(order), -np.inf, np.nan
    for i in order:
        found[i] = qualities[i] > best or (qualities[i] == best and costs[i] == at)
        if qualities[i] > best:
            best, at = qualities[i], costs[i]
    return found
