"""LLaVA-NeXT's two ways of showing a frame to a square vision tower: squashed into one tile, or cut into several.

The tiles form a canvas (Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024; "anyres").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from torch import Tensor
from torch.nn import functional as F

from foresight_bench.errors import DataError
from foresight_plugins.encoders.images import resized

Size = tuple[int, int]


@dataclass(frozen=True)
class Canvas:
    """How frames of one size are cut into tiles, and how the tiles' tokens form one grid."""

    tile: int
    """Side of a tile in pixels."""
    tiles: Size
    """Rows and columns of tiles."""
    content: Size
    """Height and width that the frame is resized to; it stands in the middle of the canvas, black around it."""
    margin: Size
    """Rows and columns of cells that are dropped at either side."""

    def cut(self, frames: Tensor) -> Tensor:
        """Return the tiles, row by row, [B * tiles, 3, tile, tile] float32 levels, of ``frames`` [B, H, W, 3] uint8."""
        images = resized(frames, *self.content)
        (rows, columns), (height, width) = self.tiles, self.content
        below, right = rows * self.tile - height, columns * self.tile - width
        images = F.pad(images, (right // 2, right - right // 2, below // 2, below - below // 2))
        tiles: Tensor = images.unflatten(3, (columns, self.tile)).unflatten(2, (rows, self.tile))
        return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def assemble(self, tokens: Tensor) -> Tensor:
        """Return the grid [B, H', W', D] of the tiles' ``tokens`` [B * tiles, cells * cells, D], without margins."""
        side = round(tokens.shape[1] ** 0.5)
        tiles: Tensor = tokens.unflatten(1, (side, side)).unflatten(0, (-1, *self.tiles))
        canvas = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        _, height, width, _ = canvas.shape
        top, left = self.margin
        return canvas[:, top : height - top, left : width - left]


def squashed(tile: int) -> Canvas:
    """Return the canvas of one tile that the whole frame is squashed into, whatever its shape: the base image."""
    return Canvas(tile, (1, 1), (tile, tile), (0, 0))


def anyres(frame: Size, pinpoints: Iterable[Size], tile: int, cells: int) -> Canvas:
    """Return the canvas that fits ``frame`` best.

    The frame keeps its shape, so that margins remain at two sides. Whole cells of them are dropped, symmetrically,
    as transformers' ``unpad_image`` does: the first row that is kept begins less than half a cell, and a pixel of
    rounding, above or below the frame's first. At the centre nothing is off.

    Args:
        frame: height and width in pixels.
        pinpoints: heights and widths of the canvases to choose from, multiples of ``tile``.
        tile: side of a tile in pixels.
        cells: cells along that side.

    Raises:
        DataError: the frame is so thin that no cell would remain.
    """
    height, width = pinpoint(frame, pinpoints)
    scale = min(height / frame[0], width / frame[1])
    content = min(ceil(frame[0] * scale), height), min(ceil(frame[1] * scale), width)
    tiles = height // tile, width // tile
    rows, columns = tiles[0] * cells, tiles[1] * cells
    # In cells, not pixels, and rounded to 7 digits: so says the reference, and a cell hangs on it.
    if frame[1] / frame[0] > columns / rows:
        kept = int(round(frame[0] * (columns / frame[1]), 7))
        margin = (rows - kept) // 2, 0
    else:
        kept = int(round(frame[1] * (rows / frame[0]), 7))
        margin = 0, (columns - kept) // 2
    if rows == 2 * margin[0] or columns == 2 * margin[1]:
        raise DataError(
            f"LLaVA-NeXT cannot cut frames of {frame[0]} x {frame[1]} pixels into tiles: no cell would remain.",
            "Leave out tiles=true, which squashes any frame into one tile.",
        )
    return Canvas(tile, tiles, content, margin)


def pinpoint(frame: Size, pinpoints: Iterable[Size]) -> Size:
    """Return the height and width of ``pinpoints`` that keeps most of the frame's pixels; among equals the smallest."""

    def merit(size: Size) -> tuple[int, int]:
        scale = min(size[1] / frame[1], size[0] / frame[0])
        kept = min(int(frame[0] * scale) * int(frame[1] * scale), frame[0] * frame[1])
        return kept, -size[0] * size[1]

    return max(pinpoints, key=merit)
