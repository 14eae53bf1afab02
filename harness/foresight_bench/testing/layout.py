"""The layout check: does token (t, r, c) describe the image region at (t, r, c)?

A scrambled token order raises no error and destroys every spatial score. The check changes one small region
of one frame and asks which token changes most: it must be the token whose cell covers the region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder
from foresight_bench.errors import ContractError
from foresight_bench.grids import Grid

Indices = NDArray[np.int64]

AGREEMENT = 0.8
"""Share of the probes that must fit an explanation before a diagnosis names it."""

CROPPED = "the grid shows a part of the frame, as if it had been cropped"


@dataclass(frozen=True)
class LayoutFinding:
    """What the check found at one tap."""

    tap: str
    passed: bool
    misplaced: float
    """Share of the probes, in [0, 1], whose most changed token was not the one that covers the change."""
    diagnosis: str
    """What the tokens look like instead; empty if the tap passed."""


@dataclass(frozen=True)
class _Probe:
    """One changed region, in one frame of one clip of one pass."""

    pass_: int
    clip: int
    frame: int
    y: tuple[int, int]
    """Rows, half open."""
    x: tuple[int, int]

    def cell(self, h: int, w: int, size: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the cell that covers the region's centre on an ``h`` x ``w`` grid."""
        return sum(self.y) * h // (2 * size[0]), sum(self.x) * w // (2 * size[1])


@dataclass(frozen=True)
class _Hits:
    """Where one tap's most changed tokens stood, probe by probe."""

    shape: tuple[int, int, int]
    """T', H', W' of the grid."""
    expected: Indices
    """[P, 3] time, row and column of the token that covers the change."""
    found: Indices
    """[P, 3] the same of the token that changed most; -1 if none changed."""
    passes: Indices
    """[P] which encoding a probe belongs to; its probes are in different clips."""


