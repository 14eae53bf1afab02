"""LLaVA-NeXT against transformers' own forward pass, on tiny checkpoints in the layout of the hub."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from foresight_bench.checkpoints import Checkpoint
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import DataError, PluginError, WeightsError
from foresight_bench.inventory import parameter_count
from foresight_bench.specs import Variant
from foresight_bench.testing.layout import check_layout
from foresight_plugins.encoders import llava_next, llava_next_spec
from foresight_plugins.encoders.clip import ClipTower
from foresight_plugins.encoders.images import CLIP, normalised
from foresight_plugins.encoders.llava_next import LlavaNext
from foresight_plugins.encoders.llava_next_configs import ARCHITECTURES, Architecture
from foresight_plugins.encoders.llava_tiles import Canvas, anyres, squashed

SIDE, CELLS = 56, 4
TINY = Architecture(
    vision={
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 14,
    },
    text={
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32064,
        "rope_theta": 1e6,
        "sliding_window": None,
    },
    prompt=ARCHITECTURES["mistral-7b"].prompt,
    pinpoints=((56, 112), (112, 56), (112, 112), (168, 56), (56, 168)),
)
TAPS = llava_next_spec.taps(3, 3)
TOWER = ("patch_embed", "block.0", "block.1", "block.2", "projector")
SIZES = [(112, 112), (112, 84), (56, 150), (61, 100), (150, 40)]
"""Of frames: whole cells of a square canvas, of a landscape one, and three that end inside a cell."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "mistral-7b", TINY)


@pytest.fixture(scope="module")
def official() -> Any:
    """transformers' model with random weights, of which every one matters."""
    model: Any = LlavaNextForConditionalGeneration(TINY.config()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise * (1 if "embed_tokens" in name else value[0].numel() ** -0.5))
            else:
                value.copy_(0.1 * noise + ("norm" in name and "weight" in name))
    return model


@pytest.fixture(scope="module")
def folder(official: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(on_hub(official), tmp_path_factory.mktemp("hub"))


def on_hub(model: Any) -> dict[str, Tensor]:
    """Return the model's tensors by the names they have on the hub."""
    found = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.")
        if name.startswith("vision_tower."):
            name = f"vision_tower.vision_model.{name.removeprefix('vision_tower.').removeprefix('vision_model.')}"
        elif name.startswith("language_model."):
            name = f"language_model.model.{name.removeprefix('language_model.')}"
        elif name == "lm_head.weight":
            name = "language_model.lm_head.weight"
        found[name] = value
    return found


def save(state: Mapping[str, Tensor], path: Path, config: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint in shards: one for all else, one for each block or layer."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        before, deep, after = name.partition("layers.")
        part = f"{before}{after.split('.')[0]}" if deep else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[name] = value
    for file, tensors in files.items():
        save_file(tensors, path / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(config or TINY.config().to_dict()))
    return path


def encoder(
    path: Path | None, taps: Sequence[str] = TAPS, tiles: bool = False, architecture: str = "mistral-7b", **setup: Any
) -> LlavaNext:
    weights = ResolvedWeights(path, "", "file") if path else None
    return LlavaNext(EncoderSetup(weights=weights, taps=tuple(taps), **setup), architecture, tiles)


def clips(n: int, t: int, h: int, w: int) -> ClipBatch:
    frames = np.random.default_rng(0).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(str(i) for i in range(n)))


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.float() - expected).norm() / expected.norm())


def canvas_of(size: tuple[int, int]) -> Canvas:
    return anyres(size, TINY.pinpoints, SIDE, CELLS)


