"""InternVL2 in transformers' layout against transformers; and what does not depend on a layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

from foresight_bench.checkpoints import Checkpoint
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import PluginError, WeightsError
from foresight_bench.specs import Variant
from foresight_bench.testing.layout import check_layout
from foresight_plugins.encoders import internvl2
from foresight_plugins.encoders.images import IMAGENET, normalised, resized
from foresight_plugins.encoders.internvl2 import ARCHITECTURES, Architecture, InternVL2
from foresight_plugins.encoders.internvl2_keys import Fields
from foresight_plugins.encoders.internvl2_spec import BLOCKS, INTERNVL2, parts, taps
from foresight_plugins.encoders.internvl2_vision import InternViT, projector

DEPTH, LAYERS, WIDTH, TILE = 2, 3, 32, 112
VISION: dict[str, Any] = {
    "num_hidden_layers": DEPTH,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-3,
    "image_size": TILE,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "vocab_size": 30,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-3,
    "rope_theta": 1000000.0,
    "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
}
PROMPT, IMAGE = (1, 25, 7, 9, 26), 29
TAPS = taps(DEPTH, LAYERS)
KINDS = {"InternVL2_5-8B-MPO-hf": "llama", "InternVL3-8B-hf": "qwen2"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures of a few layers."""
    small = {
        name: Architecture("internvl", Fields(VISION, {**TEXT, "model_type": kind}), PROMPT)
        for name, kind in KINDS.items()
    }
    monkeypatch.setattr(internvl2, "ARCHITECTURES", small)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedWeights]:
    """Random weights, of which every one matters, as transformers saves them: in the names of the hub's files."""
    found, draw = {}, torch.Generator().manual_seed(1)
    for name, kind in KINDS.items():
        # attention_bias is False by default, and True in every checkpoint.
        vision = InternVLVisionConfig(**VISION, attention_bias=True)
        text = AutoConfig.for_model(kind, **TEXT)
        config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=16)
        model: Any = InternVLForConditionalGeneration(config)
        for entry, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=draw)
            if value.ndim == 1:
                noise = 0.3 * noise + (0.0 if entry.endswith("bias") else 1.0)
            elif "embed" not in entry or "projection" in entry:
                noise = noise / noise[0].numel() ** 0.5
            value.data = noise
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        found[name] = ResolvedWeights(folder, "", "file")
    return found


@pytest.fixture
def weights(checkpoints: dict[str, ResolvedWeights]) -> ResolvedWeights:
    return checkpoints["InternVL3-8B-hf"]


def rewritten(weights: ResolvedWeights, folder: Path, **changes: Callable[[Any], None]) -> ResolvedWeights:
    """A copy of ``weights`` with its ``config`` or ``state`` changed, each tensor in a file of its own."""
    config = json.loads((weights.path / "config.json").read_text())
    state = load_file(weights.path / "model.safetensors")
    for part, change in changes.items():
        change({"config": config, "state": state}[part])
    (folder / "config.json").write_text(json.dumps(config))
    index = {name: f"{name}.safetensors" for name in state}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name, value in state.items():
        save_file({name: value}, folder / index[name])
    return ResolvedWeights(folder, "", "file")


def encoder(
    weights: ResolvedWeights | None, wanted: Sequence[str] = TAPS, architecture: str = "InternVL3-8B-hf", **setup: Any
) -> InternVL2:
    return InternVL2(EncoderSetup(weights=weights, taps=tuple(wanted), **setup), architecture=architecture)


