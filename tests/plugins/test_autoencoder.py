"""Autoencoders through diffusers: latents, frames, rules, orientation, loading; tiny checkpoints of every class."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import Unsupported, WeightsError
from foresight_bench.grids import Grid
from foresight_bench.specs import HubFolder
from foresight_bench.weights import resolve
from foresight_plugins.decoders import autoencoder
from foresight_plugins.decoders.autoencoder import Autoencoder
from foresight_plugins.decoders.autoencoder_spec import AUTOENCODERS, FAMILIES, LTX_TINY

PUBLISHED = [spec for spec in AUTOENCODERS if spec is not LTX_TINY]

SAFETENSORS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Case:
    """A tiny autoencoder with the compression of the published one."""

    family: str
    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    """Frames, height and width of a clip it takes."""
    cells: tuple[int, int, int]
    """Of its latents."""


LTX: dict[str, Any] = {"latent_channels": 16, "block_out_channels": (4, 8, 8, 8), "layers_per_block": (1,) * 5}
LTX_CONDITIONED = {
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
    "scaling_factor": 0.7,
}
LTX_DOWN = {
    "block_out_channels": (4, 8, 16, 32, 32),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "spatio_temporal_scaling": (True,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_inject_noise": (False,) * 4,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LEVELS: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 2}
MEAN, DEVIATION = (0.1, -0.2, 0.3, -0.4), (1.0, 2.0, 0.5, 4.0)
COSMOS = {
    "latent_channels": 4,
    "encoder_block_out_channels": (4, 4, 8, 8),
    "decode_block_out_channels": (4, 4, 8, 8),
    "resolution": 64,
    "attention_resolutions": (8,),
    "num_layers": 1,
    # Four channels of two latent frames each.
    "latents_mean": [*MEAN, *(2 * value for value in MEAN)],
    "latents_std": [*DEVIATION, *(3 * value for value in DEVIATION)],
}

CASES = {
    "ltx 0.9.0": Case(
        "ltx",
        LTX | {"decoder_block_out_channels": (4, 8, 8, 8), "decoder_layers_per_block": (1,) * 5},
        (9, 64, 96),
        (2, 2, 3),
    ),
    "ltx 0.9.1": Case(
        "ltx", LTX | LTX_CONDITIONED | {"decoder_inject_noise": (True, True, True, False)}, (9, 64, 96), (2, 2, 3)
    ),
    "ltx 0.9.5": Case("ltx", LTX | LTX_CONDITIONED | LTX_DOWN, (9, 64, 96), (2, 2, 3)),
    "wan": Case(
        "wan",
        {
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "latents_mean": MEAN,
            "latents_std": DEVIATION,
        },
        (9, 24, 40),
        (3, 3, 5),
    ),
    "hunyuan": Case("hunyuan", LEVELS | {"layers_per_block": 1}, (9, 24, 40), (3, 3, 5)),
    "cogvideox": Case("cogvideox", LEVELS | {"layers_per_block": 1}, (9, 24, 40), (3, 3, 5)),
    "cosmos": Case("cosmos", COSMOS, (9, 24, 40), (2, 3, 5)),
    "kl": Case(
        "kl",
        LEVELS
        | {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "shift_factor": 0.3,
        },
        (4, 24, 40),
        (4, 3, 5),
    ),
    "tiny": Case(
        "tiny",
        {
            "encoder_block_out_channels": (8,) * 4,
            "decoder_block_out_channels": (8,) * 4,
            "num_encoder_blocks": (1,) * 4,
            "num_decoder_blocks": (1,) * 4,
            "scaling_factor": 1.5,
            "shift_factor": -0.2,
        },
        (4, 24, 40),
        (4, 3, 5),
    ),
}
NAMES = tuple(CASES)
VIDEO = tuple(name for name, case in CASES.items() if FAMILIES[case.family].stride)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a case, with random weights in which all that is zero or one at first matters."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            case = CASES[name]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                module = getattr(diffusers, FAMILIES[case.family].class_name)(**case.config)
                for key, value in (*module.named_parameters(), *module.named_buffers()):
                    if "per_channel_scale" in key:
                        value.data.normal_().mul_(0.5)
                    if key == "latents_mean":
                        value.normal_()
                    if key == "latents_std":
                        value.uniform_(0.5, 2)
                module.save_pretrained(path)
        return path

    return folder


def weights(folder: Path) -> ResolvedWeights:
    return ResolvedWeights(folder, "", "folder")


def built(folder: Path, name: str) -> Autoencoder:
    return Autoencoder(weights=weights(folder), device=torch.device("cpu"), family=CASES[name].family)


@pytest.fixture(scope="module")
def decoders(saved: Callable[[str], Path]) -> Callable[[str], Autoencoder]:
    known: dict[str, Autoencoder] = {}

    def decoder(name: str) -> Autoencoder:
        if name not in known:
            known[name] = built(saved(name), name)
        return known[name]

    return decoder


def clips(n: int, t: int, h: int, w: int, seed: int = 0) -> ClipBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(map(str, range(n))))


def latents(name: str, n: int, seed: int = 0) -> Tensor:
    channels = 16 if name.startswith("ltx") else 4
    return torch.randn(n, *CASES[name].cells, channels, generator=torch.Generator().manual_seed(seed))


def reference(folder: Path, name: str) -> Any:
    return getattr(diffusers, FAMILIES[CASES[name].family].class_name).from_pretrained(folder).eval()


def official(module: Any, name: str, frames: Any) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean [C, T', H', W'] of one clip, not normalised, and the frames [T, 3, H, W] of that."""
    pixels = torch.tensor(frames).permute(3, 0, 1, 2)[None] / 255 * 2 - 1
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(autoencoder.SEED)
        if name in VIDEO:
            posterior = module.encode(pixels).latent_dist
            mean = posterior.mode() if name == "cosmos" else posterior.mean
            more = {"temb": torch.tensor([0.05])} if name in ("ltx 0.9.1", "ltx 0.9.5") else {}
            torch.manual_seed(autoencoder.SEED)
            return mean[0], module.decode(mean, **more).sample[0].transpose(0, 1)
        outputs = [module.encode(image) for image in pixels.unbind(2)]
        means = [output.latents if name == "tiny" else output.latent_dist.mean for output in outputs]
        return torch.cat(means).transpose(0, 1), torch.cat([module.decode(mean).sample for mean in means])


