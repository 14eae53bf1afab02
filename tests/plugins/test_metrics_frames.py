"""SSIM, PSNR, edge F1 and spatial IoU: reference implementations and cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data, metrics
from torch import Tensor

from foresight_bench.contracts import FrameTruth
from foresight_bench.errors import DataError
from foresight_plugins.metrics.edge_f1 import EdgeF1, boundary_f1, dilate, edge_maps
from foresight_plugins.metrics.psnr import Psnr
from foresight_plugins.metrics.spatial_iou import SpatialIoU
from foresight_plugins.metrics.ssim import Ssim

Image = NDArray[np.float32]


def photos() -> list[Image]:
    whole = [getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    return [(w[40:232, 60:284].astype(np.float32) / 255) for w in whole]


def tensor(images: list[Image]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def truth(frames: Tensor, plates: Tensor | None = None, labels: Tensor | None = None) -> FrameTruth:
    empty = torch.zeros(frames.shape[0], *frames.shape[-2:], dtype=torch.uint8)
    return FrameTruth(frames, frames if plates is None else plates, empty if labels is None else labels)


def score(metric: Ssim | Psnr | EdgeF1 | SpatialIoU, reconstruction: Tensor, reference: FrameTruth) -> list[float]:
    found = metric.score(reconstruction, metric.prepare(reference))  # type: ignore[arg-type]
    assert found.dtype == torch.float64
    assert found.shape == (len(reconstruction),)
    return found.tolist()


def degraded() -> list[Image]:
    rng = np.random.default_rng(0)
    a, b, c, last = photos()
    return [
        ndimage.gaussian_filter(a, (2, 2, 0)),
        np.clip(b + rng.normal(0, 0.1, b.shape), 0, 1).astype(np.float32),
        np.roll(c, 3, axis=1),
        last,
    ]


def test_ssim_equals_skimage() -> None:
    found = score(Ssim(), tensor(degraded()), truth(tensor(photos())))
    expected = [
        metrics.structural_similarity(
            x.astype(np.float64), y.astype(np.float64), channel_axis=2, data_range=1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for x, y in zip(photos(), degraded(), strict=True)
    ]  # fmt: skip
    assert np.abs(np.subtract(found, expected)).max() < 1e-5
    assert max(expected) - min(expected) > 0.2, "the cases must differ for agreement to mean anything"


def test_ssim_of_equal_frames_is_1_whatever_the_chunk() -> None:
    frames = tensor(photos() * 9)  # 36 frames: two whole chunks and a part
    assert np.allclose(score(Ssim(), frames, truth(frames)), 1, atol=1e-6)
    shuffled = frames.roll(1, 0)
    assert score(Ssim(), shuffled, truth(frames))[:4] == pytest.approx(
        score(Ssim(), shuffled[:4], truth(frames[:4])), abs=1e-6
    )


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(DataError, match="10 pixels"):
        Ssim().prepare(truth(torch.zeros(1, 3, 10, 40)))


def test_ssim_sees_a_blank_page_on_textured_ground_only() -> None:
    """The reason why white scenes cannot gate."""
    page = np.ones((224, 224, 3), np.float32)
    drawn = page.copy()
    drawn[60:120, 60:120] = (0.9, 0.1, 0.2)
    on_white = score(Ssim(), tensor([page]), truth(tensor([drawn])))[0]
    on_photo = score(Ssim(), tensor([np.ones_like(photos()[0])]), truth(tensor(photos()[:1])))[0]
    assert on_white > 0.93 > 0.6 > on_photo


def test_psnr_equals_skimage() -> None:
    found = score(Psnr(), tensor(degraded()[:3]), truth(tensor(photos()[:3])))
    expected = [
        metrics.peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(photos()[:3], degraded()[:3], strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-4)


def test_psnr_of_equal_frames_is_finite() -> None:
    frames = tensor(photos())
    assert score(Psnr(), frames, truth(frames)) == pytest.approx([100.0] * 4)


def test_edge_f1_forgives_a_pixel_and_not_another_image() -> None:
    frames = tensor(photos())
    shifted = torch.roll(frames, 1, dims=3)
    exact, near, far = (score(EdgeF1(), f, truth(frames)) for f in (frames, shifted, frames.roll(1, 0)))
    assert exact == [1.0] * 4
    assert min(near) >= 0.95
    assert max(far) < 0.45
    # Without tolerance one pixel costs more than half: what the tolerance is for.
    edges, moved = edge_maps(frames)[0], edge_maps(shifted)[0]
    assert (edges & moved).sum() / edges.sum() < 0.5


def test_edge_f1_ignores_contrast_and_falls_with_blur() -> None:
    frames = tensor(photos())
    assert min(score(EdgeF1(), 0.25 + 0.5 * frames, truth(frames))) > 0.97
    blurred = [tensor([ndimage.gaussian_filter(p, (s, s, 0)) for p in photos()]) for s in (1, 2, 4)]
    means = [np.mean(score(EdgeF1(), b, truth(frames))) for b in blurred]
    assert 1 > means[0] > means[1] > means[2]


def test_edge_f1_crossed_equals_scoring_twice() -> None:
    metric, given, order = EdgeF1(), tensor(degraded()), torch.tensor([2, 0, 3, 1])
    prepared = metric.prepare(truth(tensor(photos())))
    straight, crossed = metric.crossed(given, prepared, order)
    assert torch.equal(straight, metric.score(given, prepared))
    assert torch.equal(crossed, metric.score(given[order], prepared))
    assert not torch.equal(crossed, straight)


def test_edge_f1_of_an_all_ones_map_is_below_the_threshold() -> None:
    """The floor of a predictor that could answer with edges everywhere."""
    maps = edge_maps(tensor(photos()))
    floor = [boundary_f1(*[np.ones_like(edges)] * 2, edges, dilate(edges)) for edges in maps]
    assert all(0 < f < 0.6 for f in floor), floor


def test_edge_f1_of_empty_maps() -> None:
    levels = torch.arange(256).view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / 255
    residue = levels + 1e-6 * torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))
    assert not any(edges.any() for edges in edge_maps(residue))
    blank = torch.full((1, 3, 64, 64), 0.3)
    assert score(EdgeF1(), blank, truth(blank)) == [1.0]
    photo = tensor(photos()[:1])[..., :64, :64]
    assert score(EdgeF1(), blank, truth(photo)) == [0.0]
    assert score(EdgeF1(), photo, truth(blank)) == [0.0]


def test_edge_tolerance_is_a_disk_of_at_least_two_pixels() -> None:
    point = np.zeros((41, 41), dtype=bool)
    point[20, 20] = True
    assert dilate(point).sum() == 13  # lattice points within distance 2
    large = np.zeros((480, 480), dtype=bool)  # .0075 of this diagonal is 5.09
    large[240, 240] = True
    grown = dilate(large)
    assert grown[240, 245]
    assert not grown[240, 246]
    assert not grown[244, 244]


@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (224, 224), (448, 448), (600, 1000)])
@pytest.mark.parametrize("share", [0.002, 0.2])
def test_edges_are_spread_as_by_a_dilation_with_that_disk(shape: tuple[int, int], share: float) -> None:
    edges = np.random.default_rng(0).random(shape) < share
    edges[0, 0] = edges[-1, -1] = True  # a frame's border cuts the disk
    reach = max(2, round(0.0075 * float(np.hypot(*shape))))
    squares = np.arange(-reach, reach + 1) ** 2
    disk = squares + squares[:, None] <= reach**2
    assert np.array_equal(dilate(edges), ndimage.binary_dilation(edges, disk))


def objects() -> FrameTruth:
    """Two frames of a grey plate: a strong and a faint square; a strong one alone."""
    plates = torch.full((2, 3, 40, 40), 0.5)
    labels = torch.zeros(2, 40, 40, dtype=torch.uint8)
    labels[:, 4:14, 4:14] = 1
    labels[0, 20:30, 20:30] = 2
    frames = plates.clone()
    frames[:, 0][labels == 1] = 1.0  # contrast .5
    frames[:, 1][labels == 2] = 0.6  # contrast .1
    return FrameTruth(frames, plates, labels)


def test_spatial_iou_of_truth_and_plate() -> None:
    scene = objects()
    assert score(SpatialIoU(), scene.frames, scene) == [1.0, 1.0]
    assert score(SpatialIoU(), scene.plates, scene) == [0.0, 0.0]


def test_spatial_iou_level_is_half_the_contrast_of_the_object_there() -> None:
    scene = objects()
    just_over, just_under = (scene.plates + share * (scene.frames - scene.plates) for share in (0.52, 0.48))
    assert score(SpatialIoU(), just_over, scene) == [1.0, 1.0]
    assert score(SpatialIoU(), just_under, scene) == [0.0, 0.0]
    # At the faint object's level the strong one is still missing: 100 of 200 pixels.
    faint = scene.plates.clone()
    faint[:, 1][scene.labels > 0] = 0.6
    assert score(SpatialIoU(), faint, scene) == [0.5, 0.0]


def test_spatial_iou_counts_ghosts_at_the_smallest_contrast() -> None:
    scene = objects()
    ghost = scene.frames.clone()
    ghost[:, 2, 30:40, 0:10] = 0.6  # 100 pixels at .1: over half of .1, under half of .5
    assert score(SpatialIoU(), ghost, scene) == pytest.approx([200 / 300, 1.0])


def test_spatial_iou_of_a_shift() -> None:
    scene = objects()
    moved = scene.frames.roll(5, dims=3)
    assert score(SpatialIoU(), moved, scene)[1] == pytest.approx(50 / 150)


def test_spatial_iou_without_objects() -> None:
    plates = torch.full((2, 3, 16, 16), 0.5)
    seen = plates.clone()
    seen[1, :, 3:6, 3:6] = 0.8
    assert score(SpatialIoU(), seen, truth(plates)) == [1.0, 0.0]
