"""SAM: its features, its weights in two layouts, its preprocessing, its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder, EncoderSetup, ResolvedWeights
from foresight_bench.errors import DataError, PluginError, WeightsError
from foresight_bench.grids import Grid
from foresight_bench.testing.layout import check_layout
from foresight_plugins.encoders import sam
from foresight_plugins.encoders.sam_spec import SAM as SPEC

TINY = sam.Architecture(dim=32, depth=8, heads=2, image=128, window=3, neck=16)
"""8 x 8 tokens; blocks 1, 3, 5 and 7 are global, the others have 3 x 3 windows of 3 x 3, one token of padding."""
TAPS = ("patch_embed", *(f"block.{index}" for index in range(8)), "neck")
SIZES = ((128, 128), (70, 128), (128, 96))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sam.ARCHITECTURES, "tiny", TINY)


def enliven(model: nn.Module) -> nn.Module:
    """Give every weight a random value that matters, and each token the largest say in its own neck."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "pos" in name:
                value.copy_(noise * 0.3)
            elif value.ndim == 1:
                value.copy_(noise * 0.2 + ("norm" in name and name.endswith("weight")))
            else:
                value.copy_(noise * 0.4 * value[0].numel() ** -0.5)
            if "patch_embed." in name or name.endswith("pos_embed"):
                value.mul_(0.3)  # so small that the epsilon of the first norm tells
            if value.shape[2:] == (3, 3):
                value.mul_(0.3)[..., 1, 1] += 3 * torch.eye(len(value))
    return model.eval()


