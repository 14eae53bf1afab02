"""``linear``: ridge regression from each token to the latent cell it covers, in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foresight_bench.grids import Grid
from foresight_bench.ridge import Moments, Ridge, fit

CLIPS = 32
"""Clips whose cells are multiplied at a time; bounds the memory of a pass."""


class LinearAdapter:
    """One linear map per cell, after the feature grid is resampled onto the latent grid."""

    def __init__(self, *, seed: int, device: torch.device) -> None:
        self.ridge: Ridge | None = None
        self.size = (0, 0)
        self.frames = (1, 1)

    @property
    def trainable_parameters(self) -> int:
        """Weights and intercepts."""
        return 0 if self.ridge is None else self.ridge.weight.numel() + self.ridge.intercept.numel()

    def fit(self, train: Sequence[tuple[Grid, Grid]], val: Sequence[tuple[Grid, Grid]]) -> None:
        """Fit on every cell of ``train``; ``val`` chooses the penalty."""
        self.ridge = fit(_moments(train), _moments(val))
        _, t, h, w, _ = train[0][1].shape
        self.size, self.frames = (h, w), (t, train[0][0].shape[1])

    def predict(self, features: Grid) -> Grid:
        """Return latents; a feature grid of more or fewer frames keeps the ratio seen in ``fit``."""
        assert self.ridge is not None
        t = max(1, features.shape[1] * self.frames[0] // self.frames[1])
        values = features.resampled(t, *self.size).values
        return Grid(self.ridge.predict(values.flatten(0, 3)).unflatten(0, values.shape[:4]))


def _moments(pairs: Sequence[tuple[Grid, Grid]]) -> Moments:
    moments = Moments()
    for rows, wanted in cells(pairs):
        moments.accumulate(rows, wanted)
    return moments


def cells(pairs: Sequence[tuple[Grid, Grid]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (features [B, C], latents [B, E]) of matching cells, ``CLIPS`` clips at a time."""
    for features, latents in pairs:
        _, t, h, w, _ = latents.shape
        for start in range(0, len(features.values), CLIPS):
            part = Grid(features.values[start : start + CLIPS]).resampled(t, h, w)
            yield part.values.flatten(0, 3), latents.values[start : start + CLIPS].flatten(0, 3)
