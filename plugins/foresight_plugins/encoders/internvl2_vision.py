"""InternViT, the vision tower of InternVL, in plain modules with one matrix for query, key and value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale (InternVL, arXiv:2312.14238, section 3.2).

    transformers' block multiplies by three matrices where this one multiplies by one, as the original does.
    """

    def __init__(self, width: int, hidden: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.norm2 = nn.LayerNorm(width, epsilon)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        layers = OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))
        self.mlp = nn.Sequential(layers)
        # 1, not the 0.1 that training starts from: random blocks must not be next to idle.
        self.ls1 = nn.Parameter(torch.ones(width))
        self.ls2 = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the residual stream [B, S, C] behind this block."""
        batch, length, width = tokens.shape
        qkv = self.attn["qkv"](self.norm1(tokens)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        tokens = tokens + self.ls1 * self.attn["proj"](mixed)
        output: Tensor = tokens + self.ls2 * self.mlp(self.norm2(tokens))
        return output


class Embeddings(nn.Module):
    """The patch convolution, [CLS] and the learned positions."""

    def __init__(self, width: int, patch: int, side: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Parameter(torch.randn(1, side**2 + 1, width))


class InternViT(nn.Module):
    """The first ``depth`` blocks of an InternViT; no norm follows them.

    Args:
        fields: ``vision_config`` of a checkpoint, original or transformers'; image and patch as one number.
        depth: how many blocks to build.
    """

    def __init__(self, fields: Mapping[str, Any], depth: int) -> None:
        super().__init__()
        self.tile: int = fields["image_size"]
        self.side = self.tile // fields["patch_size"]
        width = fields["hidden_size"]
        sizes = (fields["intermediate_size"], fields["num_attention_heads"], fields["layer_norm_eps"])
        self.embeddings = Embeddings(width, fields["patch_size"], self.side)
        self.blocks = nn.ModuleList(Block(width, *sizes) for _ in range(depth))

    def patches(self, images: Tensor) -> Tensor:
        """Return the patch convolution's output [B, side, side, C] on ``images`` [B, 3, tile, tile].

        As one matrix product, which on a GPU in bfloat16 takes a sixth of the convolution's time.
        """
        convolution, patch = self.embeddings.patch_embedding, self.tile // self.side
        squares = images.reshape(len(images), 3, self.side, patch, self.side, patch).permute(0, 2, 4, 1, 3, 5)
        return F.linear(squares.flatten(3), convolution.weight.flatten(1), convolution.bias)

    def tokens(self, patches: Tensor) -> Tensor:
        """Return the first block's input [B, 1 + side * side, C]: [CLS], then the patches, with positions."""
        cls = self.embeddings.class_embedding.expand(len(patches), -1, -1)
        positions: Tensor = self.embeddings.position_embedding
        return torch.cat([cls, patches.flatten(1, 2)], 1) + positions

    def grid(self, tokens: Tensor) -> Tensor:
        """Return ``tokens`` [B, 1 + side * side, C] without [CLS], as [B, side, side, C]."""
        return tokens[:, 1:].reshape(len(tokens), self.side, self.side, -1)


def pixel_shuffle(grid: Tensor) -> Tensor:
    """Return ``grid`` [B, H, W, C] as [B, H / 2, W / 2, 4 C]; cell (dr, dc) of a square is chunk 2 dr + dc.

    This is the original's ``ps_version`` v2; its v1 leaves the grid transposed.
    """
    batch, h, w, c = grid.shape
    return grid.reshape(batch, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(batch, h // 2, w // 2, 4 * c)


def projector(width: int, output: int) -> nn.Sequential:
    """Return the map from a pixel-shuffled grid of ``4 * width`` channels to the language model's ``output``."""
    return nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, output), nn.GELU(), nn.Linear(output, output))
