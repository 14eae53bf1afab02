"""``query``: learned queries, one for each latent cell, read the tokens by cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.contracts import Pairing
from foresight_bench.gathering import Gathering
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.attention import CrossAttention, Places, keys
from foresight_plugins.adapters.layers import Output, Standardise, linear, zeroed
from foresight_plugins.adapters.spatial import kinds


class Query(nn.Module):
    """``layers`` blocks of cross-attention and a perceptron, as in Perceiver IO and Q-Former's cross-attention.

    (Jaegle et al. 2021, arXiv:2107.14795; Li et al. 2023, arXiv:2301.12597.) A query is a learned vector plus a
    learned map of where its cell is; keys and values are the tokens of its latent frame (``attention.keys``).
    """

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.gathering = Gathering.of(pairing.blocks)
        self.places = Places(pairing)
        self.standardise = Standardise(pairing.mean, pairing.std)
        self.project = linear(pairing.channels, width, generator)
        self.start = linear(self.places.width, width, generator)  # its bias is the learned vector
        self.layers = nn.ModuleList(Block(width, heads, self.places, generator) for _ in range(layers))
        self.output = Output(width, len(self.gathering.kinds), pairing.latent_channels, generator)

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return standardised tokens [N, t, p, h', w', C], and the kinds [N, t, h, w, K] of the cells to fill."""
        return self.standardise(keys(features, onto)), kinds(self.gathering, features, onto)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E]."""
        at, tokens_at = self.places((1, *kinds.shape[2:4]), tokens), self.places(tokens.shape[2:5], tokens)
        tokens = self.project(tokens).flatten(2, 4)
        x = self.start(at).expand(*tokens.shape[:2], -1, -1)
        for layer in self.layers:
            x = layer(x, tokens, at, tokens_at)
        latents: Tensor = self.output(x.unflatten(2, kinds.shape[2:4]), kinds)
        return latents


class Block(nn.Module):
    """Pre-norm cross-attention, then a pre-norm perceptron of ``4 * width``, which starts as no branch at all."""

    def __init__(self, width: int, heads: int, places: Places, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, places, generator)
        self.norm_out = nn.LayerNorm(width)
        self.expand = linear(width, 4 * width, generator)
        self.contract = zeroed(linear(4 * width, width, generator))

    def forward(self, x: Tensor, tokens: Tensor, at: Tensor, tokens_at: Tensor) -> Tensor:
        """Return the queries ``x`` [N, t, Q, width] after reading ``tokens``; arguments as of the attention."""
        x = x + self.attention(self.norm(x), tokens, at, tokens_at)
        branch: Tensor = self.contract(F.gelu(self.expand(self.norm_out(x))))
        return x + branch
