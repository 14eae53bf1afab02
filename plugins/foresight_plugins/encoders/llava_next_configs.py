"""The architectures of LLaVA-NeXT: what config.json says on the hub, and the prompt that stands before the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlavaNextConfig

from foresight_bench.checkpoints import Checkpoint
from foresight_bench.errors import WeightsError

_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_SEVEN_BILLION = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    # The 32,000 of the language model, and rows for <image> and for padding up to a multiple of 64.
    "vocab_size": 32064,
}

_COMPARED = (
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "image_grid_pinpoints",
    *(
        f"vision_config.{name}"
        for name in (
            "model_type",
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        )
    ),
    *(
        f"text_config.{name}"
        for name in (
            "model_type",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
    ),
)
"""What must agree between a checkpoint and its architecture. The rest, as the rotary base, is the checkpoint's."""


@dataclass(frozen=True)
class Architecture:
    """One size of LLaVA-NeXT."""

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    prompt: tuple[int, ...]
    """Tokens before the image's, the beginning of the sequence first."""
    pinpoints: tuple[tuple[int, int], ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    """Heights and widths of the canvases that tiles may form."""

    def config(self, checkpoint: Checkpoint | None = None) -> LlavaNextConfig:
        """Return the checkpoint's configuration, or without one that of the architecture.

        Raises:
            WeightsError: the checkpoint is of another model, or another width or depth.
        """
        pinpoints = [list(size) for size in self.pinpoints]
        own = LlavaNextConfig(
            vision_config=dict(self.vision), text_config=dict(self.text), image_grid_pinpoints=pinpoints
        )
        if checkpoint is None:
            return own
        kind = checkpoint.config.get("model_type")
        if kind != own.model_type:
            raise WeightsError(
                f"The checkpoint {checkpoint.path} is of model_type {kind}, not {own.model_type}.",
                "Provide the folder of a llava-hf checkpoint, config.json included.",
            )
        try:
            found = LlavaNextConfig.from_dict(dict(checkpoint.config))
        except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
            # A list of every model type there is may follow in a second sentence.
            reason = str(error).splitlines()[-1].strip().partition(". ")[0].rstrip(".")
            raise WeightsError(f"The config.json of {checkpoint.path} cannot be understood: {reason}.") from error
        for name in _COMPARED:
            given, expected = _value(found, name), _value(own, name)
            if given != expected:
                raise WeightsError(
                    f"The checkpoint {checkpoint.path} is another architecture: its {name} is {given}, not {expected}.",
                    "Name the variant that the checkpoint belongs to.",
                )
        return found


ARCHITECTURES: dict[str, Architecture] = {
    "mistral-7b": Architecture(
        vision=_CLIP_LARGE,
        text={
            **_SEVEN_BILLION,
            "model_type": "mistral",
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "sliding_window": None,
        },
        # "[INST] " in Mistral's vocabulary of 32,000 pieces.
        prompt=(1, 733, 16289, 28793, 28705),
    ),
    "vicuna-7b": Architecture(
        vision=_CLIP_LARGE,
        text={
            **_SEVEN_BILLION,
            "model_type": "llama",
            "intermediate_size": 11008,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rope_theta": 1e4,
        },
        # "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful,
        # detailed, and polite answers to the human's questions. USER: " in Llama's vocabulary of 32,000 pieces.
        prompt=(
            *(1, 319, 13563, 1546, 263, 12758, 5199, 322, 385, 23116, 21082, 20255, 29889),
            *(450, 20255, 4076, 8444, 29892, 13173, 29892, 322, 1248, 568, 6089, 304, 278),
            *(5199, 29915, 29879, 5155, 29889, 3148, 1001, 29901, 29871),
        ),
    ),
}


def _value(config: LlavaNextConfig, name: str) -> Any:
    part, _, attribute = name.rpartition(".")
    return getattr(getattr(config, part) if part else config, attribute)
