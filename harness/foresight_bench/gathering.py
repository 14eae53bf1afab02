"""What a feature grid knows of each cell of a latent grid, whatever the sizes of the two.

The grids rarely agree: tokens of 14 pixels meet latent cells of 32, two frames share a token of Qwen2.5-VL, eight
share a latent cell of LTX-Video. Nothing here is learned and everything is linear in the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foresight_bench.grids import Grid, Layout

FINEST = 2
"""Most tokens a latent cell that are kept apart along each axis. Averaging 16 x 16 tokens onto 7 x 7 cells would blur
the very edges that a latent cell of 32 pixels holds; 3 x 3 would be 9 times the channels, more than a ridge carries."""


@dataclass(frozen=True)
class Kind:
    """How a latent frame is read. Frames of one kind share a head; frames that share their tokens need two."""

    several: bool
    """Whether it covers several cells in time of the features."""
    slot: int
    """How many latent frames before it are read from the same cells."""


FIRST = Kind(False, 0)


def readings(cells: int, onto: Layout) -> list[tuple[Kind, tuple[int, ...]]]:
    """Return, for each latent frame, its kind and which of ``cells`` feature cells in time it is read from.

    Frame f of the clip's F belongs to feature cell ``f * cells // F``; a latent frame is read from the cells of all
    frames in its span.
    """
    frames = onto.spans[-1][1] if onto.spans else max(cells, onto.t)
    spans = onto.spans or [(-(-j * frames // onto.t), -(-(j + 1) * frames // onto.t)) for j in range(onto.t)]
    found: list[tuple[Kind, tuple[int, ...]]] = []
    for start, stop in spans:
        covered = tuple(sorted({frame * cells // frames for frame in range(start, stop)}))
        slot = sum(covered == other for _, other in found)
        found.append((Kind(len(covered) > 1, slot), covered))
    return found


@dataclass(frozen=True)
class Gathering:
    """A fixed way to read features on latent cells, found on the train split, so that all splits are read alike.

    Up to ``FINEST`` x ``FINEST`` tokens of a cell stand side by side along channels. Where a latent frame covers
    several feature cells in time, their mean is followed by their trend, the change from first to last along the
    least-squares line; a latent frame that covers one has a trend of 0.
    """

    sub: tuple[int, int]
    """Tokens kept apart along rows and columns."""
    trend: bool
    kinds: tuple[Kind, ...]
    """The kinds that ``train`` has; a frame of any other is read as one of the first."""

    @classmethod
    def of(cls, blocks: Sequence[tuple[Layout, Layout]]) -> Gathering:
        """Return the way to read features laid out as the first of each pair on cells laid out as the second."""
        first, onto = blocks[0]
        sub = tuple(min(FINEST, max(1, round(a / b))) for a, b in ((first.h, onto.h), (first.w, onto.w)))
        found = {kind: None for features, latents in blocks for kind, _ in readings(features.t, latents)}
        return cls((sub[0], sub[1]), any(kind.several for kind in found), tuple(found))

    @property
    def copies(self) -> int:
        """How many numbers of a cell stem from each feature channel."""
        return self.sub[0] * self.sub[1] * (2 if self.trend else 1)

    def kind_of(self, cells: int, onto: Layout) -> list[int]:
        """Return the index into ``kinds`` of each latent frame."""
        return [self.kinds.index(kind) if kind in self.kinds else 0 for kind, _ in readings(cells, onto)]

    def values(self, features: Grid, onto: Layout) -> Tensor:
        """Return [N, t, h, w, D], D = ``copies`` * C: the means of each token, then (if ``trend``) the trends."""
        means = self._folded(self._means(features, onto), onto)
        return torch.cat([means, self._folded(self._trends(features, onto), onto)], -1) if self.trend else means

    def statistics(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and deviation [D] of what ``values`` makes of channels with ``mean`` and ``std`` [C]."""
        tokens = self.sub[0] * self.sub[1]
        if not self.trend:
            return mean.repeat(tokens), std.repeat(tokens)
        return torch.cat([mean.repeat(tokens), torch.zeros_like(mean).repeat(tokens)]), std.repeat(2 * tokens)

    def _means(self, features: Grid, onto: Layout) -> Tensor:
        covered = [cells for _, cells in readings(features.shape[1], onto)]
        if all(len(cells) == 1 for cells in covered):
            index = [cells[0] for cells in covered]
            return features.values if index == list(range(features.shape[1])) else features.values[:, index]
        return torch.stack([features.values[:, cells].mean(1) for cells in covered], 1)

    def _trends(self, features: Grid, onto: Layout) -> Tensor:
        n, cells, h, w, c = features.shape
        weights = features.values.new_zeros(onto.t, cells)
        for frame, (_, covered) in enumerate(readings(cells, onto)):
            if len(covered) > 1:
                place = torch.arange(len(covered), dtype=weights.dtype, device=weights.device)
                place -= place.mean()
                weights[frame, list(covered)] = place * (len(covered) - 1) / place.square().sum()
        trends: Tensor = weights @ features.values.flatten(2)
        return trends.reshape(n, onto.t, h, w, c)

    def _folded(self, values: Tensor, onto: Layout) -> Tensor:
        """Return [N, t, h, w, rows * columns * C] of ``values`` [N, t, H', W', C]."""
        rows, columns = self.sub
        finer = Grid(values).resampled(onto.t, onto.h * rows, onto.w * columns).values
        cells: Tensor = finer.unflatten(3, (onto.w, columns)).unflatten(2, (onto.h, rows))
        return cells.transpose(3, 4).flatten(4)
