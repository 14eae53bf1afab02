"""Control encoders: rows whose outcome is known beforehand. They show that the instrument works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import ContractError
from foresight_bench.grids import Grid
from foresight_gates.scenes import CLASS_NAMES
from foresight_gates.targets import cell_pixels, cell_targets


class _Control:
    """A token grid of ``patch`` pixels a side."""

    def __init__(self, setup: EncoderSetup, patch: int) -> None:
        self.device, self.patch = torch.device(setup.device), patch

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return the same grid for the only tap."""
        grid = self.tokens(clips)
        return dict.fromkeys(taps, grid)

    def tokens(self, clips: ClipBatch) -> Grid:
        """Return the control's grid."""
        raise ContractError(f"{type(self).__name__} defines no tokens.")

    def cells(self, clips: ClipBatch) -> tuple[int, int, int, int]:
        """Return N, T, H', W'."""
        n, t, height, width = clips.shape
        return n, t, height // self.patch, width // self.patch


class Oracle(_Control):
    """Tokens that hold the class and box of the object they show: what a perfect encoder could offer Q2.

    C1 and Q1 ask about the decoder's latents, so there the oracle is those latents themselves.
    """

    def tokens(self, clips: ClipBatch) -> Grid:
        """Return [N, T, H', W', classes + 1 + 4]: one-hot class, presence, box distances."""
        if clips.truth is None:
            raise ContractError("The oracle needs clips with ground truth.")
        n, t, h, w = self.cells(clips)
        targets = cell_targets(clips.truth, h, w, self.device)
        one_hot = F.one_hot(targets.classes + 1, len(CLASS_NAMES) + 1)[..., 1:].float()
        presence = (targets.owner >= 0).float().unsqueeze(-1)
        return Grid(torch.cat([one_hot, presence, targets.distances], -1).reshape(n, t, h, w, -1))


class Pixels(_Control):
    """Raw patches as tokens: nothing is lost and nothing is understood."""

    def tokens(self, clips: ClipBatch) -> Grid:
        """Return [N, T, H', W', 3 * patch^2] in [0, 1]."""
        n, t, h, w = self.cells(clips)
        images = torch.from_numpy(clips.frames).to(self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        return Grid(cell_pixels(images[..., : h * self.patch, : w * self.patch], h, w).unflatten(0, (n, t)))


class Blank(_Control):
    """Constant features: a head can only answer with the mean of ``train``."""

    def tokens(self, clips: ClipBatch) -> Grid:
        """Return [N, T, H', W', 1] zeros."""
        return Grid(torch.zeros(*self.cells(clips), 1, device=self.device))


class MeanRGB(_Control):
    """Three numbers a clip, broadcast: how much of a score mean colour alone explains."""

    def tokens(self, clips: ClipBatch) -> Grid:
        """Return [N, T, H', W', 3], the clip's mean colour in [0, 1]."""
        n, t, h, w = self.cells(clips)
        mean = torch.from_numpy(clips.frames).to(self.device).float().mean((1, 2, 3)) / 255
        return Grid(mean.reshape(n, 1, 1, 1, 3).expand(n, t, h, w, 3).contiguous())
