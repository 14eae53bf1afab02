"""``linear``: ridge regression from each token to the latent cell it covers, in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foresight_bench.grids import Grid, slots
from foresight_bench.ridge import Moments, Ridge, fit

CLIPS = 32
"""Clips whose cells are multiplied at a time; bounds the memory of a pass."""


class LinearAdapter:
    """One linear map per cell, after the feature grid is resampled onto the latent grid in space.

    Where several latent frames share a token, each of them has a map of its own (:func:`foresight_bench.grids.slots`).
    """

    def __init__(self, *, seed: int, device: torch.device) -> None:
        self.ridges: tuple[Ridge, ...] = ()

    @property
    def trainable_parameters(self) -> int:
        """Weights and intercepts."""
        return sum(ridge.weight.numel() + ridge.intercept.numel() for ridge in self.ridges)

    def fit(self, train: Sequence[tuple[Grid, Grid]], val: Sequence[tuple[Grid, Grid]]) -> None:
        """Fit on every cell of ``train``; ``val`` chooses the penalty."""
        count = min(max(len(slots(x.shape[1], y.shape[1])) for x, y in pairs) for pairs in (train, val))
        self.ridges = tuple(fit(_moments(train, slot), _moments(val, slot)) for slot in range(count))

    def predict(self, features: Grid, size: tuple[int, int, int]) -> Grid:
        """Return latents of ``size`` T', H', W'; a slot that no clip of ``fit`` had is read by the first one's map."""
        t, h, w = size
        values = features.resampled(features.shape[1], h, w).values
        latents = values.new_empty(len(values), t, h, w, self.ridges[0].weight.shape[1])
        for slot, (cells_, frames) in enumerate(slots(values.shape[1], t)):
            ridge = self.ridges[slot if slot < len(self.ridges) else 0]
            rows = values[:, cells_]
            latents[:, frames] = ridge.predict(rows.flatten(0, 3)).unflatten(0, rows.shape[:4])
        return Grid(latents)


def _moments(pairs: Sequence[tuple[Grid, Grid]], slot: int) -> Moments:
    moments = Moments()
    for rows, wanted in cells(pairs, slot):
        moments.accumulate(rows, wanted)
    return moments


def cells(pairs: Sequence[tuple[Grid, Grid]], slot: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (features [B, C], latents [B, E]) of matching cells, of one slot or of all, ``CLIPS`` clips at a time."""
    for features, latents in pairs:
        _, t, h, w, _ = latents.shape
        shared = slots(features.shape[1], t)
        for start in range(0, len(features.values), CLIPS):
            part = Grid(features.values[start : start + CLIPS]).resampled(features.shape[1], h, w).values
            wanted = latents.values[start : start + CLIPS]
            for cells_, frames in shared if slot is None else shared[slot : slot + 1]:
                yield part[:, cells_].flatten(0, 3), wanted[:, frames].flatten(0, 3)
