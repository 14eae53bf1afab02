"""Qwen2.5-VL: its vision tower, its merger and, on the image tokens, its language model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import DataError, WeightsError, unknown
from foresight_bench.grids import Grid
from foresight_plugins.encoders.images import CLIP, normalised, resized
from foresight_plugins.encoders.llm import LanguageModel
from foresight_plugins.encoders.qwen2_5_vision import MERGE, PAIR, PATCH, WINDOW, VisionTower, patch_vectors
from foresight_plugins.encoders.seeding import seeded

UNIT = MERGE * PATCH
"""What the sides of a frame are multiples of."""
THINNEST = 200
"""The largest ratio of the sides, as in the official processor."""
PREFIX = (151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652)
"""What the official chat template puts before an image or a video: ``<|im_start|>system``, ``You are a helpful
assistant.<|im_end|>``, ``<|im_start|>user``, each with its newline, and ``<|vision_start|>``."""
GEOMETRY = {
    "patch_size": PATCH,
    "temporal_patch_size": PAIR,
    "spatial_merge_size": MERGE,
    "window_size": WINDOW * UNIT,
    "hidden_act": "silu",
}
"""What the config of every checkpoint of the family says of its vision tower."""
TEXT: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    },
    "3b": {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
    },
}
"""The language model of each size, as in the published config.json."""


class Qwen2_5VL:
    """A frozen Qwen2.5-VL (Bai et al., arXiv:2502.13923).

    Taps: ``patch_embed``; ``block.0`` ... ``block.31``, the residual stream after that block; ``pre_merge``, the
    merger's input, which is the last block's output; ``post_merge``, what the language model is given;
    ``llm.0`` ... ``llm.<layers - 1>``, the residual stream after that layer; ``final``, the last of these after
    the final norm. A token covers 14 x 14 pixels up to ``pre_merge``, then 28 x 28, and always two frames.

    The vision tower sees each pair of frames on its own. The language model reads a clip as one sequence: the
    beginning of the chat template, then all image tokens. Attention is causal, so no question need follow. More
    frames than one are a video of two frames a second.

    Args:
        setup: the weights are a checkpoint in the layout of Qwen/Qwen2.5-VL-7B-Instruct, whose config.json says
            how large the model is.
        size: ``7b`` or ``3b``, of random weights; a checkpoint MUST NOT be of the other one.

    Raises:
        PluginError: a tap of ``setup`` is unknown.
        WeightsError: the checkpoint is of another model, lacks a tap, or does not fit its own config.json.
    """

    def __init__(self, setup: EncoderSetup, size: str) -> None:
        checkpoint = Checkpoint(setup.weights.path) if setup.weights else None
        config: Any = _checked(checkpoint, size) if checkpoint else configuration(size)
        taps, depth, layers = _taps(config), config.vision_config.depth, config.text_config.num_hidden_layers
        published = _taps(configuration(size))
        for tap in setup.taps:
            if tap not in published:
                raise unknown("tap", tap, published)
            if tap not in taps:
                has = f"it has {depth} vision blocks and {layers} language layers"
                raise WeightsError(f"The checkpoint lacks the tap {tap} of Qwen2.5-VL {size}: {has}.")
        self._setup = setup
        self._precision: torch.dtype = getattr(torch, setup.precision)
        # At two frames a second, a pair of frames lasts a second.
        self._interval: int = config.vision_config.tokens_per_second
        deepest = max((taps.index(tap) for tap in setup.taps), default=0)
        language = min(max(deepest - taps.index("post_merge"), 0), layers)
        with seeded(setup.device, setup.seed):
            self._vision = self._tower(checkpoint, config, min(deepest, depth), deepest > depth + 1)
            self._language = self._reader(checkpoint, config, language) if language else None
        if self._language:
            self._prefix = self._language.embed(PREFIX)

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return a grid [N, ceil(T / 2), H / 14, W / 14, C] per tap, from ``post_merge`` on at H / 28, W / 28.

        A side that is no multiple of 28 is first resized to the nearest one. Unlike the official processors
        this never enlarges small frames (those do below 3,136 pixels, in a video below 100,352), so that a
        clip's grid has the resolution of its frames. The last frame of an odd number counts twice.

        Raises:
            DataError: one side is over 200 times the other.
            PluginError: a tap is not one of those that the encoder was set up for.
        """
        for tap in taps:
            if tap not in self._setup.taps:
                raise unknown("tap", tap, self._setup.taps)
        if not taps:
            return {}
        n, t, *_ = clips.shape
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            images = preprocess(torch.tensor(clips.frames, device=self._setup.device).flatten(0, 1))
            rows, columns = (side // PATCH for side in images.shape[-2:])
            patches = patch_vectors(images.to(self._precision).unflatten(0, (n, t)))
            read = [tap for tap in taps if tap == "final" or tap.startswith("llm.")]
            found = self._vision.run(patches, rows, columns, {*taps, "post_merge"} - {*read} if read else {*taps})
            grids = {tap: values.unflatten(0, (n, -1)) for tap, values in found.items()}
            if read and self._language:
                grids |= self._read(self._language, grids["post_merge"], read)
        return {tap: Grid(grids[tap]) for tap in taps}

    def _read(self, language: LanguageModel, merged: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the language model's states [N, T', h, w, D] for ``merged`` [N, T', h, w, D]."""
        _, t, h, w, _ = merged.shape
        prefix = self._prefix.expand(len(merged), -1, -1)
        inputs = torch.cat([prefix, merged.flatten(1, 3)], 1)
        places = positions(t, h, w, self._interval).to(merged.device)
        kept, final = language.run(inputs, places[:, None], [int(tap[4:]) for tap in taps if tap != "final"])
        states = {tap: final if tap == "final" else kept[int(tap[4:])] for tap in taps}
        return {tap: state[:, len(PREFIX) :].unflatten(1, (t, h, w)) for tap, state in states.items()}

    def _tower(self, checkpoint: Checkpoint | None, config: Any, depth: int, merge: bool) -> VisionTower:
        with torch.device("meta"):
            tower = VisionTower(config.vision_config, depth, merge=merge)
        if checkpoint:
            parts = ["patch_embed.", *(f"blocks.{index}." for index in range(depth)), *["merger."] * merge]
            fill(tower, self._tensors(checkpoint, "visual.", parts), "the vision tower of Qwen2.5-VL")
        else:
            tower.to(self._precision).to_empty(device=self._setup.device)
            module: Any
            for module in tower.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        tower.fuse(compiled=self._setup.compiled)
        return tower.eval().requires_grad_(False)

    def _reader(self, checkpoint: Checkpoint | None, config: Any, depth: int) -> LanguageModel:
        if config.text_config.vocab_size <= max(PREFIX):
            raise WeightsError(
                f"The checkpoint has a vocabulary of {config.text_config.vocab_size}, "
                f"and the prompt of Qwen2.5-VL needs {max(PREFIX) + 1}."
            )
        final = "final" in self._setup.taps
        parts = ["embed_tokens.", *(f"layers.{index}." for index in range(depth)), *["norm."] * final]
        return LanguageModel(
            config.text_config,
            depth,
            final=final,
            tensors=self._tensors(checkpoint, "model.", parts) if checkpoint else None,
            device=self._setup.device,
            dtype=self._precision,
            compiled=self._setup.compiled,
        )

    def _tensors(self, checkpoint: Checkpoint, root: str, parts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield name below ``root`` and tensor of what starts with one of ``parts`` there."""
        prefixes = tuple(root + part for part in parts)
        keep = checkpoint.tensors(lambda name: name.startswith(prefixes), self._setup.device, self._precision)
        return ((name.removeprefix(root), tensor) for name, tensor in keep)


def preprocess(frames: Tensor) -> Tensor:
    """Return ``frames`` [B, H, W, 3] uint8 as [B, 3, H', W'] float32, sides multiples of 28, CLIP's mean taken out.

    Raises:
        DataError: one side is over 200 times the other.
    """
    _, height, width, _ = frames.shape
    if max(height, width) > THINNEST * min(height, width):
        raise DataError(
            f"Qwen2.5-VL takes no frames of {height} x {width}: one side is over {THINNEST} times the other.",
            "Crop the frames.",
        )
    # Python rounds halves to even, and so does the official processor: 70 becomes 56, 98 becomes 112.
    rows, columns = (max(UNIT, round(side / UNIT) * UNIT) for side in (height, width))
    return normalised(resized(frames, rows, columns), CLIP)


def positions(t: int, h: int, w: int, interval: int) -> Tensor:
    """Return the rotary positions [3, S] (time, row, column) of the prefix and of t x h x w image tokens."""
    prefix = torch.arange(len(PREFIX)).expand(3, -1)
    axes = (torch.arange(t) * interval, torch.arange(h), torch.arange(w))
    return torch.cat([prefix, torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1) + len(PREFIX)], 1)


def configuration(size: str) -> Any:
    """Return the configuration of a published size, in the layout of its config.json."""
    vision = {
        **GEOMETRY,
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": TEXT[size]["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    rotary = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    return Qwen2_5_VLConfig.from_dict({**TEXT[size], **rotary, "rms_norm_eps": 1e-6, "vision_config": vision})


def _checked(checkpoint: Checkpoint, size: str) -> Any:
    """Return the checkpoint's configuration, unless it is not one of this family or is that of another size."""
    found = checkpoint.config.get("model_type")
    if found != "qwen2_5_vl":
        raise WeightsError(f"The checkpoint {checkpoint.path} is no Qwen2.5-VL: its model_type is {found}.")
    try:
        config: Any = Qwen2_5_VLConfig.from_dict(copy.deepcopy(dict(checkpoint.config)))
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"The config.json of {checkpoint.path} cannot be used: {reason}.") from error
    for name, value in GEOMETRY.items():
        given = getattr(config.vision_config, name)
        if given != value:
            raise WeightsError(
                f"The checkpoint {checkpoint.path} is no Qwen2.5-VL: its {name} is {given}, not {value}."
            )
    for other, text in TEXT.items():
        if other != size and all(getattr(config.text_config, name) == value for name, value in text.items()):
            raise WeightsError(
                f"The checkpoint {checkpoint.path} is Qwen2.5-VL {other}, not {size}.", f"Select the variant {other}."
            )
    return config


def _taps(config: Any) -> tuple[str, ...]:
    """Return all taps in order of depth."""
    blocks = (f"block.{index}" for index in range(config.vision_config.depth))
    layers = (f"llm.{index}" for index in range(config.text_config.num_hidden_layers))
    return ("patch_embed", *blocks, "pre_merge", "post_merge", *layers, "final")
