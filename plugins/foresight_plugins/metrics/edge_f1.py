"""Boundary F1 with a tolerance (after Martin, Fowlkes & Malik 2004 and Perazzi et al. 2016, DAVIS)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor

from foresight_bench.contracts import FrameTruth, ResolvedWeights

_SIGMA = 1.0
_LOW, _HIGH = 0.8, 0.9  # quantiles of the gradient: halving the contrast of a frame changes no edge
_DIAGONAL = 0.0075  # BSDS' tolerance, as a share of the diagonal
_MIN_TOLERANCE = 2  # pixels: exact matching gives the truth shifted by 1 px an F1 of .40

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Edges:
    edges: list[Mask]
    near: list[Mask]


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
        maps = edge_maps(truth.frames)
        return _Edges(maps, [dilate(edges) for edges in maps])

    def score(self, reconstruction: Tensor, prepared: _Edges) -> Tensor:
        """Return [F] float64 in [0, 1]."""
        pairs = zip(edge_maps(reconstruction), prepared.edges, prepared.near, strict=True)
        scores = [boundary_f1(found, true, near) for found, true, near in pairs]
        return torch.tensor(scores, dtype=torch.float64)


def edge_maps(frames: Tensor) -> list[Mask]:
    """Return the Canny edges [H, W] of each frame of ``frames`` [F, 3, H, W] in [0, 1].

    Frames are rounded to 8 bits, and an edge needs a change of value within 2 pixels: thresholds that are
    quantiles turn even the rounding error of smoothing a constant into edges.
    """
    images = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # nearly all of it runs without the interpreter's lock
        return list(threads.map(_edge_map, images))


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
    across = (image[:, 1:] != image[:, :-1]).any(-1)
    down = (image[1:] != image[:-1]).any(-1)
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
    """Return the pixels of ``edges`` [H, W] and those within the tolerance of one."""
    tolerance = max(_MIN_TOLERANCE, round(_DIAGONAL * float(np.hypot(*edges.shape))))
    offsets = np.arange(-tolerance, tolerance + 1) ** 2
    disk = offsets + offsets[:, None] <= tolerance**2
    near: Mask = ndimage.binary_dilation(edges, disk)
    return near


def boundary_f1(found: Mask, true: Mask, near_true: Mask) -> float:
    """Return the F1 of edge maps ``found`` and ``true`` [H, W]; ``near_true`` is ``true`` dilated."""
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    precision = (found & near_true).sum() / found.sum()
    recall = (true & dilate(found)).sum() / true.sum()
    total = precision + recall
    return float(2 * precision * recall / total) if total > 0 else 0.0