class Reference:
    """The official forward pass on frames of one size, prompt, image and question, and what its hooks saw."""

    def __init__(self, official: Any, batch: ClipBatch) -> None:
        self.model = official.model
        frames = torch.from_numpy(batch.frames).flatten(0, 1)
        self.size = (frames.shape[1], frames.shape[2])
        self.count = len(frames)
        base, tiles = (
            normalised(canvas.cut(frames), CLIP).unflatten(0, (self.count, -1))
            for canvas in (squashed(SIDE), canvas_of(self.size))
        )
        self.pixels = torch.cat([base, tiles], 1)
        marks = self.packed(torch.zeros(self.pixels.shape[1], CELLS**2, 1), torch.ones(1))[:, 0]
        self.tokens = len(marks)
        self.width = int(marks[CELLS**2 :].argmax())
        """Columns of the canvas: the first newline stands behind them."""
        self.seen: dict[str, Tensor] = {}
        tower = getattr(self.model.vision_tower, "vision_model", self.model.vision_tower)
        hooked = {"patch_embed": tower.embeddings.patch_embedding, "projector": self.model.multi_modal_projector}
        hooked |= {f"block.{index}": layer for index, layer in enumerate(tower.encoder.layers)}
        hooked |= {f"llm.{index}": layer for index, layer in enumerate(self.model.language_model.layers)}
        handles = [module.register_forward_hook(self._keep(tap)) for tap, module in hooked.items()]
        ids = [*TINY.prompt, *[32000] * self.tokens, 13, 3195, 349]
        with torch.no_grad():
            self.seen["final"] = self.model(
                input_ids=torch.tensor([ids] * self.count),
                pixel_values=self.pixels,
                image_sizes=torch.tensor([self.size] * self.count),
            ).last_hidden_state
        for handle in handles:
            handle.remove()

    def _keep(self, tap: str) -> Callable[..., None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            self.seen[tap] = output[0] if isinstance(output, tuple) else output

        return hook

    def packed(self, features: Tensor, newline: Tensor) -> Tensor:
        found, _ = self.model.pack_image_features(
            [features], torch.tensor([self.size]), vision_feature_select_strategy="default", image_newline=newline
        )
        return found[0]

    def grid(self, tap: str, tiles: bool) -> Tensor:
        """Return what the grid [B, H', W', D] of ``tap`` must be."""
        seen = self.seen[tap]
        if tap in TOWER:
            if tap == "patch_embed":
                seen = seen.flatten(2).transpose(1, 2)
            seen = seen[:, -(CELLS**2) :]  # without CLS, where there is one
            per_frame = seen.unflatten(0, (self.count, -1))
            seen = torch.stack([self.packed(features, features.new_zeros(seen.shape[-1])) for features in per_frame])
        else:
            seen = seen[:, len(TINY.prompt) :][:, : self.tokens]
        if not tiles:
            return seen[:, : CELLS**2].unflatten(1, (CELLS, CELLS))
        return seen[:, CELLS**2 :].unflatten(1, (-1, self.width + 1))[:, :, :-1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_every_tap_is_that_of_transformers(official: Any, folder: Path, size: tuple[int, int], tiles: bool) -> None:
    """The base grid comes from a sequence that ends with it, the reference's from one that goes on."""
    batch = clips(*((3, 1) if size == SIZES[0] else (1, 2)), *size)
    reference = Reference(official, batch)
    grids = encoder(folder, tiles=tiles).encode(batch, TAPS)
    assert tuple(grids) == TAPS
    for tap in TAPS:
        assert grids[tap].shape[:2] == batch.shape[:2]
        assert grids[tap].values.dtype == torch.float32
        assert relative(grids[tap].values.flatten(0, 1), reference.grid(tap, tiles)) < 1e-5, tap


def test_llama_in_the_place_of_mistral(official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**TINY.text, "model_type": "llama", "num_key_value_heads": 4, "rope_theta": 1e4}
    del text["sliding_window"]
    about = Architecture(TINY.vision, text, ARCHITECTURES["vicuna-7b"].prompt, TINY.pinpoints)
    monkeypatch.setitem(ARCHITECTURES, "vicuna-7b", about)
    torch.manual_seed(0)
    model: Any = LlavaNextForConditionalGeneration(about.config()).eval()
    path = save(on_hub(model), tmp_path, about.config().to_dict())
    batch = clips(1, 1, 56, 112)
    frames = torch.from_numpy(batch.frames[0])
    with torch.no_grad():
        pixels = normalised(squashed(SIDE).cut(frames), CLIP)
        tower = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        words = model.model.language_model.embed_tokens(torch.tensor([about.prompt]))
        inputs = torch.cat([words, model.model.multi_modal_projector(tower)], 1)
        states = model.model.language_model(inputs_embeds=inputs, output_hidden_states=True)
    grids = encoder(path, architecture="vicuna-7b").encode(batch, ["llm.1", "final"])
    for tap, expected in (("llm.1", states.hidden_states[2]), ("final", states.last_hidden_state)):
        assert relative(grids[tap].values.flatten(0, 3), expected[0, len(about.prompt) :]) < 1e-5


@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_what_transformers_saves_is_read_too(official: Any, folder: Path, tmp_path: Path, tiles: bool) -> None:
    official.save_pretrained(tmp_path)
    batch = clips(1, 1, 112, 84)
    expected = encoder(folder, tiles=tiles).encode(batch, TAPS)
    for tap, grid in encoder(tmp_path, tiles=tiles).encode(batch, TAPS).items():
        assert torch.equal(grid.values, expected[tap].values)


@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_a_frame_does_not_depend_on_its_batch(folder: Path, tiles: bool) -> None:
    model, batch = encoder(folder, tiles=tiles), clips(2, 3, 61, 100)
    grids = model.encode(batch, TAPS)
    alone = model.encode(ClipBatch(batch.frames[1:, 2:], ("alone",)), TAPS)
    for tap in TAPS:
        torch.testing.assert_close(grids[tap].values[1:, 2:], alone[tap].values, rtol=1e-4, atol=1e-5)


def test_frames_too_thin_for_tiles(folder: Path) -> None:
    with pytest.raises(DataError, match=r"cannot cut frames of 2 x 200 pixels into tiles"):
        encoder(folder, ("projector",), tiles=True).encode(clips(1, 1, 2, 200), ("projector",))
    assert encoder(folder, ("projector",)).encode(clips(1, 1, 2, 200), ("projector",))["projector"].shape[2:4] == (4, 4)


# Layout


@pytest.fixture(scope="module")
def local(official: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which a token's own content outweighs what attention brings in, as in a trained model."""
    state = on_hub(official)
    for name, value in state.items():
        if "out_proj.weight" in name or "o_proj.weight" in name:
            state[name] = value * 0.2
    return save(state, tmp_path_factory.mktemp("local"))


@pytest.mark.parametrize("size", [(112, 84), (56, 168), (112, 112)])
@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_layout(local: Path, size: tuple[int, int], tiles: bool) -> None:
    model = encoder(local, tiles=tiles)
    for finding in check_layout(model, TAPS, size=size, frames=3, batch=2):
        assert finding.passed, finding


def misplaced(path: Path, taps: Sequence[str], tiles: bool = True, size: tuple[int, int] = (112, 84)) -> list[float]:
    return [found.misplaced for found in check_layout(encoder(path, taps, tiles), taps, size=size, batch=2)]


SCRAMBLES: dict[str, Callable[[Canvas, Tensor], Tensor]] = {
    "tiles run down the columns": lambda canvas, tokens: (
        tokens.unflatten(0, (-1, canvas.tiles[1], canvas.tiles[0])).transpose(1, 2).flatten(0, 2)
    ),
    "tiles are concatenated": lambda canvas, tokens: (
        tokens.unflatten(0, (-1, *canvas.tiles))
        .flatten(1, 3)
        .unflatten(1, (canvas.tiles[0] * CELLS, canvas.tiles[1] * CELLS))
        .unflatten(2, (canvas.tiles[1], CELLS))
        .unflatten(1, (canvas.tiles[0], CELLS))
        .transpose(2, 3)
        .flatten(3, 4)
        .flatten(0, 2)
    ),
}


@pytest.mark.parametrize("scramble", SCRAMBLES)
def test_tiles_out_of_place_are_caught(local: Path, scramble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taps, assemble = ("block.1", "projector", "llm.0"), Canvas.assemble
    change = SCRAMBLES[scramble]
    monkeypatch.setattr(Canvas, "assemble", lambda canvas, tokens: assemble(canvas, change(canvas, tokens)))
    assert min(misplaced(local, taps)) > 0.3


@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_a_class_token_left_in_is_caught(local: Path, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ClipTower.run

    def late(tower: ClipTower, images: Tensor, blocks: Any) -> tuple[Tensor, dict[int, Tensor]]:
        patches, kept = run(tower, images, blocks)
        return patches, {index: tokens.roll(1, 1) for index, tokens in kept.items()}

    monkeypatch.setattr(ClipTower, "run", late)
    assert min(misplaced(local, ("block.0", "block.2", "projector", "llm.0"), tiles)) > 0.5


def test_newlines_left_in_are_caught(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(states: Tensor, rows: int, columns: int) -> Tensor:
        left = states[:, -rows * columns :][:, : rows * (columns - 1)]
        return left.reshape(len(left), rows, columns - 1, -1)

    monkeypatch.setattr(llava_next, "_grid", rows)
    assert min(misplaced(local, ("llm.0", "llm.1"))) > 0.5


def test_the_base_grid_for_the_canvas_is_caught(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tokens of the image instead of the last."""

    def first(states: Tensor, rows: int, columns: int) -> Tensor:
        front = states[:, len(TINY.prompt) :][:, : rows * columns]
        return front.reshape(len(front), rows, columns, -1)

    monkeypatch.setattr(llava_next, "_grid", first)
    assert min(misplaced(local, ("llm.0", "llm.1"))) > 0.5


def test_margins_left_in_are_caught(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assemble = Canvas.assemble

    def whole(canvas: Canvas, tokens: Tensor) -> Tensor:
        return assemble(replace(canvas, margin=(0, 0)), tokens)

    monkeypatch.setattr(Canvas, "assemble", whole)
    assert min(misplaced(local, ("patch_embed", "block.1", "projector", "llm.0"))) > 0.3


def test_a_squashed_frame_on_the_canvas_is_caught(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margins then cut the picture; what remains is stretched, so that only some cells are off by one."""

    def stretched(canvas: Canvas, frames: Tensor) -> Tensor:
        whole = (canvas.tiles[0] * canvas.tile, canvas.tiles[1] * canvas.tile)
        return cut(replace(canvas, content=whole), frames)

    cut = Canvas.cut
    monkeypatch.setattr(Canvas, "cut", stretched)
    assert min(misplaced(local, ("patch_embed", "block.1", "projector"))) > 0.1


# Loading


def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    tensors = Checkpoint.tensors

    def recorded(*args: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors(*args):
            names.append(name)
            yield name, tensor

    monkeypatch.setattr(Checkpoint, "tensors", recorded)
    return names


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_nothing_deeper_is_read(
    official: Any, folder: Path, tmp_path: Path, tap: str, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the spec's parts name is there, and it is enough."""
    batch = clips(1, 1, 61, 100)
    expected = encoder(folder, tiles=tiles).encode(batch, [tap])[tap].values
    needs = Variant("", TAPS, (), parts=llava_next_spec.parts(3, 3)).needs([tap])
    state = {name: value for name, value in on_hub(official).items() if needs(name)}
    names = read_names(monkeypatch)
    model = encoder(save(state, tmp_path), [tap], tiles)
    assert torch.equal(model.encode(batch, [tap])[tap].values, expected)
    assert len(names) == len(set(names))
    assert parameter_count(model) == sum(state[name].numel() for name in names)
    assert state.keys() - set(names) == (set() if tiles else state.keys() & {"image_newline"})
    assert not any("layers.3." in name and "vision" in name for name in names)
    assert "language_model.lm_head.weight" not in names
    if tap != TAPS[-1]:
        with pytest.raises(PluginError, match="Unknown tap 'final'"):
            model.encode(batch, ["final"])


def other(part: str, **changes: Any) -> dict[str, Any]:
    config = TINY.config().to_dict()
    config[part] = {**config[part], **changes}
    return config


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (other("vision_config", num_hidden_layers=6), r"its vision_config\.num_hidden_layers is 6, not 4\."),
        (other("vision_config", hidden_size=64), r"its vision_config\.hidden_size is 64, not 32\."),
        (other("vision_config", hidden_act="gelu"), r"its vision_config\.hidden_act is gelu, not quick_gelu\."),
        (other("text_config", num_hidden_layers=2), r"its text_config\.num_hidden_layers is 2, not 3\."),
        (other("text_config", num_key_value_heads=4), r"its text_config\.num_key_value_heads is 4, not 2\."),
        ({**TINY.config().to_dict(), "vision_feature_layer": -1}, r"its vision_feature_layer is -1, not -2\."),
        ({**TINY.config().to_dict(), "model_type": "llava"}, r"is of model_type llava, not llava_next\."),
        (other("vision_config", hidden_size="wide"), r"config\.json of .* cannot be understood: [^\n]{5,99}\.$"),
        (other("text_config", model_type="none"), r"config\.json of .* cannot be understood: [^\n]{5,99}\.$"),
    ],
)
def test_another_architecture_is_refused(official: Any, tmp_path: Path, config: Mapping[str, Any], match: str) -> None:
    with pytest.raises(WeightsError, match=match):
        encoder(save(on_hub(official), tmp_path, config))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vision_tower.vision_model.pre_layrnorm.bias", r"vision tower .*: 1 entries differ .*pre_layrnorm\.bias"),
        (
            "vision_tower.vision_model.encoder.layers.1.self_attn.k_proj.bias",
            r"vision tower .*layers\.1\.qkv_proj\.bias",
        ),
        ("multi_modal_projector.linear_2.weight", r"projector .*multi_modal_projector\.linear_2\.weight"),
        ("image_newline", r"projector .*image_newline"),
        ("language_model.model.layers.1.mlp.up_proj.weight", r"MistralModel.*layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_a_missing_tensor_is_refused(official: Any, tmp_path: Path, name: str, match: str) -> None:
    state = on_hub(official)
    del state[name]
    with pytest.raises(WeightsError, match=match):
        encoder(save(state, tmp_path), tiles=True)


def test_a_misshaped_tensor_is_refused(official: Any, tmp_path: Path) -> None:
    state = {**on_hub(official), "multi_modal_projector.linear_1.bias": torch.zeros(8)}
    with pytest.raises(WeightsError, match=r"projector .*linear_1\.bias"):
        encoder(save(state, tmp_path))


def test_unknown_tap(folder: Path) -> None:
    with pytest.raises(PluginError, match=r"Unknown tap 'block\.3'"):
        encoder(folder, ("block.3",))


def test_features_can_train_an_adapter(folder: Path) -> None:
    values = encoder(folder).encode(clips(1, 1, 56, 56), ["final"])["final"].values
    torch.nn.Linear(32, 1)(values).sum().backward()


# Precision, randomness, compilation


@pytest.mark.parametrize("tiles", [False, True], ids=["base", "tiles"])
def test_bfloat16(folder: Path, tiles: bool) -> None:
    batch = clips(1, 2, 112, 84)
    exact = encoder(folder, tiles=tiles).encode(batch, TAPS)
    model = encoder(folder, tiles=tiles, precision="bfloat16")
    for tap, grid in model.encode(batch, TAPS).items():
        assert grid.values.dtype == torch.bfloat16
        assert relative(grid.values, exact[tap].values) < 3e-2, tap
    assert model._llm.model.rotary_emb.inv_freq.dtype == torch.float32


def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    batch = clips(1, 1, 112, 84)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = encoder(None, tiles=True, seed=1).encode(batch, TAPS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = encoder(None, tiles=True, seed=1).encode(batch, TAPS)
    different = encoder(None, tiles=True, seed=2).encode(batch, TAPS)
    changed = encoder(None, tiles=True, seed=1).encode(ClipBatch(255 - batch.frames, ("other",)), TAPS)
    for tap, grid in first.items():
        grid.check_finite(tap)
        assert torch.equal(grid.values, again[tap].values)
        assert relative(different[tap].values, grid.values) > 0.5
        # The negative of the picture: 1 with positions as large as torch draws them, which say more than the picture.
        assert relative(changed[tap].values, grid.values) > 1.2, tap


def test_all_blocks_share_one_compiled_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    batch = clips(1, 2, 112, 84)
    compiled = encoder(folder, tiles=True, compiled=True)
    grids = compiled.encode(batch, ["block.2"])
    assert counters["stats"]["unique_graphs"] == 1
    plain = encoder(folder, tiles=True).encode(batch, ["block.2"])
    assert torch.equal(grids["block.2"].values, plain["block.2"].values)
    compiled.encode(batch, ["projector"])
    compiled.encode(clips(1, 1, 112, 84), ["projector"])
    # A second one for any number of frames.
    assert counters["stats"]["unique_graphs"] == 2
