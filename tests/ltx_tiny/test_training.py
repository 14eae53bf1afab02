"""The script that trained ltx-tiny: its crops, its start, its step, and what it saves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from foresight_gates.scenes import SceneParameters, render_block

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ltx_tiny"
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG = tuple(zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), WIDTHS[:-1], WIDTHS[1:], strict=True))
"""Index in torchvision's ``vgg16().features``, channels in and out."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts import each other, as they do when run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("pools", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_pools_are_the_scenes_of_the_train_stream_and_crops_are_cut_from_them() -> None:
    import pools

    rendered = pools.scenes("train", 64, 3, 5, start=7)
    assert np.array_equal(rendered, render_block(SceneParameters(side=64, frames=3), "train", 7, 5).frames)
    ramp = torch.arange(40 * 50, dtype=torch.int32).remainder(251).byte().reshape(1, 40, 50, 1).expand(1, 40, 50, 3)
    given = pools.Pools((torch.from_numpy(rendered),), (ramp,), footage_share=0.5)
    crops = given.batch(8, 3, 32, torch.Generator().manual_seed(0))
    assert crops.shape == (8, 3, 3, 32, 32)
    assert torch.equal(crops, given.batch(8, 3, 32, torch.Generator().manual_seed(0)))
    pixels = ((crops + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
    clips = torch.from_numpy(rendered)
    for crop in pixels[:4]:  # of scenes: some window of some clip, maybe flipped
        ways = [crop, crop.flip(1), crop.flip(2), crop.flip(1, 2)]
        windows = clips.unfold(2, 32, 1).unfold(3, 32, 1).permute(0, 2, 3, 1, 5, 6, 4)
        assert any(bool((windows == way).flatten(3).all(-1).any()) for way in ways)
    for crop in pixels[4:]:  # of a photograph: the window travels, each frame is one of its windows
        windows = ramp[0].unfold(0, 32, 1).unfold(1, 32, 1).permute(0, 1, 3, 4, 2)
        assert all(bool((windows == frame).flatten(2).all(-1).any()) for frame in crop)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script, with a model so narrow that it takes no time."""
    import train

    monkeypatch.setattr(train, "WIDTHS", (4, 8, 8, 8))
    monkeypatch.setattr(train, "SEEN", 2)
    torch.manual_seed(0)
    return train


def test_it_starts_grey_and_ends_at_rest(train: ModuleType) -> None:
    model = train.autoencoder()
    clips = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = model.encode(clips).latent_dist.mode()
        assert latents.shape == (1, 128, 2, 2, 2)
        assert float(latents.std()) > 0.1
        assert not model.decode(latents).sample.any()
    rate, noise = zip(*(train.schedule(step, 1000) for step in range(1000)), strict=True)
    assert rate[0] == pytest.approx(train.RATE / train.WARMUP, rel=1e-3)
    assert max(rate) < train.RATE
    assert rate[-1] < 1e-5 * train.RATE
    assert (noise[100], noise[200], noise[300], noise[-1]) == pytest.approx((0, 0.05, 0.1, 0.1))


def test_steps_lower_the_loss_and_the_checkpoint_holds_its_statistics(tmp_path: Path, train: ModuleType) -> None:
    trunk = {}
    for index, inputs, outputs in VGG:
        trunk[f"features.{index}.weight"] = torch.randn(outputs, inputs, 3, 3).mul_(0.03).half()
        trunk[f"features.{index}.bias"] = torch.zeros(outputs).half()
    save_file(trunk, tmp_path / "vgg16.safetensors")
    model, perceptual = train.autoencoder(), train.Perceptual(tmp_path / "vgg16.safetensors")
    clips = torch.from_numpy(render_block(SceneParameters(side=64), "train", 0, 8).frames).permute(0, 4, 1, 2, 3)
    clips = clips / 127.5 - 1
    assert float(perceptual(clips[:2, :, 0], clips[:2, :, 0])) == 0
    assert float(perceptual(clips[:2, :, 0], clips[2:4, :, 0])) > 0
    step = train.Step(model, perceptual, torch.optim.AdamW(model.parameters(), 1e-2), clips)
    seen = []
    for _ in range(8):
        step(clips, 0.0, torch.Generator().manual_seed(0))
        seen.append(float(step.totals[0]))
        step.totals.zero_()
    assert seen[-1] < 0.97 * seen[0]
    saved = train.finished(model, clips)
    assert saved.dtype == torch.float16
    with torch.no_grad():
        moments = saved.float().encoder(clips)
    spread = moments[:, :128].var((0, 2, 3, 4)).mean().sqrt()
    assert torch.allclose(saved.latents_std, spread, rtol=1e-2)
    assert torch.allclose(saved.latents_mean, moments[:, :128].mean((0, 2, 3, 4)), atol=1e-2 * float(spread))
    assert torch.allclose((0.5 * moments[:, 128:]).exp(), 0.1 * spread, rtol=1e-2)


def test_footage_is_read_as_it_lies(tmp_path: Path) -> None:
    import pools

    frames = [Image.new("RGB", (20, 10), (40 * i, 0, 255 - 40 * i)) for i in range(3)]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[1].save(tmp_path / "photograph.webp", lossless=True)
    clip, photograph = pools.footage(tmp_path)
    assert clip.shape == (3, 10, 20, 3)
    assert photograph.shape == (1, 10, 20, 3)
    assert np.array_equal(clip[:, 0, 0], [[0, 0, 255], [40, 0, 215], [80, 0, 175]])
