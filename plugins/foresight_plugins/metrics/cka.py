"""Centred kernel alignment (Kornblith, Norouzi, Lee & Hinton 2019), debiased (Song et al. 2012, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.scores import Scores, half_scores
from foresight_plugins.metrics.pairwise import gram, permutation_p, permuted_products, require_clips, select


class Cka:
    """Linear CKA with the unbiased HSIC_1 in all three terms.

    Near 0 for unrelated spaces, slightly negative by chance; 1 for spaces equal up to rotation and scale. The
    usual biased form depends on width: independent Gaussians of 3584 and 128 columns score .61 at N = 200.

    ``details``: ``biased``; ``p`` and ``null_mean`` over ``permutations`` pairings of the clips.
    """

    def __init__(self, permutations: int = 199) -> None:
        self._permutations = permutations

    def score(self, spaces: Spaces) -> Scores:
        """Return scores over the N clips, half-subsampled.

        Raises:
            DataError: there are fewer than 16 clips.
        """
        require_clips(len(spaces.x))
        kx, ky = gram(spaces.x), gram(spaces.y)
        ux, uy = u_centred(kx), u_centred(ky)
        norm = float(ux.norm() * uy.norm())
        null = permuted_products(ux, uy, self._permutations) / (norm or 1.0)
        value = cosine(ux, uy)
        details = {"biased": cosine(kx, ky), "p": permutation_p(value, null), "null_mean": float(null.mean())}
        return half_scores(
            lambda index: cosine(u_centred(select(kx, index)), u_centred(select(ky, index))),
            len(kx),
            details,
        )


def u_centred(k: Tensor) -> Tensor:
    """Return the Gram ``k`` [N, N] U-centred, so that products of two of them are N (N - 3) HSIC_1."""
    n = len(k)
    k = k.clone().fill_diagonal_(0)
    row = k.sum(0) / (n - 2)
    return (k - row - row[:, None] + k.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two matrices; 0 if either is zero."""
    norm = float(torch.linalg.norm(a) * torch.linalg.norm(b))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
