"""Learned perceptual image patch similarity (Zhang, Isola, Efros, Shechtman & Wang 2018, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from safetensors.torch import load_file
from torch import Tensor

from foresight_bench.contracts import FrameTruth, ResolvedWeights
from foresight_bench.errors import WeightsError

_CHUNK = 32  # frames; the widest map then takes 25 MB at 224 px, and larger chunks are no faster
_SLICE = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}  # layer of torchvision's AlexNet -> slice of package lpips


class Lpips:
    """LPIPS v0.1 on AlexNet: trunk from ``weights``, linear heads from package ``lpips``, mean over space.

    ``weights`` holds ``features.N.weight`` and ``features.N.bias`` for N = 0, 3, 6, 8, 10, torchvision's
    names. Convolutions never use TF32, so a CPU and a GPU agree.

    Raises:
        WeightsError: there are no weights, or they are not exactly those of the trunk.
    """

    def __init__(self, weights: ResolvedWeights | None = None, device: str = "cpu") -> None:
        if weights is None:
            raise WeightsError("LPIPS needs the weights of its AlexNet trunk.")
        import lpips

        self._device = torch.device(device)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # torchvision's `pretrained`, torch.load of package lpips
            model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        try:
            model.net.load_state_dict(_renamed(load_file(weights.path)), strict=True)
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"The weights are not those of the LPIPS trunk: {error}") from error
        # Channels last: 1.08 s instead of 1.31 for 128 frames of 224 pixels on two CPU cores, apart by rounding alone.
        model = model.to(self._device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self._scale, self._trunk = model.scaling_layer, model.net
        # A head is a non-negative weight for each channel: [C, 1, 1].
        self._heads = [head.model[-1].weight[0] for head in model.lins]

    def prepare(self, truth: FrameTruth) -> list[list[Tensor]]:
        """Return the normalised trunk features of each chunk of frames: 1.9 MB a frame at 224 px."""
        return [self._features(chunk) for chunk in self._chunks(truth.frames)]

    def score(self, reconstruction: Tensor, prepared: list[list[Tensor]]) -> Tensor:
        """Return [F] float64, 0 for equal frames, about 1 for unrelated ones."""
        # Outside its range a frame scored better than cut to it: .109 against .167, for frames stretched to [-1, 2].
        chunks = self._chunks(reconstruction.clamp(0, 1))
        return torch.cat([self._apart(self._features(chunk), b) for chunk, b in zip(chunks, prepared, strict=True)])

    def crossed(self, reconstruction: Tensor, prepared: list[list[Tensor]], order: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of ``reconstruction`` and those of ``reconstruction[order]``; the trunk sees each once."""
        straight = torch.empty(len(order), dtype=torch.float64, device=self._device)
        other = torch.empty_like(straight)
        beside = order.argsort().tolist()  # frame i of the reconstruction then stands beside this one of the truth
        for k, chunk in enumerate(self._chunks(reconstruction.clamp(0, 1))):
            part = slice(k * _CHUNK, k * _CHUNK + len(chunk))
            features = self._features(chunk)
            straight[part] = self._apart(features, prepared[k])
            mixed = [torch.cat([prepared[i // _CHUNK][n][i % _CHUNK, None] for i in beside[part]]) for n in range(5)]
            other[beside[part]] = self._apart(features, mixed)
        return straight, other

    def _apart(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Return [F] float64 how far features are apart."""
        parts = [(x - y).square_().mul_(head).sum(1) for x, y, head in zip(a, b, self._heads, strict=True)]
        return torch.stack([part.mean((1, 2), dtype=torch.float64) for part in parts]).sum(0)

    def _chunks(self, frames: Tensor) -> Iterator[Tensor]:
        for start in range(0, len(frames), _CHUNK):
            yield frames[start : start + _CHUNK].to(self._device, torch.float32)

    def _features(self, frames: Tensor) -> list[Tensor]:
        """Return the normalised features of each layer; a frame equal to the one before, as of `blank`, has copies."""
        new = torch.ones(len(frames), dtype=torch.bool, device=self._device)
        new[1:] = (frames[1:] != frames[:-1]).flatten(1).any(1)
        found = self._distinct(frames[new])
        if bool(new.all()):
            return found
        return [layer[new.cumsum(0) - 1] for layer in found]

    def _distinct(self, frames: Tensor) -> list[Tensor]:
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), flags:
            layers = self._trunk(self._scale(2 * frames - 1).contiguous(memory_format=torch.channels_last))
            return [layer.div_(torch.linalg.vector_norm(layer, dim=1, keepdim=True).add_(1e-10)) for layer in layers]


def _renamed(trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``trunk`` with package lpips' names: ``features.3.bias`` -> ``slice2.3.bias``."""
    renamed = {}
    for key, value in trunk.items():
        _, layer, kind = key.split(".")
        renamed[f"slice{_SLICE.get(int(layer), 0)}.{layer}.{kind}"] = value
    return renamed