def clips(n: int, t: int, h: int = TILE, w: int = TILE) -> ClipBatch:
    frames = np.random.default_rng(0).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(str(i) for i in range(n)))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def by_transformers(weights: ResolvedWeights, images: Tensor) -> Mapping[str, Tensor]:
    """Hooks on transformers' model, which gets the prompt, the image and more text."""
    load: Any = InternVLForConditionalGeneration.from_pretrained
    model, info = load(weights.path, output_loading_info=True)
    assert not info["missing_keys"]
    inner = model.eval().model
    found: dict[str, Tensor] = {}

    def keep(tap: str, module: Any, tokens: slice, side: int) -> None:
        def hook(_: Any, __: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            found[tap] = states[:, tokens].reshape(len(images), side, side, -1)

        module.register_forward_hook(hook)

    keep("patch_embed", inner.vision_tower.embeddings.patch_embeddings, slice(None), 8)
    for index, layer in enumerate(inner.vision_tower.encoder.layer):
        keep(f"block.{index}", layer, slice(1, None), 8)
    keep("projector", inner.multi_modal_projector, slice(None), 4)
    image = slice(len(PROMPT), len(PROMPT) + 16)
    for index, layer in enumerate(inner.language_model.layers):
        keep(f"llm.{index}", layer, image, 4)
    keep("final", inner.language_model.norm, image, 4)
    shuffled: list[Tensor] = []
    inner.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: shuffled.append(inputs[0]))
    ids = torch.tensor([[*PROMPT, *[IMAGE] * 16, 27, 3, 4]]).repeat(len(images), 1)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images)
    return found | {"pixel_shuffle": shuffled[0].reshape(len(images), 4, 4, -1)}


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, TILE, TILE), (3, 2, 84, 140)])
def test_every_tap_agrees_with_transformers(
    architecture: str, shape: tuple[int, int, int, int], checkpoints: Any
) -> None:
    weights, batch = checkpoints[architecture], clips(*shape)
    images = normalised(resized(torch.tensor(batch.frames).flatten(0, 1), TILE, TILE), IMAGENET)
    expected = by_transformers(weights, images)
    assert set(expected) == set(TAPS)
    for tap, grid in encoder(weights, architecture=architecture).encode(batch, TAPS).items():
        assert grid.shape[:2] == shape[:2]
        assert relative(grid.values.flatten(0, 1), expected[tap]) < 1e-5, tap


def as_in_memory(state: dict[str, Tensor]) -> None:
    for name in [*state]:
        state["model." + name.replace("language_model.model.", "language_model.")] = state.pop(name)


def as_older_versions_wrote_it(config: dict[str, Any]) -> None:
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "bfloat16"}


def with_a_head(state: dict[str, Tensor]) -> None:
    state["language_model.lm_head.weight"] = torch.ones(30, 40)


@pytest.mark.parametrize(
    "changes", [{"state": as_in_memory}, {"config": as_older_versions_wrote_it}, {"state": with_a_head}]
)
def test_other_ways_to_write_the_same(changes: Any, weights: ResolvedWeights, tmp_path: Path) -> None:
    batch = clips(1, 1)
    first, second = encoder(weights), encoder(rewritten(weights, tmp_path, **changes))
    for tap, grid in first.encode(batch, TAPS).items():
        assert torch.equal(second.encode(batch, TAPS)[tap].values, grid.values), tap


def test_what_transformers_has_in_memory(weights: ResolvedWeights) -> None:
    """The second layout is no invention."""
    model: Any = InternVLForConditionalGeneration.from_pretrained(weights.path)
    names = dict.fromkeys(load_file(weights.path / "model.safetensors"), torch.ones(1))
    as_in_memory(names)
    assert set(names) == set(model.state_dict()) - {"lm_head.weight"}


@pytest.mark.parametrize("tap", TAPS[:-1])
def test_nothing_deeper_is_read(tap: str, weights: ResolvedWeights, tmp_path: Path) -> None:
    alone, batch = rewritten(weights, tmp_path), clips(1, 1)
    needs = Variant("", TAPS, (), parts=parts("internvl", DEPTH, LAYERS)).needs([tap])
    for name, file in Checkpoint(alone.path).shards.items():
        if not needs(name):
            file.unlink()
    whole = encoder(weights).encode(batch, [tap])[tap].values
    assert torch.equal(encoder(alone, [tap]).encode(batch, [tap])[tap].values, whole)