def by_hand(module: Any, name: str, raw: Tensor) -> Tensor:
    """Return [C, T', H', W'] normalised as the pipelines of diffusers do."""
    config = module.config
    if name.startswith("ltx"):
        mean, deviation = (getattr(module, key).view(-1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        return (raw - mean) * config["scaling_factor"] / deviation
    if name == "wan":
        return (raw - torch.tensor(MEAN).view(-1, 1, 1, 1)) / torch.tensor(DEVIATION).view(-1, 1, 1, 1)
    if name == "cosmos":
        mean, deviation = (torch.tensor(config[key]).view(4, -1, 1, 1) for key in ("latents_mean", "latents_std"))
        return (raw - mean) / deviation
    return (raw - (config.get("shift_factor") or 0)) * config["scaling_factor"]


@pytest.mark.parametrize("name", NAMES)
def test_latents_and_frames_are_those_of_diffusers(
    name: str, saved: Callable[[str], Path], decoders: Callable[[str], Autoencoder]
) -> None:
    decoder, module = decoders(name), reference(saved(name), name)
    batch = clips(2, *CASES[name].shape)
    grid = decoder.encode(batch)
    frames = decoder.decode(grid)
    t, h, w = CASES[name].shape
    assert grid.shape[1:4] == CASES[name].cells
    assert frames.shape == (2, t, 3, h, w)
    assert (grid.values.dtype, frames.dtype) == (torch.float32, torch.float32)
    assert not grid.values.requires_grad
    for index in range(2):
        raw, decoded = official(module, name, batch.frames[index])
        expected = by_hand(module, name, raw).permute(1, 2, 3, 0)
        torch.testing.assert_close(grid.values[index], expected, rtol=1e-4, atol=1e-4)
        # What was normalised comes back as it was: the frames are those of the raw mean.
        torch.testing.assert_close(frames[index], (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=2e-4)
    assert frames.std() > 0.02


def test_published_sizes_are_the_defaults_of_the_classes() -> None:
    """What the rules are read from, at full size: stride and side of every class."""
    sizes = {}
    for family, each in FAMILIES.items():
        with torch.device("meta"):
            config = {} if family not in ("kl",) else {"block_out_channels": (32,) * 4}
            if family == "kl":
                config |= {"down_block_types": ("DownEncoderBlock2D",) * 4}  # type: ignore[dict-item]
                config |= {"up_block_types": ("UpDecoderBlock2D",) * 4}  # type: ignore[dict-item]
            module = getattr(diffusers, each.class_name)(**config)
        stride = autoencoder._size(module, each.stride) if each.stride else 1
        sizes[family] = stride, autoencoder._size(module, each.side)
    assert sizes == {
        "ltx": (8, 32),
        "wan": (4, 8),
        "hunyuan": (4, 8),
        "cogvideox": (8, 8),
        "cosmos": (8, 8),
        "kl": (1, 8),
        "tiny": (1, 8),
    }


REFUSED = (
    *(("ltx 0.9.0", (t, 32, 32)) for t in (*range(2, 9), *range(10, 17))),
    *(("ltx 0.9.5", shape) for shape in ((8, 32, 32), (9, 48, 32), (9, 32, 72), (9, 36, 36))),
    *(("ltx 0.9.0", (1, height, width)) for height, width in ((48, 64), (64, 48), (16, 16))),
    *(("wan", shape) for shape in ((2, 8, 8), (3, 8, 8), (4, 8, 8), (8, 8, 8), (5, 12, 8), (5, 8, 20))),
    *(("hunyuan", shape) for shape in ((2, 8, 8), (4, 8, 8), (7, 8, 8), (5, 12, 8), (5, 8, 20))),
    # 4 n + 1 frames are not enough: the library returns 8 of 5, and 16 of 13.
    *(("cogvideox", shape) for shape in ((5, 8, 8), (13, 8, 8), (8, 8, 8), (2, 8, 8), (9, 12, 8), (9, 8, 20))),
    *(("cosmos", shape) for shape in ((2, 8, 8), (5, 8, 8), (8, 8, 8), (9, 12, 8), (9, 8, 20))),
    *((name, shape) for name in ("kl", "tiny") for shape in ((1, 12, 8), (3, 8, 20))),
)


@pytest.mark.parametrize(("name", "shape"), REFUSED)
def test_clips_that_would_not_come_back_are_refused(
    name: str, shape: tuple[int, int, int], decoders: Callable[[str], Autoencoder]
) -> None:
    decoder = decoders(name)
    with pytest.raises(Unsupported) as caught:
        decoder.encode(clips(1, *shape))
    message = caught.value.message
    assert FAMILIES[CASES[name].family].class_name in message
    assert f"{shape[0]} frames of {shape[1]} x {shape[2]} pixels" in message
    assert ("32" if name.startswith("ltx") else "8") in message
    assert message.endswith(".")
    assert ". " not in message


@pytest.mark.parametrize(
    ("name", "shape", "returned"),
    [
        ("ltx 0.9.0", (8, 32, 32), (1, 32, 32)),
        ("ltx 0.9.0", (16, 32, 32), (9, 32, 32)),
        ("ltx 0.9.0", (9, 48, 32), (9, 64, 32)),
        ("wan", (8, 8, 8), (5, 8, 8)),
        ("cogvideox", (5, 8, 8), (8, 8, 8)),
        ("cogvideox", (13, 8, 8), (16, 8, 8)),
    ],
)
def test_the_library_says_nothing(
    name: str, shape: tuple[int, int, int], returned: tuple[int, int, int], saved: Callable[[str], Path]
) -> None:
    """Why the rules are ours: should this fail, the library has rules of its own now."""
    _, frames = official(reference(saved(name), name), name, clips(1, *shape).frames[0])
    assert (len(frames), *frames.shape[2:]) == returned


@pytest.mark.parametrize("name", VIDEO)
def test_short_and_long_clips_come_back_as_long_as_they_were(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    decoder, side = decoders(name), 32 if name.startswith("ltx") else 8
    # Beyond 16 frames, HunyuanVideo's autoencoder works piece by piece and blends. The tiny Cosmos ends at 9.
    for t in (1, 9) if name == "cosmos" else (1, 9, 25):
        grid = decoder.encode(clips(1, t, side, 2 * side))
        frames = decoder.decode(Grid(grid.values.requires_grad_()))
        assert frames.shape == (1, t, 3, side, 2 * side)
        (gradient,) = torch.autograd.grad(frames.square().sum(), grid.values)
        assert bool((gradient.abs().sum((0, 2, 3, 4)) > 0).all())


@pytest.mark.parametrize("count", [2, 4])
def test_latents_of_no_clip_are_refused(count: int, decoders: Callable[[str], Autoencoder]) -> None:
    """CogVideoX decodes an even number of latent frames to 4 n frames, which no clip has."""
    with pytest.raises(Unsupported, match=r"8 n \+ 1 frames"):
        decoders("cogvideox").decode(Grid(torch.zeros(1, count, 1, 1, 4)))


def test_more_latent_frames_than_statistics_are_refused(decoders: Callable[[str], Autoencoder]) -> None:
    with pytest.raises(Unsupported, match="statistics of 2 latent frames, and a clip has 3"):
        decoders("cosmos").encode(clips(1, 17, 8, 8))
    with pytest.raises(Unsupported, match="statistics of 2 latent frames"):
        decoders("cosmos").decode(Grid(torch.zeros(1, 3, 1, 1, 4)))


def centroids(change: Tensor) -> Tensor:
    """Return the centre of [N, T, H, W] along each axis, in cells: [N, 3]."""
    found = []
    for axis in (1, 2, 3):
        mass = change.double().sum([each for each in (1, 2, 3) if each != axis])
        found.append((mass * torch.arange(mass.shape[1])).sum(1) / mass.sum(1))
    return torch.stack(found, 1)


def wide(name: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return a clip's shape and its cells, more of them than a receptive field is wide."""
    cells = (3, 5, 6) if name.startswith("ltx") else (2, 7, 8) if name == "cosmos" else (3, 7, 8)
    t, h, w = CASES[name].shape
    frames = {"ltx": 17, "kl": 3, "tiny": 3}.get(CASES[name].family, t)
    side = h // CASES[name].cells[1]
    assert side == w // CASES[name].cells[2]
    return (frames, cells[1] * side, cells[2] * side), cells


def places(cells: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Return places that differ in each axis independently of the others."""
    t, h, w = cells
    return [(i, r, c) for i in (0, t - 1) for r in (1, h - 2) for c in (1, w - 2)]


def check_axes(change: Tensor, cells: tuple[int, int, int]) -> None:
    """Each axis of the centroids follows its own axis of the places, and no other."""
    where = torch.tensor(places(cells), dtype=torch.float64)
    both = torch.corrcoef(torch.cat([centroids(change), where], 1).T)[:3, 3:]
    assert both.diagonal().min() > 0.75, both
    assert (both - both.diagonal().diag()).abs().max() < 0.4, both


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_is_the_region_at_its_place(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    shape, cells = wide(name)
    channels = latents(name, 1).shape[-1]
    one = 0.3 * torch.randn(1, *cells, channels, generator=torch.Generator().manual_seed(0))
    values = one.repeat(len(places(cells)) + 1, 1, 1, 1, 1)
    for each, place in zip(values, places(cells), strict=False):
        each[place] += 1
    frames = decoders(name).decode(Grid(values))
    assert (frames.shape[1], *frames.shape[3:]) == shape
    check_axes((frames[:-1] - frames[-1:]).abs().sum(2), cells)


@pytest.mark.parametrize("name", NAMES)
def test_spans_say_which_frames_a_latent_frame_describes(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    case = CASES[name]
    video = name in VIDEO
    wanted = {2: ((0, 1), (1, 9)), 3: ((0, 1), (1, 5), (5, 9))}[case.cells[0]] if video else ()
    assert decoders(name).encode(clips(1, *case.shape)).spans == wanted
    assert decoders(name).encode(clips(1, 1, *case.shape[1:])).spans == (((0, 1),) if video else ())


@pytest.mark.parametrize("name", NAMES)
def test_a_region_is_the_cell_at_its_place(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    (t, h, w), cells = wide(name)
    frames = clips(1, t, h, w).frames.repeat(len(places(cells)) + 1, 0)
    side = h // cells[1]
    for each, (i, r, c) in zip(frames, places(cells), strict=False):
        when = slice(0, 1) if i == 0 else slice(t - (t - 1) // (cells[0] - 1), t)
        each[when, r * side : (r + 1) * side, c * side : (c + 1) * side] //= 2
    values = decoders(name).encode(ClipBatch(frames, tuple(map(str, range(len(frames)))))).values
    assert values.shape[1:4] == cells
    check_axes((values[:-1] - values[-1:]).abs().sum(-1), cells)


@pytest.mark.parametrize(("name", "stride", "side"), [("ltx 0.9.0", 8, 32), ("ltx 0.9.5", 8, 32), ("wan", 4, 8)])
def test_frame_map(name: str, stride: int, side: int, decoders: Callable[[str], Autoencoder]) -> None:
    """The first frame is the first latent frame's, and each ``stride`` of the others those of one; causally."""
    frames = clips(1, 2 * stride + 1, side, side).frames.repeat(2 * stride + 2, 0)
    for index in range(2 * stride + 1):
        frames[index, index] //= 2
    values = decoders(name).encode(ClipBatch(frames, tuple(map(str, range(len(frames)))))).values
    moved = (values[:-1] - values[-1:]).abs().amax((2, 3, 4)) > 1e-6
    first = [next(t for t in range(3) if row[t]) for row in moved]
    assert first == [0, *[1] * stride, *[2] * stride]


@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_frames_of_an_image_autoencoder_do_not_mix(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    decoder = decoders(name)
    batch = clips(2, 4, 24, 40)
    together = decoder.encode(batch).values
    for n in range(2):
        for t in range(4):
            alone = decoder.encode(ClipBatch(batch.frames[n : n + 1, t : t + 1], ("alone",))).values
            torch.testing.assert_close(together[n, t], alone[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_does_not_depend_on_the_batch(
    name: str, decoders: Callable[[str], Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, batch, state = decoders(name), clips(2, *CASES[name].shape), torch.random.get_rng_state()
    grid = decoder.encode(batch)
    frames = decoder.decode(grid)
    assert torch.equal(decoder.encode(batch).values, grid.values)
    assert torch.equal(decoder.decode(grid), frames)
    assert torch.equal(torch.random.get_rng_state(), state)
    seen = []
    monkeypatch.setattr(autoencoder, "PIXELS", 1)
    for method in ("encode", "decode"):
        inner = getattr(decoder._module, method)
        record = lambda values, *more, inner=inner: seen.append(len(values)) or inner(values, *more)  # noqa: E731
        monkeypatch.setattr(decoder._module, method, record)
    torch.testing.assert_close(decoder.encode(batch).values, grid.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder.decode(grid), frames, rtol=1e-4, atol=1e-5)
    assert seen == [1 if name in VIDEO else CASES[name].shape[0]] * 4


def test_noise_of_the_decoder_is_there_and_fixed(
    decoders: Callable[[str], Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, grid = decoders("ltx 0.9.1"), Grid(latents("ltx 0.9.1", 1))
    torch.manual_seed(5)
    before = decoder.decode(grid)
    torch.manual_seed(6)
    assert torch.equal(decoder.decode(grid), before)
    monkeypatch.setattr(autoencoder, "SEED", 7)
    assert (decoder.decode(grid) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ltx 0.9.1", "ltx 0.9.5"])
def test_timestep_matters(name: str, decoders: Callable[[str], Autoencoder], monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(latents(name, 1))
    before = decoders(name).decode(grid)
    monkeypatch.setattr(autoencoder, "TIMESTEP", 0.5)
    assert (decoders(name).decode(grid) - before).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_clamped_float32(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    frames = decoders(name).decode(Grid((100 * latents(name, 1)).to(torch.bfloat16)))
    assert frames.dtype == torch.float32
    assert (float(frames.min()), float(frames.max())) == (0.0, 1.0) or name in ("wan", "tiny")
    assert 0 <= float(frames.min()) <= float(frames.max()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_latents(name: str, decoders: Callable[[str], Autoencoder]) -> None:
    decoder = decoders(name)
    values = (0.3 * latents(name, 2)).requires_grad_()
    decoder.decode(Grid(values)).square().sum().backward()
    assert values.grad is not None
    assert bool(torch.isfinite(values.grad).all())
    assert bool((values.grad.flatten(1).abs().sum(1) > 0).all())
    assert not any(value.requires_grad for value in decoder._module.parameters())


# Loading


def copied(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], Any] = lambda state: None) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / SAFETENSORS)
    change(state)
    save_file(state, target / SAFETENSORS)
    return target


def rename(state: dict[str, Tensor], names: Mapping[str, str]) -> int:
    """Rename tensors by parts of their names; return how many that were."""
    count = 0
    for key in list(state):
        for old, new in names.items():
            if f".{old}." in key:
                state[key.replace(f".{old}.", f".{new}.")] = state.pop(key)
                count += 1
    return count


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("latents_std"), "latents_std is missing"),
        (lambda state: state.pop("decoder.conv_out.conv.bias"), "decoder.conv_out.conv.bias is missing"),
        (lambda state: state.update({"decoder.more": torch.zeros(1)}), "decoder.more is not part of it"),
        (lambda state: state.update({"latents_mean": torch.zeros(7)}), r"latents_mean is \(7,\) instead of \(16,\)"),
    ],
)
def test_half_a_checkpoint_is_not_loaded(
    change: Callable[[dict[str, Tensor]], Any], match: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(saved("ltx 0.9.0"), tmp_path / "changed", change)
    with pytest.raises(WeightsError, match=match):
        built(folder, "ltx 0.9.0")


def test_another_class(saved: Callable[[str], Path]) -> None:
    match = r"is a 'AutoencoderKLWan' checkpoint, not 'AutoencoderKLLTXVideo'\.$"
    with pytest.raises(WeightsError, match=match):
        built(saved("wan"), "ltx 0.9.0")
    with pytest.raises(WeightsError, match=match):
        resolve(next(spec.weights for spec in AUTOENCODERS if spec.name == "ltx-video" and spec.weights), saved("wan"))


def test_no_weights_are_not_random_ones() -> None:
    with pytest.raises(WeightsError, match="AutoencoderKLWan needs weights"):
        Autoencoder(weights=None, device=torch.device("cpu"), family="wan")


@pytest.mark.parametrize("file", ["config.json", SAFETENSORS])
def test_missing_file(file: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(saved("tiny"), tmp_path / "half")
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=rf"is not a checkpoint: it holds \w+ {file}"):
        built(folder, "tiny")


@pytest.mark.parametrize("changes", [{"block_out_channels": "wide"}, {"layers_per_block": None}])
def test_a_config_that_describes_nothing(changes: dict[str, Any], saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(saved("kl"), tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WeightsError, match="does not describe an AutoencoderKL"):
        built(folder, "kl")


def test_a_checkpoint_in_half_precision_runs_in_float32(saved: Callable[[str], Path], tmp_path: Path) -> None:
    def halve(state: dict[str, Tensor]) -> None:
        state.update({name: value.to(torch.bfloat16) for name, value in state.items()})

    decoder = built(copied(saved("ltx 0.9.1"), tmp_path / "half", halve), "ltx 0.9.1")
    tensors = (*decoder._module.parameters(), *decoder._module.buffers(), decoder._mean, decoder._scale)
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert decoder.encode(clips(1, 1, 32, 32)).values.dtype == torch.float32


def test_shards(saved: Callable[[str], Path], tmp_path: Path) -> None:
    reference(saved("kl"), "kl").save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert (tmp_path / "shards" / f"{SAFETENSORS}.index.json").is_file()
    batch = clips(1, 1, 24, 40)
    whole, parts = (built(folder, "kl").encode(batch).values for folder in (saved("kl"), tmp_path / "shards"))
    assert torch.equal(whole, parts)


def test_attention_under_its_old_names(saved: Callable[[str], Path], tmp_path: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    folder = copied(saved("kl"), tmp_path / "old", lambda state: rename(state, old))
    assert any(name.endswith(".proj_attn.weight") for name in load_file(folder / SAFETENSORS))
    batch = clips(1, 1, 24, 40)
    now, then = (built(each, "kl").encode(batch).values for each in (saved("kl"), folder))
    assert torch.equal(now, then)


def test_nothing_is_drawn_and_nothing_stays_hooked(saved: Callable[[str], Path]) -> None:
    state = torch.random.get_rng_state()
    for name in ("ltx 0.9.1", "cosmos"):
        built(saved(name), name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.nn.Linear(1, 1).weight.is_meta


def test_only_tensors_of_the_checkpoint_are_filled_in_and_the_rest_is_on_the_device(
    saved: Callable[[str], Path],
) -> None:
    """Cosmos' wavelets are in no checkpoint."""
    decoder = built(saved("cosmos"), "cosmos")
    assert not any("wavelets" in name for name in load_file(saved("cosmos") / SAFETENSORS))
    wavelets = [value for name, value in decoder._module.named_buffers() if name.endswith("wavelets")]
    assert wavelets
    assert all(value.device.type == "cpu" and float(value.abs().sum()) > 1 for value in wavelets)


def test_specs_say_where_the_published_weights_are() -> None:
    """Repository, folder in it and class, as the documentation of diffusers and the model cards have them."""
    found = {}
    for spec in PUBLISHED:
        assert spec.weights is not None
        assert spec.weights.name == spec.name
        assert spec.licence
        hub = spec.weights.hub
        assert isinstance(hub, HubFolder)
        found[spec.name] = (hub.repo, hub.subfolder, hub.class_name)
    assert found == {
        "ltx-video": ("Lightricks/LTX-Video", "vae", "AutoencoderKLLTXVideo"),
        "wan": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "vae", "AutoencoderKLWan"),
        "hunyuan-video": ("hunyuanvideo-community/HunyuanVideo", "vae", "AutoencoderKLHunyuanVideo"),
        "cogvideox": ("THUDM/CogVideoX-2b", "vae", "AutoencoderKLCogVideoX"),
        "cosmos": ("nvidia/Cosmos-1.0-Tokenizer-CV8x8x8", "vae", "AutoencoderKLCosmos"),
        "sd-vae": ("stabilityai/sd-vae-ft-mse", "", "AutoencoderKL"),
        "taesd": ("madebyollin/taesd", "", "AutoencoderTiny"),
    }


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_specs_resolve_from_the_hub_cache(
    spec: Any, saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each checkpoint lies where its repository has it, and what is found there runs."""
    name = next(name for name, case in CASES.items() if case.family == spec.params["family"])
    repo = tmp_path / f"models--{spec.weights.hub.repo.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    inside = snapshot / spec.weights.hub.subfolder if spec.weights.hub.subfolder else snapshot
    inside.mkdir(exist_ok=True)
    for file in saved(name).iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = resolve(spec.weights)
    assert found.path == inside
    assert found.source == f"hub {spec.weights.hub.repo}@{'0' * 40}"
    assert sorted(found.files) == ["config.json", SAFETENSORS]
    assert resolve(spec.weights, inside).sha256 == found.sha256
    decoder = Autoencoder(weights=found, device=torch.device("cpu"), **spec.params)
    side = 32 if name.startswith("ltx") else 8
    assert decoder.encode(clips(1, 1, side, side)).shape[1:4] == (1, 1, 1)
