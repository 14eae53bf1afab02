"""The heads of Q2: one linear map per token, in closed form, the same for every encoder, tap and control.

Linear and position-wise, so that a head can neither rebuild location nor hide how much of it is missing; in
closed form, so that there is nothing to tune but the penalty, which `val` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from foresight_bench.contracts import FrameBoxes
from foresight_bench.grids import Grid
from foresight_bench.pairs import statistics
from foresight_bench.ridge import Moments, Ridge, fit
from foresight_gates.targets import CellTargets, cell_centres, cell_pixels, from_pixels

ROWS = 32
"""Clips whose tokens are standardised and multiplied at a time; bounds the memory of a pass."""
NMS_IOU = 0.5
MIN_SCORE = 0.05
"""Objectness below which a cell proposes no box: a fit of 0/1 targets answers about their mean where it knows
nothing, and fewer than 5 % of all cells are central to an object."""
MAX_BOXES = 20
"""Boxes kept in a frame, five times the most objects a scene holds."""


@dataclass(frozen=True)
class Standard:
    """Per-channel mean and standard deviation of the train tokens."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> Standard:
        """Measure ``grids``; a channel without variance gets a standard deviation of 1."""
        distinct = [replace(grid, values=_distinct(grid.values)) for grid in grids]
        mean, std = (each.to(grids[0].values.device) for each in statistics(distinct))
        return cls(mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, 1.0))

    def rows(self, grid: Grid) -> Iterator[tuple[slice, Tensor]]:
        """Yield (frames, tokens [., C]) of ``ROWS`` clips at a time, standardised; one a frame if all are one."""
        n, t, _, _, _ = grid.shape
        values = _distinct(grid.values)
        for start in range(0, n, ROWS):
            stop = min(start + ROWS, n)
            part = (values[start:stop] - self.mean) / self.std
            yield slice(start * t, stop * t), part.flatten(0, 3)


def _distinct(values: Tensor) -> Tensor:
    """Return ``values`` [N, T', H', W', C], or [N, T', 1, 1, C] where all cells of a frame are one in memory."""
    return values[:, :, :1, :1] if values.stride(2) == values.stride(3) == 0 else values


Block = tuple[Grid, CellTargets, Tensor]
"""A grid, its targets, and the frames [F, 3, H, W] it was made from."""
Wanted = Callable[[CellTargets, Tensor, slice], tuple[Tensor, Tensor | None]]
"""``wanted(targets, frames, part)``: targets [., H', W', E] of some frames, and which cells count (None: all)."""


def fit_map(standard: Standard, train: Sequence[Block], val: Sequence[Block], wanted: Wanted) -> Ridge:
    """Fit one linear map from standardised tokens to what is ``wanted`` of them; ``val`` chooses the penalties."""

    def moments(blocks: Sequence[Block]) -> Moments:
        total = Moments()
        for grid, targets, frames in blocks:
            for part, rows in standard.rows(grid):
                answers, mask = wanted(targets, frames, part)
                if len(rows) < answers[..., 0].numel():
                    total.accumulate_shared(rows, answers.flatten(1, 2), None if mask is None else mask.flatten(1))
                elif mask is None:
                    total.accumulate(rows, answers.flatten(0, 2))
                else:
                    total.accumulate(rows[mask.flatten()], answers[mask])
        return total

    return fit(moments(train), moments(val))


def apply_map(standard: Standard, head: Ridge, grid: Grid) -> Tensor:
    """Return the map's output [F, H', W', E]."""
    n, t, h, w, _ = grid.shape
    rows: Tensor = torch.cat([head.predict(part) for _, part in standard.rows(grid)])
    if len(rows) == n * t:
        return rows[:, None, None].expand(-1, h, w, -1)
    return rows.reshape(n * t, h, w, -1)


@dataclass(frozen=True)
class Proposals:
    """The boxes of one frame after NMS, best first."""

    boxes: NDArray[np.float32]
    """[M, 4] x0, y0, x1, y1 in pixels."""
    classes: NDArray[np.int64]
    """[M]"""
    presence: NDArray[np.float32]
    """[M] predicted centrality in [0, 1]: is there an object?"""
    share: NDArray[np.float32]
    """[M] predicted share of the class in [0, 1]: is it this one?"""

    def ranked(self) -> FrameBoxes:
        """Return every box, scored by presence times share, as average precision ranks them."""
        return FrameBoxes(self.boxes, self.classes, self.presence * self.share)

    def confident(self, threshold: float) -> FrameBoxes:
        """Return the boxes whose presence is at least ``threshold``."""
        keep = self.presence >= threshold
        return FrameBoxes(self.boxes[keep], self.classes[keep], self.presence[keep])


@dataclass(frozen=True)
class Reading:
    """What the heads read from one block of F frames."""

    proposals: tuple[Proposals, ...]
    """The dense detection probe's, one entry a frame."""
    cover: Tensor
    """[F, H', W'] how much of each cell an object covers."""
    frames: Tensor
    """[F, 3, H, W] in [0, 1], the patch decoder's."""


