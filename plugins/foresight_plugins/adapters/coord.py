"""``coord``: ``spatial``, told where each cell is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight_bench.contracts import Pairing
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.layers import linear, zeroed
from foresight_plugins.adapters.spatial import Spatial


class Coord(nn.Module):
    """CoordConv (Liu et al. 2018, arXiv:1807.03247): coordinates beside the features, then ``spatial``.

    Four for each cell: x and y of its centre, their distance from the middle, and the middle of its frames in time.
    x, y and time run from -1 to 1 over the clip, so any grid has them. Their weights start at 0: where all clips of
    ``train`` are single frames, whose time is 0, the weight of time stays there, and longer clips are read alike.
    """

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, width: int, blocks: int) -> None:
        super().__init__()
        self.spatial = Spatial(pairing, generator, width=width, blocks=blocks)
        self.locate = zeroed(linear(4, width, generator, bias=False))

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return what ``spatial`` takes, and coordinates [N, t, h, w, 4]."""
        n = len(features.values)
        return *self.spatial.prepare(features, onto), coordinates(onto).to(features.values).expand(n, -1, -1, -1, -1)

    def forward(self, tokens: Tensor, kinds: Tensor, coordinates: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E]."""
        # A 1 x 1 projection of two groups of channels side by side is the sum of their projections.
        latents: Tensor = self.spatial.trunk(self.spatial.project(tokens) + self.locate(coordinates), kinds)
        return latents


def coordinates(onto: Layout) -> Tensor:
    """Return x, y, radius and time of each cell: [t, h, w, 4] float32, in [-1, 1], the radius in [0, sqrt 2]."""
    spans = onto.spans or tuple((frame, frame + 1) for frame in range(onto.t))
    times = torch.tensor([float(start + stop) for start, stop in spans]) / spans[-1][1] - 1
    time, y, x = torch.meshgrid(times, _centres(onto.h), _centres(onto.w), indexing="ij")
    return torch.stack([x, y, torch.hypot(x, y), time], -1)


def _centres(cells: int) -> Tensor:
    return (2 * torch.arange(cells) + 1) / cells - 1
