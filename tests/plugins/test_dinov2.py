"""DINOv2: its positional embeddings, its taps, its loading."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import PluginError, WeightsError
from foresight_bench.weights import resolve
from foresight_plugins.encoders import dinov2
from foresight_plugins.encoders.dinov2 import DINOv2, position_grid, preprocess
from foresight_plugins.encoders.dinov2_spec import DINOV2
from foresight_plugins.encoders.images import nearest_multiple

PLAIN = "vit_small_patch14_dinov2"
REGISTERS = "vit_small_patch14_reg4_dinov2"
DEPTH = 2
TAPS = ("patch_embed", "block.0", "block.1", "final")


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Small models of two blocks, except for the real weights."""
    if "archives" in request.keywords:
        return
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: create(name, depth=DEPTH, **kw))


@pytest.fixture
def lively(tmp_path: Path) -> Callable[[str], tuple[DINOv2, Any]]:
    """An encoder and timm's model with the same random weights, of which every one matters.

    timm's own initialisation scales the blocks by 1e-5 and would hide a mistake in any of them.
    """

    def build(architecture: str) -> tuple[DINOv2, Any]:
        model: Any = timm.create_model(architecture, num_classes=0, img_size=518, dynamic_img_size=True)
        generator = torch.Generator().manual_seed(1)
        state = {}
        for name, value in model.state_dict().items():
            scale = 0.05 if value.ndim > 1 and "token" not in name and "pos" not in name else 1.0
            state[name] = torch.randn(value.shape, generator=generator) * scale
        path = tmp_path / f"{architecture}.safetensors"
        save_file(state, path)
        model.load_state_dict(state)
        return encoder(architecture, path), model.eval()

    return build


def encoder(architecture: str = PLAIN, path: Path | None = None, seed: int = 0) -> DINOv2:
    weights = ResolvedWeights(path, "", "file") if path else None
    return DINOv2(EncoderSetup(weights=weights, seed=seed), architecture)


def clips(n: int, t: int, h: int, w: int, seed: int = 0) -> ClipBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(str(i) for i in range(n)))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' cubic kernel."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def plain_matrix(n: int) -> NDArray[np.float64]:
    """[n, 37]: bicubic (a = -0.75) at scale (n + 0.1) / 37, edges repeated, no area filter."""
    matrix = np.zeros((n, 37))
    for row in range(n):
        source = (row + 0.5) * 37 / (n + 0.1) - 0.5
        for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            matrix[row, min(max(tap, 0), 36)] += cubic(np.array(source - tap), -0.75)
    return matrix


def area_matrix(n: int) -> NDArray[np.float64]:
    """[n, 37]: bicubic (a = -0.5) to exactly n, the kernel widened where it shrinks and renormalised."""
    scale = 37 / n
    wide = max(scale, 1.0)
    centres = (np.arange(n) + 0.5) * scale
    weights = cubic((np.arange(37) + 0.5 - centres[:, None]) / wide, -0.5)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(518, 518), (448, 448), (336, 336), (224, 224), (168, 224), (560, 126)])
