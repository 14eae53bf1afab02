"""Scores with replicates: one value for the sample of clips, and its value on resampled clips.

The clip is the sample. Replicate r of every score over n clips is computed on the same resample of the
clips, so scores of two rows pair replicate by replicate, whatever the statistic: a mean, a ratio, mAP, CKA.

Two plans exist:

- ``bootstrap``: clips drawn with replacement, as multiplicities. For means, ratios and mAP.
- ``halves``: half of the clips drawn *without* replacement. For statistics of pairs of clips (CKA, recall,
  Spearman, dimension), where a duplicated clip would be its own neighbour: with replacement a null CKA
  rises from 0 to .37. The standard deviation over half-samples equals the standard error at n, because
  var(n/2) * (1 - 1/2) = var(n).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_REPLICATES = 1000
HALVES_REPLICATES = 200  # each costs a pass over an n/2 x n/2 Gram; sd of the sd at 200 is 5 %
COVERAGE = 0.95
_SEED = 0x5EED

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """A statistic over n clips."""

    value: float
    replicates: FloatArray
    """[R] the statistic on each resample; its spread about its mean is the sampling distribution."""
    n: int
    """Number of clips."""
    per_clip: FloatArray | None = None
    """[n] or [n, k] what the statistic is computed from, where it has a per-clip part."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Further numbers worth storing: chance level, p-value, uncorrected value."""

    @property
    def finite(self) -> bool:
        """Whether value and replicates are all finite."""
        return bool(np.isfinite(self.value) and np.isfinite(self.replicates).all())

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval: quantiles of the replicates, centred on ``value``."""
        if not self.finite:
            return float("nan"), float("nan")
        spread = self.replicates - self.replicates.mean()
        low, high = np.quantile(spread, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return self.value + float(low), self.value + float(high)

    def standard_error(self) -> float:
        """Return the standard deviation of the replicates."""
        return float(self.replicates.std(ddof=1))

    def minus(self, other: Scores) -> Scores:
        """Return the paired difference; both must come from the same plan over the same clips."""
        if self.n != other.n or len(self.replicates) != len(other.replicates):
            raise ValueError(f"cannot pair scores over {self.n} and {other.n} clips")
        return Scores(self.value - other.value, self.replicates - other.replicates, self.n)


@lru_cache(maxsize=16)
def bootstrap_counts(n: int) -> NDArray[np.int64]:
    """Return [R, n] how often each of ``n`` clips is drawn in each replicate; the same for every caller."""
    rng = np.random.default_rng([_SEED, n, 1])
    draws = rng.integers(0, n, size=(BOOTSTRAP_REPLICATES, n))
    return _frozen([np.bincount(row, minlength=n) for row in draws])


@lru_cache(maxsize=16)
def halves(n: int) -> NDArray[np.int64]:
    """Return [R, n // 2] sorted indices of each half-sample; the same for every caller."""
    rng = np.random.default_rng([_SEED, n, 2])
    return _frozen([np.sort(rng.permutation(n)[: n // 2]) for _ in range(HALVES_REPLICATES)])


def _frozen(rows: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Stack ``rows`` read-only: every caller shares one cached plan, so none may write to it."""
    plan = np.stack(rows)
    plan.setflags(write=False)
    return plan


def mean_scores(per_clip: NDArray[np.floating], details: Mapping[str, float] | None = None) -> Scores:
    """Return the mean over clips of ``per_clip`` [n], bootstrapped."""
    values = np.asarray(per_clip, dtype=np.float64)
    n = len(values)
    with np.errstate(invalid="ignore"):  # NaN and infinity stay what they are; `finite` tells
        return Scores(float(values.mean()), bootstrap_counts(n) @ values / n, n, values, details or {})


def weighted_scores(
    statistic: Callable[[FloatArray], float],
    n: int,
    per_clip: FloatArray | None = None,
    details: Mapping[str, float] | None = None,
) -> Scores:
    """Bootstrap ``statistic(weights)``, a function of the multiplicity [n] of each clip."""
    value = statistic(np.ones(n))
    replicates = np.array([statistic(counts.astype(np.float64)) for counts in bootstrap_counts(n)])
    return Scores(float(value), replicates, n, per_clip, details or {})


def half_scores(
    statistic: Callable[[NDArray[np.int64]], float], n: int, details: Mapping[str, float] | None = None
) -> Scores:
    """Half-subsample ``statistic(indices)``, a function of which clips are in."""
    value = statistic(np.arange(n))
    replicates = np.array([statistic(index) for index in halves(n)])
    return Scores(float(value), replicates, n, None, details or {})
