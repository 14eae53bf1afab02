"""Clips and their truth, drawn from parameters and a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight_bench.clips import ClipBatch, Truth
from foresight_gates.scenes.colours import FAMILIES, MIN_CONTRAST, TINT, distance_squared
from foresight_gates.scenes.motion import eased
from foresight_gates.scenes.objects import (
    Footprint,
    SceneObject,
    footprint,
    paint,
    random_object,
    random_path,
    tight_box,
)
from foresight_gates.scenes.parameters import SceneParameters
from foresight_gates.scenes.random import Stream
from foresight_gates.scenes.shapes import SHAPES
from foresight_gates.scenes.texture import LEVEL, SUBPIXELS, gradient, texture

CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in FAMILIES)
"""Name of each class; class = shape * 3 + colour family."""

New = Callable[[tuple[int, ...], type[Any]], NDArray[Any]]
"""Makes an array of a shape and a type, whatever it holds: ``np.empty``, or one in memory that processes share."""

_ATTEMPTS = 24
"""Paths tried for an object before it is given up: of four objects asked for, 3.99 are placed."""


@dataclass(frozen=True)
class Clip:
    """One clip, or N of them with a leading axis: the arrays of :class:`ClipBatch` and one more."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3]"""
    boxes: NDArray[np.int16]
    """[T, K, 4]"""
    classes: NDArray[np.int8]
    """[K]"""
    labels: NDArray[np.uint8]
    """[T, H, W]"""
    plates: NDArray[np.uint8]
    """[T, H, W, 3]"""
    areas: NDArray[np.int32]
    """[T, K] pixels that each object would cover if nothing were in front; 0 in unused slots."""


def _empty(params: SceneParameters, *lead: int, new: New = np.empty) -> Clip:
    t, k, side = params.frames, params.objects_max, params.side
    return Clip(
        frames=new((*lead, t, side, side, 3), np.uint8),
        boxes=new((*lead, t, k, 4), np.int16),
        classes=new((*lead, k), np.int8),
        labels=new((*lead, t, side, side), np.uint8),
        plates=new((*lead, t, side, side, 3), np.uint8),
        areas=new((*lead, t, k), np.int32),
    )


