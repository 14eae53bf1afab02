"""Does token (t, r, c) describe the image region at (t, r, c)? Change a region, and see which token changes most.

A scrambled token order raises no error and destroys every spatial score. What is measured here is judged in
:mod:`foresight_bench.scrambles`. The conformance kit asks at length; before a feature pass, :func:`refuse_scrambled`
asks with as few images as can prove a scramble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.errors import ContractError
from foresight_bench.scrambles import Hits, proven

PROBES = 15
"""Changes before a feature pass: with the unchanged clip, 16 frames, 2 % of those in `quick`."""

Shape = tuple[int, int, int]
"""T', H', W' of a grid."""
Values = Mapping[str, Tensor]
"""[N, T', H', W', C] by tap."""


@dataclass(frozen=True)
class Probe:
    """One changed region, in one frame of one clip of one pass."""

    pass_: int
    clip: int
    frame: int
    y: tuple[int, int]
    """Rows, half open."""
    x: tuple[int, int]

    def cell(self, shape: Shape, frames: int, size: tuple[int, int]) -> Shape:
        """Return time, row and column of the cell that covers the region's centre."""
        t, h, w = shape
        return self.frame * t // frames, sum(self.y) * h // (2 * size[0]), sum(self.x) * w // (2 * size[1])

    def change(self, clips: NDArray[np.uint8], rng: np.random.Generator) -> None:
        """Draw the region of ``clips`` [N, T, H, W, 3] anew."""
        region = clips[self.clip, self.frame, slice(*self.y), slice(*self.x)]
        region[...] = rng.integers(0, 256, region.shape, dtype=np.uint8)


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return uniform noise: on it, the right token leads clearly even deep in a trained model with global attention.

    DINOv2 ViT-S/14 at 224 pixels: six times the squared change of any other, at every tap.
    """
    return rng.integers(0, 256, shape, dtype=np.uint8)


def planned(
    rng: np.random.Generator, shapes: Sequence[Shape], size: tuple[int, int], frames: int, batch: int, probes: int
) -> list[Probe]:
    """Return the probes, pass by pass; a region is one cell of the finest grid.

    The four corners come first, then cells in random order.

    Args:
        rng: draws places and frames.
        shapes: of the grids of all taps.
        size: height and width of the frames.
        frames: of a clip.
        batch: clips of a pass; each takes one probe, so that clips that are mixed up show too.
        probes: in all, rounded up to a multiple of ``batch``.
    """
    rows = _bands(size[0], [h for _, h, _ in shapes])
    columns = _bands(size[1], [w for _, _, w in shapes])
    corners = list(dict.fromkeys(product((rows[0], rows[-1]), (columns[0], columns[-1]))))
    others = [place for place in product(rows, columns) if place not in corners]
    places = corners + [others[index] for index in rng.permutation(len(others))]
    plan = []
    for number in range(-(-probes // batch) * batch):
        y, x = places[number % len(places)]
        plan.append(Probe(number // batch, number % batch, int(rng.integers(frames)), y, x))
    return plan


def _bands(length: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the cells of the finest division of ``length`` pixels that lie in one cell of each division."""
    finest = max(counts)
    edges = [-(-index * length // finest) for index in range(finest + 1)]
    return [(a, b) for a, b in pairwise(edges) if all(a * n // length == (b - 1) * n // length for n in counts)]


def most_changed(before: Tensor, after: Tensor) -> list[Shape]:
    """Return time, row and column of the most changed token of each clip, -1 where nothing changed.

    Args:
        before: [N, T', H', W', C], or [1, T', H', W', C] for all clips of ``after``.
        after: [N, T', H', W', C].

    Raises:
        ContractError: the shapes differ.
    """
    if before.shape[1:] != after.shape[1:]:
        was, now = tuple(before.shape), tuple(after.shape)
        raise ContractError(f"A grid changed its shape from {was} to {now}, content apart.")
    change = (after.float() - before.float()).square().sum(-1).cpu().numpy()
    places = []
    for clip in change:
        t, r, c = np.unravel_index(int(clip.argmax()), clip.shape)
        places.append((int(t), int(r), int(c)) if clip.max() > 0 else (-1, -1, -1))
    return places


def hits(plan: Sequence[Probe], found: Sequence[Shape], shape: Shape, frames: int, size: tuple[int, int]) -> Hits:
    """Return what one tap of grids of ``shape`` makes of ``plan``, its most changed tokens being ``found``."""
    expected = np.array([probe.cell(shape, frames, size) for probe in plan])
    return Hits(shape, expected, np.array(found), np.array([probe.pass_ for probe in plan]))


def refuse_scrambled(encode: Callable[[ClipBatch], Iterator[tuple[slice, Values]]], like: ClipBatch) -> None:
    """Raise unless no tap's tokens are proven to stand in another order than that of the regions they describe.

    One clip of noise goes through the encoder, and then :data:`PROBES` copies in each of which one region was changed.
    No generator of anybody else's is touched, and nothing is kept.

    Args:
        encode: yields consecutive parts of a batch, with the values of each (and of copies behind them).
        like: a clip of the suite, [1, T, H, W, 3], whose size, id and truth are those of all clips of noise.

    Raises:
        ContractError: a tap's tokens are scrambled, and how; or whatever ``encode`` raises.
    """
    rng = np.random.default_rng(0)
    _, frames, height, width = like.shape
    base = noise(rng, like.frames.shape)
    before = {tap: each[:1] for _, values in encode(replace(like, frames=base)) for tap, each in values.items()}
    shapes: dict[str, Shape] = {tap: (each.shape[1], each.shape[2], each.shape[3]) for tap, each in before.items()}
    plan = planned(rng, list(shapes.values()), (height, width), frames, PROBES, PROBES)
    changed = base.repeat(PROBES, 0)
    for probe in plan:
        probe.change(changed, rng)
    found: dict[str, list[Shape]] = {tap: [] for tap in shapes}
    for part, values in encode(replace(like[[0] * PROBES], frames=changed)):
        for tap, places in found.items():
            places += most_changed(before[tap], values[tap][: part.stop - part.start])
    for tap, shape in shapes.items():
        seen = hits(plan, found[tap], shape, frames, (height, width))
        if scramble := proven(seen):
            raise ContractError(
                f"Tap '{tap}': {scramble}; {seen.misplaced:.0%} of {PROBES} changes of one patch show up in the wrong "
                "token.",
                "`foresight-bench check` of this encoder says what is usually the cause.",
            )
