"""Resizing is PIL's, in batch, within two levels; normalising takes out the mean and the deviation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from foresight_plugins.encoders.images import CLIP, IMAGENET, nearest_multiple, normalised, resized

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(n: int, h: int, w: int) -> NDArray[np.uint8]:
    """Uniform noise: the hardest picture there is for a filter."""
    return np.random.default_rng(0).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((31, 47), (84, 98)),
        ((120, 90), (28, 70)),
        ((40, 100), (70, 56)),
        ((56, 41), (56, 84)),
        ((41, 56), (84, 56)),
    ],
    ids=["up", "down", "up and down", "width only", "height only"],
)
def test_resizes_as_pil_does(size: tuple[int, int], target: tuple[int, int], mode: str) -> None:
    frames = noise(3, *size)
    got = resized(torch.from_numpy(frames), *target, mode=mode)  # type: ignore[arg-type]
    assert (got.shape, got.dtype) == ((3, 3, *target), torch.float32)
    assert torch.equal(got, got.round())
    assert got.min() >= 0
    assert got.max() <= 255
    for image, frame in zip(got, frames, strict=True):
        # Two calls, because PIL 13 chooses by itself which pass comes first.
        wide = Image.fromarray(frame).resize((target[1], size[0]), FILTERS[mode])
        expected = np.asarray(wide.resize(target[::-1], FILTERS[mode])).astype(float)
        off = np.abs(image.permute(1, 2, 0).numpy() - expected)
        assert off.max() <= 1
        # PIL's kernel is in fixed point, so halves, common with the few weights of bilinear, may go either way.
        assert (off > 0.5).mean() < (0.005 if mode == "bicubic" else 0.06)


def test_the_same_size_is_left_alone() -> None:
    frames = torch.from_numpy(noise(2, 20, 30))
    assert torch.equal(resized(frames, 20, 30), frames.permute(0, 3, 1, 2).float())


def test_a_frame_does_not_depend_on_its_batch() -> None:
    frames = torch.from_numpy(noise(3, 20, 30))
    assert torch.equal(resized(frames, 28, 14)[1:2], resized(frames[1:2], 28, 14))


@pytest.mark.parametrize("statistics", [CLIP, IMAGENET])
def test_normalised(statistics: tuple[tuple[float, float, float], tuple[float, float, float]]) -> None:
    frames = noise(2, 5, 6)
    mean, deviation = (np.array(values) for values in statistics)
    expected = (frames / 255 - mean) / deviation
    got = normalised(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), statistics)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "unit", "expected"),
    [(14, 14, 14), (20, 14, 14), (21, 14, 28), (224, 14, 224), (256, 14, 252), (3, 14, 14), (41, 28, 28), (42, 28, 56)],
)
def test_nearest_multiple(pixels: int, unit: int, expected: int) -> None:
    assert nearest_multiple(pixels, unit) == expected
