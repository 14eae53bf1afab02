"""Per-cell targets of the dense probe: which object a cell of a token grid shows, and its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.clips import Truth

MAJORITY = 0.5
"""A cell shows an object if the object covers at least this share of it."""
CENTRE = 0.5
"""Centre sampling: a cell trains the box head if it lies in this central share of the box (FCOS, sec. 3.1)."""


@dataclass(frozen=True)
class CellTargets:
    """Targets on a grid of H' x W' cells for F frames."""

    owner: Tensor
    """[F, H', W'] int64: the object slot that the cell shows, -1 for background."""
    central: Tensor
    """[F, H', W'] bool: the cell lies in the central part of its owner's box."""
    classes: Tensor
    """[F, H', W'] int64: the owner's class, -1 for background."""
    distances: Tensor
    """[F, H', W', 4] float32: from the cell's centre to the left, top, right and bottom side of the owner's
    box, as shares of the frame's width or height; zeros for background."""

    def at(self, frames: Sequence[int]) -> CellTargets:
        """Return the targets of some frames."""
        index = torch.tensor(frames, device=self.owner.device)
        return CellTargets(self.owner[index], self.central[index], self.classes[index], self.distances[index])


def cell_centres(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cells' centres x [W'] and y [H'] as shares of the frame."""
    return (torch.arange(w, device=device) + 0.5) / w, (torch.arange(h, device=device) + 0.5) / h


def cell_pixels(images: Tensor, h: int, w: int) -> Tensor:
    """Cut ``images`` [F, 3, h * s, w * s] into the pixels of each cell: [F, h, w, 3 * s * s], channel by channel.

    One copy; ``unfold``, made for windows that overlap, takes 1.4 times as long, and ``fold`` 2.5 times as its inverse.
    """
    f, c, height, width = images.shape
    parts = images.reshape(f, c, h, height // h, w, width // w)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3)


def from_pixels(cells: Tensor, side: int) -> Tensor:
    """Return the images [F, 3, h * side, w * side] whose :func:`cell_pixels` are ``cells`` [F, h, w, 3 * side^2]."""
    f, h, w, _ = cells.shape
    return cells.reshape(f, h, w, 3, side, side).permute(0, 3, 1, 4, 2, 5).reshape(f, 3, h * side, w * side)


def cell_targets(truth: Truth, h: int, w: int, device: torch.device) -> CellTargets:
    """Return the targets of every frame of ``truth``, flattened over clips and time.

    Every visible object owns at least one cell: the one that holds most of it.
    """
    n, t, height, width = truth.labels.shape
    slots = truth.classes.shape[1]
    labels = torch.from_numpy(truth.labels).to(device).flatten(0, 1)
    boxes = torch.from_numpy(truth.boxes).to(device).flatten(0, 1).float()
    boxes = boxes / torch.tensor([width, height, width, height], device=device)
    classes = torch.from_numpy(truth.classes).to(device).long().repeat_interleave(t, 0)

    cover = torch.stack(
        [F.adaptive_avg_pool2d((labels == k + 1).float().unsqueeze(1), (h, w))[:, 0] for k in range(slots)], 1
    )
    most, owner = cover.max(1)
    owner = torch.where(most >= MAJORITY, owner, -1)
    flat = owner.flatten(1)
    best_cell = cover.flatten(2).argmax(2)
    frames = torch.arange(n * t, device=device)
    for k in range(slots):
        orphan = (cover[:, k].flatten(1).sum(1) > 0) & ~(flat == k).any(1)
        flat[frames[orphan], best_cell[orphan, k]] = k

    shown = owner >= 0
    slot = owner.clamp_min(0).flatten(1)
    box = boxes.gather(1, slot.unsqueeze(2).expand(-1, -1, 4)).reshape(n * t, h, w, 4)
    x, y = cell_centres(h, w, device)
    x, y = x.expand(n * t, h, w), y.unsqueeze(1).expand(n * t, h, w)
    distances = torch.stack([x - box[..., 0], y - box[..., 1], box[..., 2] - x, box[..., 3] - y], -1)
    distances = distances * shown.unsqueeze(-1)

    middle = (box[..., :2] + box[..., 2:]) / 2
    extent = box[..., 2:] - box[..., :2]
    away = torch.stack([x, y], -1).sub(middle).abs()
    central = shown & (away <= extent * CENTRE / 2).all(-1)
    for k in range(slots):
        mine = owner == k
        none = mine.flatten(1).any(1) & ~(central & mine).flatten(1).any(1)
        nearest = away.square().sum(-1).masked_fill(~mine, torch.inf).flatten(1).argmin(1)
        central.flatten(1)[frames[none], nearest[none]] = True

    owned_class = classes.gather(1, slot).reshape(n * t, h, w)
    return CellTargets(owner, central, torch.where(shown, owned_class, -1), distances)
