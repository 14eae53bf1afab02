"""The picture of Q2: boxes that the dense probe found beside the true ones, and what each tap's tokens hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from foresight_bench.bench import Bench
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import FrameBoxes
from foresight_bench.grids import Grid
from foresight_bench.sheets import Column, Seen, box_sheet, component_maps
from foresight_bench.strips import Choice, choose
from foresight_bench.tables import number

MOST_TAPS = 12
"""Taps of which maps are drawn: with all 33 of a large model the picture would be eight times as high as wide."""
CAPTION = (
    "True boxes: solid, white. Found: dashed, orange, with class and confidence. Maps: one row a tap, the first three "
    "principal components of the tokens of these frames as red, green, blue"
)

Found = Callable[[Sequence[ClipBatch], Sequence[Grid]], list[FrameBoxes]]
"""``found(blocks, grids)``: the boxes of every frame of some clips, read from their tokens."""


def picture(bench: Bench, tap: str, scores: NDArray[np.float64], found: Found) -> bytes:
    """Return a PNG of less than 1 MB: clips of `test` from the best by box IoU to the worst.

    Maps are drawn below the first block's clips.

    Args:
        tap: where the boxes are read.
        scores: [n] box IoU of each clip of all blocks in turn.
        found: reads boxes.
    """
    bands, clips, frames = [], 0, 0
    truth = bench.shared.boxes("test")
    for index, block in enumerate(bench.shared.split("test").blocks):
        n, t, _, _ = block.shape
        choices = choose(block, scores[clips : clips + n], "higher")
        some = [choice.clip for choice in choices]
        boxes = found([block[some]], [Grid(bench.tokens(tap, "test")[index].values[some])])
        maps = [_maps(bench, name, choices, t) for name in shown_taps(bench.features.taps, tap)] if not index else []
        band = []
        for k, choice in enumerate(choices):
            seen = [
                Seen(block.frames[choice.clip, f], truth[frames + choice.clip * t + f], boxes[k * t + f])
                for f in choice.frames
            ]
            first = k * len(choice.frames)
            mine = tuple(tuple(rows[first + j] for rows in maps) for j in range(len(seen))) if maps else ()
            band.append(Column(choice.lines, tuple(seen), mine))
        bands.append(band)
        clips, frames = clips + n, frames + n * t
    title = f"{bench.encoder_name} at {tap}, clips by box IoU: {number(float(scores.mean()))}"
    return box_sheet(title, CAPTION, bands, shown_taps(bench.features.taps, tap), bench.data.class_names)


def shown_taps(taps: Sequence[str], gating: str) -> list[str]:
    """Return up to 12 of ``taps`` evenly spread, the first, the last and ``gating`` among them, in order of depth."""
    last = len(taps) - 1
    spread = {round(k * last / (MOST_TAPS - 2)) for k in range(MOST_TAPS - 1)} if last >= MOST_TAPS else range(last + 1)
    return [tap for index, tap in enumerate(taps) if index in spread or tap == gating]


def _maps(bench: Bench, tap: str, choices: Sequence[Choice], t: int) -> list[NDArray[np.uint8]]:
    """Return the maps of the first block's frames that are shown, clip by clip."""
    values = bench.tokens(tap, "test")[0].values
    cells = values.shape[1]
    return component_maps([values[choice.clip, f * cells // t] for choice in choices for f in choice.frames])
