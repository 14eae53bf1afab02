"""``mlp``: a two-layer perceptron from what a latent cell covers to the cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.contracts import Pairing
from foresight_bench.gathering import Gathering
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.layers import Output, Standardise, linear
from foresight_plugins.adapters.spatial import kinds


class MLPAdapter(nn.Module):
    """Linear to ``hidden``, GELU, linear to the latent channels: the projector of LLaVA-1.5 (arXiv:2310.03744, 3.2).

    It reads the tokens of a cell as ``spatial`` does, and nothing of the cells beside it.
    """

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, hidden: int) -> None:
        super().__init__()
        self.gathering = Gathering.of(pairing.blocks)
        self.standardise = Standardise(*self.gathering.statistics(pairing.mean, pairing.std))
        self.inner = linear(self.gathering.copies * pairing.channels, hidden, generator)
        self.output = Output(hidden, len(self.gathering.kinds), pairing.latent_channels, generator)

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return standardised tokens [N, t, h, w, D] on the cells of ``onto``, and the cells' kinds [N, t, h, w, K]."""
        return self.standardise(self.gathering.values(features, onto)), kinds(self.gathering, features, onto)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E]."""
        latents: Tensor = self.output(F.gelu(self.inner(tokens)), kinds)
        return latents
