"""``upsample``: a coarse grid made finer by learned upsampling."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from foresight_bench.contracts import Pairing
from foresight_bench.errors import Unsupported
from foresight_bench.gathering import Gathering
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.layers import Standardise, Trunk, linear
from foresight_plugins.adapters.spatial import kinds


class Upsample(nn.Module):
    """Each token becomes r x r of ``width`` channels by sub-pixel shuffle (Shi et al. 2016, arXiv:1609.05158).

    r is the least power of two with which features are at least as fine as latents along both axes; what is finer
    than the latents is resampled to them. Then ``blocks`` residual blocks and the output, as in ``spatial``.

    Raises:
        Unsupported: the features are as fine as the latents already.
    """

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, width: int, blocks: int) -> None:
        super().__init__()
        features, onto = pairing.blocks[0]
        if features.h >= onto.h and features.w >= onto.w:
            raise Unsupported(
                f"Features of {features.h} x {features.w} tokens are as fine as latents of {onto.h} x {onto.w} cells: "
                "there is nothing to upsample.",
                "Use the adapter `spatial`.",
            )
        self.factor = 2
        while self.factor * features.h < onto.h or self.factor * features.w < onto.w:
            self.factor *= 2
        self.gathering = Gathering.of([(features, _at(features, onto)) for features, onto in pairing.blocks])
        self.standardise = Standardise(*self.gathering.statistics(pairing.mean, pairing.std))
        self.project = linear(self.gathering.copies * pairing.channels, width * self.factor**2, generator)
        self.trunk = Trunk(width, blocks, len(self.gathering.kinds), pairing.latent_channels, generator)

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return standardised tokens [N, t, H', W', D] and the kinds [N, t, h, w, K] of the cells to fill."""
        tokens = self.gathering.values(features, _at(features.layout, onto))
        return self.standardise(tokens), kinds(self.gathering, features, onto)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E]."""
        x = self.project(tokens).unflatten(-1, (self.factor, self.factor, -1))
        x = x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)  # [N, t, r * H', r * W', width]
        latents: Tensor = self.trunk(_resampled(x, kinds.shape[2], kinds.shape[3]), kinds)
        return latents


def _at(features: Layout, onto: Layout) -> Layout:
    """Return the frames of ``onto`` with the rows and columns of ``features``."""
    return replace(onto, h=features.h, w=features.w)


def _resampled(x: Tensor, h: int, w: int) -> Tensor:
    """Return ``x`` [N, t, H, W, C] on h x w cells, as :meth:`foresight_bench.grids.Grid.resampled` does.

    By matrix products, which can be stacked; torch's interpolation cannot.
    """
    x = torch.einsum("ab,ntbwc->ntawc", _weights(x.shape[2], h).to(x), x)
    return torch.einsum("ab,nthbc->nthac", _weights(x.shape[3], w).to(x), x)


def _weights(cells: int, onto: int) -> Tensor:
    """Return [onto, cells] float32, how much of each of ``cells`` goes into each of ``onto``."""
    unit = Grid(torch.eye(cells).reshape(1, 1, cells, 1, cells))
    return unit.resampled(1, onto, 1).values.reshape(onto, cells)
