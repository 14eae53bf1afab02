"""transformers' Qwen2.5-VL with random weights, as gate1_work.py runs it, and whether our encoder agrees with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_window_index

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder
from foresight_plugins.encoders.qwen2_5_vision import MERGE, PAIR, PATCH, WINDOW
from foresight_plugins.encoders.qwen2_5_vl import GEOMETRY, PREFIX, UNIT, preprocess
from foresight_plugins.encoders.seeding import seeded

Inputs = Mapping[str, Tensor]
"""The arguments of transformers' model."""

NARROW: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 28,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vocab_size": 151660,
    "vision_config": {
        **GEOMETRY,
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
}
"""A config.json whose model is as deep as the 7B's language model, and so has its taps, but narrow."""


class Stock:
    """transformers' ``Qwen2_5_VLModel``, with the attention that it chooses by itself (``sdpa``).

    It reads the prompt that our encoder reads and has no head, which is less than the study ran: its prompt ended in
    a question.
    """

    def __init__(self, config: Any, device: str, precision: torch.dtype) -> None:
        self.config = copy.deepcopy(config)
        with torch.device(device), seeded(device, 0):
            self.model: Any = Qwen2_5_VLModel._from_config(self.config, dtype=precision)
            for name, parameter in self.model.named_parameters():
                _randomise(name, parameter)
        self.model.eval().requires_grad_(False)

    def inputs(self, patches: Tensor) -> Inputs:
        """Return what :meth:`tower`, :meth:`whole` and :meth:`states` take, for ``patches`` [B, S, 1176]."""
        images, rows = len(patches), isqrt(patches.shape[1])
        prompt = [*PREFIX, *[self.config.image_token_id] * (rows // MERGE) ** 2]
        ids = torch.tensor(prompt, device=patches.device).expand(images, -1)
        return {
            "input_ids": ids,
            "mm_token_type_ids": (ids == self.config.image_token_id).int(),
            "pixel_values": patches.flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, rows, rows]] * images, device=patches.device),
        }

    def tower(self, inputs: Inputs) -> Tensor:
        """Run the vision tower alone, and return the merged tokens [B * S / 4, D]."""
        merged: Tensor = self.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        return merged

    def whole(self, inputs: Inputs) -> Tensor:
        """Run everything, and return the last state [B, P + S / 4, D] after the final norm."""
        final: Tensor = self.model(**inputs, use_cache=False).last_hidden_state
        return final

    def states(self, inputs: Inputs, taps: Sequence[str]) -> dict[str, Tensor]:
        """Run everything once, and return what stands at ``taps``, in transformers' own order of tokens."""
        found: dict[str, Tensor] = {}

        def keep_vision(module: nn.Module, args: object, output: Any) -> None:
            found["pre_merge"], found["post_merge"] = output.last_hidden_state, output.pooler_output

        handles = [self.model.visual.register_forward_hook(keep_vision)]
        for tap in taps:
            if tap.startswith("llm."):
                layer = self.model.language_model.layers[int(tap[4:])]
                handles.append(layer.register_forward_hook(lambda m, args, out, tap=tap: found.update({tap: out})))
        try:
            found["final"] = self.whole(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return {tap: found[tap] for tap in taps}

    def grids(self, inputs: Inputs, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return :meth:`states` as grids [B, 1, h, w, C] in raster order."""
        grid = inputs["image_grid_thw"]
        images, (_, h, w) = len(grid), grid[0].tolist()
        merged = (images, 1, h // MERGE, w // MERGE)
        back = get_vision_window_index(grid, MERGE, WINDOW * UNIT, PATCH)[0].argsort()
        found = {}
        for tap, values in self.states(inputs, taps).items():
            if tap == "pre_merge":
                squares = values.unflatten(0, (-1, MERGE**2))[back]
                found[tap] = squares.view(*merged, MERGE, MERGE, -1).transpose(3, 4).reshape(images, 1, h, w, -1)
            else:
                found[tap] = (values if tap == "post_merge" else values[:, len(PREFIX) :]).reshape(*merged, -1)
        return found

    def save(self, folder: Path) -> None:
        """Write the weights under the names of the hub's files, and ``NARROW`` as their config.json."""
        names = {"visual.": "visual.", "language_model.": "model."}
        state = {}
        for name, value in self.model.state_dict().items():
            ((old, new),) = ((old, new) for old, new in names.items() if name.startswith(old))
            state[new + name.removeprefix(old)] = value.cpu()
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(NARROW), "utf-8")


def narrow() -> Any:
    """Return the configuration of the narrow model."""
    return Qwen2_5_VLConfig.from_dict(copy.deepcopy(NARROW))


def _randomise(name: str, parameter: Tensor) -> None:
    """Draw numbers that keep the size of what goes through, whatever the width, and leave nothing zero or one."""
    if parameter.ndim > 1:
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    else:
        nn.init.normal_(parameter, mean=float("norm" in name or "ln_q" in name), std=0.1)


def frames(side: int, images: int) -> ClipBatch:
    """Return ``images`` clips of one random frame, ``side`` pixels wide and high."""
    pixels = np.random.default_rng(side).integers(0, 256, (images, 1, side, side, 3), dtype=np.uint8)
    return ClipBatch(pixels, tuple(f"{side}-{index}" for index in range(images)))


def patches(clips: ClipBatch, device: str, precision: torch.dtype) -> Tensor:
    """Return the rows [N, S, 1176] that the official processor makes of still images: squares of 2 x 2 patches."""
    found = []
    for start in range(0, len(clips), 64):
        images = preprocess(torch.tensor(clips.frames[start : start + 64, 0], device=device))
        rows, columns = (side // UNIT for side in images.shape[-2:])
        split = (
            images.to(precision)
            .reshape(-1, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
            .permute(0, 2, 5, 3, 6, 1, 4, 7)
        )
        doubled = split[..., None, :, :].expand(*[-1] * 6, PAIR, -1, -1)
        found.append(doubled.flatten(5).flatten(1, 4))
    return torch.cat(found)


@torch.no_grad()
def agreement(stock: Stock, encoder: Encoder, clips: ClipBatch, taps: Sequence[str]) -> dict[str, float]:
    """Return the least cosine of a token's features by ``stock`` and by ``encoder``, of the same weights, per tap.

    Raises:
        RuntimeError: one is below .999, so that times of the two would not be of the same work.
    """
    theirs = stock.grids(stock.inputs(patches(clips, str(stock.model.device), torch.float32)), taps)
    ours = encoder.encode(clips, taps)
    found = {tap: float(F.cosine_similarity(ours[tap].values, theirs[tap], dim=-1).min()) for tap in taps}
    for tap, cosine in found.items():
        if not cosine > 0.999:
            raise RuntimeError(f"The encoder differs from transformers at {tap} of {clips.shape}: cosine {cosine:.4f}.")
    return found
