"""InternVL's checkpoints: their config, and their tensors under the names of our modules and transformers'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from foresight_bench.errors import WeightsError
from foresight_plugins.encoders.internvl2_spec import LAYOUTS

Named = Iterable[tuple[str, Tensor]]

TEXT_CLASSES: Mapping[str, type[PreTrainedConfig]] = {
    "internlm2": LlamaConfig,
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
}
"""By ``model_type``. InternLM2 (arXiv:2403.17297) is Llama with query, key and value in one tensor."""

TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)
"""What a language model's config is read for; the rest says how it was trained, or is about generating text."""

VISION_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "image_size", "patch_size")
TEXT_SIZES = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
CONSTANTS = {"downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "vision_feature_layer": -1}
"""What every InternVL2, 2.5 and 3 has in its config, where it has it."""

VISION_NAMES = {
    "cls_token": "class_embedding",
    "position_embeddings": "position_embedding",
    "patch_embeddings.projection": "patch_embedding",
    "encoder.layers.": "blocks.",
    "encoder.layer.": "blocks.",
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "lambda_": "ls",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
"""From transformers' names, mostly, to those of our modules, which are mostly the original's."""
PROJECTOR_NAMES = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
"""Likewise."""
LANGUAGE_NAMES = {
    "tok_embeddings": "embed_tokens",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
"""From InternLM2's names to transformers' of Llama; those of Qwen2 stay as they are."""


@dataclass(frozen=True)
class Fields:
    """What is read from a config.json."""

    vision: Mapping[str, Any]
    """As InternViT takes it."""
    text: Mapping[str, Any]

    def text_config(self) -> PreTrainedConfig:
        """Return transformers' config of the language model."""
        known = {name: self.text[name] for name in TEXT_FIELDS if name in self.text}
        return TEXT_CLASSES[self.text["model_type"]](**known)


def read_fields(config: Mapping[str, Any], expected: Fields, what: str, path: Path) -> Fields:
    """Return the fields of ``config``, whose depths and widths must be those of ``expected``.

    Raises:
        WeightsError: they are not, or a constant of all InternVL is another.
    """
    text = "llm_config" if "llm_config" in config else "text_config"
    vision = {**expected.vision, **(config.get("vision_config") or {})}
    # transformers writes [448, 448] where the original has 448.
    vision |= {name: vision[name][0] for name in ("image_size", "patch_size") if isinstance(vision[name], list)}
    found = Fields(vision, dict(config.get(text) or {}))
    checks = [(name, config.get(name, value), value) for name, value in CONSTANTS.items()]
    checks += [(f"vision {name}", found.vision.get(name), expected.vision[name]) for name in VISION_SIZES]
    checks += [(f"{text} {name}", found.text.get(name), expected.text[name]) for name in TEXT_SIZES]
    for name, given, wanted in checks:
        if given != wanted:
            raise WeightsError(
                f"The checkpoint {path} is not {what}: its {name} is {given!r}, and that of {what} is {wanted!r}.",
                "Give the checkpoint that this variant is for.",
            )
    return found


def sorted_out(tensors: Named, model_type: str, text: PreTrainedConfig) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by part, ``vision tower``, ``projector`` and ``language model``, and by name in its module."""
    found: dict[str, dict[str, Tensor]] = {"vision tower": {}, "projector": {}, "language model": {}}
    names = {"vision tower": VISION_NAMES, "projector": PROJECTOR_NAMES, "language model": LANGUAGE_NAMES}
    for name, tensor in tensors:
        for part, prefix in _prefixes(model_type):
            if name.startswith(prefix):
                local = _renamed(name.removeprefix(prefix), names[part])
                given = _unpacked(local, tensor, text) if part == "language model" else {local: tensor}
                if given.keys() & found[part].keys():
                    raise WeightsError(f"The checkpoint holds {local} of its {part} twice.", "Provide it anew.")
                found[part] |= given
    _fuse(found["vision tower"])
    return found


def _prefixes(model_type: str) -> Iterator[tuple[str, str]]:
    for layout in LAYOUTS[model_type]:
        yield "vision tower", layout.vision
        yield "projector", layout.projector
        yield "language model", layout.language


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def _fuse(state: dict[str, Tensor]) -> None:
    """Put query, key and value of each block of the vision tower into one tensor, in this order."""
    for query in [name for name in state if ".q_proj." in name]:
        parts = [query.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        # Where one is missing the others stay as they are, and loading refuses them.
        if all(part in state for part in parts):
            state[query.replace(".q_proj.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])


def _unpacked(name: str, tensor: Tensor, text: PreTrainedConfig) -> dict[str, Tensor]:
    """Return InternLM2's ``wqkv`` as query, key and value; any other tensor as it is.

    Its rows are groups, one a key-value head: the group's query heads, its key head, its value head.
    """
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    size = text.hidden_size // heads
    if not name.endswith(".attention.wqkv.weight") or len(tensor) != (heads + 2 * groups) * size:
        return {name: tensor}
    rows = tensor.view(groups, heads // groups + 2, size, -1)
    split = {"q": rows[:, :-2], "k": rows[:, -2], "v": rows[:, -1]}
    return {
        name.replace("attention.wqkv", f"self_attn.{letter}_proj"): part.reshape(-1, tensor.shape[1])
        for letter, part in split.items()
    }
