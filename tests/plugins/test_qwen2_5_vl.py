"""Qwen2.5-VL: every tap against transformers' own model, the order of its tokens, its loading."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.vision_utils import get_vision_window_index

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import DataError, PluginError, WeightsError
from foresight_bench.grids import Grid
from foresight_bench.inventory import parameter_count
from foresight_bench.specs import Variant
from foresight_bench.testing.layout import LayoutFinding, check_layout
from foresight_plugins.encoders import qwen2_5_vl
from foresight_plugins.encoders.images import CLIP
from foresight_plugins.encoders.llm import LanguageModel
from foresight_plugins.encoders.qwen2_5_vision import RMSNorm, VisionTower, patch_vectors, window_order
from foresight_plugins.encoders.qwen2_5_vl import PREFIX, Qwen2_5VL, configuration, preprocess
from foresight_plugins.encoders.qwen2_5_vl_spec import QWEN2_5_VL

DEPTH, LAYERS = 3, 2
VISION = ("patch_embed", "block.0", "block.1", "block.2", "pre_merge", "post_merge")
TAPS = (*VISION, "llm.0", "llm.1", "final")
SIZES = [(112, 112), (224, 112), (84, 140)]
"""One window, two, and four of three sizes."""
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_window_layers": LAYERS,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {
        "depth": DEPTH,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "vocab_size": 151660,
}
"""Flat, with the vision tower nested, as on the hub."""


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' model with random weights, of which every one matters."""
    config = Qwen2_5_VLConfig.from_dict(copy.deepcopy(CONFIG))
    model: Any = Qwen2_5_VLModel(config).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            value.copy_(1 + 0.2 * noise)
        else:
            value.copy_(noise * (0.02 if "patch_embed" in name else 0.1))
    return model


@pytest.fixture(scope="module")
def state(reference: Any) -> dict[str, Tensor]:
    """The same weights under the names of the hub's files."""
    names = {"visual.": "visual.", "language_model.": "model."}
    state = {"lm_head.weight": torch.zeros(1)}
    for name, value in reference.state_dict().items():
        ((old, new),) = ((old, new) for old, new in names.items() if name.startswith(old))
        state[new + name.removeprefix(old)] = value
    return state


def save(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG) -> Path:
    """Write a checkpoint with one shard for each part of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        depth = 3 if "blocks." in name or "layers." in name else 2
        shards.setdefault(".".join(name.split(".")[:depth]), {})[name] = value
    for shard, tensors in shards.items():
        save_file(tensors, folder / f"{shard}.safetensors")
    files = {name: f"{shard}.safetensors" for shard, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("qwen") / "tiny", state)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Any:
    return build(folder)


def build(folder: Path | None, taps: Sequence[str] = TAPS, size: str = "7b", **setup: Any) -> Any:
    weights = ResolvedWeights(folder, "", "file") if folder else None
    return Qwen2_5VL(EncoderSetup(weights=weights, taps=tuple(taps), **setup), size=size)


def clips(n: int, t: int, h: int, w: int, seed: int = 0) -> ClipBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(str(i) for i in range(n)))


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def processed(batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Return the official processors' pixel rows and grids, with no resizing."""
    size = {"shortest_edge": 28 * 28, "longest_edge": 10**9}
    if batch.shape[1] == 1:
        images = [torch.tensor(frames[0]).permute(2, 0, 1) for frames in batch.frames]
        out = Qwen2VLImageProcessor(size=size)(images, return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]
    videos = [torch.tensor(frames).permute(0, 3, 1, 2) for frames in batch.frames]
    out = Qwen2VLVideoProcessor(size=size, do_sample_frames=False)(videos, return_tensors="pt")
    return out["pixel_values_videos"], out["video_grid_thw"]


