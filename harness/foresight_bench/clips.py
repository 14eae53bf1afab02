"""Clips and their exact ground truth, as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Truth:
    """Exact ground truth of N clips of T frames with up to K objects each.

    Object slot k is the same object in every frame of a clip, so k is also its track id.
    """

    boxes: NDArray[np.int16]
    """[N, T, K, 4] tight box of the visible part: x0, y0, x1, y1 in pixels, half open; zeros if absent."""
    classes: NDArray[np.int8]
    """[N, K] class index, -1 in unused slots."""
    labels: NDArray[np.uint8]
    """[N, T, H, W] visible mask: 0 background, k + 1 where object k is seen."""
    plates: NDArray[np.uint8]
    """[N, T, H, W, 3] clean plate: the same frame without objects."""

    def edges(self) -> NDArray[np.bool_]:
        """Return object boundaries [N, T, H, W]: pixels whose label differs from the one right or below."""
        labels = self.labels
        edge = np.zeros(labels.shape, dtype=bool)
        edge[..., :, :-1] |= labels[..., :, 1:] != labels[..., :, :-1]
        edge[..., :-1, :] |= labels[..., 1:, :] != labels[..., :-1, :]
        return edge


@dataclass(frozen=True)
class ClipBatch:
    """N clips of T frames each."""

    frames: NDArray[np.uint8]
    """[N, T, H, W, 3] RGB."""
    ids: tuple[str, ...]
    """One identifier a clip, unique in the suite."""
    truth: Truth | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 [N, T, H, W, 3], got {self.frames.dtype} {self.frames.shape}")
        if len(self.ids) != len(self.frames):
            raise ValueError(f"{len(self.ids)} ids for {len(self.frames)} clips")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, T, H, W."""
        n, t, h, w, _ = self.frames.shape
        return n, t, h, w

    def __getitem__(self, index: slice | Sequence[int] | NDArray[np.intp]) -> ClipBatch:
        """Return the selected clips; of a slice, views."""
        truth = self.truth
        if truth is not None:
            truth = replace(
                truth,
                boxes=truth.boxes[index],
                classes=truth.classes[index],
                labels=truth.labels[index],
                plates=truth.plates[index],
            )
        return ClipBatch(self.frames[index], tuple(self.ids[i] for i in np.arange(len(self))[index]), truth)