def check_layout(
    encoder: Encoder,
    taps: Sequence[str],
    *,
    size: tuple[int, int] = (168, 224),
    frames: int = 1,
    batch: int = 2,
    probes: int = 24,
    tolerance: float = 0.0,
    seed: int = 0,
) -> list[LayoutFinding]:
    """Return one finding per tap: whether the token that changes most is the one that covers the change.

    The clips are uniform noise, and a region is changed by drawing it anew, one per clip at once and always
    in different places, so a token in the wrong clip or frame is found out as well. The four corners
    come first, then cells in random order. On such clips the right token leads clearly even deep in a
    trained model with global attention (DINOv2 ViT-S/14 at 224 pixels: six times the squared change of
    any other, at every tap), so every probe counts.

    Args:
        encoder: the encoder; it is called on ``batch`` clips at a time.
        taps: the taps to check; an encoder's taps without locality have no place here.
        size: height and width of the frames; unequal ones tell a transposed grid apart soonest.
        frames: frames per clip; more than one checks the order in time too.
        batch: clips per call; fewer than two cannot show clips that are mixed up.
        probes: changes made in all, rounded up to a multiple of ``batch``.
        tolerance: share of misplaced probes that passes, for encoders whose last layers smear (a
            convolution after the last block). A scramble misplaces nearly all: stay below 0.3.
        seed: of the clips and the places.

    Raises:
        ContractError: a tap is missing, or its grid has another number of clips than were given.
        NonFinite: a grid holds NaN or infinite values.
    """
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (batch, frames, *size, 3), dtype=np.uint8)
    before = _encode(encoder, base, taps)
    shapes = {tap: grid.shape[1:4] for tap, grid in before.items()}
    plan = _plan(rng, list(shapes.values()), size, frames, batch, probes)
    found: dict[str, list[tuple[int, int, int]]] = {tap: [] for tap in taps}
    for pass_ in range(len(plan) // batch):
        changed = base.copy()
        for probe in plan[pass_ * batch : (pass_ + 1) * batch]:
            region = changed[probe.clip, probe.frame, slice(*probe.y), slice(*probe.x)]
            region[...] = rng.integers(0, 256, region.shape, dtype=np.uint8)
        after = _encode(encoder, changed, taps)
        for tap in taps:
            found[tap] += _most_changed(before[tap], after[tap])
    passes = np.array([probe.pass_ for probe in plan])
    findings = []
    for tap, (t, h, w) in shapes.items():
        expected = [(probe.frame * t // frames, *probe.cell(h, w, size)) for probe in plan]
        hits = _Hits((t, h, w), np.array(expected), np.array(found[tap]), passes)
        misplaced = float((hits.expected != hits.found).any(1).mean())
        passed = misplaced <= tolerance
        findings.append(LayoutFinding(tap, passed, misplaced, "" if passed else _diagnose(hits, size)))
    return findings


def _encode(encoder: Encoder, frames: NDArray[np.uint8], taps: Sequence[str]) -> Mapping[str, Grid]:
    grids = encoder.encode(ClipBatch(frames, tuple(f"layout-{n}" for n in range(len(frames)))), taps)
    for tap in taps:
        if tap not in grids:
            raise ContractError(f"The encoder returned no grid for tap '{tap}'.")
        if grids[tap].shape[0] != len(frames):
            raise ContractError(
                f"Tap '{tap}' holds {grids[tap].shape[0]} clips; {len(frames)} were given.",
                "A grid is [N, T', H', W', C], N being the number of clips.",
            )
        grids[tap].check_finite(f"Tap '{tap}'")
    return {tap: grids[tap] for tap in taps}


def _plan(
    rng: np.random.Generator,
    shapes: Sequence[tuple[int, int, int]],
    size: tuple[int, int],
    frames: int,
    batch: int,
    probes: int,
) -> list[_Probe]:
    """Return the probes, pass by pass; a region is one cell of the finest grid."""
    rows = _bands(size[0], [h for _, h, _ in shapes])
    columns = _bands(size[1], [w for _, _, w in shapes])
    corners = list(dict.fromkeys(product((rows[0], rows[-1]), (columns[0], columns[-1]))))
    others = [place for place in product(rows, columns) if place not in corners]
    places = corners + [others[index] for index in rng.permutation(len(others))]
    plan = []
    for number in range(-(-probes // batch) * batch):
        y, x = places[number % len(places)]
        plan.append(_Probe(number // batch, number % batch, int(rng.integers(frames)), y, x))
    return plan


def _bands(length: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the cells of the finest division of ``length`` pixels that lie in one cell of each division."""
    finest = max(counts)
    edges = [-(-index * length // finest) for index in range(finest + 1)]
    return [(a, b) for a, b in pairwise(edges) if all(a * n // length == (b - 1) * n // length for n in counts)]


def _most_changed(before: Grid, after: Grid) -> list[tuple[int, int, int]]:
    """Return time, row and column of the most changed token of each clip, -1 where nothing changed."""
    if before.shape != after.shape:
        raise ContractError(f"A grid changed its shape from {before.shape} to {after.shape}, content apart.")
    change = (after.values.float() - before.values.float()).square().sum(-1).cpu().numpy()
    places = []
    for clip in change:
        t, r, c = np.unravel_index(int(clip.argmax()), clip.shape)
        places.append((int(t), int(r), int(c)) if clip.max() > 0 else (-1, -1, -1))
    return places


def _diagnose(hits: _Hits, size: tuple[int, int]) -> str:
    """Return the first explanation that most probes fit."""
    _, h, w = hits.shape
    if _share(hits.found[:, 0] < 0) >= AGREEMENT:
        return "the tap does not depend on the image"
    if (h - w) * (size[0] - size[1]) < 0:
        return f"the grid is transposed: {h} x {w} cells for {size[0]} x {size[1]} pixels"
    if _stretched(hits) == CROPPED:  # where changes beyond the edge show up nowhere
        return CROPPED
    if _share(_elsewhere(hits)) >= 0.5:
        return "a change in one clip shows up in another"
    expected, found = hits.expected[:, 1] * w + hits.expected[:, 2], hits.found[:, 1] * w + hits.found[:, 2]
    if _share(expected == found) >= AGREEMENT:
        late = _share(hits.expected[:, 0] != hits.found[:, 0])
        if late > 1 - AGREEMENT:
            return f"the place is right, the frame is wrong in {late:.0%} of the probes"
        return "single tokens are misplaced"
    for text, order in _orders(h, w):
        if _share(order[expected] == found) >= AGREEMENT:
            return text
    unknown = "the tokens are in no order that this check knows"
    return _offset(expected, found, h, w) or _stretched(hits) or unknown


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean())


def _elsewhere(hits: _Hits) -> NDArray[np.bool_]:
    """Return, per probe, whether its clip showed nothing, or the change of another clip of its pass."""
    places, found = hits.expected[:, 1:], hits.found[:, 1:]
    elsewhere = []
    for number, place in enumerate(found):
        together = places[hits.passes == hits.passes[number]]
        mine = (place == places[number]).all()
        elsewhere.append(bool(place[0] < 0 or (not mine and (together == place).all(1).any())))
    return np.array(elsewhere)


def _orders(h: int, w: int) -> Iterator[tuple[str, Indices]]:
    """Yield known mistakes; ``order[cell]`` is where the token of that cell stands, both in raster order."""
    cells = np.arange(h * w)
    r, c = np.divmod(cells, w)
    yield "the grid is transposed: its tokens run down the columns", c * h + r
    yield "the grid is upside down", (h - 1 - r) * w + c
    yield "the grid is mirrored left to right", r * w + (w - 1 - c)
    yield "the grid is turned by half a turn", cells[::-1].copy()
    for a in range(2, max(h, w)):
        windows = (r // a, c // a, r % a, c % a)
        yield f"tokens stand in windows of {a} x {a}", np.argsort(np.lexsort(windows[::-1]))
        for group in (2, 4):
            if a % group == 0 and a > group:
                nested = (r // a, c // a, r % a // group, c % a // group, r % group, c % group)
                text = f"tokens stand in windows of {a} x {a}, grouped {group} x {group}"
                yield text, np.argsort(np.lexsort(nested[::-1]))


def _offset(expected: Indices, found: Indices, h: int, w: int) -> str:
    """Return what a constant displacement says: rolled over rows and columns, or shifted in raster order."""
    down, right = (found // w - expected // w) % h, (found % w - expected % w) % w
    rolls, counts = np.unique(np.stack([down, right], 1), axis=0, return_counts=True)
    shifts, along = np.unique(found - expected, return_counts=True)
    roll, shift = rolls[counts.argmax()], int(shifts[along.argmax()])
    rolled, shifted = counts.max() / len(found), along.max() / len(found)
    # A shift along a row differs from a roll only at the row's end, so the better fit decides between them.
    if shifted > rolled and shifted >= AGREEMENT and shift > 0:
        return f"tokens stand {shift} late in raster order, as if {shift} prefix tokens had been left in"
    if rolled >= AGREEMENT:
        rows, columns = ((int(step) + n // 2) % n - n // 2 for step, n in zip(roll, (h, w), strict=True))
        return f"the grid is rolled by {rows} rows and {columns} columns"
    if shifted >= AGREEMENT:
        return f"tokens are shifted by {shift} in raster order"
    return ""


def _stretched(hits: _Hits) -> str:
    """Return what a straight line through places expected and found says, where most are near it."""
    there = hits.found[:, 0] >= 0
    slopes = []
    for axis, cells in ((1, hits.shape[1]), (2, hits.shape[2])):
        expected, found = hits.expected[there, axis], hits.found[there, axis]
        if len(expected) < 4 or len(np.unique(expected)) < 2:
            return ""
        slope, start = np.polyfit(expected, found, 1)
        # A tenth of the side: a scramble is off by a third of it.
        if _share(np.abs(slope * expected + start - found) <= max(1, cells / 10)) < AGREEMENT:
            return ""
        slopes.append(float(slope))
    if max(slopes) > 1.15:
        return CROPPED
    if min(slopes) < 0.87:
        return "the grid shows more than the frame, as if it had been padded"
    return "tokens are near their places, not in them, as if the grid had been resampled"
