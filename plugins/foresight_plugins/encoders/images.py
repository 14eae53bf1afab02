"""Preprocessing that encoders share: resizing as PIL does it, in batch and on the device, and normalising."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Channels = tuple[float, float, float]

IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of levels in [0, 1]: DINOv2, InternVL, and times 255 SAM."""
CLIP: tuple[Channels, Channels] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""The same of CLIP: LLaVA-NeXT, Qwen2.5-VL."""


def resized(frames: Tensor, height: int, width: int, mode: Literal["bicubic", "bilinear"] = "bicubic") -> Tensor:
    """Return ``frames`` [B, H, W, 3] uint8 as [B, 3, height, width] float32, whole levels in 0 .. 255.

    Two passes with an area filter, the width first, each rounded to whole levels, halves up: within 2 levels of
    PIL up to version 12, which these models were trained with. PIL 13 begins with the height where that is less
    work, which moves noise by up to 22 levels. One pass in floating point is off by up to 11.
    """
    images = frames.permute(0, 3, 1, 2).float()
    for size in ((images.shape[-2], width), (height, width)):
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode=mode, antialias=True).add_(0.5).floor_().clamp_(0, 255)
    return images


def normalised(images: Tensor, statistics: tuple[Channels, Channels]) -> Tensor:
    """Return ``images`` [B, 3, H, W] in 0 .. 255 with mean and deviation (of [0, 1]) taken out."""
    mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in statistics)
    return (images / 255 - mean) / deviation


def nearest_multiple(pixels: int, unit: int) -> int:
    """Return the multiple of ``unit`` nearest to ``pixels``, at least ``unit``; the larger of two equally near."""
    return max(unit, (2 * pixels + unit) // (2 * unit) * unit)
