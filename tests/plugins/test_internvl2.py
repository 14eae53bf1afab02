"""InternVL2 in its authors' layout against its definition: taps, planted faults, early exit, strictness."""

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
from torch.nn import functional as F

from foresight_bench.checkpoints import Checkpoint
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import WeightsError
from foresight_bench.inventory import parameter_count
from foresight_bench.specs import Variant
from foresight_bench.testing.layout import check_layout
from foresight_plugins.encoders import internvl2, internvl2_keys
from foresight_plugins.encoders.images import IMAGENET, normalised, resized
from foresight_plugins.encoders.internvl2 import Architecture, InternVL2
from foresight_plugins.encoders.internvl2_keys import Fields
from foresight_plugins.encoders.internvl2_spec import parts, taps
from foresight_plugins.encoders.internvl2_vision import InternViT, pixel_shuffle
from foresight_plugins.encoders.llm import LanguageModel

DEPTH, WIDTH, HIDDEN, HEADS, TILE = 3, 32, 48, 4, 112
EPSILON = 1e-3
"""Larger than the checkpoints', so that another one would show."""
VISION = {
    "num_hidden_layers": DEPTH,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "layer_norm_eps": EPSILON,
    "image_size": TILE,
    "patch_size": 14,
}
LAYERS, D, SIZE, GROUPS, PER, MLP, WORDS = 3, 40, 10, 2, 2, 56, 30
TEXT = {
    "num_hidden_layers": LAYERS,
    "hidden_size": D,
    "num_attention_heads": GROUPS * PER,
    "num_key_value_heads": GROUPS,
    "intermediate_size": MLP,
    "vocab_size": WORDS,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": EPSILON,
    "rope_theta": 1000000,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
}
PROMPT = (1, 25, 7, 9, 26)
TAPS = taps(DEPTH, LAYERS)
KINDS = {"InternVL2-8B": "internlm2", "InternVL2-1B": "qwen2"}

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures of a few layers."""
    small = {
        name: Architecture("internvl_chat", Fields(VISION, {**TEXT, "model_type": kind}), PROMPT)
        for name, kind in KINDS.items()
    }
    monkeypatch.setattr(internvl2, "ARCHITECTURES", small)


def original_state(kind: str, locality: float = 1.0) -> State:
    """The entries of InternVL2-8B (``internlm2``) or InternVL2-1B (``qwen2``), random, of which every one matters.

    ``locality`` below 1 weakens what a token takes from others.
    """
    matrices: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding": (WIDTH, 3, 14, 14),
        "mlp1.1": (D, 4 * WIDTH),
        "mlp1.3": (D, D),
    }
    norms, scales, bare_norms = {"mlp1.0": 4 * WIDTH}, dict[str, int](), {"language_model.model.norm": D}
    bare: dict[str, tuple[int, ...]] = {}
    for index in range(DEPTH):
        layer = f"vision_model.encoder.layers.{index}."
        matrices |= {f"{layer}attn.qkv": (3 * WIDTH, WIDTH), f"{layer}attn.proj": (WIDTH, WIDTH)}
        matrices |= {f"{layer}mlp.fc1": (HIDDEN, WIDTH), f"{layer}mlp.fc2": (WIDTH, HIDDEN)}
        norms |= {f"{layer}norm1": WIDTH, f"{layer}norm2": WIDTH}
        scales |= {f"{layer}ls1": WIDTH, f"{layer}ls2": WIDTH}
    for index in range(LAYERS):
        layer = f"language_model.model.layers.{index}."
        if kind == "internlm2":
            bare |= {f"{layer}attention.wqkv": (2 * D, D), f"{layer}attention.wo": (D, D)}
            bare |= {f"{layer}feed_forward.w1": (MLP, D), f"{layer}feed_forward.w3": (MLP, D)}
            bare |= {f"{layer}feed_forward.w2": (D, MLP)}
            bare_norms |= {f"{layer}attention_norm": D, f"{layer}ffn_norm": D}
        else:
            matrices |= {
                f"{layer}self_attn.{a}_proj": (rows, D) for a, rows in (("q", D), ("k", D // 2), ("v", D // 2))
            }
            bare |= {f"{layer}self_attn.o_proj": (D, D), f"{layer}mlp.gate_proj": (MLP, D)}
            bare |= {f"{layer}mlp.up_proj": (MLP, D), f"{layer}mlp.down_proj": (D, MLP)}
            bare_norms |= {f"{layer}input_layernorm": D, f"{layer}post_attention_layernorm": D}
    words, head = ("tok_embeddings", "output") if kind == "internlm2" else ("embed_tokens", "lm_head")
    bare |= {f"language_model.model.{words}": (WORDS, D), f"language_model.{head}": (WORDS, D)}

    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    state = {
        "vision_model.embeddings.class_embedding": normal(1, 1, WIDTH),
        "vision_model.embeddings.position_embedding": normal(1, (TILE // 14) ** 2 + 1, WIDTH),
    }
    for name, shape in (matrices | bare).items():
        fan_in = normal(*shape)[0].numel()
        weaker = locality if name.startswith("language_model.model.layers") else 1.0
        state[f"{name}.weight"] = normal(*shape) * weaker / fan_in**0.5
    state |= {f"{name}.weight": 1 + 0.3 * normal(width) for name, width in (norms | bare_norms).items()}
    state |= {f"{name}.bias": 0.3 * normal(width) for name, width in norms.items()}
    state |= {f"{name}.bias": 0.3 * normal(shape[0]) for name, shape in matrices.items()}
    return state | {name: locality * (0.7 + 0.3 * normal(width)) for name, width in scales.items()}


def original_config(kind: str) -> dict[str, Any]:
    """Their config.json, down to what is read of it and some of what is not."""
    vision = {"model_type": "intern_vit_6b", "norm_type": "layer_norm", "qkv_bias": True, "use_flash_attn": True}
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "llm_config": {**TEXT, "model_type": kind, "attn_implementation": "flash_attention_2", "bias": False},
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "use_thumbnail": True,
        "vision_config": {**VISION, **vision},
    }


def write(folder: Path, config: Mapping[str, Any], state: State, shard: Callable[[str], str]) -> ResolvedWeights:
    """A checkpoint in shards, ``shard`` naming each tensor's."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    index = {name: f"{shard(name)}.safetensors" for name in state}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for file in set(index.values()):
        save_file({name: state[name].contiguous() for name in state if index[name] == file}, folder / file)
    return ResolvedWeights(folder, "", "file")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedWeights]:
    root = tmp_path_factory.mktemp("internvl")
    return {
        name: write(root / name, original_config(kind), original_state(kind), lambda name: str(len(name) % 4))
        for name, kind in KINDS.items()
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ResolvedWeights:
    """Weights with which a token is changed most by its own patch, at every depth, as in a trained model."""
    state = original_state("internlm2", locality=0.2)
    return write(tmp_path_factory.mktemp("local"), original_config("internlm2"), state, lambda name: "model")


def state_of(weights: ResolvedWeights) -> State:
    return {name: value for file in weights.path.glob("*.safetensors") for name, value in load_file(file).items()}


def encoder(
    weights: ResolvedWeights | None, wanted: Sequence[str] = TAPS, architecture: str = "InternVL2-8B", **setup: Any
) -> InternVL2:
    return InternVL2(EncoderSetup(weights=weights, taps=tuple(wanted), **setup), architecture=architecture)


def clips(n: int, t: int, h: int, w: int) -> ClipBatch:
    frames = np.random.default_rng(0).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(str(i) for i in range(n)))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


