"""Feature grids and latent grids: tokens in raster order, on a grid that says what each token describes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.errors import ContractError, NonFinite


def slots(cells: int, frames: int) -> list[tuple[list[int], list[int]]]:
    """Return, slot by slot, cells in time and the frames they describe: the first frame of each cell, the second, ...

    Frame f belongs to cell ``f * cells // frames``. Of 9 frames in 5 cells, slot 0 holds frames 0, 2, 4, 6 and 8, slot
    1 the others. A head for each slot can tell the frames apart that share a token; one head for all could not.
    """
    found: list[tuple[list[int], list[int]]] = []
    seen: dict[int, int] = {}
    for frame in range(frames):
        cell = frame * cells // frames
        slot = seen.get(cell, 0)
        seen[cell] = slot + 1
        if slot == len(found):
            found.append(([], []))
        found[slot][0].append(cell)
        found[slot][1].append(frame)
    return found


def finite(values: Tensor) -> bool:
    """Return whether ``values`` hold neither NaN nor infinity: extremes show both, in a 16th of the time of a mask."""
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))


@dataclass(frozen=True)
class Layout:
    """Where the cells of a grid lie."""

    t: int
    h: int
    w: int
    spans: tuple[tuple[int, int], ...] = ()
    """Frames [start, stop) of the clip that each cell in time describes; empty where all have equal shares."""

    @property
    def size(self) -> tuple[int, int, int]:
        """T', H', W'."""
        return self.t, self.h, self.w


@dataclass(frozen=True)
class Grid:
    """A feature grid or a latent grid.

    Token (t, r, c) describes the image region at (t, r, c): the frames of ``spans[t]``, rows ``[r, r + 1) * H / H'``,
    columns ``[c, c + 1) * W / W'``. Prompt, CLS and register tokens are not in it.
    """

    values: Tensor
    """[N, T', H', W', C], floating point."""
    spans: tuple[tuple[int, int], ...] = ()
    """As in :class:`Layout`: a video autoencoder's first cell often describes one frame, and each other eight."""
    streams: tuple[int, ...] = ()
    """Of a hybrid's features: how many of the C channels each encoder brings, in the order of its name."""

    def __post_init__(self) -> None:
        if self.values.ndim != 5:
            raise ContractError(f"A grid must be [N, T, H, W, C]; got {tuple(self.values.shape)}.")
        if not self.values.is_floating_point():
            raise ContractError(f"A grid must be floating point; got {self.values.dtype}.")
        if self.spans and len(self.spans) != self.values.shape[1]:
            raise ContractError(f"{self.values.shape[1]} cells in time cannot have {len(self.spans)} spans.")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """N, T', H', W', C."""
        n, t, h, w, c = self.values.shape
        return n, t, h, w, c

    @property
    def layout(self) -> Layout:
        """Where the cells lie."""
        _, t, h, w, _ = self.shape
        return Layout(t, h, w, self.spans)

    def check_finite(self, what: str) -> None:
        """Raise :class:`NonFinite` if any value is NaN or infinite; ``what`` names the grid in the message."""
        if not finite(self.values):
            raise NonFinite(f"{what} holds NaN or infinite values.")

    def coarse(self, side: int) -> Tensor:
        """Return area averages over time and over a ``side`` x ``side`` grid: [N, side * side * C]."""
        n, _, _, _, c = self.shape
        mean = self.values.mean(1).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(mean, side).permute(0, 2, 3, 1).reshape(n, side * side * c)

    def resampled(self, t: int, h: int, w: int) -> Grid:
        """Return this grid on ``t`` x ``h`` x ``w`` cells.

        Space: bilinear between cell centres, with an area filter when it shrinks. Time: nearest cell.
        """
        n, t0, h0, w0, c = self.shape
        values = self.values
        if (h, w) != (h0, w0):
            planes = values.reshape(n * t0, h0, w0, c).permute(0, 3, 1, 2)
            planes = F.interpolate(planes, (h, w), mode="bilinear", align_corners=False, antialias=True)
            values = planes.permute(0, 2, 3, 1).reshape(n, t0, h, w, c)
        if t != t0:
            index = torch.div(torch.arange(t, device=values.device) * t0, t, rounding_mode="floor")
            values = values[:, index]
        return Grid(values)
