"""Recall of neighbours across spaces: mutual kNN (Huh, Cheung, Wang & Isola 2024, appendix A)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.errors import DataError
from foresight_bench.scores import Scores, half_scores
from foresight_plugins.metrics.pairwise import (
    permutation_p,
    permuted_products,
    require_clips,
    select,
    squared_distances,
)


class Recall:
    """Mean share of a clip's ``k`` nearest neighbours (Euclidean, itself excluded) that both spaces name.

    Unrelated spaces score k / (N - 1), so the value means nothing without N. In half-samples k shrinks to
    keep that level. Neighbours at equal distance share the places left, so a space in which all clips
    coincide scores exactly chance.

    ``details``: ``chance``; ``p`` and ``null_mean`` over ``permutations`` pairings of the clips.
    """

    def __init__(self, k: int = 10, permutations: int = 199) -> None:
        self._k = k
        self._permutations = permutations

    def score(self, spaces: Spaces) -> Scores:
        """Return scores over the N clips, half-subsampled; in [0, 1].

        Raises:
            DataError: there are fewer than 16 clips, or no more than k.
        """
        n, k = len(spaces.x), self._k
        require_clips(n)
        if n <= k:
            raise DataError(f"Recall at {k} needs more than {k} clips; there are {n}.")
        dx, dy = squared_distances(spaces.x), squared_distances(spaces.y)

        def recall(index: NDArray[np.int64]) -> float:
            kept = max(1, round(k * (len(index) - 1) / (n - 1)))
            a, b = (neighbours(select(d, index), kept) for d in (dx, dy))
            return float((a * b).sum()) / (len(index) * kept)

        null = permuted_products(neighbours(dx, k), neighbours(dy, k), self._permutations) / (n * k)
        details = {
            "chance": k / (n - 1),
            "p": permutation_p(recall(np.arange(n)), null),
            "null_mean": float(null.mean()),
        }
        return half_scores(recall, n, details)


def neighbours(distances: Tensor, k: int) -> Tensor:
    """Return [N, N] whether j is among the k nearest of i: 1, 0, or a fair share where distances tie."""
    d = distances.clone().fill_diagonal_(torch.inf)
    edge = d.topk(k, dim=1, largest=False).values[:, -1:]
    tied = d == edge
    if int(tied.sum()) == len(d):  # nobody ties, and what follows is most of the work
        return (d <= edge).double()
    inside, tied = (d < edge).double(), tied.double()
    return inside + tied * (k - inside.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
