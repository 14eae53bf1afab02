"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from foresight_bench.contracts import FrameTruth, ResolvedWeights

_FLOOR = 1e-10  # caps identical frames at 100 dB; 8-bit rounding alone gives 1.3e-6, 59 dB


class Psnr:
    """10 log10(1 / MSE) over RGB, in dB, at most 100."""

    def __init__(self, weights: ResolvedWeights | None = None, device: str = "cpu") -> None:
        self._device = device

    def prepare(self, truth: FrameTruth) -> Tensor:
        """Return the frames."""
        return truth.frames

    def score(self, reconstruction: Tensor, prepared: Tensor) -> Tensor:
        """Return [F] float64."""
        difference = reconstruction - prepared.to(reconstruction)
        mse = difference.square().mean((1, 2, 3), dtype=torch.float64)
        return -10 * torch.log10(mse.clamp(min=_FLOOR))
