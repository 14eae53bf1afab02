"""Representational similarity: rank correlation of distances (Kriegeskorte, Mur & Bandettini 2008)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.scores import FloatArray, Scores, half_scores
from foresight_plugins.metrics.pairwise import (
    permutation_p,
    permuted_products,
    require_clips,
    squared_distances,
)


class Spearman:
    """Spearman correlation of the N (N - 1) / 2 Euclidean distances in two spaces; 0 if one is constant.

    The pairs are not independent: a p-value that takes them so rejects 41 % of true nulls at 5 %. So
    ``details['p']`` is Mantel's, from ``permutations`` pairings of the clips.
    """

    def __init__(self, permutations: int = 199) -> None:
        self._permutations = permutations

    def score(self, spaces: Spaces) -> Scores:
        """Return scores over the N clips, half-subsampled; in [-1, 1].

        Raises:
            DataError: there are fewer than 16 clips.
        """
        n = len(spaces.x)
        require_clips(n)
        levels_x, levels_y = _levels(spaces.x), _levels(spaces.y)

        def rho(index: NDArray[np.int64]) -> float:
            upper = np.triu_indices(len(index), 1)
            pairs = index[upper[0]] * n + index[upper[1]]
            a, b = ranks(levels_x.ravel()[pairs]), ranks(levels_y.ravel()[pairs])
            # Elementwise on purpose: short products in a threaded BLAS took ten times as long on busy cores.
            norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
            return float((a * b).sum()) / norm if norm > 0 else 0.0

        a, b = (_rank_matrix(levels, spaces.x.device) for levels in (levels_x, levels_y))
        null = permuted_products(a, b, self._permutations) / (float(a.norm() * b.norm()) or 1.0)
        value = rho(np.arange(n))
        return half_scores(rho, n, {"p": permutation_p(value, null), "null_mean": float(null.mean())})


def ranks(levels: NDArray[np.int64]) -> FloatArray:
    """Return ranks of integer ``levels`` less their mean, ties averaged.

    By counting, not sorting: the distances are put in order once, and each of 200 half-samples then costs
    one pass over a histogram.
    """
    count = np.bincount(levels)
    rank = np.cumsum(count) - (count - 1) / 2
    return np.asarray(rank[levels] - (len(levels) + 1) / 2)


def _levels(x: Tensor) -> NDArray[np.int64]:
    """Return [N, N] integers in the order of the distances between rows of ``x``, equal where they tie."""
    distances = squared_distances(x).cpu().numpy()
    levels = np.zeros(distances.shape, dtype=np.int64)
    upper = np.triu_indices(len(distances), 1)
    levels[upper] = np.unique(distances[upper], return_inverse=True)[1]
    return levels + levels.T


def _rank_matrix(levels: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return [N, N] centred ranks of the distances, zero on the diagonal."""
    matrix = np.zeros(levels.shape)
    upper = np.triu_indices(len(levels), 1)
    matrix[upper] = ranks(levels[upper])
    return torch.from_numpy(matrix + matrix.T).to(device)
