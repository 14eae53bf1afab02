"""Reconstructions beside their originals, in one picture: the best clips, the worst, and what lies between them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foresight_bench.clips import ClipBatch
from foresight_bench.tables import number

if TYPE_CHECKING:
    from torch import Tensor

GAIN = 4
"""What a difference is multiplied with: a twentieth of the range, hardly seen by itself, is then a fifth of it."""
SINGLES, CLIPS, FRAMES = 5, 3, 3
"""Clips shown of single frames; of more frames; and frames shown of each of those."""
PIXELS = 680_000
"""Of all tiles together. Scenes take 1.5 bytes a pixel as PNG, beside reconstructions of pure noise 2.1: the file stays
below 1.5 MB."""
WIDTH = 1500
"""Most pixels across."""

LABELS = 110
"""Pixels left of the tiles, for the names of the rows."""
GAP, LINE = 4, 18
"""Pixels between tiles, and of a line of text."""
INK, PAPER = (0, 0, 0), (255, 255, 255)
Direction = Literal["higher", "lower", "none"]

_ROWS = ("original", "reconstruction", "difference")


@dataclass(frozen=True)
class Choice:
    """A clip of a block that is shown."""

    clip: int
    frames: tuple[int, ...]
    lines: tuple[str, str]
    """What is written above it: its rank and score, and its name."""


def choose(block: ClipBatch, scores: NDArray[np.float64], direction: Direction) -> list[Choice]:
    """Return up to 5 single frames of ``block``, or 3 frames of up to 3 longer clips, from the best to the worst.

    Args:
        scores: [n] a number for each clip, by which they are ranked.
        direction: which way they are better.
    """
    n, t, _, _ = block.shape
    order = np.argsort(-scores if direction == "higher" else scores, kind="stable")
    frames = tuple(_evenly(t, FRAMES))
    which = "" if t == 1 else f", frames {', '.join(map(str, frames))}"
    found = []
    for rank in _evenly(n, SINGLES if t == 1 else CLIPS):
        i = int(order[rank])
        place = {0: "best", n - 1: "worst"}.get(rank, str(rank + 1))
        found.append(Choice(i, frames, (f"{place} of {n}: {number(float(scores[i]))}{which}", block.ids[i])))
    return found


@dataclass(frozen=True)
class _Shown:
    """One clip: what is written above it, and its tiles from the first frame to the last."""

    lines: tuple[str, str]
    tiles: tuple[tuple[Image.Image, ...], ...]
    """Of each frame: original, reconstruction, difference."""


def strips(
    blocks: Sequence[ClipBatch],
    reconstruction: Tensor,
    scores: NDArray[np.float64],
    *,
    title: str,
    metric: str,
    direction: Direction,
) -> bytes:
    """Return a PNG of less than 1.5 MB with a band for each block: clips from the best on the left to the worst.

    A column holds a frame, below it what was reconstructed, and below that 4 times the absolute difference, a mean of
    red, green and blue, in which black is none. Of longer clips the first frame, the middle one and the last are shown.

    Args:
        blocks: the originals.
        reconstruction: [F, 3, H, W] floating point in [0, 1], the frames of all clips of all blocks in turn.
        scores: [n] a number for each clip of all blocks in turn, by which they are ranked.
        title: first line.
        metric: what the scores are.
        direction: which way they are better.
    """
    bands, clips, frames = [], 0, 0
    for block in blocks:
        n, t, _, _ = block.shape
        mine, found = scores[clips : clips + n], reconstruction[frames : frames + n * t].unflatten(0, (n, t))
        band = [
            _Shown(
                choice.lines, tuple(_tiles(block.frames[choice.clip, f], found[choice.clip, f]) for f in choice.frames)
            )
            for choice in choose(block, mine, direction)
        ]
        bands.append(_drawn(band, PIXELS // len(blocks)))
        clips, frames = clips + n, frames + n * t
    return sheet(
        title, f"Clips by {metric}; difference: {GAIN} x |original - reconstruction|, its mean over RGB", bands
    )


def _evenly(total: int, count: int) -> list[int]:
    """Return up to ``count`` of 0 .. ``total`` - 1, evenly spread, the first and the last among them."""
    return sorted({round(k * (total - 1) / (count - 1)) for k in range(count)})


def _tiles(original: NDArray[np.uint8], reconstruction: Tensor) -> tuple[Image.Image, ...]:
    """Return the three tiles of a frame: [H, W, 3] beside [3, H, W] in [0, 1]."""
    made = (reconstruction.permute(1, 2, 0).float().cpu().numpy() * 255).clip(0, 255).round()
    difference = np.abs(made - original).mean(-1)
    grey = (GAIN * difference).clip(0, 255).astype(np.uint8)
    return Image.fromarray(original), Image.fromarray(made.astype(np.uint8)), Image.fromarray(grey)


def _drawn(band: Sequence[_Shown], pixels: int) -> Image.Image:
    """Return the clips of a band side by side, in tiles of ``pixels`` in all, or of their own size if that is less."""
    columns = sum(len(clip.tiles) for clip in band)
    width, height = band[0].tiles[0][0].size
    area = pixels // (columns * len(_ROWS))
    between = 2 * GAP * (len(band) - 1)
    across = min(width, isqrt(area * width // height), (WIDTH - LABELS - between) // columns - GAP)
    down = round(across * height / width)
    left, top = LABELS, 2 * LINE
    size = left + columns * (across + GAP) + between, top + len(_ROWS) * (down + GAP) + 2 * GAP
    image = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, name in enumerate(_ROWS):
        pen.text((GAP, top + row * (down + GAP) + down // 2), name, fill=INK, font=font, anchor="lm")
    for clip in band:
        rank, name = clip.lines
        while pen.textlength(name, font) > len(clip.tiles) * (across + GAP):
            name = name[1:]  # its end tells it from others
        pen.text((left, 0), f"{rank}\n{name}", fill=INK, font=font)
        for column in clip.tiles:
            for row, tile in enumerate(column):
                image.paste(tile.resize((across, down), Image.Resampling.LANCZOS), (left, top + row * (down + GAP)))
            left += across + GAP
        left += 2 * GAP
    return image


def sheet(title: str, caption: str, bands: Sequence[Image.Image]) -> bytes:
    """Return the ``bands`` below one another as a PNG."""
    large, small = ImageFont.load_default(14), ImageFont.load_default(12)
    width = max(*(band.width for band in bands), 2 * GAP + int(max(large.getlength(title), small.getlength(caption))))
    top = 3 * LINE
    image = Image.new("RGB", (width, top + sum(band.height for band in bands)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((GAP, 2), title, fill=INK, font=large)
    pen.text((GAP, 2 + LINE), caption, fill=INK, font=small)
    for band in bands:
        image.paste(band, (0, top))
        top += band.height
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
