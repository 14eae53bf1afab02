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


def contact_sheet(
    batch: ClipBatch,
    class_names: Sequence[str],
    clips: Sequence[int] | None = None,
    frames: Sequence[int] | None = None,
) -> Image.Image:
    """Return one row per clip and one column per frame; by default the first 4 clips and up to 5 frames."""
    count, length, height, width = batch.shape
    clips = range(min(count, 4)) if clips is None else clips
    frames = range(0, length, max(1, (length - 1) // 4)) if frames is None else frames
    size = (len(frames) * (width + _GAP) - _GAP, len(clips) * (height + _GAP) - _GAP)
    image = Image.new("RGB", size, (0, 0, 0))
    sheet = ImageDraw.Draw(image)
    edges = None if batch.truth is None else batch.truth.edges()
    for row, i in enumerate(clips):
        for column, t in enumerate(frames):
            left, top = column * (width + _GAP), row * (height + _GAP)
            frame = batch.frames[i, t].copy()
            if edges is not None:
                frame[edges[i, t]] = np.array(_OUTLINE, dtype=np.uint8)
            image.paste(Image.fromarray(frame), (left, top))
            if batch.truth is not None:
                _annotate(sheet, batch.truth, class_names, i, t, left, top)
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