def sam_model() -> Any:
    vision = {"hidden_size": 32, "mlp_dim": 128, "num_hidden_layers": 8, "num_attention_heads": 2, "image_size": 128}
    vision |= {"window_size": 3, "global_attn_indexes": [1, 3, 5, 7], "output_channels": 16, "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": 128, "mask_input_channels": 4}
    mask = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    config.vision_config._attn_implementation = "eager"
    return SamModel(config)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint as on the hub, and transformers' vision encoder with its weights."""
    model = enliven(sam_model())
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return folder / "model.safetensors", model.vision_encoder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint as the original repository has them, and segment-anything's encoder with its weights."""
    model = enliven(sam.build(TINY))
    path = tmp_path_factory.mktemp("original") / "sam_tiny.pth"
    state = {f"image_encoder.{name}": value for name, value in model.state_dict().items()}
    torch.save(state | {"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 16)}, path)
    return path, model


def encoder(path: Path | None, taps: Sequence[str] = TAPS, architecture: str = "tiny", **options: Any) -> sam.SAM:
    weights = ResolvedWeights(path, "", "file") if path else None
    return sam.SAM(EncoderSetup(weights=weights, taps=tuple(taps), **options), architecture)


def clips(n: int, t: int, h: int, w: int, seed: int = 0) -> ClipBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(str(i) for i in range(n)))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


def official(frames: NDArray[np.uint8]) -> Tensor:
    """What ``Sam.preprocess`` of segment-anything does to frames [B, H, W, 3] whose longest side is right."""
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    deviation = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    images = (torch.tensor(frames).permute(0, 3, 1, 2) - mean) / deviation
    return F.pad(images, (0, 128 - images.shape[3], 0, 128 - images.shape[2]))


def traced(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Return every tap of a reference model: what its modules return, channels last."""
    found: dict[str, Tensor] = {}
    blocks = model.blocks if hasattr(model, "blocks") else model.layers
    modules = {"patch_embed": model.patch_embed, "neck": model.neck}
    modules |= {f"block.{index}": block for index, block in enumerate(blocks)}
    handles = [
        module.register_forward_hook(lambda _, __, out, tap=tap: found.update({tap: out}))
        for tap, module in modules.items()
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found | {"neck": found["neck"].permute(0, 2, 3, 1)}


@pytest.mark.parametrize("layout", ["hub", "original"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [1, 3])
def test_every_tap_equals_the_reference(
    layout: str, size: tuple[int, int], n: int, request: pytest.FixtureRequest
) -> None:
    path, model = request.getfixturevalue(layout)
    batch = clips(n, 1, *size)
    expected = traced(model, official(batch.frames[:, 0]))
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    grids = encoder(path).encode(batch, TAPS)
    assert tuple(grids) == TAPS
    for tap, grid in grids.items():
        assert grid.shape == (n, 1, rows, columns, 16 if tap == "neck" else 32)
        assert grid.values.dtype == torch.float32
        assert relative(grid.values[:, 0], expected[tap][:, :rows, :columns]) < 1e-5, tap


def test_grids_do_not_depend_on_the_batch(hub: tuple[Path, Any]) -> None:
    model = encoder(hub[0])
    batch = clips(2, 3, 60, 90)
    grids = model.encode(batch, TAPS)
    for n in range(2):
        for t in range(3):
            alone = model.encode(ClipBatch(batch.frames[n : n + 1, t : t + 1], ("alone",)), TAPS)
            for tap, grid in alone.items():
                torch.testing.assert_close(grids[tap].values[n, t], grid.values[0, 0], rtol=1e-4, atol=1e-4)


class Scrambled:
    def __init__(self, inner: Encoder, scramble: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.scramble = inner, scramble

    def encode(self, batch: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return {tap: Grid(self.scramble(grid.values)) for tap, grid in self.inner.encode(batch, taps).items()}


def windows_left(values: Tensor) -> Tensor:
    n, t, h, w, c = values.shape
    split = values.reshape(n, t, h // 2, 2, w // 2, 2, c)
    return split.permute(0, 1, 2, 4, 3, 5, 6).reshape(values.shape)


SCRAMBLES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda v: v.transpose(2, 3),
    "transposed tokens": lambda v: v.transpose(2, 3).reshape(v.shape),
    "channels first taken for channels last": lambda v: v.permute(0, 1, 4, 2, 3).reshape(v.shape),
    "windows": windows_left,
    "frames before clips": lambda v: v.transpose(0, 1).reshape(v.shape),
}


@pytest.mark.parametrize("size", [(96, 128), (72, 96), (128, 96)])
def test_layout(size: tuple[int, int], hub: tuple[Path, Any]) -> None:
    for finding in check_layout(encoder(hub[0]), TAPS, size=size, frames=3):
        assert finding.passed, finding


@pytest.mark.parametrize("name", SCRAMBLES)
def test_scramble_is_caught_at_every_tap(name: str, hub: tuple[Path, Any]) -> None:
    taps = ("patch_embed", "block.0", "block.7", "neck")
    scrambled = Scrambled(encoder(hub[0], taps), SCRAMBLES[name])
    for finding in check_layout(scrambled, taps, size=(96, 128), frames=3, probes=12):
        assert not finding.passed, finding


def test_padding_left_in_is_caught(hub: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = encoder(hub[0]), clips(1, 1, 64, 128)
    assert model.encode(batch, ["neck"])["neck"].shape == (1, 1, 4, 8, 16)
    monkeypatch.setattr(sam, "preprocess", lambda frames, side: official(frames.numpy()))
    monkeypatch.setattr(sam, "fitted", lambda height, width, side: (side, side))
    assert model.encode(batch, ["neck"])["neck"].shape == (1, 1, 8, 8, 16)
    for finding in check_layout(model, TAPS, size=(64, 128), probes=12):
        assert not finding.passed, finding


@pytest.mark.parametrize("size", [(224, 224), (400, 600), (1500, 1201), (333, 100)])
def test_preprocessing_is_the_official_one(size: tuple[int, int]) -> None:
    frame = clips(1, 1, *size).frames[0, 0]
    expected = ResizeLongestSide(1024).apply_image(frame).astype(float)
    height, width, _ = expected.shape
    images = sam.preprocess(torch.tensor(frame[None]), 1024)
    assert images.shape == (1, 3, 1024, 1024)
    mean, deviation = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    got = images[0].permute(1, 2, 0).numpy()
    assert not got[height:].any()
    assert not got[:, width:].any()
    # Whole levels on both sides; PIL's weights are rounded to 8 bits.
    assert np.abs(got[:height, :width] * deviation + mean - expected).max() < 2.01


def test_sizes_are_those_of_the_original() -> None:
    for h in range(1, 1300, 37):
        for w in range(1, 1300, 41):
            expected = ResizeLongestSide.get_preprocess_shape(h, w, 1024)
            if min(expected) > 0:
                assert sam.fitted(h, w, 1024) == expected


def test_a_frame_too_narrow_is_an_error() -> None:
    with pytest.raises(DataError, match="1 x 300 pixels is too narrow"):
        encoder(None, ["patch_embed"]).encode(clips(1, 1, 1, 300), ["patch_embed"])


def test_only_what_the_taps_need_is_read(hub: tuple[Path, Any], tmp_path: Path) -> None:
    """The second shard, which only deeper taps need, is not even there."""
    path, _ = hub
    full = encoder(path).encode(batch := clips(2, 1, 96, 128), TAPS)
    state = load_file(path)
    stem = ("vision_encoder.patch_embed.", "vision_encoder.pos_embed")
    prefixes = {
        "patch_embed": stem[:1],
        "block.2": (*stem, *(f"vision_encoder.layers.{index}." for index in range(3))),
        "block.7": (*stem, "vision_encoder.layers."),
        "neck": ("vision_encoder.",),
    }
    for tap, needed in prefixes.items():
        folder = tmp_path / tap
        folder.mkdir()
        save_file({name: value for name, value in state.items() if name.startswith(needed)}, folder / "1.safetensors")
        files = {name: f"{1 if name.startswith(needed) else 2}.safetensors" for name in state}
        index = {"weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        grid = encoder(folder, [tap]).encode(batch, [tap])[tap]
        assert torch.equal(grid.values, full[tap].values), tap


def test_blocks_after_the_deepest_tap_do_not_run(hub: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(hub[0])
    ran: list[int] = []
    block = sam._block
    monkeypatch.setattr(model, "_block", lambda *args: ran.append(args[2]) or block(*args))
    for tap, expected in (("patch_embed", []), ("block.0", [3]), ("block.3", [3, 8, 3, 8]), ("neck", [3, 8] * 4)):
        ran.clear()
        model.encode(clips(1, 1, 96, 128), [tap])
        assert ran == expected
    assert model.encode(clips(1, 1, 96, 128), []) == {}


@pytest.mark.parametrize("layout", ["hub", "original"])
@pytest.mark.parametrize("taps", [("patch_embed",), ("block.4",), ("block.11",), ("patch_embed", "neck")])
def test_spec_names_the_tensors_that_are_read(layout: str, taps: tuple[str, ...]) -> None:
    with torch.device("meta"):
        if layout == "hub":
            names = list(SamModel(SamConfig()).state_dict())
        else:
            names = [f"image_encoder.{name}" for name in sam.build(sam.ARCHITECTURES["vit_b"]).state_dict()]
        model = sam.build(sam.ARCHITECTURES["vit_b"])
    variant = SPEC.variants[0]
    sam._cut(model, variant.taps[: 1 + max(variant.taps.index(tap) for tap in taps)])
    needs = variant.needs(taps)
    assert sorted(sam.own_name(name) for name in names if needs(name)) == sorted(model.state_dict())


def rewritten(path: Path, folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    state = load_file(path)
    change(state)
    target = folder / "model.safetensors"
    save_file(state, target)
    return target


def without(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("vision_encoder.layers.7."), r"hold 7 blocks; SAM's tiny has 8"),
        (without("vision_encoder."), r"hold 0 blocks; SAM's tiny has 8"),
        (without("vision_encoder.neck.conv2"), r"SAM's tiny: 1 entries differ \(neck\.2\.weight is missing"),
        (
            lambda state: state.update({"vision_encoder.layers.0.attn.qkv.bias": torch.zeros(72)}),
            r"1 entries differ \(blocks\.0\.attn\.qkv\.bias is .*72.*96",
        ),
        (
            lambda state: state.update({"vision_encoder.layers.0.extra": torch.zeros(1)}),
            r"1 entries differ \(blocks\.0\.extra is not part of it",
        ),
    ],
)
def test_loading_is_strict(
    change: Callable[[dict[str, Tensor]], Any], match: str, hub: tuple[Path, Any], tmp_path: Path
) -> None:
    path = rewritten(hub[0], tmp_path, change)
    with pytest.raises(WeightsError, match=match):
        encoder(path)


def test_a_checkpoint_of_another_size_is_refused(hub: tuple[Path, Any]) -> None:
    with pytest.raises(WeightsError, match="hold 8 blocks; SAM's vit_l has 24"):
        encoder(hub[0], ["patch_embed"], "vit_l")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_a_pickle_with_code_is_refused(original: tuple[Path, Any], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "sam.pth"
    torch.save({**torch.load(original[0]), "extra": Harmful()}, path)
    with pytest.raises(WeightsError, match="holds more than tensors and is refused"):
        encoder(path)
    assert "code ran" not in capsys.readouterr().out


def test_a_truncated_file_is_refused(hub: tuple[Path, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(hub[0].read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        encoder(path)


def test_bfloat16_is_near(hub: tuple[Path, Any]) -> None:
    batch = clips(2, 1, 96, 128)
    expected = encoder(hub[0]).encode(batch, TAPS)
    for tap, grid in encoder(hub[0], precision="bfloat16").encode(batch, TAPS).items():
        assert grid.values.dtype == torch.bfloat16
        assert relative(grid.values, expected[tap].values) < 3e-2, tap


@pytest.mark.slow
def test_all_blocks_share_two_graphs(hub: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One for windows, one for the whole grid."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = encoder(hub[0], compiled=True)
    batch = clips(3, 1, 96, 128)
    expected = encoder(hub[0]).encode(batch, TAPS)
    for tap, grid in model.encode(batch, TAPS).items():
        assert relative(grid.values, expected[tap].values) < 1e-5
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    batch = clips(1, 1, 96, 128)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = encoder(None, seed=1).encode(batch, TAPS)
    assert torch.equal(torch.get_rng_state(), state)
    for tap in TAPS:
        assert torch.equal(encoder(None, [tap], seed=1).encode(batch, [tap])[tap].values, first[tap].values)
    assert not torch.equal(encoder(None, seed=2).encode(batch, ["neck"])["neck"].values, first["neck"].values)
    for before, after in pairwise(TAPS[:-1]):
        assert relative(first[after].values, first[before].values) > 0.01, after


def test_random_weights_know_positions() -> None:
    state = sam._random(TINY, 0, "cpu").state_dict()
    assert all(value.any() for name, value in state.items() if "pos" in name)


def test_features_can_train_an_adapter() -> None:
    grid = encoder(None, ["block.0"]).encode(clips(1, 1, 96, 128), ["block.0"])["block.0"]
    assert not grid.values.requires_grad
    torch.nn.Linear(32, 1)(grid.values).sum().backward()


def test_unknown_taps() -> None:
    with pytest.raises(PluginError, match=r"Unknown tap 'block\.8'"):
        encoder(None, ["block.8"])
    with pytest.raises(PluginError, match=r"Unknown tap 'block\.1'"):
        encoder(None, ["block.0"]).encode(clips(1, 1, 96, 128), ["block.1"])


@pytest.mark.parametrize(
    ("variant", "millions", "repo", "taps"),
    [
        (SPEC.variants[0], 89.7, "facebook/sam-vit-base", (2, 5, 8)),
        (SPEC.variants[1], 308.3, "facebook/sam-vit-large", (5, 11, 17)),
        (SPEC.variants[2], 637.0, "facebook/sam-vit-huge", (7, 15, 23)),
    ],
    ids=["vit_b", "vit_l", "vit_h"],
)
def test_spec_agrees_with_the_architecture(variant: Any, millions: float, repo: str, taps: tuple[int, ...]) -> None:
    architecture = sam.ARCHITECTURES[variant.params["architecture"]]
    with torch.device("meta"):
        model = sam.build(architecture)
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    windows = [block.window_size or 64 for block in model.blocks]
    assert windows == [architecture.side(index) for index in range(architecture.depth)]
    assert [index for index, side in enumerate(windows) if side == 64][:3] == list(taps)
    assert variant.taps == ("patch_embed", *(f"block.{i}" for i in range(architecture.depth)), "neck")
    assert variant.default_taps == ("patch_embed", *(f"block.{i}" for i in taps), "neck")
    assert (variant.stem, variant.output) == (("patch_embed",), "neck")
    assert variant.weights.hub.repo == repo


def test_first_variant_is_the_default() -> None:
    assert [variant.name for variant in SPEC.variants] == ["vit_b", "vit_l", "vit_h"]
    assert SPEC.target == f"{sam.SAM.__module__}:{sam.SAM.__name__}"
