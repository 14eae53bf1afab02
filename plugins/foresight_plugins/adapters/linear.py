"""``linear``: ridge regression from what a latent cell covers to the cell, in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foresight_bench.gathering import Gathering
from foresight_bench.grids import Grid, Layout
from foresight_bench.ridge import Moments, Ridge, fit

CLIPS = 32
"""Clips whose cells are multiplied at a time; bounds the memory of a pass."""

Blocks = Sequence[tuple[Grid, Grid]]


class LinearAdapter:
    """One linear map for each kind of latent frame, on tokens gathered on the latent cells.

    A frame that covers one feature cell in time has no trend, so its map has columns for the tokens alone.
    """

    def __init__(self, *, seed: int, device: torch.device) -> None:
        self._ridges: dict[int, Ridge] = {}

    @property
    def trainable_parameters(self) -> int:
        """Weights and intercepts."""
        return sum(ridge.weight.numel() + ridge.intercept.numel() for ridge in self._ridges.values())

    def fit(self, train: Blocks, val: Blocks) -> None:
        """Fit on every cell of ``train``; ``val`` chooses the penalties, and a kind that it lacks has no map."""
        self._gathering = Gathering.of([(features.layout, latents.layout) for features, latents in train])
        found, held_out = self._moments(train), self._moments(val)
        self._ridges = {kind: fit(found[kind], held_out[kind]) for kind in found if kind in held_out}

    def predict(self, features: Grid, onto: Layout) -> Grid:
        """Return latents on the cells of ``onto``; a kind that ``fit`` has not seen is read by the first one's map."""
        first = next(iter(self._ridges.values()))
        latents = features.values.new_empty(len(features.values), *onto.size, len(first.intercept))
        kinds = self._gathering.kind_of(features.shape[1], onto)
        for part, values in self._gathered(features, onto):
            for frame, kind in enumerate(kinds):
                ridge = self._ridges.get(kind, first)
                rows = values[:, frame, ..., : len(ridge.weight)]
                latents[part, frame] = ridge.predict(rows.flatten(0, 2)).unflatten(0, rows.shape[:3])
        return Grid(latents, onto.spans)

    def _gathered(self, features: Grid, onto: Layout) -> Iterator[tuple[slice, Tensor]]:
        """Yield [n, t, h, w, D], ``CLIPS`` clips at a time."""
        for start in range(0, len(features.values), CLIPS):
            part = slice(start, start + CLIPS)
            yield part, self._gathering.values(replace(features, values=features.values[part]), onto)

    def _moments(self, blocks: Blocks) -> dict[int, Moments]:
        """Return the moments of the rows of each kind, by its index."""
        moments: dict[int, Moments] = {}
        for features, latents in blocks:
            kinds = self._gathering.kind_of(features.shape[1], latents.layout)
            for part, values in self._gathered(features, latents.layout):
                for kind in sorted(set(kinds)):
                    frames = [frame for frame, other in enumerate(kinds) if other == kind]
                    several = self._gathering.kinds[kind].several
                    rows = values[:, frames].flatten(0, 3)[:, : self._columns(several, features.shape[4])]
                    moments.setdefault(kind, Moments()).accumulate(rows, latents.values[part][:, frames].flatten(0, 3))
        return moments

    def _columns(self, several: bool, channels: int) -> int:
        """Return how many columns a map has: means stand before trends."""
        copies = self._gathering.copies
        return channels * (copies // 2 if self._gathering.trend and not several else copies)
