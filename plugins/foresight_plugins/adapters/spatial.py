"""``spatial``: convolutions over the tokens of neighbouring cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.contracts import Pairing
from foresight_bench.gathering import Gathering
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.layers import Standardise, Trunk, linear


class Spatial(nn.Module):
    """Tokens on the latent grid, a 1 x 1 projection to ``width``, ``blocks`` residual blocks, output.

    What the projection reads of a cell is up to 2 x 2 tokens, their mean and their trend in time, as
    :class:`foresight_bench.gathering.Gathering` has them. Latent frames do not see each other.
    """

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, width: int, blocks: int) -> None:
        super().__init__()
        self.gathering = Gathering.of(pairing.blocks)
        self.standardise = Standardise(*self.gathering.statistics(pairing.mean, pairing.std))
        self.project = linear(self.gathering.copies * pairing.channels, width, generator)
        self.trunk = Trunk(width, blocks, len(self.gathering.kinds), pairing.latent_channels, generator)

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return standardised tokens [N, t, h, w, D] on the cells of ``onto``, and the cells' kinds [N, t, h, w, K]."""
        return self.standardise(self.gathering.values(features, onto)), kinds(self.gathering, features, onto)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E]."""
        latents: Tensor = self.trunk(self.project(tokens), kinds)
        return latents


def kinds(gathering: Gathering, features: Grid, onto: Layout) -> Tensor:
    """Return [N, t, h, w, K] in the type of ``features``: which of K kinds each cell's latent frame is, one-hot."""
    index = torch.tensor(gathering.kind_of(features.layout.t, onto), device=features.values.device)
    found = F.one_hot(index, len(gathering.kinds)).to(features.values.dtype)
    return found[:, None, None].expand(len(features.values), -1, onto.h, onto.w, -1)