@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_those_of_the_original(size: tuple[int, int], antialias: bool) -> None:
    h, w = size[0] // 14, size[1] // 14
    positions = torch.randn(1, 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    grid = positions.reshape(37, 37, 8).double().numpy()
    if (h, w) != (37, 37):
        matrix = area_matrix if antialias else plain_matrix
        grid = np.einsum("ai,bj,ijc->abc", matrix(h), matrix(w), grid)
    got = position_grid(positions, h, w, antialias=antialias)
    assert got.shape == (1, h, w, 8)
    np.testing.assert_allclose(got[0].numpy(), grid, atol=2e-5)


@pytest.mark.parametrize("architecture", [PLAIN, REGISTERS])
def test_equals_timm_at_the_trained_size(architecture: str, lively: Any) -> None:
    ours, theirs = lively(architecture)
    batch = clips(1, 1, 518, 518)
    grids = ours.encode(batch, TAPS)
    images = preprocess(torch.from_numpy(batch.frames[0]))
    with torch.no_grad():
        expected = {"patch_embed": theirs.patch_embed.proj(images)}
        features = theirs.forward_intermediates(images, intermediates_only=True)
        expected |= {f"block.{index}": value for index, value in enumerate(features)}
        final = theirs.forward_features(images)[:, theirs.num_prefix_tokens :]
    for tap, value in expected.items():
        assert relative(grids[tap].values[0], value.permute(0, 2, 3, 1)) < 1e-5, tap
    assert relative(grids["final"].values.flatten(0, 3), final.flatten(0, 1)) < 1e-5


def test_registers_resize_with_an_area_filter_as_timm_does(lively: Any) -> None:
    ours, theirs = lively(REGISTERS)
    batch = clips(1, 1, 126, 168)
    with torch.no_grad():
        expected = theirs.forward_features(preprocess(torch.from_numpy(batch.frames[0])))[:, 5:]
    assert relative(ours.encode(batch, ["final"])["final"].values.flatten(0, 3), expected[0]) < 1e-5


def test_plain_positions_differ_from_timm_below_the_trained_size(lively: Any) -> None:
    ours, theirs = lively(PLAIN)
    batch = clips(1, 1, 126, 168)
    with torch.no_grad():
        other = theirs.forward_features(preprocess(torch.from_numpy(batch.frames[0])))[:, 1:]
    assert relative(ours.encode(batch, ["final"])["final"].values.flatten(0, 3), other[0]) > 1e-3


@pytest.mark.parametrize("architecture", [PLAIN, REGISTERS])
def test_grids_hold_patches_of_every_clip_and_frame(architecture: str, lively: Any) -> None:
    ours, _ = lively(architecture)
    batch = clips(2, 3, 56, 70)
    grids = ours.encode(batch, TAPS)
    assert tuple(grids) == TAPS
    for n, t in product(range(2), range(3)):
        alone = ClipBatch(batch.frames[n : n + 1, t : t + 1], ("alone",))
        for tap, grid in ours.encode(alone, TAPS).items():
            assert grids[tap].shape == (2, 3, 4, 5, 384)
            assert grids[tap].values.dtype == torch.float32
            torch.testing.assert_close(grids[tap].values[n, t], grid.values[0, 0], rtol=1e-4, atol=1e-4)


def test_blocks_after_the_deepest_tap_do_not_run(lively: Any) -> None:
    ours, _ = lively(PLAIN)
    batch = clips(1, 1, 56, 56)
    full = ours.encode(batch, TAPS)
    ran: list[int] = []
    for index, block in enumerate(ours._model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for tap, expected in (("patch_embed", []), ("block.0", [0]), ("block.1", [0, 1]), ("final", [0, 1])):
        ran.clear()
        assert torch.equal(ours.encode(batch, [tap])[tap].values, full[tap].values)
        assert ran == expected
    assert ours.encode(batch, []) == {}


def test_features_can_train_an_adapter() -> None:
    grid = encoder().encode(clips(1, 1, 28, 28), ["block.0"])["block.0"]
    assert not grid.values.requires_grad
    torch.nn.Linear(384, 1)(grid.values).sum().backward()


@pytest.mark.parametrize(("pixels", "expected"), [(14, 14), (20, 14), (21, 28), (224, 224), (256, 252), (3, 14)])
def test_nearest_multiple(pixels: int, expected: int) -> None:
    assert nearest_multiple(pixels, 14) == expected


def test_odd_sizes_are_resized_as_pil_does() -> None:
    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((95, 71), Image.Resampling.BICUBIC)
    expected = np.asarray(photo.resize((98, 70), Image.Resampling.BICUBIC)).astype(float)
    frame = np.asarray(photo)
    images = preprocess(torch.tensor(frame)[None])
    assert images.shape == (1, 3, 70, 98)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    got = (images[0].permute(1, 2, 0).numpy() * deviation + mean) * 255
    # PIL's kernel is rounded to 8 bits: off by a level here and there, never by more than two.
    assert np.abs(got - expected).max() < 2.01
    assert (np.abs(got - expected) > 0.5).mean() < 0.15
    assert encoder().encode(clips(1, 1, 71, 95), ["final"])["final"].shape == (1, 1, 5, 7, 384)


def test_whole_sizes_are_not_touched() -> None:
    frames = torch.tensor(clips(1, 1, 28, 42).frames[0])
    levels = frames.permute(0, 3, 1, 2) / 255
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    torch.testing.assert_close(preprocess(frames), (levels - mean) / deviation)


def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    batch = clips(1, 1, 28, 28)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = encoder(seed=1).encode(batch, ["final"])["final"].values
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(encoder(seed=1).encode(batch, ["final"])["final"].values, first)
    assert not torch.equal(encoder(seed=2).encode(batch, ["final"])["final"].values, first)


def test_unknown_tap() -> None:
    with pytest.raises(PluginError, match=r"Unknown tap 'block\.12'"):
        encoder().encode(clips(1, 1, 28, 28), ["block.12"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda state: state.pop("norm.bias"),
            r"not those of vit_small.*1 entries differ \(norm\.bias is missing\)",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), r"extra is not part of it"),
        (
            lambda state: state.update(cls_token=torch.zeros(1, 1, 8)),
            r"cls_token is \(1, 1, 8\) instead of \(1, 1, 384\)",
        ),
    ],
)
def test_loading_is_strict(change: Callable[[dict[str, Tensor]], Any], match: str, tmp_path: Path) -> None:
    model: Any = timm.create_model(PLAIN, num_classes=0, img_size=518)
    state = dict(model.state_dict())
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError, match=match):
        encoder(PLAIN, path)