def official(model: Any, batch: ClipBatch) -> dict[str, Tensor]:
    """Return transformers' own features at every tap, in raster order; text follows the image tokens."""
    n, frames, _, _ = batch.shape
    pixels, grids = processed(batch)
    t, h, w = grids[0].tolist()
    modality, pad = ("image", 151655) if frames == 1 else ("video", 151656)
    ids = torch.tensor([[*PREFIX, *[pad] * (t * h * w // 4), 151653, 3838, 374, 419, 30]] * n)
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == pad).int() * (1 if frames == 1 else 2),
        f"{modality}_grid_thw": grids,
        "pixel_values" if frames == 1 else "pixel_values_videos": pixels,
    }
    if frames > 1:
        inputs["second_per_grid_ts"] = torch.ones(n)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    visual, language = model.visual, model.language_model
    modules = {"patch_embed": visual.patch_embed, "post_merge": visual.merger, "final": language.norm}
    modules |= {f"block.{index}": block for index, block in enumerate(visual.blocks)}
    modules |= {f"llm.{index}": layer for index, layer in enumerate(language.layers)}
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    handles.append(
        visual.merger.register_forward_pre_hook(lambda module, args: found.__setitem__("pre_merge", args[0]))
    )
    model(**inputs)
    for handle in handles:
        handle.remove()
    restored = get_vision_window_index(grids, 2, 112, 14)[0].argsort()
    raster = {}
    for tap, values in found.items():
        if tap == "post_merge":
            raster[tap] = values[restored].view(n, t, h // 2, w // 2, -1)
        elif tap == "final" or tap.startswith("llm"):
            raster[tap] = values[:, len(PREFIX) : -5].reshape(n, t, h // 2, w // 2, -1)
        else:
            groups = values.view(len(restored), 4, -1)
            groups = groups if tap == "patch_embed" else groups[restored]
            raster[tap] = groups.view(n, t, h // 2, w // 2, 2, 2, -1).transpose(3, 4).reshape(n, t, h, w, -1)
    return raster


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("n", "t"), [(1, 1), (3, 1), (1, 2), (2, 3), (2, 5)])
def test_equals_the_official_model(size: tuple[int, int], n: int, t: int, encoder: Any, reference: Any) -> None:
    batch = clips(n, t, *size)
    grids = encoder.encode(batch, TAPS)
    expected = official(reference, batch)
    assert tuple(grids) == TAPS
    for tap in TAPS:
        assert grids[tap].values.dtype == torch.float32
        assert relative(grids[tap].values, expected[tap]) < 1e-5, tap
        fine = 14 if tap in VISION[:-1] else 28
        assert grids[tap].shape[:4] == (n, (t + 1) // 2, size[0] // fine, size[1] // fine)


@pytest.mark.parametrize("h", range(1, 11))
def test_windows_are_the_official_ones(h: int) -> None:
    for w in range(1, 11):
        order, buckets = window_order(h, w)
        index, bounds = get_vision_window_index(torch.tensor([[1, 2 * h, 2 * w]]), 2, 112, 14)
        expected = [part.tolist() for part in index.split((bounds.diff() // 4).tolist())]
        tokens = iter(order.tolist())
        ours = [[next(tokens) for _ in range(length // 4)] for count, length in buckets for _ in range(count)]
        assert next(tokens, None) is None
        assert sorted(ours) == sorted(expected)
        assert len(buckets) == len({len(window) for window in expected})


def test_attention_is_called_once_per_size_of_window(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    attention = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append(tuple(q.shape))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    encoder.encode(clips(3, 2, 224, 336), ["block.1"])
    assert shapes == [(3 * 6, 2, 64, 16), (3, 2, 384, 16)]


class Replaced:
    """An encoder whose grids are changed afterwards."""

    def __init__(self, encoder: Any, scramble: Callable[[Tensor], Tensor]) -> None:
        self.encoder, self.scramble = encoder, scramble

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        grids = self.encoder.encode(clips, taps)
        return {tap: Grid(self.scramble(grid.values)) for tap, grid in grids.items()}


def checked(encoder: Any, taps: Sequence[str], frames: int = 1, **options: Any) -> list[LayoutFinding]:
    return check_layout(encoder, taps, size=(112, 168), frames=frames, **options)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_tokens_are_in_raster_order(frames: int, encoder: Any) -> None:
    for finding in checked(encoder, TAPS, frames):
        assert finding.passed, finding


def scrambled_layout(encoder: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave out a permutation, so that tokens stay as they were."""
    encoder.encode(clips(1, 1, 112, 168), ["patch_embed"])
    layout = encoder._vision._layouts[8, 12]
    left: dict[str, Any] = {name: torch.arange(len(getattr(layout, name))) for name in names}
    monkeypatch.setitem(encoder._vision._layouts, (8, 12), replace(layout, **left))


def test_window_order_taken_for_raster_order_is_caught(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scrambled_layout(encoder, monkeypatch, "raster")
    for finding in checked(encoder, ("block.0", "block.1", "block.2", "pre_merge")):
        assert finding.misplaced > 0.8, finding


def test_raw_merger_order_taken_for_raster_order_is_caught(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scrambled_layout(encoder, monkeypatch, "merged_raster")
    for finding in checked(encoder, ("post_merge", "llm.0", "llm.1", "final")):
        assert finding.misplaced > 0.4, finding


def test_merge_groups_taken_for_raster_order_are_caught(encoder: Any) -> None:
    def groups(values: Tensor) -> Tensor:
        n, t, h, w, c = values.shape
        return values.reshape(n, t, h // 2, 2, w // 2, 2, c).transpose(3, 4).reshape(values.shape)

    for finding in checked(Replaced(encoder, groups), VISION[:-1]):
        assert finding.diagnosis == "tokens stand in windows of 2 x 2", finding


def test_confused_pairs_of_frames_are_caught(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen2_5_vl, "patch_vectors", lambda images: patch_vectors(images.roll(1, 1)))
    for finding in checked(encoder, TAPS, frames=4):
        assert finding.misplaced > 0.3, finding
        assert "the frame is wrong" in finding.diagnosis


@pytest.mark.parametrize("t", [1, 2, 3, 5])
def test_grids_do_not_depend_on_the_batch(t: int, encoder: Any) -> None:
    batch = clips(3, t, 84, 140)
    together = encoder.encode(batch, TAPS)
    for index in range(3):
        for tap, grid in encoder.encode(batch[index : index + 1], TAPS).items():
            torch.testing.assert_close(together[tap].values[index], grid.values[0], rtol=1e-5, atol=1e-5)


def test_pairs_of_frames_do_not_see_each_other_in_the_tower(encoder: Any) -> None:
    batch = clips(1, 5, 84, 140)
    whole = encoder.encode(batch, VISION)
    for index, pair in enumerate(([0, 1], [2, 3], [4, 4])):
        alone = encoder.encode(ClipBatch(batch.frames[:, pair], ("pair",)), VISION)
        for tap in VISION:
            torch.testing.assert_close(whole[tap].values[:, index], alone[tap].values[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(112, 168), (100, 150), (75, 211), (70, 98), (518, 364)])
def test_preprocessing_is_the_official_one(size: tuple[int, int]) -> None:
    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))
    pixels, grids = processed(ClipBatch(photo[None, None], ("photo",)))
    _, h, w = grids[0].tolist()
    images = preprocess(torch.tensor(photo[None]))
    assert images.shape == (1, 3, 14 * h, 14 * w)
    rows = images.reshape(3, h // 2, 2, 14, w // 2, 2, 14).permute(1, 4, 2, 5, 0, 3, 6)
    expected = pixels.reshape(h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    assert torch.equal(expected[:, :, :, :, :, 0], expected[:, :, :, :, :, 1])
    levels = (rows - expected[:, :, :, :, :, 0]).abs() * torch.tensor(CLIP[1]).view(3, 1, 1) * 255
    assert levels.max() < 2.01


def test_small_frames_are_not_enlarged(encoder: Any) -> None:
    assert encoder.encode(clips(1, 2, 28, 28), ["final"])["final"].shape == (1, 1, 1, 1, 32)
    assert encoder.encode(clips(1, 1, 3, 60), ["block.0"])["block.0"].shape == (1, 1, 2, 4, 32)


def test_frames_too_thin_are_refused(encoder: Any) -> None:
    encoder.encode(clips(1, 1, 2, 400), ["patch_embed"])
    with pytest.raises(DataError, match="takes no frames of 2 x 401: one side is over 200 times"):
        encoder.encode(clips(1, 1, 2, 401), ["patch_embed"])


@pytest.mark.parametrize("deepest", range(len(TAPS)))
def test_what_only_deeper_taps_need_is_not_read(
    deepest: int, encoder: Any, state: dict[str, Tensor], tmp_path: Path
) -> None:
    tap = TAPS[deepest]
    variant = QWEN2_5_VL.variants[0]
    assert variant.parts
    parts = [part for part in variant.parts if part.tap in TAPS and TAPS.index(part.tap) <= deepest]
    needed = {name: value for name, value in state.items() if name.startswith(tuple(part.prefix for part in parts))}
    folder = save(tmp_path / "part", state)
    absent = {file.name for file in folder.glob("*.safetensors")}
    absent -= {json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][n] for n in needed}
    assert absent
    for name in absent:
        (folder / name).unlink()
    batch = clips(2, 3, 84, 140)
    alone = build(folder, (tap,))
    grid = alone.encode(batch, (tap,))[tap]
    assert torch.equal(grid.values, encoder.encode(batch, TAPS)[tap].values)
    assert torch.equal(grid.values, encoder.encode(batch, [tap])[tap].values)
    # A block's MLP is padded from 20 to 128: rows and biases of two matrices, columns of a third.
    blocks = sum(name.startswith("visual.") and name.endswith("down_proj.weight") for name in needed)
    count = sum(value.numel() for value in needed.values())
    assert parameter_count(alone) == count + blocks * (128 - 20) * (3 * 32 + 2)


def test_blocks_after_the_deepest_tap_do_not_run(encoder: Any) -> None:
    ran: list[str] = []
    modules = {f"block.{index}": block.norm2 for index, block in enumerate(encoder._vision.blocks)}
    modules |= {"merger": encoder._vision.merger, "llm": encoder._language.model.norm}
    handles = [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in modules.items()]
    blocks = ["block.0", "block.1", "block.2"]
    for tap, expected in (
        ("patch_embed", []),
        ("block.1", blocks[:2]),
        ("pre_merge", blocks),
        ("post_merge", [*blocks, "merger"]),
        ("llm.0", [*blocks, "merger", "llm"]),
    ):
        ran.clear()
        encoder.encode(clips(1, 1, 28, 28), [tap])
        assert ran == expected
    for handle in handles:
        handle.remove()
    assert encoder.encode(clips(1, 1, 28, 28), []) == {}


def test_bfloat16_is_near_and_its_rotary_tables_are_not(folder: Path, encoder: Any) -> None:
    half = build(folder, precision="bfloat16")
    batch = clips(2, 3, 84, 140)
    exact = encoder.encode(batch, TAPS)
    for tap, grid in half.encode(batch, TAPS).items():
        assert grid.values.dtype == torch.bfloat16
        assert 1e-4 < relative(grid.values, exact[tap].values) < 3e-2, tap
    (layout,) = half._vision._layouts.values()
    assert layout.cos.dtype == layout.sin.dtype == torch.float32
    rotary = half._language.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, encoder._language.model.rotary_emb.inv_freq)


def test_bfloat16_is_normalised_as_the_official_model_does_it() -> None:
    norm, official_norm = RMSNorm(64).bfloat16(), Qwen2_5_VLRMSNorm(64).bfloat16()
    norm.weight.data = official_norm.weight.data = torch.linspace(0.5, 2, 64).bfloat16()
    tokens = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(norm(tokens), official_norm(tokens))


def test_compiled_blocks_share_their_graphs(folder: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = torch._dynamo.utils.counters
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    compiled = build(folder, compiled=True)
    # Two halves of a block and a layer, with and without windows; once more for any other size.
    for size, graphs in (((224, 112), 3), ((224, 224), 6), ((84, 140), 6)):
        batch = clips(2, 3, *size)
        exact = encoder.encode(batch, TAPS)
        for tap, grid in compiled.encode(batch, TAPS).items():
            assert relative(grid.values, exact[tap].values) < 1e-5, tap
        assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


def test_features_can_train_an_adapter(encoder: Any) -> None:
    grid = encoder.encode(clips(1, 1, 28, 28), ["final"])["final"]
    assert not grid.values.requires_grad
    nn.Linear(32, 1)(grid.values).sum().backward()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of the tests' size."""
    monkeypatch.setattr(qwen2_5_vl, "configuration", lambda size: Qwen2_5_VLConfig.from_dict(copy.deepcopy(CONFIG)))


@pytest.mark.usefixtures("small")
def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    batch = clips(1, 1, 84, 140)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build(None, seed=1).encode(batch, TAPS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = (build(None, seed=seed).encode(batch, TAPS) for seed in (1, 2))
    for tap in TAPS:
        assert torch.equal(first[tap].values, again[tap].values)
        assert not torch.equal(first[tap].values, other[tap].values)
    for before, after in pairwise(VISION[:4]):
        assert relative(first[after].values, first[before].values) > 0.05, after
    half = build(None, seed=1, precision="bfloat16").encode(batch, TAPS)
    assert all(grid.values.dtype == torch.bfloat16 and grid.values.isfinite().all() for grid in half.values())


@pytest.mark.parametrize(
    ("variant", "vision", "block", "merger", "language", "layer"),
    [
        (QWEN2_5_VL.variants[0], 676.6, 19.70, 44.6, 7070.6, 233.1),
        (QWEN2_5_VL.variants[1], 668.7, 19.70, 36.7, 3085.9, 77.1),
    ],
    ids=["7b", "3b"],
)
def test_full_size(variant: Variant, vision: float, block: float, merger: float, language: float, layer: float) -> None:
    def millions(module: nn.Module) -> float:
        return sum(value.numel() for value in module.parameters()) / 1e6

    config = configuration(variant.name)
    with torch.device("meta"):
        tower: Any = VisionTower(config.vision_config, 32, merge=True)
        options: dict[str, Any] = {"final": True, "tensors": None, "device": "meta", "dtype": torch.bfloat16}
        model = LanguageModel(config.text_config, config.text_config.num_hidden_layers, **options).model
    assert millions(tower) == pytest.approx(vision, abs=0.05)
    assert millions(tower.blocks[0]) == pytest.approx(block, abs=0.005)
    assert millions(tower.merger) == pytest.approx(merger, abs=0.05)
    assert millions(model) == pytest.approx(language, abs=0.05)
    assert millions(model.layers[0]) == pytest.approx(layer, abs=0.05)
    assert model.rotary_emb.mrope_section == [16, 24, 24]
    names = [name for name, _ in tower.named_parameters(prefix="visual")]
    names += [name for name, _ in model.named_parameters(prefix="model")]
    assert all(variant.needs(["final"])(name) for name in names)
    assert not variant.needs(["final"])("lm_head.weight")
    for part in variant.parts:
        assert any(name.startswith(part.prefix) for name in names), part
    tower.fuse()
    assert tower.blocks[0].mlp.gate_up_proj.weight.shape == (2 * 3456, 1280)
    assert tower.blocks[0].mlp.down_proj.weight.shape == (1280, 3456)


@pytest.mark.parametrize("variant", QWEN2_5_VL.variants, ids=lambda variant: variant.name)
def test_spec(variant: Variant) -> None:
    layers = {"7b": 28, "3b": 36}[variant.name]
    assert variant.taps == qwen2_5_vl._taps(configuration(variant.name))
    assert len(variant.taps) == 32 + layers + 4
    middle = f"llm.{layers // 2 - 1}"
    assert variant.default_taps == ("patch_embed", "block.15", "pre_merge", "post_merge", middle, "final")
    assert (variant.stem, variant.output) == (("patch_embed",), "post_merge")
    assert variant.weights is not None
    assert variant.weights.name == f"qwen2.5-vl-{variant.name}"
    keeps = variant.needs(["block.1"])
    names = ("visual.patch_embed.proj.weight", "visual.blocks.1.norm1.weight", "visual.blocks.10.norm1.weight")
    assert [keeps(name) for name in names] == [True, True, False]


def test_unknown_tap(folder: Path, encoder: Any) -> None:
    with pytest.raises(PluginError, match=r"Unknown tap 'block\.3'"):
        encoder.encode(clips(1, 1, 28, 28), ["block.3"])
    with pytest.raises(PluginError, match=r"Unknown tap 'llm\.28'"):
        build(folder, ["llm.28"])
    with pytest.raises(PluginError, match=r"Unknown tap 'block\.0'"):
        build(folder, ["patch_embed"]).encode(clips(1, 1, 28, 28), ["block.0"])


def config_with(**changes: Any) -> dict[str, Any]:
    """Return the configuration with some entries changed, those of the vision tower by ``vision_<name>``."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        place = config["vision_config"] if name.startswith("vision_") else config
        place[name.removeprefix("vision_")] = value
    return config


@pytest.mark.parametrize(
    ("config", "taps", "match"),
    [
        ({"model_type": "qwen2_vl"}, TAPS, "is no Qwen2.5-VL: its model_type is qwen2_vl"),
        (config_with(vision_window_size=56), TAPS, "is no Qwen2.5-VL: its window_size is 56, not 112"),
        (config_with(vision_hidden_act="gelu"), TAPS, "its hidden_act is gelu, not silu"),
        (config_with(num_hidden_layers="two"), TAPS, "cannot be used: .*num_hidden_layers"),
        (config_with(vision_depth="three"), TAPS, "cannot be used: .*depth"),
        (CONFIG, ["llm.2"], r"lacks the tap llm\.2 of Qwen2\.5-VL 7b: it has 3 vision blocks and 2 language layers"),
        (CONFIG, ["block.3"], r"lacks the tap block\.3 of Qwen2\.5-VL 7b"),
        (config_with(vision_hidden_size=64), TAPS, "not those of the vision tower .* entries differ"),
        (config_with(vision_depth=4), TAPS, "not those of the vision tower .* entries differ"),
        (config_with(hidden_size=64), TAPS, "not those of the first 2 layers .* entries differ"),
        (config_with(vocab_size=151652), TAPS, "a vocabulary of 151652, and the prompt .* needs 151653"),
        (config_with(**qwen2_5_vl.TEXT["3b"]), TAPS, "is Qwen2.5-VL 3b, not 7b"),
    ],
)
def test_wrong_configurations(config: Any, taps: Sequence[str], match: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("model.s*"):
        (tmp_path / file.name).symlink_to(file)
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=match) as raised:
        build(tmp_path, taps)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visual.blocks.1.mlp.gate_proj.bias", None),
        ("visual.blocks.1.attn.extra", torch.zeros(1)),
        ("visual.merger.mlp.0.weight", torch.zeros(3, 3)),
        ("model.layers.1.self_attn.q_proj.bias", None),
        ("model.norm.weight", None),
    ],
)
def test_wrong_tensors(name: str, value: Tensor | None, state: dict[str, Tensor], tmp_path: Path) -> None:
    changed = {other: tensor for other, tensor in state.items() if other != name}
    changed |= {} if value is None else {name: value}
    with pytest.raises(WeightsError, match=rf"1 entries differ.*{name.split('.', 1)[1]}"):
        build(save(tmp_path / "bad", changed))