def joined(parts: Sequence[tuple[Sequence[int], Reading]]) -> Reading:
    """Return one reading of all frames from readings of some of them; with each, where its frames stand."""
    order = np.argsort([frame for frames, _ in parts for frame in frames])
    proposals = [proposal for _, part in parts for proposal in part.proposals]
    cover, images = torch.cat([part.cover for _, part in parts]), torch.cat([part.frames for _, part in parts])
    return Reading(tuple(proposals[index] for index in order), cover[order], images[order])


@dataclass(frozen=True)
class Heads:
    """The dense detection probe and the patch decoder of one tap, on one grid."""

    standard: Standard
    everywhere: Ridge
    """Token to (central to an object, covered by an object, the pixels of the cell); fitted on every cell."""
    inside: Ridge
    """Token to (one-hot class, left, top, right, bottom as shares of the frame); fitted on central cells."""
    side: int
    """Pixels a cell is decoded to, along each axis."""
    classes: int

    @classmethod
    def fitted(
        cls,
        train: Sequence[Block],
        val: Sequence[Block],
        classes: int,
    ) -> Heads:
        """Fit on ``train``; ``val`` chooses the penalties."""
        side = max(1, round(train[0][2].shape[2] / train[0][0].shape[2]))
        standard = Standard.of([grid for grid, _, _ in train])

        def everywhere(targets: CellTargets, frames: Tensor, part: slice) -> tuple[Tensor, Tensor | None]:
            presence = torch.stack([targets.central[part], targets.owner[part] >= 0], -1).float()
            return torch.cat([presence, _cells(frames[part], targets, side)], -1), None

        def inside(targets: CellTargets, frames: Tensor, part: slice) -> tuple[Tensor, Tensor | None]:
            one_hot = F.one_hot(targets.classes[part].clamp_min(0), classes).float()
            return torch.cat([one_hot, targets.distances[part]], -1), targets.central[part]

        return cls(
            standard,
            fit_map(standard, train, val, everywhere),
            fit_map(standard, train, val, inside),
            side,
            classes,
        )

    @property
    def parameters(self) -> int:
        """Trained values."""
        return sum(map_.weight.numel() + map_.intercept.numel() for map_ in (self.everywhere, self.inside))

    def read(self, grid: Grid, height: int, width: int) -> Reading:
        """Read frames of ``height`` x ``width`` pixels out of ``grid``."""
        outside = apply_map(self.standard, self.everywhere, grid)
        presence, cells = outside[..., :2], outside[..., 2:]
        images = from_pixels(cells, self.side)
        proposals = self._proposals(grid, presence[..., 0].clamp(0, 1), height, width)
        return Reading(proposals, presence[..., 1], _resized(images, height, width).clamp(0, 1))

    def _proposals(self, grid: Grid, central: Tensor, height: int, width: int) -> tuple[Proposals, ...]:
        _, h, w = central.shape
        device = central.device
        within = apply_map(self.standard, self.inside, grid)
        share, label = within[..., : self.classes].clamp(0, 1).max(-1)
        reach = within[..., self.classes :]
        x, y = cell_centres(h, w, device)
        x, y = x.expand(h, w), y.unsqueeze(1).expand(h, w)
        sides = [x - reach[..., 0], y - reach[..., 1], x + reach[..., 2], y + reach[..., 3]]
        boxes = torch.stack(sides, -1).clamp(0, 1) * torch.tensor([width, height, width, height], device=device)
        sound = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        cells = (central > MIN_SCORE) & sound
        frame = torch.nonzero(cells)[:, 0]
        keep = batched_nms(boxes[cells], central[cells], frame, NMS_IOU)
        kept = [part[cells][keep].cpu().numpy() for part in (boxes, label, central, share)]
        frame_of = frame[keep].cpu().numpy()
        found = (np.flatnonzero(frame_of == index)[:MAX_BOXES] for index in range(len(central)))
        return tuple(Proposals(*(part[mine] for part in kept)) for mine in found)


def extent_boxes(cover: Tensor, threshold: float, height: int, width: int) -> list[FrameBoxes]:
    """Return the extents of the connected regions where ``cover`` [F, H', W'] is at least ``threshold``."""
    maps: NDArray[np.bool_] = (cover >= threshold).cpu().numpy()
    _, h, w = maps.shape
    result = []
    for shown in maps:
        regions, _ = ndimage.label(shown)
        boxes = [
            (
                columns.start * width / w,
                rows.start * height / h,
                columns.stop * width / w,
                rows.stop * height / h,
            )
            for rows, columns in ndimage.find_objects(regions)
        ][:MAX_BOXES]
        count = len(boxes)
        result.append(
            FrameBoxes(
                np.array(boxes, dtype=np.float32).reshape(count, 4),
                np.zeros(count, dtype=np.int64),
                np.ones(count, dtype=np.float32),
            )
        )
    return result


def _cells(frames: Tensor, targets: CellTargets, side: int) -> Tensor:
    """Cut frames [F, 3, H, W] into the pixels of each cell: [F, H', W', 3 * side^2]."""
    _, h, w = targets.owner.shape
    return cell_pixels(_resized(frames, h * side, w * side), h, w)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)
