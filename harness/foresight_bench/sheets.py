"""What a probe found and what the features hold, in one picture: boxes on frames, and below them maps of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from foresight_bench.contracts import FrameBoxes
from foresight_bench.strips import GAP, INK, LABELS, LINE, PAPER, WIDTH, sheet

TILE = 224
"""Most pixels of a tile's width: those of a frame of `quick`, whose smallest object is then 20 pixels wide."""
FITTED = 512
"""Tokens at most that components are fitted on: to take apart a matrix of 512 x 512 takes .1 s on a core, of all 1,280
tokens of five frames 1.8 s, of the 3,584 channels of a language model 44 s."""
TRUE, FOUND = (255, 255, 255), (230, 159, 0)
"""White, and an orange that all can tell from it; the line itself, solid or dashed, says the same in print."""

_DASH, _SPACE = 6, 4  # pixels


@dataclass(frozen=True)
class Seen:
    """One frame."""

    image: NDArray[np.uint8]
    """[H, W, 3]"""
    true: FrameBoxes
    found: FrameBoxes


@dataclass(frozen=True)
class Column:
    """A clip: what is written above it, its frames, and below each frame one map a tap."""

    lines: tuple[str, str]
    frames: tuple[Seen, ...]
    maps: tuple[tuple[NDArray[np.uint8], ...], ...] = ()
    """Of each frame, by tap: [H', W', 3]."""


def box_sheet(
    title: str, caption: str, bands: Sequence[Sequence[Column]], taps: Sequence[str], classes: Sequence[str]
) -> bytes:
    """Return a PNG with a band for each sequence of clips: true boxes solid, found ones dashed, maps below.

    Args:
        title: first line.
        caption: second line.
        bands: clips, side by side.
        taps: names of the maps, in order.
        classes: names of the classes of the boxes.
    """
    return sheet(title, caption, [_drawn(band, taps, classes) for band in bands])