def test_unreadable_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        encoder(PLAIN, path)


@pytest.mark.parametrize("variant", DINOV2.variants, ids=lambda variant: variant.name)
def test_spec_agrees_with_timm(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    narrow = {"embed_dim": 96, "img_size": 28}
    model: Any = timm.create_model(variant.params["architecture"], num_classes=0, **narrow)
    assert variant.taps == ("patch_embed", *(f"block.{i}" for i in range(len(model.blocks))), "final")
    assert set(variant.default_taps) <= set(variant.taps)
    assert (variant.default_taps[0], variant.default_taps[-1]) == (variant.taps[0], variant.taps[-1])
    assert variant.stem == ("patch_embed",)
    assert variant.weights.hub.repo == f"timm/{variant.params['architecture']}.lvd142m"
    assert model.num_prefix_tokens == (5 if variant.name.endswith("-reg") else 1)


def test_default_taps_of_the_default_variant() -> None:
    assert DINOV2.variants[0].default_taps == (
        "patch_embed",
        "block.2",
        "block.5",
        "block.8",
        "final",
    )


@pytest.fixture(scope="module")
def real() -> DINOv2:
    weights = DINOV2.variants[0].weights
    assert weights is not None
    try:
        found = resolve(weights)
    except WeightsError as error:
        pytest.skip(f"The DINOv2 weights are out of reach: {error.message}")
    return DINOv2(EncoderSetup(weights=found), PLAIN)


@pytest.mark.archives
def test_real_weights_see_the_picture(real: DINOv2, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a photograph, transformers' positions move the features by about 1 %, those of timm by about 5 %.

    So they do with the original model (1.1 % and 4.9 % at 224 pixels). A mistake in the weights, the
    positions or the order of the layers would move them by far more.
    """
    from skimage import data, transform

    photo = transform.resize(data.astronaut(), (224, 224), anti_aliasing=True)
    batch = ClipBatch((photo * 255).astype(np.uint8)[None, None], ("photo",))
    own = real.encode(batch, ["block.11", "final"])
    for tap, grid in own.items():
        grid.check_finite(tap)
    final = own["final"].values

    def moved(area: bool) -> float:
        def resized(positions: Tensor, h: int, w: int, *, antialias: bool) -> Tensor:
            planes = positions.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
            return F.interpolate(planes, (h, w), mode="bicubic", antialias=area).permute(0, 2, 3, 1)

        monkeypatch.setattr(dinov2, "position_grid", resized)
        real._grids.clear()
        return relative(real.encode(batch, ["final"])["final"].values, final)

    assert 0.004 < moved(area=False) < 0.03
    assert 0.02 < moved(area=True) < 0.12
    real._grids.clear()


def test_bfloat16_is_near_float32() -> None:
    batch = clips(2, 2, 56, 84)
    for architecture in (PLAIN, REGISTERS):
        exact, rounded = (
            DINOv2(EncoderSetup(precision=precision), architecture).encode(batch, ["block.1", "final"])
            for precision in ("float32", "bfloat16")
        )
        for tap, grid in rounded.items():
            assert grid.values.dtype == torch.bfloat16
            assert 1e-4 < relative(grid.values.float(), exact[tap].values) < 3e-2


def test_compiled_blocks_share_their_graphs_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    torch.compiler.reset()
    eager, compiled = (DINOv2(EncoderSetup(compiled=compiled), PLAIN) for compiled in (False, True))
    for n in (1, 2, 3):
        batch = clips(n, 1, 56, 56)
        expected = eager.encode(batch, ["final"])["final"].values
        torch.testing.assert_close(compiled.encode(batch, ["final"])["final"].values, expected)
    assert 1 <= len(graphs) <= 3  # one for a batch of one, one for two, one for any other
