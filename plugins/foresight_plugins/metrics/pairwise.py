"""What the metrics on pairs of clips share: Grams, distances, and nulls that permute whole clips."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.errors import DataError

MIN_CLIPS = 16
"""Fewest clips a pairwise statistic is computed on: half-samples then hold 8."""

_SEED = 0xA11CE


def require_clips(n: int) -> None:
    """Raise :class:`DataError` if ``n`` clips are too few for a statistic of pairs."""
    if n < MIN_CLIPS:
        raise DataError(f"Comparing two spaces needs at least {MIN_CLIPS} clips; there are {n}.")


def centred(x: Tensor) -> Tensor:
    """Return ``x`` [N, D] in float64 minus its mean; exactly zero where all rows are equal.

    The first row goes first: the mean of equal numbers is only nearly that number.
    """
    shifted = x.to(torch.float64) - x[0].to(torch.float64)
    return shifted - shifted.mean(0)


def gram(x: Tensor) -> Tensor:
    """Return [N, N] float64 inner products of the centred rows of ``x`` [N, D]."""
    c = centred(x)
    return c @ c.T


def squared_distances(x: Tensor) -> Tensor:
    """Return [N, N] float64 squared Euclidean distances of the rows of ``x`` [N, D], zero on the diagonal."""
    inner = gram(x)
    norms = inner.diagonal()
    return (norms + norms[:, None] - 2 * inner).clamp(min=0).fill_diagonal_(0)


def select(matrix: Tensor, index: NDArray[np.int64]) -> Tensor:
    """Return rows and columns ``index`` of a square ``matrix``."""
    return _ordered(matrix, torch.tensor(index, device=matrix.device))


def permuted_products(a: Tensor, b: Tensor, count: int) -> Tensor:
    """Return [count] the inner products of ``a`` [N, N] with ``b`` after permuting the clips of ``b``.

    The null of "the two spaces pair clip by clip": it keeps each space's own geometry. The permutations are
    the same in every call with equal N.
    """
    generator = torch.Generator().manual_seed(_SEED)
    products = torch.empty(count, dtype=torch.float64)
    for i in range(count):
        order = torch.randperm(len(a), generator=generator).to(b.device)
        products[i] = torch.vdot(a.flatten(), _ordered(b, order).flatten())
    return products


def _ordered(matrix: Tensor, order: Tensor) -> Tensor:
    """Return rows and columns ``order`` [n] of a square ``matrix``.

    Gathered: to index the columns takes 2.4 times as long on a CPU, 1.0 ms instead of .4 for 400 clips.
    """
    return matrix[order].gather(1, order.expand(len(order), -1))


def permutation_p(observed: float, null: Tensor) -> float:
    """Return the one-sided p-value of ``observed`` among draws ``null``, counting itself as one draw."""
    return (1 + int((null >= observed).sum())) / (1 + len(null))