def test_a_query_without_its_key_is_refused(weights: ResolvedWeights, tmp_path: Path) -> None:
    bad = rewritten(
        weights, tmp_path, state=lambda state: state.pop("vision_tower.encoder.layer.0.attention.k_proj.bias")
    )
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.q_proj\.bias is not part of it"):
        encoder(bad)


def test_frames_keep_their_place(weights: ResolvedWeights) -> None:
    wanted = ["patch_embed", "block.0", "pixel_shuffle"]
    for finding in check_layout(encoder(weights, wanted), wanted, size=(TILE, 168), frames=3):
        assert finding.passed, finding


def test_preprocessing_is_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image
    from transformers.models.got_ocr2 import GotOcr2ImageProcessor

    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = np.array(Image.fromarray(small).resize((300, 200), Image.Resampling.BICUBIC))
    seen: list[Tensor] = []

    def patches(vision: Any, images: Tensor, unpatched: Any = InternViT.patches) -> Tensor:
        seen.append(images[0])
        found: Tensor = unpatched(vision, images)
        return found

    monkeypatch.setattr(InternViT, "patches", patches)
    encoder(None, ["patch_embed"]).encode(ClipBatch(photo[None, None], ("photo",)), ["patch_embed"])
    by_pil = Image.fromarray(photo).resize((TILE, TILE), Image.Resampling.BICUBIC)
    process: Any = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=False, image_mean=IMAGENET[0], image_std=IMAGENET[1]
    )
    official = process(photo, return_tensors="pt")["pixel_values"]
    assert official.shape == (1, 3, TILE, TILE)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    for theirs in (official[0] * deviation + mean, torch.tensor(np.array(by_pil)).permute(2, 0, 1) / 255):
        assert float((seen[0] * deviation + mean - theirs).abs().max()) * 255 < 2.01


