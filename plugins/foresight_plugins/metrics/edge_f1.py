"""Boundary F1 with a tolerance (after Martin, Fowlkes & Malik 2004 and Perazzi et al. 2016, DAVIS)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor

from foresight_bench.contracts import FrameTruth, ResolvedWeights

_SIGMA = 1.0
_LOW, _HIGH = 0.8, 0.9  # quantiles of the gradient: halving the contrast of a frame changes no edge
_DIAGONAL = 0.0075  # BSDS' tolerance, as a share of the diagonal
_MIN_TOLERANCE = 2  # pixels: exact matching gives the truth shifted by 1 px an F1 of .40

Mask = NDArray[np.bool_]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Edges:
    """Of each frame, [H, W]."""

    edges: list[Mask]
    near: list[Mask]
    """The edges and what is within the tolerance of one."""

    @classmethod
    def of(cls, frames: Tensor) -> _Edges:
        maps = edge_maps(frames)
        return cls(maps, _each(dilate, maps))

    def f1(self, truth: _Edges, order: Sequence[int]) -> Tensor:
        """Return [F] float64, frames ``order`` of these beside all of ``truth``."""
        found = ([maps[index] for index in order] for maps in (self.edges, self.near))
        return torch.tensor(_each(boundary_f1, *found, truth.edges, truth.near), dtype=torch.float64)


class EdgeF1:
    """F1 of the Canny edges of a reconstruction and of the truth, per frame.

    An edge pixel is matched if the other map has one within max(2, 0.0075 diagonal) pixels. Two frames
    without edges score 1, one without edges 0. Only edges that Canny finds in frames are compared, since a
    map that is all edges would score .61.
    """

    def __init__(self, weights: ResolvedWeights | None = None, device: str = "cpu") -> None:
        self._device = device

    def prepare(self, truth: FrameTruth) -> _Edges:
        """Return edges and their neighbourhoods, frame by frame."""
        return _Edges.of(truth.frames)

    def score(self, reconstruction: Tensor, prepared: _Edges) -> Tensor:
        """Return [F] float64 in [0, 1]."""
        return _Edges.of(reconstruction).f1(prepared, range(len(reconstruction)))

    def crossed(self, reconstruction: Tensor, prepared: _Edges, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of ``reconstruction`` and those of ``reconstruction[order]``; edges are found once."""
        found = _Edges.of(reconstruction)
        return found.f1(prepared, range(len(order))), found.f1(prepared, order.tolist())


def edge_maps(frames: Tensor) -> list[Mask]:
    """Return the Canny edges [H, W] of each frame of ``frames`` [F, 3, H, W] in [0, 1].

    Frames are rounded to 8 bits, and an edge needs a change of value within 2 pixels: thresholds that are
    quantiles turn even the rounding error of smoothing a constant into edges.
    """
    images = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return _each(_edge_map, images)


def _each(function: Callable[..., Result], *frames: Iterable[Any]) -> list[Result]:
    """Return what ``function`` makes of each frame; nearly all of it runs without the interpreter's lock."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(lambda each: function(*each), zip(*frames, strict=True)))


def _edge_map(image: NDArray[np.uint8]) -> Mask:
    edges: Mask = canny(  # type: ignore[no-untyped-call]
        rgb2gray(image), sigma=_SIGMA, low_threshold=_LOW, high_threshold=_HIGH, use_quantiles=True
    )
    return edges & varies(image)


def varies(image: NDArray[np.uint8], reach: int = 2) -> Mask:
    """Return where a pixel of ``image`` [H, W, 3] has two different values within ``reach`` of it.

    A window holds two values if and only if two of its neighbours differ, and a bit map of those is far
    cheaper to spread than the extremes of three channels.
    """
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * reach, width + 2 * reach), dtype=bool)
    inner = padded[reach:-reach, reach:-reach]
    pixels = np.zeros((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = image
    colour = pixels.view(np.uint32)[
        ..., 0
    ]  # one number a pixel: the three, and whether any differs, took six times as long
    across, down = colour[:, 1:] != colour[:, :-1], colour[1:] != colour[:-1]
    result = np.zeros((height, width), dtype=bool)
    for changes, last_row, last_column in ((across, reach, reach - 1), (down, reach - 1, reach)):
        padded[:] = False
        inner[: changes.shape[0], : changes.shape[1]] = changes
        rows = np.zeros((height, width + 2 * reach), dtype=bool)
        for dy in range(-reach, last_row + 1):
            rows |= padded[reach + dy : reach + dy + height]
        for dx in range(-reach, last_column + 1):
            result |= rows[:, reach + dx : reach + dx + width]
    return result


def dilate(edges: Mask) -> Mask:
    """Return the pixels of ``edges`` [H, W] and those within the tolerance of one.

    The disk is spread row by row, its wide rows from its narrow ones: at 448 pixels 40 times as fast as a dilation that
    looks at all 81 offsets.
    """
    height, width = edges.shape
    reach = max(_MIN_TOLERANCE, round(_DIAGONAL * float(np.hypot(height, width))))
    padded = np.zeros((height + 2 * reach, width + 2 * reach), dtype=bool)
    padded[reach:-reach, reach:-reach] = edges
    near = np.zeros((height, width), dtype=bool)
    rows = padded[:, reach : reach + width].copy()  # of half the width `half`, at first a pixel each
    for half in range(reach + 1):
        if half:
            rows |= padded[:, reach - half : reach - half + width]
            rows |= padded[:, reach + half : reach + half + width]
        for dy in range(-reach, reach + 1):
            if isqrt(reach**2 - dy**2) == half:
                near |= rows[reach + dy : reach + dy + height]
    return near


def boundary_f1(found: Mask, near_found: Mask, true: Mask, near_true: Mask) -> float:
    """Return the F1 of edge maps ``found`` and ``true`` [H, W], each with itself dilated."""
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    precision = (found & near_true).sum() / found.sum()
    recall = (true & near_found).sum() / true.sum()
    total = precision + recall
    return float(2 * precision * recall / total) if total > 0 else 0.0