# The definitions, written out: InternViT and the projector, then InternLM2 and Qwen2, head by head.


def vision_by_definition(state: State, images: Tensor) -> State:
    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, value: Tensor, epsilon: float = EPSILON) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    stem = "vision_model.embeddings."
    kernel, bias = state[f"{stem}patch_embedding.weight"], state[f"{stem}patch_embedding.bias"]
    found = {"patch_embed": F.conv2d(images, kernel, bias, stride=14).permute(0, 2, 3, 1)}
    cls = state[f"{stem}class_embedding"].repeat(len(images), 1, 1)
    x = torch.cat([cls, found["patch_embed"].flatten(1, 2)], 1) + state[f"{stem}position_embedding"]
    for index in range(DEPTH):
        layer = f"vision_model.encoder.layers.{index}."
        q, k, v = linear(f"{layer}attn.qkv", norm(f"{layer}norm1", x)).split(WIDTH, -1)
        mixed = []
        for own in (slice(start, start + 8) for start in range(0, WIDTH, 8)):
            mixed.append((q[..., own] @ k[..., own].mT / 8**0.5).softmax(-1) @ v[..., own])
        x = x + state[f"{layer}ls1"] * linear(f"{layer}attn.proj", torch.cat(mixed, -1))
        inner = F.gelu(linear(f"{layer}mlp.fc1", norm(f"{layer}norm2", x)))
        x = x + state[f"{layer}ls2"] * linear(f"{layer}mlp.fc2", inner)
        found[f"block.{index}"] = x[:, 1:].reshape(len(images), 8, 8, WIDTH)
    last = found[f"block.{DEPTH - 1}"]
    four = [last[:, dr::2, dc::2] for dr in range(2) for dc in range(2)]
    found["pixel_shuffle"] = torch.cat(four, -1)
    inner = F.gelu(linear("mlp1.1", norm("mlp1.0", found["pixel_shuffle"], 1e-5)))
    found["projector"] = linear("mlp1.3", inner)
    return found


