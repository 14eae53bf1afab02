"""C1 as the study ran it: pictures scored on its own training images, and a box head tested on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.registry import Registry
from foresight_bench.studies import Chapter, Figure, Section, Trap
from foresight_bench.tables import number
from foresight_gates.study.drawings import SEED, Placed, fingerprints, known, positioned_shapes, single_shapes
from foresight_gates.study.scoring import FrameScorer, outcome, paired_iou, seeded, trained

HONEST = SEED + 1
"""Seed of a test split that is not the beginning of the training split."""
_VLM = 3584
"""Width of the study's features."""


def pictures(registry: Registry) -> Chapter:
    """Score pictures that no model made, as the study scored reconstructions (c1/e1_5.py)."""
    test, train = single_shapes(40).pictures, single_shapes(150).pictures
    shared = known(fingerprints(test), fingerprints(train))
    mean = np.broadcast_to(train.mean(0), test.shape)
    made: dict[str, NDArray[np.float64]] = {
        "the picture itself": test.astype(np.float64),
        "a blank white page": np.full(test.shape, 255.0),
        "the mean training image": mean,
        "another test image": np.roll(test, 1, axis=0).astype(np.float64),
        "the picture in the wrong colours": np.roll(test, 1, axis=3).astype(np.float64),
    }
    lpips, ssim = (
        FrameScorer(registry, name).means(test, [each.__getitem__ for each in made.values()])
        for name in ("lpips", "ssim")
    )
    grey = [grey_ssim(each, test) for each in made.values()]
    rows = tuple(zip(made, lpips, grey, ssim, strict=True))
    _, white, _, _, wrong = rows
    figures = (
        Figure(
            experiment="C1",
            metric="lpips",
            title="LPIPS",
            reported=0.264,
            perfect=lpips[0],
            blank=white[1],
            trap=Trap(shown=wrong[0], value=wrong[1], must="fail"),
        ),
        Figure(
            experiment="C1",
            metric="ssim",
            title="SSIM",
            reported=0.943,
            perfect=grey[0],
            blank=white[2],
            trap=Trap(shown=wrong[0], value=wrong[2], must="fail"),
        ),
    )
    section = Section(
        title="Pictures that are mostly white",
        protocol=(
            "C1 decoded features into pictures of one plain shape on a white canvas, through the image autoencoder "
            "of Stable Diffusion, not LTX-Video's. Its SSIM was taken of the mean of the three channels, so it "
            f"cannot see colour. {shared} of its {len(test)} test images are training images. Here the scorer is run "
            "without any model, on pictures whose worth is known: perfect features would give back the picture "
            "itself; blank ones stand as a blank page, and a head trained on them gives the mean training image."
        ),
        headers=("what is scored", "LPIPS", "SSIM, the study's", "SSIM of RGB, this suite's"),
        rows=rows,
        meaning=(
            f"A blank page scores SSIM {outcome('C1', 'ssim', white[2])}, where .943 was reported, and LPIPS "
            f"{outcome('C1', 'lpips', white[1])}, where .264 was reported. In the wrong colours the picture scores "
            f"SSIM {outcome('C1', 'ssim', wrong[2])}, and LPIPS {outcome('C1', 'lpips', wrong[1])}."
        ),
        instead=(
            "Textured scenes, SSIM of RGB, and beside every figure what blank features and the mean colour score; "
            "the decoder's own round trip is the ceiling. Spatial IoU is that of pixels, judged against the clean "
            "background."
        ),
    )
    return Chapter(figures, (section,))


def grey_ssim(made: NDArray[np.float64], truth: NDArray[np.uint8]) -> float:
    """Return the study's SSIM of pictures [N, H, W, 3] of 0 to 255: of the channels' mean, to the border."""
    scores = []
    for a, b in zip(made, truth, strict=True):
        x, y = (each.astype(np.float32).mean(-1) / 255 for each in (a, b))
        mean_x, mean_y, xx, yy, xy = (gaussian_filter(each, 1.5) for each in (x, y, x * x, y * y, x * y))
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        spread = (xx - mean_x**2) + (yy - mean_y**2) + 0.03**2
        scores.append((luminance * (2 * (xy - mean_x * mean_y) + 0.03**2) / spread).mean())
    return float(np.mean(scores))


