"""``fusion``: of a hybrid, the spatial encoder's tokens query the other encoders' tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from foresight_bench.contracts import Pairing
from foresight_bench.errors import Unsupported
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.attention import CrossAttention, Places, keys
from foresight_plugins.adapters.layers import Standardise, linear, zeroed
from foresight_plugins.adapters.spatial import Spatial


class Fusion(nn.Module):
    """The last encoder of the hybrid's name is the spatial one, as in ``qwen2.5-vl+dinov2``.

    Its tokens go the way of ``spatial``; before the residual blocks they read, by cross-attention, what the others
    have at that place in the frame and around it. That branch starts as none, and the adapter as ``spatial``.

    Raises:
        Unsupported: the features are not a hybrid's.
    """

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        if len(pairing.streams) < 2:
            raise Unsupported(
                "The adapter `fusion` joins the encoders of a hybrid; these features come from one encoder.",
                "Name the semantic encoder first and the spatial one last: `qwen2.5-vl+dinov2`.",
            )
        self.semantic = pairing.channels - pairing.streams[-1]
        mean, std = pairing.mean, pairing.std
        last = replace(
            pairing, channels=pairing.streams[-1], streams=(), mean=mean[self.semantic :], std=std[self.semantic :]
        )
        self.spatial = Spatial(last, generator, width=width, blocks=blocks)
        self.places = Places(pairing)
        self.standardise = Standardise(mean[: self.semantic], std[: self.semantic])
        self.project = linear(self.semantic, width, generator)
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, self.places, generator)
        zeroed(self.attention.output)

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return what ``spatial`` takes of the last encoder, and the others' tokens [N, t, p, h', w', C]."""
        others, last = (Grid(part) for part in features.values.tensor_split((self.semantic,), -1))
        return *self.spatial.prepare(last, onto), self.standardise(keys(others, onto))

    def forward(self, tokens: Tensor, kinds: Tensor, others: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E]."""
        x = self.spatial.project(tokens)
        at, others_at = self.places((1, *kinds.shape[2:4]), others), self.places(others.shape[2:5], others)
        others = self.project(others).flatten(2, 4)
        read = self.attention(self.norm(x).flatten(2, 3), others, at, others_at)
        latents: Tensor = self.spatial.trunk(x + read.unflatten(2, kinds.shape[2:4]), kinds)
        return latents
