"""The shared language model against transformers' own, for each kind that an encoder has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from foresight_bench.errors import WeightsError
from foresight_plugins.encoders.llm import LanguageModel

LAYERS, WIDTH, LENGTH = 3, 48, 37
COMMON = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 1e6},
    "qwen2": {"rope_theta": 1e6},
    "mistral": {"rope_theta": 1e6, "sliding_window": None, "head_dim": 12},
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}},
}
Parts = dict[str, Tensor]


def config_of(kind: str) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.for_model(kind, **COMMON, **KINDS[kind])
    return config


def reference_of(kind: str) -> Any:
    """transformers' model, random, every weight of which matters."""
    model: Any = AutoModel.from_config(config_of(kind)).eval()
    draw = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=draw)
        value.data = noise / value.shape[-1] ** 0.5 if value.ndim > 1 else 0.3 * noise + name.endswith("norm.weight")
    return model


def parts_of(model: Any, depth: int, final: bool) -> Parts:
    beyond = tuple(f"layers.{index}." for index in range(depth, LAYERS)) + (() if final else ("norm.",))
    return {name: value for name, value in model.state_dict().items() if not name.startswith(beyond)}


def ours(kind: str, model: Any, depth: int = LAYERS, *, final: bool = True, **options: Any) -> LanguageModel:
    setup: dict[str, Any] = {"tensors": parts_of(model, depth, final).items(), "dtype": torch.float32, "device": "cpu"}
    return LanguageModel(config_of(kind), depth, final=final, **(setup | options))


def inputs_of(kind: str, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Two different sequences, and positions: one number a token, or time, row and column of an image's grid."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(2, LENGTH, WIDTH, generator=draw)[:, :length]
    positions = torch.arange(length).expand(2, -1)
    if kind == "qwen2_5_vl_text":
        positions = torch.stack([positions.clamp(max=5), 5 + positions // 6, 5 + positions % 6])
    return states, positions


def by_transformers(model: Any, states: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """What each layer and the final norm return within transformers' own forward pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: Any) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return module.register_forward_hook(hook)

    handles = [keep(str(index), layer) for index, layer in enumerate(model.layers)] + [keep("final", model.norm)]
    with torch.no_grad():
        model(inputs_embeds=states, position_ids=positions, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_and_the_final_norm(kind: str) -> None:
    model = reference_of(kind)
    states, positions = inputs_of(kind)
    expected = by_transformers(model, states, positions)
    kept, last = ours(kind, model).run(states, positions, range(LAYERS))
    for index in range(LAYERS):
        torch.testing.assert_close(kept[index], expected[str(index)], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last, expected["final"], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(kept[LAYERS - 1], last, atol=0.1), "the last layer's output is not normalised"


@pytest.mark.parametrize("kind", KINDS)
def test_positions_matter(kind: str) -> None:
    """All positions alike would leave attention without any order."""
    model = reference_of(kind)
    states, positions = inputs_of(kind)
    kept, _ = ours(kind, model).run(states, positions, [0])
    other, _ = ours(kind, model).run(states, torch.zeros_like(positions), [0])
    assert float((kept[0] - other[0]).abs().max()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 2])
def test_early_exit_takes_nothing_deeper(kind: str, depth: int) -> None:
    model = reference_of(kind)
    states, positions = inputs_of(kind)
    whole, _ = ours(kind, model).run(states, positions, [depth - 1])
    short = ours(kind, model, depth, final=False)
    assert len(short.model.layers) == short.depth == depth
    kept, last = short.run(states, positions, [depth - 1])
    assert torch.equal(kept[depth - 1], whole[depth - 1])
    assert torch.equal(last, whole[depth - 1]), "no norm where none was asked for"


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_changes_nothing(kind: str) -> None:
    """So that the input may end with the image."""
    model = ours(kind, reference_of(kind))
    long, _ = model.run(*inputs_of(kind), range(LAYERS))
    short, _ = model.run(*inputs_of(kind, LENGTH - 9), range(LAYERS))
    for index in range(LAYERS):
        torch.testing.assert_close(short[index], long[index][:, : LENGTH - 9], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_the_angles_exact(kind: str) -> None:
    model = reference_of(kind)
    tensors = {name: value.bfloat16() for name, value in parts_of(model, LAYERS, True).items()}
    short = ours(kind, model, tensors=tensors.items(), dtype=torch.bfloat16)
    states, positions = inputs_of(kind)
    exact, _ = ours(kind, model).run(states, positions, [LAYERS - 1])
    rounded, _ = short.run(states.bfloat16(), positions, [LAYERS - 1])
    assert rounded[LAYERS - 1].dtype == torch.bfloat16
    error = (rounded[LAYERS - 1].float() - exact[LAYERS - 1]).norm() / exact[LAYERS - 1].norm()
    assert float(error) < 3e-2
    table = short.model.rotary_emb.inv_freq
    assert (table.dtype, table.device.type) == (torch.float32, "cpu")
    assert torch.equal(table, model.rotary_emb.inv_freq)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights(dtype: torch.dtype) -> None:
    config = config_of("qwen2")
    model = LanguageModel(config, 2, final=True, tensors=None, device="cpu", dtype=dtype)
    assert {value.dtype for value in model.model.parameters()} == {dtype}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    states, positions = inputs_of("qwen2")
    _, last = model.run(states.to(dtype), positions, [])
    assert bool(torch.isfinite(last).all())
    assert config.num_hidden_layers == LAYERS, "the config that was given stays as it was"


def test_embeddings_are_rows_of_the_table() -> None:
    model = reference_of("llama")
    assert torch.equal(ours("llama", model).embed((5, 0, 63)), model.embed_tokens.weight[[5, 0, 63]])


@pytest.mark.parametrize("missing", ["layers.1.self_attn.k_proj.weight", "norm.weight", "embed_tokens.weight"])
def test_loading_is_strict(missing: str) -> None:
    model = reference_of("llama")
    tensors = parts_of(model, LAYERS, True)
    del tensors[missing]
    with pytest.raises(WeightsError, match=f"{missing} is missing"):
        ours("llama", model, tensors=tensors.items())
    with pytest.raises(WeightsError, match=r"layers\.2\..* is not part of it"):
        ours("llama", model, 2, tensors=parts_of(model, LAYERS, True).items())


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_all_layers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    model, inputs = reference_of(kind), inputs_of(kind)
    with torch.no_grad():
        compiled, _ = ours(kind, model, compiled=True).run(*inputs, range(LAYERS))
        assert counters["stats"]["unique_graphs"] == 1
        plain, _ = ours(kind, model).run(*inputs, range(LAYERS))
    for index in range(LAYERS):
        torch.testing.assert_close(compiled[index], plain[index], rtol=1e-5, atol=2e-6)
