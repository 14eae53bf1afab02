"""The vision tower of Qwen2.5-VL, with all windows of a batch attended to at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 14
"""Side of a patch, in pixels."""
PAIR = 2
"""Frames in a patch."""
MERGE = 2
"""Side of the square of patches that the merger joins into one token."""
WINDOW = 4
"""Side of a window, in merged tokens: 112 pixels."""
ALIGNMENT = 128
"""What the width of the MLP is padded to. 3420 values of two bytes are no multiple of 16 bytes, on which the fast
matrix kernels insist; 3456 are, for 1 % more work."""
ROTARY_BASE = 10000.0

Buckets = tuple[tuple[int, int], ...]
"""Runs of neighbouring tokens that attend to each other: how many runs, how many tokens each, in order."""


class VisionTower(nn.Module):
    """The vision transformer of Qwen2.5-VL (Bai et al., arXiv:2502.13923, section 2.1), up to some block.

    The same features as transformers' ``Qwen2_5_VisionTransformerPretrainedModel``, which calls attention once
    per window, 28,928 times for 64 images of 448 pixels. Here tokens are put in an order in which windows of
    equal size stand together, so that one call serves all of them.

    Parameters have the names and shapes of the published checkpoints. Build it on ``meta``, give it its
    weights, then call :meth:`fuse`.

    Args:
        config: ``Qwen2_5_VLVisionConfig``.
        depth: how many of its blocks to build.
        merge: whether to build the merger.
    """

    def __init__(self, config: Any, depth: int, *, merge: bool) -> None:
        super().__init__()
        dim = config.hidden_size
        self.turns = dim // config.num_heads // 4
        self.full = frozenset(config.fullatt_block_indexes)
        shape = (PAIR, PATCH, PATCH)
        convolution = nn.Conv3d(config.in_channels, dim, shape, shape, bias=False)
        self.patch_embed: Any = nn.Sequential(OrderedDict(proj=convolution))
        self.blocks: Any = nn.ModuleList(Block(dim, config.num_heads, config.intermediate_size) for _ in range(depth))
        self.merger = Merger(dim, config.out_hidden_size) if merge else None
        self._enter, self._leave = Block.enter, Block.leave
        self._layouts: dict[tuple[int, int], _Layout] = {}

    def fuse(self, *, compiled: bool = False) -> None:
        """Join the matrices that are read together; with ``compiled``, compile the two halves of a block.

        The halves know nothing of windows, so all blocks share their two graphs, at any frame size.
        """
        for block in self.blocks:
            block.mlp.fuse()
        if compiled:
            self._enter, self._leave = torch.compile(Block.enter), torch.compile(Block.leave)

    def run(self, patches: Tensor, rows: int, columns: int, taps: Set[str]) -> dict[str, Tensor]:
        """Return the features at ``taps``, in raster order.

        Args:
            patches: [G, rows * columns, 3 * 2 * 14 * 14] of :func:`patch_vectors`.
            rows: patches down a frame, an even number.
            columns: patches across.
            taps: of ``patch_embed``, ``block.<i>``, ``pre_merge`` (the last block's output), ``post_merge``.

        Returns:
            [G, rows, columns, C] per tap, [G, rows / 2, columns / 2, C] for ``post_merge``. Blocks after the
            deepest tap do not run.
        """
        tokens = F.linear(patches, self.patch_embed.proj.weight.flatten(1))
        found = {"patch_embed": tokens.unflatten(1, (rows, columns))}
        layout = self._layout(rows, columns, tokens.device)
        tokens = tokens[:, layout.order]
        for index, block in enumerate(self.blocks):
            if taps <= found.keys():
                return found
            buckets = ((1, tokens.shape[1]),) if index in self.full else layout.windows
            attended = _attended(*self._enter(block, tokens, layout.cos, layout.sin), buckets)
            tokens = self._leave(block, tokens, attended)
            if f"block.{index}" in taps:
                found[f"block.{index}"] = tokens[:, layout.raster].unflatten(1, (rows, columns))
        if "pre_merge" in taps:
            last = found.get(f"block.{len(self.blocks) - 1}")
            found["pre_merge"] = tokens[:, layout.raster].unflatten(1, (rows, columns)) if last is None else last
        if "post_merge" in taps and self.merger is not None:
            merged = self.merger(tokens)[:, layout.merged_raster]
            found["post_merge"] = merged.unflatten(1, (rows // MERGE, columns // MERGE))
        return found

    def _layout(self, rows: int, columns: int, device: torch.device) -> _Layout:
        if (rows, columns) not in self._layouts:
            self._layouts[rows, columns] = _layout(rows, columns, self.turns, device)
        return self._layouts[rows, columns]


class RMSNorm(nn.RMSNorm):
    """RMSNorm in float32, rounded before the weight as the reference does it."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [..., C] normalised, in its own precision."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        normed: Tensor = self.weight * wide.to(x.dtype)
        return normed


class SwiGLU(nn.Module):
    """The MLP of a block. It runs only after :meth:`fuse`."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, width), nn.Linear(dim, width)
        self.down_proj = nn.Linear(width, dim)

    @torch.no_grad()
    def fuse(self) -> None:
        """Join gate and up into one matrix and pad the width; the padding adds silu(0) * 0 = 0."""
        halves = (self.gate_proj, self.up_proj)
        extra = -self.down_proj.in_features % ALIGNMENT
        weight = torch.cat([F.pad(half.weight, (0, 0, 0, extra)) for half in halves])
        bias = torch.cat([F.pad(half.bias, (0, extra)) for half in halves])
        self.gate_up_proj = _linear(weight, bias)
        self.down_proj = _linear(F.pad(self.down_proj.weight, (0, extra)), self.down_proj.bias)
        del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., C]."""
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        output: Tensor = self.down_proj(F.silu(gate) * up)
        return output


class Block(nn.Module):
    """A transformer block, in two halves around the attention."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.attn: Any = nn.Sequential(OrderedDict(qkv=nn.Linear(dim, 3 * dim), proj=nn.Linear(dim, dim)))
        self.mlp = SwiGLU(dim, width)

    def enter(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [G, S, heads, D] of ``tokens`` [G, S, C], the first two rotated.

        ``cos`` and ``sin`` [S, 1, 1, D] are float32, and so is the rotation.
        """
        qkv = self.attn.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        wide = qkv[:, :, :2].float()
        first, second = wide.chunk(2, -1)
        turned = (wide * cos + torch.cat([-second, first], -1) * sin).to(tokens.dtype)
        return turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2]

    def leave(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output [G, S, C] from its input and the attention's output, both [G, S, C]."""
        tokens = tokens + self.attn.proj(attended)
        output: Tensor = tokens + self.mlp(self.norm2(tokens))
        return output


class Merger(nn.Module):
    """Joins four neighbouring patches into a token of the language model."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.ln_q = RMSNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(4 * dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, out))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [G, S / 4, out] of ``tokens`` [G, S, C], four of a square in a row."""
        merged: Tensor = self.mlp(self.ln_q(tokens).unflatten(1, (-1, MERGE * MERGE)).flatten(2))
        return merged


@dataclass(frozen=True)
class _Layout:
    """The order of tokens in the blocks, for one size of frame, on the device."""

    order: Tensor
    """[S] place in raster order of each token."""
    raster: Tensor
    """[S] its inverse."""
    merged_raster: Tensor
    """[S / 4] the same for merged tokens."""
    windows: Buckets
    cos: Tensor
    """[S, 1, 1, D] float32, of each token's row and column."""
    sin: Tensor


def _layout(rows: int, columns: int, turns: int, device: torch.device) -> _Layout:
    merged, windows = window_order(rows // MERGE, columns // MERGE)
    top, left = (part * MERGE for part in np.divmod(merged, columns // MERGE))
    inner = np.arange(MERGE)
    r = np.broadcast_to(top[:, None, None] + inner[:, None], (len(merged), MERGE, MERGE)).reshape(-1)
    c = np.broadcast_to(left[:, None, None] + inner, (len(merged), MERGE, MERGE)).reshape(-1)
    order = r * columns + c
    # Float32 whatever the precision: bfloat16 has 8 bits, and angles of 72 rows would be off by up to 0.13.
    frequencies = ROTARY_BASE ** -(torch.arange(turns, device=device) / turns)
    places = torch.tensor(np.stack([r, c], 1), device=device)
    angles = (places[:, :, None] * frequencies).flatten(1).repeat(1, 2)[:, None, None]
    ordered, raster, merged_raster = (
        torch.tensor(index, device=device) for index in (order, np.argsort(order), np.argsort(merged))
    )
    return _Layout(ordered, raster, merged_raster, windows, angles.cos(), angles.sin())


def window_order(h: int, w: int) -> tuple[np.ndarray[Any, np.dtype[np.intp]], Buckets]:
    """Return the order of ``h`` x ``w`` merged tokens in the blocks, and the windows as runs of patches.

    Windows are 4 x 4 merged tokens, smaller at the right and bottom edges. Those of equal size follow each
    other, the largest first, each in raster order within.
    """
    r, c = np.divmod(np.arange(h * w), w)
    down, right = r // WINDOW, c // WINDOW
    area = np.minimum(WINDOW, h - down * WINDOW) * np.minimum(WINDOW, w - right * WINDOW)
    areas, counts = (values[::-1].tolist() for values in np.unique(area, return_counts=True))
    buckets = tuple((count // size, size * MERGE * MERGE) for size, count in zip(areas, counts, strict=True))
    return np.lexsort((c, r, right, down, -area)), buckets


def patch_vectors(images: Tensor) -> Tensor:
    """Return [N * ceil(T / 2), h * w, 3 * 2 * 14 * 14], the patches of each pair of frames in raster order.

    Args:
        images: [N, T, 3, 14 * h, 14 * w]; the last frame of an odd number is taken twice.
    """
    if images.shape[1] % PAIR:
        images = torch.cat([images, images[:, -1:]], 1)
    n, t, channels, height, width = images.shape
    split = images.reshape(n * t // PAIR, PAIR, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 3, 5, 2, 1, 4, 6).flatten(3).flatten(1, 2)


def _attended(q: Tensor, k: Tensor, v: Tensor, buckets: Buckets) -> Tensor:
    """Return attention [G, S, heads * D] within each run; without a copy where all runs are of one length."""
    outputs, start = [], 0
    for count, length in buckets:
        stop = start + count * length
        parts = (x[:, start:stop].unflatten(1, (count, length)).flatten(0, 1).transpose(1, 2) for x in (q, k, v))
        output = F.scaled_dot_product_attention(*parts).transpose(1, 2)
        outputs.append(output.reshape(q.shape[0], stop - start, -1))
        start = stop
    # Through .data it is no view: of a view the compiler looks at the base, whose shape follows the windows.
    return outputs[0].data if len(outputs) == 1 else torch.cat(outputs, 1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return linear
