"""Intrinsic dimension of both spaces, and the gap between them. Descriptive: a true 65 reads 28 to 37 at N = 1000."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.errors import UsageError
from foresight_bench.scores import Scores, half_scores, halves
from foresight_plugins.metrics.pairwise import require_clips, select, squared_distances

_DROP = 0.1  # of Two-NN's ratios, the largest: they are where curvature and noise sit (Facco 2017)
_K = 10  # neighbours of the maximum-likelihood estimate
_VARIANCE = 0.95
_SAME = 1e-14  # of the largest squared distance: below it two clips are duplicates, which break every ratio
_QUARTERS = 20  # quarter-samples averaged for the scale curve
SPACES = ("encoder", "decoder", "ratio")

Statistic = Callable[[NDArray[np.int64]], float]
"""A number that depends on which clips are in."""


class Dimension:
    """Intrinsic dimension by ``estimator``: ``two_nn``, ``mle`` or ``pca95``. Duplicate clips are removed.

    Of which ``space``: x (``encoder``), y (``decoder``), or y over x (``ratio``), the dimension gap. Its half-samples
    take the same clips from both spaces, so that what they do to both estimates cancels. A ratio and no logarithm,
    because .5 reads as half as many dimensions. Estimates fall the shorter the higher the dimension, so a true ratio
    lies farther from 1 than its estimate.

    ``details``: ``half`` and ``quarter``, the same on half and a quarter of the clips. An estimate that grows with N
    has not converged. A space in which all clips coincide has dimension 0, and a ratio to 0 is NaN.

    Raises:
        UsageError: there is no such estimator or space.
    """

    def __init__(self, estimator: str = "two_nn", space: str = "encoder") -> None:
        if estimator not in ESTIMATORS:
            raise UsageError(f"Unknown estimator '{estimator}'.", f"Known: {', '.join(ESTIMATORS)}.")
        if space not in SPACES:
            raise UsageError(f"Unknown space '{space}'.", f"Known: {', '.join(SPACES)}.")
        self._estimate, self._space = ESTIMATORS[estimator], space

    def score(self, spaces: Spaces) -> Scores:
        """Return scores over the N clips, half-subsampled.

        Raises:
            DataError: there are fewer than 16 clips.
        """
        n = len(spaces.x)
        require_clips(n)
        statistic = self._statistic(spaces)
        scores = half_scores(statistic, n)
        quarters = [outer[inner] for outer, inner in zip(halves(n), halves(n // 2)[:_QUARTERS], strict=False)]
        details = {
            "half": float(scores.replicates.mean()),
            "quarter": float(np.mean([statistic(index) for index in quarters])),
        }
        return replace(scores, details=details)

    def _statistic(self, spaces: Spaces) -> Statistic:
        if self._space == "encoder":
            return self._dimension(spaces.x)
        if self._space == "decoder":
            return self._dimension(spaces.y)
        encoder, decoder = self._dimension(spaces.x), self._dimension(spaces.y)

        def ratio(index: NDArray[np.int64]) -> float:
            below = encoder(index)
            return decoder(index) / below if below > 0 else float("nan")

        return ratio

    def _dimension(self, x: Tensor) -> Statistic:
        """Return the estimate on a subset of the rows of ``x`` as a function of their indices."""
        distances = squared_distances(x)
        unique = distinct(distances)
        return lambda index: self._estimate(select(distances, index[unique[index]]))


def distinct(distances: Tensor) -> NDArray[np.bool_]:
    """Return [N] whether a clip coincides with none before it, for squared ``distances`` [N, N]."""
    same = (distances <= _SAME * distances.max()).triu(1)
    return np.asarray(~same.any(0).cpu().numpy())


def two_nn(distances: Tensor) -> float:
    """Return the Two-NN estimate (Facco et al. 2017) from squared ``distances`` [N, N] of distinct points."""
    n = len(distances)
    if n < 4:
        return 0.0
    near = _nearest(distances, 2)
    log_ratio = ((near[:, 1] - near[:, 0]) / 2).sort().values  # squared distances, hence the half
    kept = int(n * (1 - _DROP))
    cumulated = torch.arange(1, kept + 1, dtype=torch.float64, device=distances.device) / n
    x, y = log_ratio[:kept], -torch.log1p(-cumulated)
    return float((x @ y) / (x @ x))


def mle(distances: Tensor) -> float:
    """Return the estimate of Levina & Bickel (2004), pooled as MacKay & Ghahramani (2005).

    The inverses of the local estimates are averaged, not the estimates themselves, whose mean is biased
    upwards. From squared ``distances`` [N, N] of distinct points.
    """
    k = min(_K, len(distances) - 1)
    if k < 2:
        return 0.0
    near = _nearest(distances, k)
    inverse = ((near[:, -1:] - near[:, :-1]) / 2).mean()
    return float(1 / inverse)


def pca95(distances: Tensor) -> float:
    """Return how many principal components hold 95 % of the variance, from squared ``distances`` [N, N]."""
    if len(distances) < 2:
        return 0.0
    mean = distances.mean(0)
    inner = -0.5 * (distances - mean - mean[:, None] + distances.mean())
    spectrum = torch.linalg.eigvalsh(inner).flip(0).clamp(min=0).cumsum(0)
    return float((spectrum < _VARIANCE * spectrum[-1]).sum() + 1)


ESTIMATORS: dict[str, Callable[[Tensor], float]] = {"two_nn": two_nn, "mle": mle, "pca95": pca95}


def _nearest(distances: Tensor, k: int) -> Tensor:
    """Return [N, k] logarithms of the squared distances to the k nearest others, nearest first."""
    d = distances.clone().fill_diagonal_(torch.inf)
    return d.topk(k, dim=1, largest=False).values.log()
