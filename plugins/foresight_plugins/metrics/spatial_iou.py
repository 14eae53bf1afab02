"""Where the objects are, in pixels: IoU of the foreground of a reconstruction and of the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foresight_bench.contracts import FrameTruth, ResolvedWeights

_SHARE = 0.5  # of an object's contrast: the level half-way between plate and object
_NO_OBJECT = 0.1  # departure that counts as a ghost in a frame that has no object to take a contrast from


@dataclass(frozen=True)
class _Foreground:
    plates: Tensor
    mask: Tensor
    """[F, H, W] bool."""
    threshold: Tensor
    """[F, H, W] float32."""


class SpatialIoU:
    """IoU of foreground masks per frame; a reconstruction's foreground is where it departs from the plate.

    The contrast of an object is the mean RGB distance of frame and clean plate over its visible mask.
    A reconstructed pixel is foreground if it departs from the plate by more than half the contrast of the
    object there; outside all objects half of the frame's smallest contrast is enough, so ghosts count
    against the reconstruction. Two empty masks score 1.
    """

    def __init__(self, weights: ResolvedWeights | None = None, device: str = "cpu") -> None:
        self._device = torch.device(device)

    def prepare(self, truth: FrameTruth) -> _Foreground:
        """Return plates, true mask and the threshold of each pixel."""
        labels = truth.labels.to(self._device).long().flatten(1)
        plates = truth.plates.to(self._device)
        departure = _departure(truth.frames.to(self._device), plates).flatten(1)
        slots = int(labels.max()) + 1
        area = labels.new_zeros(len(labels), slots, dtype=torch.float64)
        area.scatter_add_(1, labels, torch.ones_like(departure, dtype=torch.float64))
        contrast = torch.zeros_like(area).scatter_add_(1, labels, departure.double())
        contrast = torch.where(area > 0, contrast / area, float("inf"))
        contrast[:, 0] = float("inf")
        smallest = contrast.min(1).values
        contrast[:, 0] = torch.where(smallest.isfinite(), smallest, _NO_OBJECT / _SHARE)
        threshold = (_SHARE * contrast).gather(1, labels).float()
        shape = truth.labels.shape
        return _Foreground(plates, (labels > 0).view(shape), threshold.view(shape))

    def score(self, reconstruction: Tensor, prepared: _Foreground) -> Tensor:
        """Return [F] float64 in [0, 1]."""
        found = _departure(reconstruction.to(self._device), prepared.plates) > prepared.threshold
        both = (found & prepared.mask).sum((1, 2)).double()
        either = (found | prepared.mask).sum((1, 2)).double()
        return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _departure(frames: Tensor, plates: Tensor) -> Tensor:
    """Return [F, H, W] the Euclidean distance in RGB."""
    return (frames - plates).square().sum(1).sqrt()
