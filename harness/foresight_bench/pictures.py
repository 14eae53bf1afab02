"""Pictures of clips: a contact sheet with boxes, class names and mask outlines drawn, and frames as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from foresight_bench.clips import ClipBatch, Truth
from foresight_bench.store import write_atomically

_GAP = 4
_OUTLINE = (255, 255, 0)
_BOX = (255, 0, 255)
_TEXT = (255, 255, 255)


def _annotate(
    sheet: ImageDraw.ImageDraw, truth: Truth, names: Sequence[str], i: int, t: int, left: int, top: int
) -> None:
    for box, index in zip(truth.boxes[i, t], truth.classes[i], strict=True):
        if index < 0:
            continue
        x0, y0, x1, y1 = (int(edge) for edge in box)
        sheet.rectangle((left + x0, top + y0, left + x1 - 1, top + y1 - 1), outline=_BOX)
        text = names[index]
        x, y = left + x0, top + (y0 - 14 if y0 >= 14 else y0 + 1)
        x = min(x, left + truth.labels.shape[-1] - int(sheet.textlength(text)) - 1)
        sheet.rectangle(sheet.textbbox((x, y), text), fill=(0, 0, 0))
        sheet.text((x, y), text, fill=_TEXT)


COLUMNS = 5


def contact_sheet(blocks: Sequence[ClipBatch], class_names: Sequence[str], clips: int = 4) -> Image.Image:
    """Return up to ``clips`` clips of each block: single frames side by side, longer clips a row each, 5 frames."""
    tiles = []
    for block in blocks:
        shown, length, _, _ = block[:clips].shape
        if length == 1:
            singles = [(i, 0) for i in range(shown)]
            tiles += [(block, singles[start : start + COLUMNS]) for start in range(0, shown, COLUMNS)]
        else:
            frames = sorted({round(t * (length - 1) / (COLUMNS - 1)) for t in range(COLUMNS)})
            tiles += [(block, [(i, t) for t in frames]) for i in range(shown)]
    _, _, height, width = blocks[0].shape
    columns = max(len(row) for _, row in tiles)
    image = Image.new("RGB", (columns * (width + _GAP) - _GAP, len(tiles) * (height + _GAP) - _GAP), (0, 0, 0))
    sheet = ImageDraw.Draw(image)
    for r, (block, row) in enumerate(tiles):
        edges = None if block.truth is None else block.truth.edges()
        for c, (i, t) in enumerate(row):
            left, top = c * (width + _GAP), r * (height + _GAP)
            frame = block.frames[i, t].copy()
            if edges is not None:
                frame[edges[i, t]] = _OUTLINE
            image.paste(Image.fromarray(frame), (left, top))
            if block.truth is not None:
                _annotate(sheet, block.truth, class_names, i, t, left, top)
    return image


def export(blocks: Sequence[ClipBatch], folder: Path) -> int:
    """Write every frame as ``<clip>/<frame>.png`` and each block's truth as ``truth-<block>.npz``; return the count.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    count = 0
    for number, block in enumerate(blocks):
        for clip, name in zip(block.frames, block.ids, strict=True):
            for t, frame in enumerate(clip):
                write_atomically(folder / name.replace("/", "-") / f"{t:03d}.png", _png(frame))
                count += 1
        if block.truth is not None:
            buffer = io.BytesIO()
            truth = block.truth
            np.savez_compressed(
                buffer,
                ids=np.array(block.ids),
                boxes=truth.boxes,
                classes=truth.classes,
                labels=truth.labels,
                plates=truth.plates,
            )
            write_atomically(folder / f"truth-{number}.npz", buffer.getvalue())
    return count


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()
