"""LLaVA-NeXT at full size: its architectures, and what its spec says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from foresight_bench.checkpoints import Checkpoint
from foresight_bench.specs import Variant
from foresight_plugins.encoders import llava_next, llava_next_spec
from foresight_plugins.encoders.clip import ClipTower
from foresight_plugins.encoders.llava_next import LlavaNext
from foresight_plugins.encoders.llava_next_configs import ARCHITECTURES
from foresight_plugins.encoders.llava_next_spec import LLAVA_NEXT


def test_parameter_counts() -> None:
    """Of CLIP-L/14-336, whose 24th block and final norm are not built, the projector and Mistral-7B."""
    config: Any = ARCHITECTURES["mistral-7b"].config()

    def count(module: torch.nn.Module) -> float:
        return sum(value.numel() for value in module.parameters()) / 1e6

    with torch.device("meta"):
        assert count(ClipTower(config.vision_config, 24)) + 2 * 1024 / 1e6 == pytest.approx(303.5, abs=0.05)
        assert count(llava_next._Bridge(config, projector=True, newline=False)) == pytest.approx(21.0, abs=0.05)
        assert count(AutoModel.from_config(config.text_config)) == pytest.approx(7110.9, abs=0.05)
        vicuna: Any = ARCHITECTURES["vicuna-7b"].config()
        assert count(AutoModel.from_config(vicuna.text_config)) == pytest.approx(6607.6, abs=0.05)


def test_what_the_hub_says_is_what_is_expected(tmp_path: Path) -> None:
    """The hub's config.json leaves out what is transformers' default."""
    text = {
        "model_type": "mistral",
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "vocab_size": 32064,
    }
    vision = {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    }
    top = {
        "model_type": "llava_next",
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    (tmp_path / "config.json").write_text(json.dumps({**top, "text_config": text, "vision_config": vision}))
    found: Any = ARCHITECTURES["mistral-7b"].config(Checkpoint(tmp_path))
    own: Any = ARCHITECTURES["mistral-7b"].config()
    for name in ("rope_parameters", "sliding_window", "rms_norm_eps", "max_position_embeddings", "hidden_act"):
        assert getattr(found.text_config, name) == getattr(own.text_config, name), name
    assert found.vision_config.layer_norm_eps == own.vision_config.layer_norm_eps == 1e-5


@pytest.mark.parametrize("variant", LLAVA_NEXT.variants, ids=lambda variant: variant.name)
def test_spec(variant: Variant) -> None:
    config: Any = ARCHITECTURES[str(variant.params["architecture"])].config()
    depths = config.vision_config.num_hidden_layers - 1, config.text_config.num_hidden_layers
    assert variant.taps == llava_next_spec.taps(*depths)
    assert variant.parts == llava_next_spec.parts(*depths)
    assert set(variant.default_taps) <= set(variant.taps)
    assert variant.default_taps == ("patch_embed", "block.11", "block.22", "projector", "llm.15", "final")
    assert variant.output in variant.default_taps
    assert variant.stem == ("patch_embed",)
    assert LLAVA_NEXT.target == f"{LlavaNext.__module__}:{LlavaNext.__name__}"
    assert LLAVA_NEXT.options == {"tiles": False}
