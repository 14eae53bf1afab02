"""The embedded checkpoint: what it must give back, and that its cells lie where the pixels do."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench import weights
from foresight_bench.clips import ClipBatch
from foresight_bench.errors import Unsupported, WeightsError
from foresight_bench.grids import Grid
from foresight_bench.specs import PackageFolder, Weights
from foresight_gates.scenes import SceneParameters, render_block
from foresight_plugins.decoders.autoencoder import Autoencoder
from foresight_plugins.decoders.autoencoder_spec import LTX_TINY

MOST_BYTES = 24_000_000


@lru_cache(maxsize=1)
def decoder() -> Autoencoder:
    assert LTX_TINY.weights is not None
    found = weights.resolve(LTX_TINY.weights)
    assert found.source == "package foresight_plugins"
    return Autoencoder(weights=found, device=torch.device("cpu"), **LTX_TINY.params)  # type: ignore[arg-type]


def scenes(frames: int, clips: int, side: int = 224) -> ClipBatch:
    return render_block(SceneParameters(side=side, frames=frames), "test", 0, clips)


def shown(clips: ClipBatch) -> Tensor:
    return torch.from_numpy(clips.frames).permute(0, 1, 4, 2, 3).float() / 255


def psnr(frames: Tensor, wanted: Tensor) -> float:
    return float((-10 * (frames - wanted).square().mean((1, 2, 3, 4)).log10()).mean())


def test_it_is_small_and_has_the_compression_of_ltx_video() -> None:
    assert LTX_TINY.weights is not None
    folder = weights.resolve(LTX_TINY.weights).path
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    latents = decoder().encode(scenes(9, 1))
    assert latents.shape == (1, 2, 7, 7, 128)
    assert latents.spans == ((0, 1), (1, 9))


@pytest.mark.parametrize(("frames", "clips"), [(1, 16), (9, 2)])
def test_the_round_trip_beats_mean_colour_and_a_thumbnail(frames: int, clips: int) -> None:
    batch = scenes(frames, clips)
    wanted = shown(batch)
    latents = decoder().encode(batch)
    value = psnr(decoder().decode(latents), wanted)
    small = F.interpolate(wanted.flatten(0, 1), (16, 16), mode="area")
    thumbnail = F.interpolate(small, wanted.shape[-2:], mode="bilinear").unflatten(0, wanted.shape[:2])
    assert value > psnr(wanted.mean((1, 3, 4), keepdim=True).expand_as(wanted), wanted) + 6
    assert value > psnr(thumbnail, wanted) + 2
    # Its statistics are those of its own latents: about 0 and 1, over all channels.
    assert abs(float(latents.values.mean())) < 0.1
    assert float(latents.values.flatten(0, 3).var(0).mean()) == pytest.approx(1, abs=0.3)


@torch.no_grad()
def test_a_cell_moves_the_pixels_it_covers() -> None:
    """By energy centroids: an autoencoder's answer to one cell spreads over its neighbours, so an arg-max misleads."""
    side, cell = 224, 32
    latents = decoder().encode(scenes(1, 1))
    before = decoder().decode(latents)
    for row, column in ((1, 5), (5, 1), (3, 3), (2, 4)):
        changed = latents.values.clone()
        changed[0, 0, row, column] = -changed[0, 0, row, column]
        energy = (decoder().decode(Grid(changed, latents.spans)) - before).square().sum((0, 1, 2))
        places = torch.arange(side) + 0.5
        found = [float((energy.sum(axis) * places).sum() / energy.sum()) / cell - 0.5 for axis in (1, 0)]
        assert found == pytest.approx([row, column], abs=0.35)


def test_other_clips_are_refused() -> None:
    with pytest.raises(Unsupported, match="8 n"):
        decoder().encode(scenes(4, 1))
    with pytest.raises(Unsupported, match="multiples of 32"):
        decoder().encode(scenes(1, 1, side=208))


def test_a_package_without_its_weights_says_so(tmp_path: Path) -> None:
    lost = Weights("lost", package=PackageFolder("foresight_plugins", "decoders/lost", "AutoencoderKLLTXVideo"))
    with pytest.raises(WeightsError, match="installed without the weights 'lost'"):
        weights.resolve(lost)
    assert LTX_TINY.weights is not None
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="not a folder"):
        weights.resolve(LTX_TINY.weights, tmp_path / "config.json")
    with pytest.raises(WeightsError, match="AutoencoderKLLTXVideo"):
        weights.resolve(LTX_TINY.weights, tmp_path)
