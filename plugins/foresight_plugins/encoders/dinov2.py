"""DINOv2 on timm's modules, with the original repository's positional embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import unknown
from foresight_bench.grids import Grid
from foresight_plugins.encoders.images import IMAGENET, nearest_multiple, normalised, resized
from foresight_plugins.encoders.seeding import seeded

PATCH = 14
TRAINED_SIDE = 37
"""Side of the grid that the positional embeddings were trained on (518 pixels)."""


class DINOv2:
    """A frozen DINOv2 (Oquab et al., arXiv:2304.07193; with registers, Darcet et al., arXiv:2309.16588).

    Taps: ``patch_embed`` (the patch convolution's output, without positions), ``block.0`` ...
    ``block.<depth - 1>`` (the residual stream after that block, not normalised), ``final`` (the last block
    after the final LayerNorm). The CLS token and the registers are dropped from all of them.

    Args:
        setup: the weights are a ``.safetensors`` file with exactly the entries of timm's model.
        architecture: timm's name, ``vit_{small,base,large,giant}_patch14_dinov2`` or ``..._reg4_dinov2``.

    Raises:
        WeightsError: an entry is missing, unexpected or of another shape, or the file cannot be read.
    """

    def __init__(self, setup: EncoderSetup, architecture: str) -> None:
        # Random weights are drawn on the CPU, whatever the device; to draw those that weights replace took .3 s.
        with seeded("cpu", setup.seed), torch.device("cpu" if setup.weights is None else "meta"):
            # LayerScale of 1 as in the original repository; timm's 1e-5 would leave random blocks next to idle.
            model: Any = timm.create_model(architecture, pretrained=False, num_classes=0, img_size=518, init_values=1.0)
        if setup.weights is not None:
            tensors = Checkpoint(setup.weights.path).tensors(lambda name: True)
            fill(model, tensors, f"{architecture} in timm's layout (timm/{architecture}.lvd142m on the hub)")
        self._device = torch.device(setup.device)
        self._precision = getattr(torch, setup.precision)
        # Interpolated in float32 whatever the precision: they are added once, and their rounding would stay.
        self._positions = model.pos_embed.detach().to(self._device, torch.float32)
        self._grids: dict[tuple[int, int], Tensor] = {}
        self._model: Any = model.eval().requires_grad_(False).to(self._device, self._precision)
        self._block = torch.compile(_block) if setup.compiled else _block
        self._taps = ("patch_embed", *(f"block.{index}" for index in range(len(model.blocks))), "final")

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return a grid [N, T, H / 14, W / 14, C] per tap; each frame is encoded on its own.

        A side that is no multiple of 14 is first resized to the nearest one. Blocks after the deepest tap
        asked for do not run.

        Raises:
            PluginError: a tap is unknown.
        """
        for tap in taps:
            if tap not in self._taps:
                raise unknown("tap", tap, self._taps)
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            images = preprocess(torch.tensor(clips.frames, device=self._device).flatten(0, 1))
            found = self._run(images.to(self._precision), frozenset(taps))
        n, t, _, _ = clips.shape
        return {tap: Grid(found[tap].reshape(n, t, *found[tap].shape[1:])) for tap in taps}

    def _run(self, images: Tensor, taps: frozenset[str]) -> dict[str, Tensor]:
        """Return [B, H / 14, W / 14, C] per tap for ``images`` [B, 3, H, W]."""
        model = self._model
        if not taps:
            return {}
        patches = model.patch_embed.proj(images).permute(0, 2, 3, 1)
        found = {"patch_embed": patches}
        h, w = patches.shape[1:3]
        tokens = None
        for index, block in enumerate(model.blocks):
            if taps <= found.keys():
                return found
            tokens = self._block(block, self._embed(patches) if tokens is None else tokens)
            if f"block.{index}" in taps:
                found[f"block.{index}"] = tokens[:, model.num_prefix_tokens :].unflatten(1, (h, w))
        if "final" in taps and tokens is not None:
            found["final"] = model.norm(tokens[:, model.num_prefix_tokens :]).unflatten(1, (h, w))
        return found

    def _embed(self, patches: Tensor) -> Tensor:
        """Return the first block's input [B, prefix + h * w, C]: CLS, registers, patches with positions."""
        model = self._model
        batch, h, w, _ = patches.shape
        cls, positions = model.cls_token, self._positions
        # timm's models with registers carry the position of the CLS token inside the token itself.
        registers = model.reg_token is not None
        if not registers:
            cls, positions = cls + positions[:, :1].to(cls.dtype), positions[:, 1:]
        prefix = torch.cat([cls, model.reg_token], 1) if registers else cls
        if (h, w) not in self._grids:
            # Once a size: the bicubic kernel takes 9 ms on an H200, as long as the blocks take for 6 images.
            self._grids[h, w] = position_grid(positions, h, w, antialias=registers).to(patches.dtype)
        patches = patches + self._grids[h, w]
        return torch.cat([prefix.expand(batch, -1, -1), patches.flatten(1, 2)], 1)


def position_grid(positions: Tensor, h: int, w: int, *, antialias: bool) -> Tensor:
    """Return the positional embeddings [1, 37 * 37, C] on an ``h`` x ``w`` grid: [1, h, w, C].

    As ``interpolate_pos_encoding`` of the original repository (facebookresearch/dinov2), whose two families
    differ: models without registers scale by (n + 0.1) / 37 without an area filter, models with registers
    (``antialias``) resize to n with one. timm and transformers interpolate otherwise, which moves the
    features by 5 % and 1 % at 224 pixels.
    """
    grid = positions.reshape(1, TRAINED_SIDE, TRAINED_SIDE, -1)
    if (h, w) == (TRAINED_SIDE, TRAINED_SIDE):
        return grid
    planes = grid.permute(0, 3, 1, 2)
    if antialias:
        planes = F.interpolate(planes, size=(h, w), mode="bicubic", antialias=True)
    else:
        scale = ((h + 0.1) / TRAINED_SIDE, (w + 0.1) / TRAINED_SIDE)
        planes = F.interpolate(planes, scale_factor=scale, mode="bicubic")
    return planes.permute(0, 2, 3, 1)


def preprocess(frames: Tensor) -> Tensor:
    """Return ``frames`` [B, H, W, 3] uint8 as [B, 3, H', W'] float32, sides multiples of 14, normalised."""
    _, h, w, _ = frames.shape
    return normalised(resized(frames, nearest_multiple(h, PATCH), nearest_multiple(w, PATCH)), IMAGENET)


def _block(block: Any, tokens: Tensor) -> Tensor:
    output: Tensor = block(tokens)
    return output
