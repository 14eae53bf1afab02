"""What a wrong order of tokens looks like, judged by where changes of an image show up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

AGREEMENT = 0.8
"""Share of the probes that must fit an explanation before a diagnosis names it."""
LEAST = 8
"""Distinct places that must have been probed before a scramble counts as proven: of 16 cells, where honest features
could hit a wrong place by chance most easily, 7 of 8 hits happen to fit one of fifty orders once in a million grids."""

CROPPED = "the grid shows a part of the frame, as if it had been cropped"


@dataclass(frozen=True)
class Hits:
    """Where one tap's most changed tokens stood, probe by probe."""

    shape: tuple[int, int, int]
    """T', H', W' of the grid."""
    expected: Indices
    """[P, 3] time, row and column of the token that covers the change."""
    found: Indices
    """[P, 3] the same of the token that changed most; -1 if none changed."""
    passes: Indices
    """[P] which encoding a probe belongs to; its probes are in different clips."""

    @property
    def misplaced(self) -> float:
        """Share of the probes, in [0, 1], whose most changed token was not the one that covers the change."""
        return _share((self.expected != self.found).any(1))


def diagnose(hits: Hits, size: tuple[int, int]) -> str:
    """Return the first explanation that most probes fit.

    Args:
        hits: some of which are misplaced.
        size: height and width of the frames.
    """
    _, h, w = hits.shape
    if _share(hits.found[:, 0] < 0) >= AGREEMENT:
        return "the tap does not depend on the image"
    if _channels_first(hits):
        return "channels stand where rows should, as in [N, C, H, W]: permute(0, 2, 3, 1)"
    if (h - w) * (size[0] - size[1]) < 0:
        return f"the grid is transposed: {h} x {w} cells for {size[0]} x {size[1]} pixels"
    if _stretched(hits) == CROPPED:  # where changes beyond the edge show up nowhere
        return CROPPED
    if _share(_elsewhere(hits)) >= 0.5:
        return "a change in one clip shows up in another"
    expected, found = _places(hits)
    if _share(expected == found) >= AGREEMENT:
        late = _share(hits.expected[:, 0] != hits.found[:, 0])
        if late > 1 - AGREEMENT:
            return f"the place is right, the frame is wrong in {late:.0%} of the probes"
        return "single tokens are misplaced"
    for text, order in (*_orders(h, w), *_offsets(expected, found, h, w)):
        if _share(order[expected] == found) >= AGREEMENT:
            return text
    return _stretched(hits) or "the tokens are in no order that this check knows"


def proven(hits: Hits) -> str:
    """Return the scramble that the tokens stand in if no honest features could look like it, else nothing.

    Deep in a model the token that changes most need not be the one that covers the change, above all where weights are
    random: a convolution may move all of it to a neighbour, attention to any token. Neither follows a permutation of
    the whole grid, so only one that most probes fit is proof. A constant displacement is one if it also goes around
    the edge, to the other side of the grid, where no convolution reaches.
    """
    _, h, w = hits.shape
    expected, found = _places(hits)
    if len(np.unique(expected)) < LEAST or _share(expected == found) >= 0.5:
        return ""
    for text, order in _orders(h, w):
        if _share(order[expected] == found) >= AGREEMENT:
            return text
    for text, order in _offsets(expected, found, h, w):
        moved = np.abs(np.stack(np.divmod(order[expected], w)) - np.stack(np.divmod(expected, w)))
        around = (order[expected] >= 0) & (2 * moved >= [[h], [w]]).any(0)
        fits = order[expected] == found
        if _share(fits) >= AGREEMENT and around.any() and _share(fits[around]) >= 0.5:
            return text
    return ""


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean())


def _places(hits: Hits) -> tuple[Indices, Indices]:
    """Return the places in raster order, negative where nothing changed."""
    _, _, w = hits.shape
    return hits.expected[:, 1] * w + hits.expected[:, 2], hits.found[:, 1] * w + hits.found[:, 2]


def _elsewhere(hits: Hits) -> NDArray[np.bool_]:
    """Return, per probe, whether its clip showed nothing, or the change of another clip of its pass."""
    places, found = hits.expected[:, 1:], hits.found[:, 1:]
    elsewhere = []
    for number, place in enumerate(found):
        together = places[hits.passes == hits.passes[number]]
        mine = (place == places[number]).all()
        elsewhere.append(bool(place[0] < 0 or (not mine and (together == place).all(1).any())))
    return np.array(elsewhere)


def _channels_first(hits: Hits) -> bool:
    """Return whether the second axis of the grid follows the rows of the image, and the first one no column."""
    _, h, w = hits.shape
    down = hits.expected[:, 1] * w // h, hits.found[:, 2]
    across = hits.expected[:, 2] * h // w, hits.found[:, 1]
    follows = (_share(abs(want - got) <= max(1, cells // 8)) for (want, got), cells in ((down, w), (across, h)))
    return next(follows) >= AGREEMENT and next(follows) < 0.5


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


def _offsets(expected: Indices, found: Indices, h: int, w: int) -> list[tuple[str, Indices]]:
    """Return the commonest displacements as orders, the better fit first: over rows and columns, and in raster order.

    Where the token of a cell is pushed out of the grid, ``order`` is -2 - h * w, which no probe finds.
    """
    cells = np.arange(h * w)
    down, right = (found // w - expected // w) % h, (found % w - expected % w) % w
    rolls, counts = np.unique(np.stack([down, right], 1), axis=0, return_counts=True)
    shifts, along = np.unique(found - expected, return_counts=True)
    (dr, dc), shift = (int(step) for step in rolls[counts.argmax()]), int(shifts[along.argmax()])
    rows, columns = ((step + n // 2) % n - n // 2 for step, n in zip((dr, dc), (h, w), strict=True))
    roll = (
        f"the grid is rolled by {rows} rows and {columns} columns",
        (cells // w + dr) % h * w + (cells % w + dc) % w,
    )
    late = f"tokens stand {shift} late in raster order, as if {shift} prefix tokens had been left in"
    there = cells + shift
    shifted = (
        late if shift > 0 else f"tokens are shifted by {shift} in raster order",
        np.where((there >= 0) & (there < h * w), there, -2 - h * w),
    )
    # A shift along a row differs from a roll only at the row's end, so the better fit decides between them.
    return [shifted, roll] if along.max() > counts.max() and shift > 0 else [roll, shifted]


def _stretched(hits: Hits) -> str:
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
