"""Q2's pictures as the study scored them: an L1 distance of pixels called LPIPS, and edges without any tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from foresight_bench.registry import Registry
from foresight_bench.studies import Chapter, Figure, Section, Trap
from foresight_bench.tables import number
from foresight_gates.study.drawings import Pictures
from foresight_gates.study.edges import canny, exact_f1
from foresight_gates.study.patterns import TEXTURES, textures
from foresight_gates.study.scoring import FrameScorer, outcome, tensor

SCORED = 15
"""Pictures, three of each texture, that this suite's metrics are computed on; the study's are on all of them."""

Make = Callable[[slice], Pictures]


def made(truth: Pictures, kinds: NDArray[np.int64]) -> dict[str, Make]:
    """Return pictures that no model made, by what they are: functions of which of the N are wanted."""
    means = np.stack([truth[kinds == kind].mean(0) for kind in range(len(TEXTURES))]).round().astype(np.uint8)
    return {
        "the picture itself": lambda part: truth[part],
        "a blank white page": lambda part: np.full_like(truth[part], 255),
        "constant grey": lambda part: np.full_like(truth[part], 128),
        "the mean picture of its texture": lambda part: means[kinds[part]],
        "the picture, moved right by one pixel": lambda part: moved(truth[part]),
    }


def pictures(registry: Registry) -> Chapter:
    """Score pictures that no model made, as the study scored reconstructions (q2/e_q2_5.py)."""
    truth, kinds = textures()
    every = made(truth, kinds)
    lpips, edge_f1 = (
        FrameScorer(registry, name).means(truth[:SCORED], list(every.values())) for name in ("lpips", "edge_f1")
    )
    maps = edge_maps(truth)
    whole = slice(0, len(truth))
    distances = [pixel_l1(make(whole), truth) for make in every.values()]
    exact = [exact_f1(edge_maps(make(whole)), maps) for make in every.values()]
    _, _, grey, by_kind, shifted = range(len(every))
    names = list(every)
    figures = (
        Figure(
            experiment="Q2",
            metric="lpips",
            title="LPIPS",
            reported=0.089,
            perfect=distances[0],
            blank=distances[1],
            trap=Trap(shown=names[grey], value=distances[grey], must="fail"),
        ),
        Figure(
            experiment="Q2",
            metric="edge_f1",
            title="edge F1",
            reported=0.351,
            perfect=exact[0],
            blank=exact[1],
            trap=Trap(shown=f"{names[shifted]},", value=exact[shifted], must="pass"),
        ),
    )
    by_noise = float(maps[kinds == TEXTURES.index("noise")].sum() / maps.sum())
    protocol = (
        f"{len(truth)} pictures of {len(TEXTURES)} textures, decoded from one averaged vector each; most of those "
        "scored were trained on. Here the scorers are run without any model, on pictures whose worth is known."
    )
    return Chapter(
        figures,
        (
            Section(
                title="Pixel L1, called LPIPS",
                protocol=(
                    "What was reported as LPIPS is the mean absolute difference of pixels at full, half and quarter "
                    f"size. No network is in it. {protocol} Real LPIPS is of the first {SCORED}."
                ),
                headers=("what is scored", "the study's LPIPS", "LPIPS, this suite's"),
                rows=tuple(zip(names, distances, lpips, strict=True)),
                meaning=(
                    f"Constant grey scores {outcome('Q2', 'lpips', distances[grey])}, and the mean picture of the "
                    f"texture {number(distances[by_kind])}; real LPIPS gives them {number(lpips[grey])} and "
                    f"{number(lpips[by_kind])}."
                ),
                instead="LPIPS on AlexNet, version 0.1, its weights pinned by digest, on textured scenes.",
            ),
            Section(
                title="Edges to the pixel",
                protocol=(
                    "Canny edges at fixed thresholds, counted only where the truth has one at the same pixel, over "
                    f"all pictures at once. {number(by_noise)} of all edges are in pictures of independent noise. "
                    f"{protocol} This suite's edge F1 is of the first {SCORED}."
                ),
                headers=("what is scored", "the study's edge F1", "edge F1, this suite's"),
                rows=tuple(zip(names, exact, edge_f1, strict=True)),
                meaning=(
                    f"The truth moved by one pixel scores {outcome('Q2', 'edge_f1', exact[shifted])}, and the mean "
                    f"picture of the texture {number(exact[by_kind])}, beside .351 reported; with a tolerance the "
                    f"first scores {number(edge_f1[shifted])}. It gives the mean picture "
                    f"{outcome('Q2', 'edge_f1', edge_f1[by_kind])}, on the study's textures."
                ),
                instead=(
                    "An edge counts within .0075 of the diagonal, at least 2 pixels; the mean is over frames; "
                    "thresholds are quantiles, so that contrast alone changes nothing."
                ),
            ),
        ),
    )


def moved(truth: Pictures) -> Pictures:
    """Return pictures [N, H, W, 3] moved right by one pixel, their first column repeated."""
    return np.concatenate([truth[:, :, :1], truth[:, :, :-1]], axis=2)


def edge_maps(frames: Pictures) -> NDArray[np.bool_]:
    """Return the study's edges of pictures [N, H, W, 3]: [N, H, W]."""
    return np.stack([canny(frame) for frame in frames])


def pixel_l1(frames: NDArray[Any], truth: Pictures) -> float:
    """Return what the study called LPIPS: mean absolute difference at scales 1, 2 and 4 of values in [0, 1]."""
    a, b = tensor(frames), tensor(truth)
    scales = [(F.avg_pool2d(a, scale) - F.avg_pool2d(b, scale)).abs().mean() for scale in (1, 2, 4)]
    return float(sum(scales) / len(scales))
