"""SAM's image encoder on the modules of segment-anything, with attention of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import DataError, WeightsError, unknown
from foresight_bench.grids import Grid
from foresight_plugins.encoders.images import IMAGENET, normalised, resized
from foresight_plugins.encoders.sam_attention import attention
from foresight_plugins.encoders.seeding import seeded

HUB_NAMES = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("layers.", "blocks."),
    ("neck.conv1.", "neck.0."),
    ("neck.layer_norm1.", "neck.1."),
    ("neck.conv2.", "neck.2."),
    ("neck.layer_norm2.", "neck.3."),
    (".layer_norm", ".norm"),
)
"""Parts of names on the Hugging Face hub, and in segment-anything."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of an image encoder. The last block of each quarter attends to all tokens, the others within windows."""

    dim: int
    depth: int
    heads: int
    image: int = 1024
    patch: int = 16
    window: int = 14
    neck: int = 256

    def side(self, block: int) -> int:
        """Return the side of the windows that ``block`` attends within, in tokens."""
        quarter = self.depth // 4
        return self.image // self.patch if block % quarter == quarter - 1 else self.window


ARCHITECTURES = {
    "vit_b": Architecture(dim=768, depth=12, heads=12),
    "vit_l": Architecture(dim=1024, depth=24, heads=16),
    "vit_h": Architecture(dim=1280, depth=32, heads=16),
}


class SAM:
    """The frozen image encoder of Segment Anything (Kirillov et al., arXiv:2304.02643).

    Taps: ``patch_embed`` (without positions), ``block.0`` ... ``block.<depth - 1>`` (the residual stream after
    that block, not normalised), ``neck`` (what the mask decoder reads, 256 wide).

    Args:
        setup: the weights are a ``.safetensors`` file or a folder with the names of transformers' ``SamModel``,
            or an original ``.pth`` file. Only the tensors that ``setup.taps`` need are read.
        architecture: ``vit_b``, ``vit_l`` or ``vit_h``.

    Raises:
        PluginError: a tap is unknown.
        WeightsError: the weights cannot be read, or are those of another model.
    """

    def __init__(self, setup: EncoderSetup, architecture: str = "vit_b") -> None:
        self._architecture = ARCHITECTURES[architecture]
        taps = ("patch_embed", *(f"block.{index}" for index in range(self._architecture.depth)), "neck")
        for tap in setup.taps:
            if tap not in taps:
                raise unknown("tap", tap, taps)
        self._taps = taps[: 1 + max((taps.index(tap) for tap in setup.taps), default=-1)]
        if setup.weights is None:
            model = _random(self._architecture, setup.seed, setup.device)
        else:
            with torch.device("meta"):
                model = build(self._architecture)
        _cut(model, self._taps)
        self._precision = getattr(torch, setup.precision)
        if setup.weights is not None:
            _load(model, setup.weights.path, architecture, setup.device, self._precision)
        self._device = torch.device(setup.device)
        self._model: Any = model.eval().requires_grad_(False).to(self._precision)
        self._block = torch.compile(_block) if setup.compiled else _block

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return a grid [N, T, H', W', C] per tap; each frame is encoded on its own.

        A frame is resized to a longest side of 1024 pixels and padded to a square. The grid has a cell for each
        16 x 16 pixels of what was resized; cells that hold nothing but padding are not in it. Blocks after the
        deepest tap asked for do not run.

        Raises:
            PluginError: a tap is unknown, or deeper than all of ``setup.taps``.
            DataError: a frame is so narrow that nothing of it would be left.
        """
        for tap in taps:
            if tap not in self._taps:
                raise unknown("tap", tap, self._taps)
        n, t, h, w = clips.shape
        rows, columns = (-(-pixels // self._architecture.patch) for pixels in fitted(h, w, self._architecture.image))
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            frames = torch.tensor(clips.frames, device=self._device).flatten(0, 1)
            images = preprocess(frames, self._architecture.image)
            found = self._run(images.to(self._precision), frozenset(taps))
        return {tap: Grid(found[tap][:, :rows, :columns].unflatten(0, (n, t))) for tap in taps}

    def _run(self, images: Tensor, taps: frozenset[str]) -> dict[str, Tensor]:
        """Return [B, 64, 64, C] per tap for ``images`` [B, 3, 1024, 1024]."""
        if not taps:
            return {}
        model, patch = self._model, self._architecture.patch
        projection = model.patch_embed.proj
        patches = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        found = {"patch_embed": F.linear(patches, projection.weight.flatten(1), projection.bias)}
        tokens = None
        for index, block in enumerate(model.blocks):
            if taps <= found.keys():
                return found
            tokens = found["patch_embed"] + model.pos_embed if tokens is None else tokens
            tokens = self._block(block, tokens, self._architecture.side(index))
            found[f"block.{index}"] = tokens
        if "neck" in taps and tokens is not None:
            found["neck"] = model.neck(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return found


def preprocess(frames: Tensor, side: int) -> Tensor:
    """Return ``frames`` [B, H, W, 3] uint8 as [B, 3, side, side] float32, normalised and then padded with zeros."""
    _, height, width, _ = frames.shape
    height, width = fitted(height, width, side)
    images = normalised(resized(frames, height, width, "bilinear"), IMAGENET)
    return F.pad(images, (0, side - width, 0, side - height))


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width for a longest side of ``side`` (segment-anything's ``ResizeLongestSide``)."""
    scale = side / max(height, width)
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(size) == 0:
        raise DataError(
            f"A frame of {height} x {width} pixels is too narrow for SAM, which fits the longest side to {side}.",
            "Crop the frames, or choose another encoder.",
        )
    return size


