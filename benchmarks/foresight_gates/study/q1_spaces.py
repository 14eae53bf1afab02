"""Features for Q1 whose worth is known, on nine categories of pictures. Pixels stand in for LTX-Video's latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_gates.study.patterns import CATEGORIES, categories

SIDE = 32
"""Pixels a side of the pictures that stand in for latents."""
STAND_IN = (
    f"Nothing here loads LTX-Video: pictures averaged to {SIDE} x {SIDE} pixels, scaled to mean 0 and variance 1 over "
    "all, stand in for its latents. Perfect features are that target itself in other axes, turned at random."
)
"""What every section that uses them says of them."""


@dataclass(frozen=True)
class Spaces:
    """Features of every kind over the same pictures, beside the target."""

    target: Tensor
    """[N, 3072] float64, pixels."""
    labels: Tensor
    """[N] category."""

    @classmethod
    def of(cls, each: int, side: int = SIDE) -> Spaces:
        """Draw ``each`` pictures of every category, and average them to ``side`` pixels a side."""
        pictures, labels = categories(each)
        block = pictures.shape[1] // side
        small = pictures.reshape(len(pictures), side, block, side, block, 3).mean((2, 4)).reshape(len(pictures), -1)
        return cls(torch.from_numpy((small - small.mean()) / small.std()), torch.from_numpy(labels))

    @property
    def perfect(self) -> Tensor:
        """The target in other axes: [N, 3072]."""
        return rotated(self.target)

    @property
    def blank(self) -> Tensor:
        """[N, 1] ones."""
        return torch.ones(len(self.labels), 1, dtype=torch.float64)

    @property
    def category(self) -> Tensor:
        """Which category and nothing else, one-hot: [N, 9]."""
        return F.one_hot(self.labels, len(CATEGORIES)).double()

    @property
    def centroid(self) -> Tensor:
        """The mean picture of the category: [N, 3072]."""
        return class_means(self.target, self.labels)[self.labels]


def class_means(x: Tensor, labels: Tensor) -> Tensor:
    """Return [9, D] the mean of the rows of ``x`` [N, D] in each category."""
    member = F.one_hot(labels, len(CATEGORIES)).to(x)
    return (member.T @ x) / member.sum(0)[:, None]


def rotated(x: Tensor) -> Tensor:
    """Return ``x`` [N, D] about its mean, in random axes of the N dimensions or fewer that it varies in: [N, R].

    All distances and angles between rows are kept, and all that a linear map can use.
    """
    _, spread, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    axes = axes[spread > 1e-9 * spread[0]]
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(len(axes), len(axes), generator=generator, dtype=x.dtype)).Q
    found: Tensor = (x - x.mean(0)) @ axes.T @ turn
    return found


def clustered(labels: Tensor, seed: int) -> Tensor:
    """Return [N, 64] a space that knows the category alone: far centres, and normal noise about them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(len(CATEGORIES), 64, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(len(labels), 64, generator=generator, dtype=torch.float64)