@dataclass(frozen=True)
class _Split:
    features: Tensor
    boxes: Tensor
    """[N, 4] centre x, centre y, width, height."""


def boxes(registry: Registry) -> Chapter:
    """Train the study's box head on control features, and test it as the study did and on new images (c1/e1_4.py)."""
    train, test, new = positioned_shapes(200), positioned_shapes(50), positioned_shapes(50, HONEST)
    marks = [fingerprints(each.pictures) for each in (train, test, new)]
    overlap, honest = known(marks[1], marks[0]), known(marks[2], marks[0])
    rows: list[tuple[str, float, float]] = []
    for name, features in (("all there is to know", perfect), ("nothing", blank), ("noise, fixed by the image", noise)):
        splits = [_Split(features(each), torch.from_numpy(each.boxes)) for each in (train, test, new)]
        rows.append((name, *_head_iou(*splits)))
    constant = _corners(torch.from_numpy(train.boxes).mean(0))
    leaked, fresh = (_iou(constant, torch.from_numpy(each.boxes)) for each in (test, new))
    rows.append(("no head: the mean training box", leaked, fresh))
    full, empty, random, _ = rows
    figure = Figure(
        experiment="C1",
        metric="spatial_iou",
        title="spatial IoU",
        reported=0.559,
        perfect=full[1],
        blank=empty[1],
        trap=Trap(shown="noise, one vector an image,", value=random[1], must="fail"),
    )
    section = Section(
        title="Test images that are training images",
        protocol=(
            "Training and test images were drawn by one function that seeds its generator with 42 at each call, so "
            f"the test images are the first training images: {overlap} of {len(test.boxes)} are the same pixels, by "
            "SHA-256. Every gated figure of C1 was computed on such images. The head is the study's, at its own "
            "budget: an MLP of 512 and 512 units on one vector an image, smooth L1, 100 epochs of Adam. A test split "
            f"drawn from seed {HONEST} shares {honest}."
        ),
        headers=("features", "IoU, the study's split", "IoU, new images"),
        rows=tuple(rows),
        meaning=(
            f"Random numbers, the same for the same image, score {outcome('C1', 'spatial_iou', random[1])}, on the "
            f"study's split, and {number(random[2])} on new images, where the mean box scores {number(rows[3][2])}."
        ),
        instead=(
            "Every split has a random stream of its own, and a run stops if two splits share a frame, by content "
            "hash. Heads, taps and penalties never see the frames that are scored."
        ),
    )
    return Chapter((figure,), (section,))


def perfect(drawn: Placed) -> Tensor:
    """Return [N, 13] shape and colour, one-hot, and the box."""
    shapes, colours = torch.from_numpy(drawn.shapes), torch.from_numpy(drawn.colours)
    return torch.cat([F.one_hot(shapes, 3), F.one_hot(colours, 6), torch.from_numpy(drawn.boxes)], 1).float()


def blank(drawn: Placed) -> Tensor:
    """Return [N, 1] ones."""
    return torch.ones(len(drawn.boxes), 1)


def noise(drawn: Placed) -> Tensor:
    """Return [N, 3584] normal numbers, drawn from the digest of the image: equal images have equal ones."""
    seeds = (int(mark[:16], 16) for mark in fingerprints(drawn.pictures))
    return torch.from_numpy(np.stack([np.random.default_rng(seed).normal(size=_VLM) for seed in seeds])).float()


def _head_iou(train: _Split, leaked: _Split, fresh: _Split) -> tuple[float, float]:
    with seeded():
        head = nn.Sequential(
            *(nn.Linear(train.features.shape[1], 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()),
            *(nn.Linear(512, 4), nn.Sigmoid()),
        )

        def loss(part: slice) -> Tensor:
            return F.smooth_l1_loss(head(train.features[part]), train.boxes[part])

        trained(head, loss, len(train.boxes), batch=32, epochs=100, rate=1e-3)
    with torch.no_grad():
        found, other = (_iou(_corners(head(test.features)), test.boxes) for test in (leaked, fresh))
    return found, other


def _iou(predicted: Tensor, boxes: Tensor) -> float:
    return float(paired_iou(predicted, _corners(boxes)).mean())


def _corners(boxes: Tensor) -> Tensor:
    centre, extent = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - extent / 2, centre + extent / 2], -1)
