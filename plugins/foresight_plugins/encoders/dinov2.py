"""DINOv2 on timm's modules, with the original repository's positional embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import WeightsError, unknown
from foresight_bench.grids import Grid

PATCH = 14
TRAINED_SIDE = 37
"""Side of the grid that the positional embeddings were trained on (518 pixels)."""


class DINOv2:
    """A frozen DINOv2 (Oquab et al., arXiv:2304.07193; with registers, Darcet et al., arXiv:2309.16588).

    Taps: ``patch_embed`` (the patch convolution's output, without positions), ``block.0`` ...
    ``block.<depth - 1>`` (the residual stream after that block, not normalised), ``final`` (the last block
    after the final LayerNorm). The CLS token and the registers are dropped from all of them.

    Args:
        weights: a ``.safetensors`` file with exactly the entries of timm's model, or None for random ones.
        device: where the model runs and where the grids stand.
        seed: of the random weights; unused otherwise.
        architecture: timm's name, ``vit_{small,base,large,giant}_patch14_dinov2`` or ``..._reg4_dinov2``.

    Raises:
        WeightsError: an entry is missing, unexpected or of another shape, or the file cannot be read.
    """

    def __init__(
        self, *, weights: ResolvedWeights | None, device: str | torch.device, seed: int, architecture: str
    ) -> None:
        # Seeds the CPU's generator alone, where timm draws, and leaves every global generator as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            # LayerScale of 1 as in the original repository; timm's 1e-5 would leave random blocks next to idle.
            model: Any = timm.create_model(architecture, pretrained=False, num_classes=0, img_size=518, init_values=1.0)
        if weights is not None:
            _load(model, weights, architecture)
        self._device = torch.device(device)
        self._model: Any = model.eval().requires_grad_(False).to(self._device, torch.float32)
        self._taps = ("patch_embed", *(f"block.{index}" for index in range(len(model.blocks))), "final")

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return a float32 grid [N, T, H / 14, W / 14, C] per tap; each frame is encoded on its own.

        A side that is no multiple of 14 is first resized to the nearest one. Blocks after the deepest tap
        asked for do not run.

        Raises:
            PluginError: a tap is unknown.
        """
        for tap in taps:
            if tap not in self._taps:
                raise unknown("tap", tap, self._taps)
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            images = preprocess(torch.tensor(clips.frames, device=self._device).flatten(0, 1))
            found = self._run(images, frozenset(taps))
        n, t, _, _ = clips.shape
        return {tap: Grid(found[tap].reshape(n, t, *found[tap].shape[1:])) for tap in taps}

    def _run(self, images: Tensor, taps: frozenset[str]) -> dict[str, Tensor]:
        """Return [B, H / 14, W / 14, C] per tap for ``images`` [B, 3, H, W]."""
        model = self._model
        if not taps:
            return {}
        patches = model.patch_embed.proj(images).permute(0, 2, 3, 1)
        found = {"patch_embed": patches}
        h, w = patches.shape[1:3]
        prefix = model.num_prefix_tokens
        tokens = None
        for index, block in enumerate(model.blocks):
            if taps <= found.keys():
                return found
            tokens = block(self._embed(patches) if tokens is None else tokens)
            found[f"block.{index}"] = tokens[:, prefix:].reshape(-1, h, w, tokens.shape[-1])
        found["final"] = model.norm(found[f"block.{len(model.blocks) - 1}"])
        return found

    def _embed(self, patches: Tensor) -> Tensor:
        """Return the first block's input [B, prefix + h * w, C]: CLS, registers, patches with positions."""
        model = self._model
        batch, h, w, _ = patches.shape
        cls, positions = model.cls_token, model.pos_embed
        # timm's models with registers carry the position of the CLS token inside the token itself.
        registers = model.reg_token is not None
        if not registers:
            cls, positions = cls + positions[:, :1], positions[:, 1:]
        prefix = torch.cat([cls, model.reg_token], 1) if registers else cls
        patches = patches + position_grid(positions, h, w, antialias=registers)
        return torch.cat([prefix.expand(batch, -1, -1), patches.flatten(1, 2)], 1)


def position_grid(positions: Tensor, h: int, w: int, *, antialias: bool) -> Tensor:
    """Return the positional embeddings [1, 37 * 37, C] on an ``h`` x ``w`` grid: [1, h, w, C].

    As ``interpolate_pos_encoding`` of the original repository (facebookresearch/dinov2), whose two families
    differ: models without registers scale by (n + 0.1) / 37 without an area filter, models with registers
    (``antialias``) resize to n with one. timm and transformers interpolate otherwise, which moves the
    features by 5 % and 1 % at 224 pixels.
    """
    grid = positions.reshape(1, TRAINED_SIDE, TRAINED_SIDE, -1)
    if (h, w) == (TRAINED_SIDE, TRAINED_SIDE):
        return grid
    planes = grid.permute(0, 3, 1, 2)
    if antialias:
        planes = F.interpolate(planes, size=(h, w), mode="bicubic", antialias=True)
    else:
        scale = ((h + 0.1) / TRAINED_SIDE, (w + 0.1) / TRAINED_SIDE)
        planes = F.interpolate(planes, scale_factor=scale, mode="bicubic")
    return planes.permute(0, 2, 3, 1)


def preprocess(frames: Tensor) -> Tensor:
    """Return ``frames`` [B, H, W, 3] uint8 as [B, 3, H', W'] float32, sides multiples of 14.

    Resizing is bicubic with an area filter in two passes, columns first, each rounded to whole levels, as
    PIL does it; one pass in floating point is off by up to 11 levels. Then ImageNet mean and deviation.
    """
    _, h, w, _ = frames.shape
    images = frames.permute(0, 3, 1, 2).float()
    rows, columns = nearest_multiple(h), nearest_multiple(w)
    for size in ((h, columns), (rows, columns)):
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    mean = images.new_tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    deviation = images.new_tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    return (images / 255 - mean) / deviation


def nearest_multiple(pixels: int) -> int:
    """Return the multiple of 14 nearest to ``pixels``, at least 14; the larger of two equally near."""
    return max(PATCH, (2 * pixels + PATCH) // (2 * PATCH) * PATCH)


def _load(model: torch.nn.Module, weights: ResolvedWeights, architecture: str) -> None:
    """Copy the file's tensors into ``model``; raise :class:`WeightsError` unless every entry matches."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(weights.path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"The weights file {weights.path} cannot be read: {error}.") from error
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if wrong:
        what = [f"{name} (expected {shapes.get(name)}, found {given.get(name)})" for name in wrong[:3]]
        raise WeightsError(
            f"The weights file {weights.path} is not {architecture}: {len(wrong)} entries differ, "
            f"first {', '.join(what)}.",
            "DINOv2 reads timm's layout, as in timm/<architecture>.lvd142m on the Hugging Face hub.",
        )
    model.load_state_dict(state)
