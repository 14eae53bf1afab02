"""``patch-pca``: a linear patch codec fitted on the train split. It needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import Unsupported
from foresight_bench.grids import Grid


class PatchPCA:
    """Encode = leading principal components of each patch; decode = their inverse.

    Latent grid [N, T, H / patch, W / patch, components] float32, frames independent of each other. H and W
    must be multiples of ``patch``.
    """

    def __init__(self, *, weights: ResolvedWeights | None, device: torch.device, patch: int, components: int) -> None:
        self.device, self.patch, self.components = device, patch, components
        self.mean = torch.zeros(0)
        self.basis = torch.zeros(0)

    def fit(self, clips: Sequence[ClipBatch]) -> None:
        """Find the mean patch and the leading components over every frame of ``clips``."""
        size = 3 * self.patch**2
        total = torch.zeros(size, dtype=torch.float64, device=self.device)
        outer = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        count = 0
        for batch in clips:
            for i in range(0, len(batch), 32):
                patches = self._patches(batch[i : i + 32].frames).flatten(0, 3)
                total += patches.sum(0, dtype=torch.float64)
                outer += (patches.T @ patches).double()  # 32 frames a product: float32 sums stay exact to 1e-6
                count += len(patches)
        mean = total / count
        covariance = outer / count - mean.outer(mean)
        _, vectors = torch.linalg.eigh(covariance)
        basis = vectors[:, -self.components :].flip(1)
        # An eigenvector's sign is arbitrary: fix it, so that every library gives the same latents.
        basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        self.mean, self.basis = mean.float(), basis.float()

    def encode(self, clips: ClipBatch) -> Grid:
        """Return the components of each patch."""
        return Grid((self._patches(clips.frames) - self.mean) @ self.basis)

    def decode(self, latents: Grid) -> Tensor:
        """Return frames [N, T, 3, H, W] in [0, 1]."""
        n, t, h, w, _ = latents.shape
        patches = latents.values @ self.basis.T + self.mean
        columns = patches.reshape(n * t, h * w, -1).transpose(1, 2)
        size = (h * self.patch, w * self.patch)
        frames = F.fold(columns, size, self.patch, stride=self.patch)
        return frames.clamp_(0, 1).reshape(n, t, 3, *size)

    def _patches(self, frames: object) -> Tensor:
        pixels = torch.as_tensor(frames, device=self.device)
        n, t, height, width, _ = pixels.shape
        if height % self.patch or width % self.patch:
            raise Unsupported(f"patch-pca needs sides that are multiples of {self.patch}; got {height}x{width}.")
        images = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        columns = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        return columns.reshape(n, t, height // self.patch, width // self.patch, -1)