def _drawn(band: Sequence[Column], taps: Sequence[str], classes: Sequence[str]) -> Image.Image:
    columns = sum(len(clip.frames) for clip in band)
    height, width = band[0].frames[0].image.shape[:2]
    between = 2 * GAP * (len(band) - 1)
    across = min(TILE, width, (WIDTH - LABELS - between) // columns - GAP)
    down = round(across * height / width)
    rows = ("boxes", *(taps if band[0].maps else ()))
    left, top = LABELS, 2 * LINE
    size = left + columns * (across + GAP) + between, top + len(rows) * (down + GAP) + 2 * GAP
    image = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, name in enumerate(rows):
        name = _fitting(name, LABELS - 2 * GAP, font)
        pen.text((GAP, top + row * (down + GAP) + down // 2), name, fill=INK, font=font, anchor="lm")
    for clip in band:
        room = len(clip.frames) * (across + GAP)
        rank, name = clip.lines
        pen.text((left, 0), f"{rank}\n{_fitting(name, room, font)}", fill=INK, font=font)
        for index, seen in enumerate(clip.frames):
            image.paste(_boxed(seen, (across, down), classes), (left, top))
            for row, colours in enumerate(clip.maps[index] if clip.maps else (), 1):
                tile = Image.fromarray(colours).resize((across, down), Image.Resampling.NEAREST)
                image.paste(tile, (left, top + row * (down + GAP)))
            left += across + GAP
        left += 2 * GAP
    return image


def _fitting(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the end of ``text``, which tells it from others, as far as there is ``room``."""
    while font.getlength(text) > room:
        text = text[1:]
    return text


def _boxed(seen: Seen, size: tuple[int, int], classes: Sequence[str]) -> Image.Image:
    """Return a frame in ``size`` with its boxes on it, and the names of their classes."""
    image = Image.fromarray(seen.image).resize(size, Image.Resampling.LANCZOS)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    height, width = seen.image.shape[:2]
    scale = np.array([size[0] / width, size[1] / height] * 2)
    for boxes, colour, dashed in ((seen.true, TRUE, False), (seen.found, FOUND, True)):
        for box in boxes.boxes:
            _outline(pen, box * scale, colour, dashed)
    for box, index in zip(seen.true.boxes, seen.true.classes, strict=True):
        x0, y0, _, _ = box * scale
        _label(pen, size, (x0, y0 - 13), classes[index], font, TRUE, INK)
    for box, index, score in zip(seen.found.boxes, seen.found.classes, seen.found.scores, strict=True):
        x0, _, _, y1 = box * scale
        _label(pen, size, (x0, y1 + 1), f"{classes[index]} {float(score):.2f}", font, INK, FOUND)
    return image


def _outline(pen: ImageDraw.ImageDraw, box: NDArray[np.floating], colour: tuple[int, int, int], dashed: bool) -> None:
    """Draw a box of 2 pixels in ``colour`` on black, so that it stands out from any ground."""
    x0, y0, x1, y1 = (round(float(edge)) for edge in box)
    x1, y1 = max(x0 + 1, x1 - 1), max(y0 + 1, y1 - 1)
    if not dashed:
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=INK, width=4)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=2)
        return
    for fixed in (y0, y1 - 1):
        for start in range(x0, x1 + 1, _DASH + _SPACE):
            stop = min(start + _DASH, x1)
            pen.rectangle((start - 1, fixed - 1, stop + 1, fixed + 2), fill=INK)
            pen.rectangle((start, fixed, stop, fixed + 1), fill=colour)
    for fixed in (x0, x1 - 1):
        for start in range(y0, y1 + 1, _DASH + _SPACE):
            stop = min(start + _DASH, y1)
            pen.rectangle((fixed - 1, start - 1, fixed + 2, stop + 1), fill=INK)
            pen.rectangle((fixed, start, fixed + 1, stop), fill=colour)


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    place: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    ink: tuple[int, int, int],
    ground: tuple[int, int, int],
) -> None:
    """Write ``text`` on a plate at ``place``, or as near to it as the tile has room."""
    wide = font.getlength(text) + 3
    x = max(0, min(round(place[0]), size[0] - round(wide)))
    y = max(0, min(round(place[1]), size[1] - 12))
    pen.rectangle((x, y, x + wide, y + 12), fill=ground)
    pen.text((x + 2, y), text, fill=ink, font=font)


def component_maps(tokens: Sequence[Tensor]) -> list[NDArray[np.uint8]]:
    """Return grids of tokens in the colours of their first three principal components: uint8 [H', W', 3] each.

    Channels are standardised over all ``tokens``, since a few channels of a transformer outweigh all others.
    Components are those of up to 512 of the tokens, evenly spread; each is red, green or blue from its 2nd to its
    98th percentile, and its largest value is positive. A component without variance is grey.

    Args:
        tokens: [H', W', C] floating point each, all of equal C.
    """
    rows = torch.cat([grid.flatten(0, 1) for grid in tokens]).double()
    mean, std = rows.mean(0), rows.std(0, correction=0)
    alive = std > 1e-6 * mean.abs().clamp_min(1e-6)
    rows = torch.where(alive, (rows - mean) / torch.where(alive, std, 1.0), 0.0)
    step = ceil(len(rows) / FITTED) | 1  # odd, so that it does not fall into step with the columns of a grid
    values = rows @ _basis(rows[::step])
    values = values * torch.sign(values.gather(0, values.abs().argmax(0, keepdim=True)))
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98], dtype=values.dtype, device=values.device), 0)
    spread = high - low
    shares = torch.where(spread > 1e-6, (values - low) / torch.where(spread > 1e-6, spread, 1.0), 0.5)
    colours = (shares.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    sizes = [grid.shape[0] * grid.shape[1] for grid in tokens]
    parts = np.split(colours, np.cumsum(sizes)[:-1])
    return [part.reshape(*grid.shape[:2], 3) for part, grid in zip(parts, tokens, strict=True)]


def _basis(rows: Tensor) -> Tensor:
    """Return the first three principal directions [C, 3] of ``rows`` [N, C]; zeros where there are fewer.

    Of the two products of ``rows`` with itself the smaller is taken apart: no random start, and the same signs again.
    """
    n, c = rows.shape
    centred = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred if c <= n else centred @ centred.T)
    leading = vectors[:, -3:].flip(1)
    basis = leading if c <= n else centred.T @ leading
    norms = basis.norm(dim=0)
    basis = torch.where(norms > 1e-9, basis / torch.where(norms > 1e-9, norms, 1.0), 0.0)
    return torch.nn.functional.pad(basis, (0, 3 - basis.shape[1]))