def test_bfloat16_is_near(weights: ResolvedWeights) -> None:
    batch = clips(2, 1)
    exact, short = encoder(weights).encode(batch, TAPS), encoder(weights, precision="bfloat16")
    for tap, grid in short.encode(batch, TAPS).items():
        assert grid.values.dtype == torch.bfloat16
        assert relative(grid.values.float(), exact[tap].values) < 3e-2, tap
    assert short._language is not None
    assert short._language.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_random_weights_follow_the_seed_and_nothing_else(precision: str) -> None:
    batch = clips(1, 1)

    def final(seed: int) -> Tensor:
        return encoder(None, ["final"], seed=seed, precision=precision).encode(batch, ["final"])["final"].values

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = final(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(final(1), first)
    assert not torch.equal(final(2), first)
    assert first.dtype == getattr(torch, precision)


def test_random_blocks_are_not_idle() -> None:
    ours = encoder(None)
    scales = [value for name, value in ours._vision.named_parameters() if ".ls" in name]
    assert all(bool((value == 1).all()) for value in scales)
    first, second = ours.encode(clips(1, 1), ["block.0", "block.1"]).values()
    assert relative(second.values, first.values) > 0.05


def test_one_graph_serves_all_blocks(weights: ResolvedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    compiled = encoder(weights, compiled=True).encode(clips(2, 1), TAPS)
    assert counters["stats"]["unique_graphs"] == 2, "one for the vision tower, one for the language model"
    for tap, grid in encoder(weights).encode(clips(2, 1), TAPS).items():
        assert relative(compiled[tap].values, grid.values) < 1e-5, tap


def test_features_can_train_an_adapter(weights: ResolvedWeights) -> None:
    values = encoder(weights, ["final"]).encode(clips(1, 1, 28, 28), ["final"])["final"].values
    assert not values.requires_grad
    torch.nn.Linear(40, 1)(values).sum().backward()


def test_unknown_taps(weights: ResolvedWeights) -> None:
    with pytest.raises(PluginError, match=r"Unknown tap 'llm\.3'"):
        encoder(weights, ["llm.3"])
    with pytest.raises(PluginError, match=r"Unknown tap 'final'"):
        encoder(weights, ["llm.2"]).encode(clips(1, 1), ["final"])
    assert encoder(weights, []).encode(clips(1, 1), []) == {}


@pytest.mark.parametrize("variant", INTERNVL2.variants, ids=lambda variant: variant.name)
def test_spec_agrees_with_the_architecture(variant: Variant) -> None:
    shape = ARCHITECTURES[str(variant.params["architecture"])]
    assert shape.fields.vision["num_hidden_layers"] == BLOCKS == 24
    assert variant.taps == taps(BLOCKS, shape.fields.text["num_hidden_layers"])
    assert set(variant.default_taps) <= set(variant.taps)
    assert variant.weights is not None
    hub: Any = variant.weights.hub
    assert (hub.repo, hub.model_type) == (f"OpenGVLab/{variant.params['architecture']}", shape.model_type)
    assert max(shape.prompt) < shape.fields.text["vocab_size"]
    assert (variant.stem, variant.output) == (("patch_embed",), "projector")


def test_what_each_tap_needs() -> None:
    """In order of depth; the last is needed by none."""
    entries = [
        ("patch_embed", "vision_model.embeddings.position_embedding"),
        ("block.0", "vision_model.encoder.layers.0.ls1"),
        ("block.1", "vision_model.encoder.layers.1.ls1"),
        ("block.10", "vision_model.encoder.layers.10.ls1"),
        ("pixel_shuffle", "vision_model.encoder.layers.23.ls1"),
        ("projector", "mlp1.3.bias"),
        ("llm.0", "language_model.model.tok_embeddings.weight"),
        ("llm.1", "language_model.model.layers.1.attention.wqkv.weight"),
        ("llm.31", "language_model.model.layers.31.attention.wqkv.weight"),
        ("final", "language_model.model.norm.weight"),
        ("", "language_model.output.weight"),
    ]
    names = [name for _, name in entries]
    for number, (tap, _) in enumerate(entries[:-1]):
        assert [*filter(INTERNVL2.variants[0].needs([tap]), names)] == names[: number + 1], tap


def test_default_taps_of_the_default_variant() -> None:
    deep = ("pixel_shuffle", "projector", "llm.15", "final")
    assert INTERNVL2.variants[0].name == "8b"
    assert INTERNVL2.variants[0].default_taps == ("patch_embed", "block.11", "block.23", *deep)


@pytest.mark.parametrize(
    ("architecture", "language", "layer", "total"),
    [
        ("InternVL2-8B", 7358.7, 218.1, 8075.4),
        ("InternVL2-1B", 493.8, 14.9, 938.2),
        ("InternVL2_5-8B-MPO-hf", 7358.7, 218.1, 8075.4),
        ("InternVL3-8B-hf", 7069.2, 233.1, 7944.4),
        ("InternVL3-1B-hf", 493.8, 14.9, 938.2),
    ],
)
def test_sizes_are_those_of_the_models(architecture: str, language: float, layer: float, total: float) -> None:
    """In millions; the total is the published one, with a head of its own, which no tap needs."""
    fields = ARCHITECTURES[architecture].fields
    text: Any = fields.text_config()
    with torch.device("meta"):
        vision, joint = InternViT(fields.vision, BLOCKS), projector(1024, text.hidden_size)
        model: Any = AutoModel.from_config(text)

    def millions(*modules: torch.nn.Module) -> float:
        return sum(value.numel() for module in modules for value in module.parameters()) / 1e6

    assert millions(vision) == pytest.approx(304.0, abs=0.05)
    assert millions(model) == pytest.approx(language, abs=0.05)
    assert millions(model.layers[0]) == pytest.approx(layer, abs=0.05)
    assert millions(vision, joint, model) + text.vocab_size * text.hidden_size / 1e6 == pytest.approx(total, abs=0.05)