def _background(params: SceneParameters, stream: Stream, height: int, width: int) -> NDArray[np.uint8]:
    """Return a plate uint8 [height, width, 3]: grey texture and gradient, tinted smoothly."""
    cell = params.side * SUBPIXELS * params.texture_cell // 1000
    contrast = params.texture_contrast * stream.integer(800, 1000) * LEVEL // 1000
    middle = stream.integer(110, 145) * LEVEL
    grey = texture(stream, height, width, cell, params.texture_octaves, params.texture_falloff, contrast)
    rows, columns = gradient(stream, height, width, params.gradient_contrast * LEVEL)
    grey += rows + middle
    grey += columns
    # Leaves room for the tint, whose bound is what guarantees contrast.
    np.clip(grey, (TINT + 1) * LEVEL, (254 - TINT) * LEVEL, out=grey)
    plate = np.empty((height, width, 3), dtype=np.uint8)
    wide = params.side * SUBPIXELS // 3
    for channel in range(3):
        tint = texture(stream, height, width, wide, 1, 100, TINT * LEVEL // 2)
        rows, columns = gradient(stream, height, width, TINT * LEVEL // 2)
        tint += rows
        tint += columns
        tint += grey
        np.floor_divide(tint, LEVEL, out=plate[..., channel], casting="unsafe")
    return plate


def _draw_plates(params: SceneParameters, stream: Stream, plates: NDArray[np.uint8]) -> None:
    """Fill ``plates`` [T, H, W, 3] with one background that the camera pans over."""
    if params.tier == "plain":
        plates[:] = 255
        return
    side, frames = params.side, params.frames
    reach = side * params.pan_max * (frames - 1) // 1000
    pans = [stream.integer(-reach, reach) for _ in range(2)]
    background = _background(params, stream, side + abs(pans[0]), side + abs(pans[1]))
    tops, lefts = (eased(max(-pan, 0), pan, 0, frames) for pan in pans)
    for t, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        plates[t] = background[top : top + side, left : left + side]


def _overlaps(
    clip: Clip,
    visible: NDArray[np.int64],
    things: list[SceneObject],
    new: SceneObject,
    t: int,
    shown: Footprint,
) -> NDArray[np.int64] | None:
    """Return how many pixels [K] of each object ``new`` would hide in frame ``t``; None if it must not.

    It must not hide more than half of an object, nor touch one whose colour is as near as contrast forbids.
    """
    k = len(visible[t])
    labels = clip.labels[t, shown.rows, shown.columns][shown.mask]
    hidden: NDArray[np.int64] = np.bincount(labels, minlength=k + 1)[1:]
    for j in np.flatnonzero(hidden):
        if distance_squared(things[j].colour, new.colour) < MIN_CONTRAST**2:
            return None
    return None if np.any(2 * (visible[t] - hidden) < clip.areas[t]) else hidden


def _draw_objects(params: SceneParameters, stream: Stream, clip: Clip) -> None:
    """Put objects into ``clip``, each in front of those before it."""
    visible = np.zeros((params.frames, params.objects_max), dtype=np.int64)
    things: list[SceneObject] = []
    for k in range(stream.integer(params.objects_min, params.objects_max)):
        own = stream.child(f"object {k}")
        thing = random_object(params, own)
        for _ in range(_ATTEMPTS):
            shown: list[Footprint] = []
            hidden: list[NDArray[np.int64]] = []
            for t, centre in enumerate(random_path(params, own, thing)):
                shown.append(footprint(thing, centre, t))
                lost = _overlaps(clip, visible, things, thing, t, shown[t])
                if lost is None:
                    break
                hidden.append(lost)
            if len(hidden) == params.frames:
                break
        else:
            break
        things.append(thing)
        visible -= np.stack(hidden)
        clip.areas[:, k] = visible[:, k] = [np.count_nonzero(f.mask) for f in shown]
        clip.classes[k] = thing.shape * len(FAMILIES) + thing.family
        paint(params, own.child("fill"), thing, shown, clip.frames)
        for t, f in enumerate(shown):
            clip.labels[t, f.rows, f.columns][f.mask] = k + 1
            clip.boxes[t, k] = f.columns.start, f.rows.start, f.columns.stop, f.rows.stop
    for t in range(params.frames):
        for k in range(len(things)):
            clip.boxes[t, k] = tight_box(clip.labels[t], k + 1, clip.boxes[t, k])


def _draw(params: SceneParameters, split: str, index: int, clip: Clip) -> None:
    """Draw clip ``index`` into the arrays of ``clip``."""
    for array, empty in ((clip.boxes, 0), (clip.classes, -1), (clip.labels, 0), (clip.areas, 0)):
        array[:] = empty
    # Not the tier: the same objects, at the same places, appear in both.
    stream = Stream(params.seed, split, params.frames, index)
    _draw_plates(params, stream.child("background"), clip.plates)
    clip.frames[:] = clip.plates
    _draw_objects(params, stream.child("objects"), clip)


def render_clip(params: SceneParameters, split: str, index: int) -> Clip:
    """Return clip ``index`` of ``split``; it depends on nothing else."""
    clip = _empty(params)
    _draw(params, split, index, clip)
    return clip


@dataclass(frozen=True)
class Canvas:
    """Clips ``start`` to ``start + N`` of ``split``, which can be drawn one by one and in any order."""

    params: SceneParameters
    split: str
    start: int
    clips: Clip
    """With a leading axis N."""

    @classmethod
    def blank(cls, params: SceneParameters, split: str, start: int, count: int, new: New = np.empty) -> Canvas:
        """Return one with room for ``count`` clips."""
        return cls(params, split, start, _empty(params, count, new=new))

    def __len__(self) -> int:
        return len(self.clips.frames)

    def draw(self, indices: Iterable[int]) -> None:
        """Draw some of the clips, counted from ``start``."""
        for i in indices:
            one = Clip(*(getattr(self.clips, field.name)[i] for field in fields(Clip)))
            _draw(self.params, self.split, self.start + i, one)

    def batch(self) -> ClipBatch:
        """Return the clips with their truth."""
        clips, name = self.clips, f"{self.params.tier}/{self.split}/{self.params.frames}f"
        return ClipBatch(
            clips.frames,
            tuple(f"{name}/{self.start + i:06d}" for i in range(len(self))),
            Truth(clips.boxes, clips.classes, clips.labels, clips.plates),
        )


def render_block(params: SceneParameters, split: str, start: int, count: int) -> ClipBatch:
    """Return clips ``start`` to ``start + count`` of ``split`` with their truth.

    Clips of different T are different scenes even where their index is the same.
    """
    canvas = Canvas.blank(params, split, start, count)
    canvas.draw(range(count))
    return canvas.batch()