def rotated(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... on one head's [B, S, size], angles in double precision."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1]).double()[:, None] / 1e6 ** (torch.arange(half).double() / half)
    cos, sin = angles.cos().float(), angles.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def heads_of(kind: str, state: State, layer: str, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value of each query head."""
    if kind == "internlm2":
        rows = (x @ state[f"{layer}attention.wqkv.weight"].T).split(SIZE, -1)
        groups = [rows[start : start + PER + 2] for start in range(0, len(rows), PER + 2)]
        return [(group[i], group[PER], group[PER + 1]) for group in groups for i in range(PER)]
    q, k, v = (
        (x @ state[f"{layer}self_attn.{a}_proj.weight"].T + state[f"{layer}self_attn.{a}_proj.bias"]).split(SIZE, -1)
        for a in "qkv"
    )
    return [(query, k[i // PER], v[i // PER]) for i, query in enumerate(q)]


NAMES = {
    "internlm2": "tok_embeddings attention_norm attention.wo ffn_norm feed_forward.w1 feed_forward.w3 feed_forward.w2",
    "qwen2": "embed_tokens input_layernorm self_attn.o_proj post_attention_layernorm "
    "mlp.gate_proj mlp.up_proj mlp.down_proj",
}


def language_by_definition(kind: str, state: State, projected: Tensor) -> State:
    words, before, out, after, gate, up, down = NAMES[kind].split()
    state = {name.removeprefix("language_model.model."): value for name, value in state.items()}

    def norm(name: str, value: Tensor) -> Tensor:
        return value * (value.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * state[f"{name}.weight"]

    prompt = state[f"{words}.weight"][list(PROMPT)].repeat(len(projected), 1, 1)
    x = torch.cat([prompt, projected.flatten(1, 2)], 1)
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    found = {}
    for index in range(LAYERS):
        layer = f"layers.{index}."
        mixed = []
        for q, k, v in heads_of(kind, state, layer, norm(f"{layer}{before}", x)):
            logits = rotated(q) @ rotated(k).mT / SIZE**0.5
            mixed.append(logits.masked_fill(future, -torch.inf).softmax(-1) @ v)
        x = x + torch.cat(mixed, -1) @ state[f"{layer}{out}.weight"].T
        y = norm(f"{layer}{after}", x)
        y = F.silu(y @ state[f"{layer}{gate}.weight"].T) * (y @ state[f"{layer}{up}.weight"].T)
        x = x + y @ state[f"{layer}{down}.weight"].T
        found[f"llm.{index}"] = x
    found["final"] = norm("norm", x)
    return {tap: value[:, len(PROMPT) :].reshape(projected.shape) for tap, value in found.items()}


def by_definition(architecture: str, weights: ResolvedWeights, batch: ClipBatch) -> State:
    images = normalised(resized(torch.tensor(batch.frames).flatten(0, 1), TILE, TILE), IMAGENET)
    state = state_of(weights)
    vision = vision_by_definition(state, images)
    return vision | language_by_definition(KINDS[architecture], state, vision["projector"])


def errors(ours: InternVL2, reference: State, batch: ClipBatch) -> dict[str, float]:
    grids = ours.encode(batch, list(reference))
    return {tap: relative(grids[tap].values.flatten(0, 1), value) for tap, value in reference.items()}


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, TILE, TILE), (3, 2, 84, 140)])
def test_every_tap_is_as_defined(architecture: str, shape: tuple[int, int, int, int], checkpoints: Any) -> None:
    weights, batch = checkpoints[architecture], clips(*shape)
    reference = by_definition(architecture, weights, batch)
    ours = encoder(weights, architecture=architecture)
    assert set(reference) == set(TAPS)
    for tap, error in errors(ours, reference, batch).items():
        assert error < 1e-5, tap
    for tap, grid in ours.encode(batch, TAPS).items():
        side = 8 if tap == "patch_embed" or tap.startswith("block.") else 4
        assert grid.shape[:4] == (*shape[:2], side, side)
        assert grid.values.dtype == torch.float32


def test_frames_do_not_depend_on_their_batch(checkpoints: Any) -> None:
    ours, batch = encoder(checkpoints["InternVL2-8B"]), clips(3, 2, TILE, TILE)
    together = ours.encode(batch, TAPS)
    for n, t in ((0, 1), (2, 0)):
        alone = ClipBatch(batch.frames[n : n + 1, t : t + 1], ("alone",))
        for tap, grid in ours.encode(alone, TAPS).items():
            assert relative(together[tap].values[n, t], grid.values[0, 0]) < 2e-6, tap


def thirds(name: str, tensor: Tensor, text: Any) -> State:
    if not name.endswith("wqkv.weight"):
        return {name: tensor}
    rows = tensor.split([D, D // 2, D // 2])
    return {name.replace("attention.wqkv", f"self_attn.{a}_proj"): rows["qkv".index(a)] for a in "qkv"}


def v1(grid: Tensor) -> Tensor:
    return pixel_shuffle(grid).transpose(1, 2)


def columns_first(grid: Tensor) -> Tensor:
    a, b, c, d = pixel_shuffle(grid).chunk(4, -1)
    return torch.cat([a, c, b, d], -1)


def cls_left_in(vision: Any, tokens: Tensor) -> Tensor:
    return tokens[:, :-1].unflatten(1, (vision.side, vision.side))  # type: ignore[no-any-return]


def prompt_left_in(self: Any, inputs: Tensor, positions: Tensor, layers: Any, run: Any = LanguageModel.run) -> Any:
    kept, last = run(self, inputs, positions, layers)
    return {index: states.roll(1, 1) for index, states in kept.items()}, last.roll(1, 1)


SWAPPED = {**internvl2_keys.LANGUAGE_NAMES, "feed_forward.w1": "mlp.up_proj", "feed_forward.w3": "mlp.gate_proj"}


@pytest.mark.parametrize(
    ("owner", "name", "value", "first"),
    [
        (internvl2_keys, "_unpacked", thirds, "llm.0"),
        (internvl2_keys, "LANGUAGE_NAMES", SWAPPED, "llm.0"),
        (internvl2, "pixel_shuffle", v1, "pixel_shuffle"),
        (internvl2, "pixel_shuffle", columns_first, "pixel_shuffle"),
        (InternViT, "grid", cls_left_in, "block.0"),
        (LanguageModel, "run", prompt_left_in, "llm.0"),
    ],
)
def test_planted_faults_show(
    owner: Any, name: str, value: Any, first: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, batch = checkpoints["InternVL2-8B"], clips(1, 1, TILE, TILE)
    reference = by_definition("InternVL2-8B", weights, batch)
    monkeypatch.setattr(owner, name, value)
    found = errors(encoder(weights), reference, batch)
    assert all(error < 1e-5 for tap, error in found.items() if TAPS.index(tap) < TAPS.index(first))
    assert all(error > 0.1 for tap, error in found.items() if TAPS.index(tap) >= TAPS.index(first))


@pytest.mark.parametrize(("frames", "size"), [(1, (TILE, TILE)), (3, (TILE, 168))])
def test_tokens_are_where_their_patches_are(frames: int, size: tuple[int, int], local: ResolvedWeights) -> None:
    for finding in check_layout(encoder(local), TAPS, size=size, frames=frames, batch=3):
        assert finding.passed, finding


@pytest.mark.parametrize(
    ("owner", "name", "value", "tap", "diagnosis"),
    [
        (internvl2, "pixel_shuffle", v1, "pixel_shuffle", "transposed"),
        (internvl2, "pixel_shuffle", v1, "projector", "transposed"),
        (internvl2, "pixel_shuffle", v1, "final", "transposed"),
        (InternViT, "grid", cls_left_in, "block.1", "1 late in raster order"),
        (LanguageModel, "run", prompt_left_in, "llm.1", "1 late in raster order"),
    ],
)
def test_scrambles_are_named(
    owner: Any, name: str, value: Any, tap: str, diagnosis: str, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value)
    (finding,) = check_layout(encoder(local, [tap]), [tap], size=(TILE, TILE), probes=16)
    assert not finding.passed
    assert diagnosis in finding.diagnosis


@pytest.mark.parametrize("tap", ["patch_embed", "block.0", "block.2", "pixel_shuffle", "projector", "llm.0", "llm.2"])
def test_nothing_deeper_is_read(tap: str, checkpoints: Any, tmp_path: Path) -> None:
    """Every tensor in a file of its own, the deeper ones missing."""
    weights, batch = checkpoints["InternVL2-8B"], clips(1, 1, TILE, TILE)
    alone = write(tmp_path, original_config("internlm2"), state_of(weights), lambda name: name)
    needs = Variant("", TAPS, (), parts=parts("internvl_chat", DEPTH, LAYERS)).needs([tap])
    for name, file in Checkpoint(alone.path).shards.items():
        if not needs(name):
            file.unlink()
    whole = encoder(weights).encode(batch, [tap])[tap].values
    model = encoder(alone, [tap])
    assert torch.equal(model.encode(batch, [tap])[tap].values, whole)
    counted = Checkpoint(alone.path).tensors(needs)
    assert parameter_count(model) == sum(tensor.numel() for _, tensor in counted)


@pytest.mark.parametrize(
    ("part", "values", "match"),
    [
        ("", {"model_type": "internvl"}, "is a 'internvl' checkpoint, not 'internvl_chat'"),
        ("", {"ps_version": "v1"}, "its ps_version is 'v1', and that of InternVL2-8B is 'v2'"),
        ("", {"select_layer": -4}, "its select_layer is -4"),
        ("", {"llm_config": None}, "its llm_config model_type is None"),
        ("vision_config", {"num_hidden_layers": 45}, "its vision num_hidden_layers is 45, .* InternVL2-8B is 3"),
        ("vision_config", {"hidden_size": 3200}, "its vision hidden_size is 3200, .* InternVL2-8B is 32"),
        ("vision_config", {"image_size": [224, 224]}, "its vision image_size is 224"),
        ("llm_config", {"num_hidden_layers": 48}, "its llm_config num_hidden_layers is 48"),
        ("llm_config", {"hidden_size": 6144}, "its llm_config hidden_size is 6144"),
        ("llm_config", {"model_type": "qwen2"}, "its llm_config model_type is 'qwen2'"),
        ("llm_config", {"vocab_size": 26}, "its vocabulary has 26 words, and the prompt needs word 26"),
    ],
)
def test_a_config_of_another_model_is_refused(
    part: str, values: dict[str, Any], match: str, local: ResolvedWeights, tmp_path: Path
) -> None:
    config = original_config("internlm2")
    (config[part] if part else config).update(values)
    with pytest.raises(WeightsError, match=match) as caught:
        encoder(write(tmp_path, config, state_of(local), lambda name: "model"))
    assert "\n" not in caught.value.message


BLOCK, LAYER = "vision_model.encoder.layers.1.", "language_model.model.layers.1."


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda s: s.pop(f"{BLOCK}attn.qkv.bias"),
            r"vision tower of InternVL2-8B.*blocks\.1\.attn\.qkv\.bias is missing",
        ),
        (lambda s: s.pop(f"{BLOCK}ls1"), r"blocks\.1\.ls1 is missing"),
        (lambda s: s.update({f"{BLOCK}attn.q_norm.weight": torch.ones(WIDTH)}), r"q_norm\.weight is not part of it"),
        (lambda s: s.update({"mlp1.1.weight": torch.ones(40, 64)}), r"projector .*1\.weight is \(40, 64\)"),
        (lambda s: s.pop(f"{LAYER}attention.wqkv.weight"), r"self_attn\.k_proj\.weight is missing"),
        (lambda s: s.update({f"{LAYER}attention.wqkv.weight": torch.ones(60, D)}), r"wqkv\.weight is not part of it"),
        (lambda s: s.pop("language_model.model.norm.weight"), r"norm\.weight is missing"),
        (lambda s: s.update({f"{LAYER}self_attn.q_proj.weight": torch.ones(D, D)}), r"q_proj\.weight .*twice"),
    ],
)
def test_loading_is_strict(change: Callable[[State], Any], match: str, local: ResolvedWeights, tmp_path: Path) -> None:
    state = state_of(local)
    change(state)
    with pytest.raises(WeightsError, match=match):
        encoder(write(tmp_path, original_config("internlm2"), state, lambda name: "model"))


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="model_type"):
        encoder(ResolvedWeights(tmp_path / "model.safetensors", "", "file"))
