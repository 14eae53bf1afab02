"""Features beside the latents that an adapter is to make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from foresight_bench.contracts import Pairing
from foresight_bench.grids import Grid

CLIPS = 32
"""Clips that are read or predicted at a time, which bounds the memory of a pass."""

Blocks = Sequence[tuple[Grid, Grid]]
"""Pairs (features, latents), one for each block of clips of equal shape."""


class Pairs(Sequence[tuple[Grid, Grid]]):
    """Blocks whose features are made when they are asked for, and anew each time: ask once, and let go of them.

    Args:
        features: makes the feature grids, one for each of ``latents``.
        latents: the latent grids.
    """

    def __init__(self, features: Callable[[], Sequence[Grid]], latents: Sequence[Grid]) -> None:
        self._features, self._latents = features, latents

    @overload
    def __getitem__(self, index: int) -> tuple[Grid, Grid]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[Grid, Grid]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Grid, Grid] | Sequence[tuple[Grid, Grid]]:
        return list(self)[index]

    def __iter__(self) -> Iterator[tuple[Grid, Grid]]:
        return zip(self._features(), self._latents, strict=True)

    def __len__(self) -> int:
        return len(self._latents)


def pairing(train: Blocks, mean: Tensor, std: Tensor) -> Pairing:
    """Return what an adapter maps from and to; ``mean`` and ``std`` [C] are the :func:`statistics` of the features."""
    features, latents = train[0]
    layouts = tuple((x.layout, y.layout) for x, y in train)
    return Pairing(layouts, features.shape[4], features.streams, latents.shape[4], mean, std)


def statistics(grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [C] over all tokens, float32 on the CPU; a deviation of 0 is given as 1.

    About the first token, so that a constant channel deviates by exactly 0, and with sums in float64, so that the
    difference of two large ones keeps a small deviation.
    """
    origin = grids[0].values[0, 0, 0, 0]
    total, squares = (origin.new_zeros(len(origin), dtype=torch.float64) for _ in range(2))
    count = 0
    for grid in grids:
        for values in grid.values.split(CLIPS):
            rows = (values - origin).flatten(0, 3)
            total += rows.sum(0, dtype=torch.float64)
            squares += rows.square_().sum(0, dtype=torch.float64)
            count += len(rows)
    std = (squares / count - (total / count).square()).clamp(min=0).sqrt()
    return (origin + total / count).float().cpu(), torch.where(std > 0, std, 1.0).float().cpu()