def build(architecture: Architecture) -> ImageEncoderViT:
    """Return segment-anything's module, on the current device."""
    return ImageEncoderViT(
        img_size=architecture.image,
        patch_size=architecture.patch,
        embed_dim=architecture.dim,
        depth=architecture.depth,
        num_heads=architecture.heads,
        out_chans=architecture.neck,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=architecture.window,
        global_attn_indexes=tuple(i for i in range(architecture.depth) if architecture.side(i) != architecture.window),
    )


def _random(architecture: Architecture, seed: int, device: str) -> ImageEncoderViT:
    with seeded(device, seed), torch.device(device):
        model = build(architecture)
        # segment-anything starts them at zero, which would leave all positions out.
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):
                nn.init.trunc_normal_(parameter, std=0.02)
    return model


def _cut(model: ImageEncoderViT, taps: Sequence[str]) -> None:
    """Drop what none of ``taps`` needs."""
    blocks = sum(tap.startswith("block.") for tap in taps)
    model.blocks = model.blocks[:blocks]
    if not blocks:
        model.pos_embed = None
    if "neck" not in taps:
        model.neck = nn.Sequential()


def _load(model: ImageEncoderViT, path: Path, architecture: str, device: str, precision: torch.dtype) -> None:
    checkpoint = Checkpoint(path)
    names = {name: own_name(name) for name in checkpoint.shards}
    depth = len({own.split(".")[1] for own in names.values() if own.startswith("blocks.")})
    if depth != ARCHITECTURES[architecture].depth:
        raise WeightsError(
            f"The weights {path} hold {depth} blocks; SAM's {architecture} has {ARCHITECTURES[architecture].depth}.",
            "SAM reads facebook/sam-vit-{base,large,huge} of the Hugging Face hub, or the original .pth files.",
        )
    modules = tuple({f"{'.'.join(name.split('.')[:2])}." for name in model.state_dict()})
    kept = checkpoint.tensors(lambda name: f"{names[name]}.".startswith(modules), device, precision)
    fill(model, ((names[name], tensor) for name, tensor in kept), f"SAM's {architecture}")


def own_name(name: str) -> str:
    """Return the name in ``ImageEncoderViT`` of a checkpoint's tensor; empty if it is not the image encoder's."""
    if name.startswith("image_encoder."):
        return name.removeprefix("image_encoder.")
    if not name.startswith("vision_encoder."):
        return ""
    name = name.removeprefix("vision_encoder.")
    for hub, own in HUB_NAMES:
        name = name.replace(hub, own)
    return name


def _block(block: Any, tokens: Tensor, side: int) -> Tensor:
    """Return the residual stream [B, H, W, C] after a ``Block`` of segment-anything."""
    layer = block.attn
    heads = (3, layer.num_heads, -1)
    qkv = layer.qkv(block.norm1(tokens)).unflatten(-1, heads)
    # Windows are padded with zeros before the projection, which makes of them its bias.
    relative = torch.stack((layer.rel_pos_h, layer.rel_pos_w))
    tokens = tokens + layer.proj(attention(qkv, layer.qkv.bias.unflatten(0, heads), relative, side))
    output: Tensor = tokens + block.mlp(block.norm2(tokens))
    return output
