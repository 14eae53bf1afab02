"""Objects: what they are, where they go, which pixels they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foresight_gates.scenes.colours import FAMILIES, object_colour
from foresight_gates.scenes.motion import KINDS, bouncing, eased
from foresight_gates.scenes.parameters import SceneParameters
from foresight_gates.scenes.random import Stream
from foresight_gates.scenes.shapes import SHAPES, TURN, cosine, inside, rotate, sine
from foresight_gates.scenes.texture import LEVEL, SUBPIXELS, texture


@dataclass(frozen=True)
class SceneObject:
    """An object, all but its path."""

    shape: int
    family: int
    colour: tuple[int, int, int]
    radius: int
    """Of the circumscribed circle, sixteenths of a pixel."""
    angle: int
    """In the first frame, 1/4096 of a turn."""
    spin: int
    """Change of ``angle`` per frame."""
    contrast: int
    """Most that texture moves its brightness, in levels; 0 is a plain fill."""


@dataclass(frozen=True)
class Footprint:
    """The pixels an object covers in one frame."""

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]
    """[h, w] of the region ``rows`` by ``columns``."""
    u: NDArray[np.int32]
    v: NDArray[np.int32]
    """[h, w] the pixels in the object's own frame, sixteenths of a pixel from its centre."""


def random_object(params: SceneParameters, stream: Stream) -> SceneObject:
    """Return an object whose shape, colour family, size, rotation and fill are drawn independently."""
    shape = stream.integer(0, len(SHAPES) - 1)
    family = stream.integer(0, len(FAMILIES) - 1)
    # The square of a uniform number is close to log-uniform (median 16.5% of the side against 17.7%) and
    # needs no logarithm.
    u = stream.integer(0, 1 << 15)
    size = (params.size_min << 30) + (params.size_max - params.size_min) * u * u
    filled = stream.chance(params.fill_chance)
    return SceneObject(
        shape=shape,
        family=family,
        colour=object_colour(stream, family),
        radius=params.side * SUBPIXELS * size // (2000 << 30),
        angle=stream.integer(0, TURN - 1),
        spin=stream.integer(-params.spin_max, params.spin_max),
        contrast=stream.integer(params.fill_contrast // 2, params.fill_contrast) if filled else 0,
    )


def random_path(params: SceneParameters, stream: Stream, thing: SceneObject) -> list[tuple[int, int]]:
    """Return the centre (x, y) in each frame, sixteenths of a pixel; the object never leaves the frame."""
    low, high = thing.radius, params.side * SUBPIXELS - thing.radius
    kind = KINDS[stream.integer(0, len(KINDS) - 1)]
    # At least half of the top speed when bouncing, else few would reach a border within nine frames.
    slowest = params.speed_max // (2 if kind == "bouncing" else 5)
    speed = params.side * SUBPIXELS * stream.integer(slowest, params.speed_max) // 1000
    heading = stream.integer(0, TURN - 1)
    bend = stream.integer(500, 1000) * (1 if stream.chance(500) else -1) if kind == "accelerated" else 0
    axes = []
    for direction in (cosine(heading), sine(heading)):
        velocity = speed * direction >> 14
        if kind == "bouncing":
            axes.append(bouncing(stream.integer(low, high), velocity, low, high, params.frames))
            continue
        travel = velocity * (params.frames - 1) * 1000 // (1000 + abs(bend))
        travel = max(low - high, min(high - low, travel))
        start = stream.integer(low - min(travel, 0), high - max(travel, 0))
        axes.append(eased(start, travel, bend, params.frames))
    return list(zip(*axes, strict=True))


def footprint(thing: SceneObject, centre: tuple[int, int], t: int) -> Footprint:
    """Return what the object covers in frame ``t`` when centred on ``centre`` (x, y)."""
    spans = [slice((c - thing.radius) // SUBPIXELS, -((-c - thing.radius) // SUBPIXELS)) for c in centre]
    x, y = (
        np.arange(span.start, span.stop, dtype=np.int32) * SUBPIXELS + (SUBPIXELS // 2 - c)
        for span, c in zip(spans, centre, strict=True)
    )
    u, v = rotate(x, y, thing.angle + thing.spin * t)
    return Footprint(spans[1], spans[0], inside(thing.shape, u, v, thing.radius), u, v)


def paint(
    params: SceneParameters,
    stream: Stream,
    thing: SceneObject,
    shown: Sequence[Footprint],
    frames: NDArray[np.uint8],
) -> None:
    """Paint the object into ``frames`` [T, H, W, 3]; its texture turns and travels with it."""
    colour = np.array(thing.colour, dtype=np.int32)
    if thing.contrast == 0 or params.tier == "plain":
        for t, f in enumerate(shown):
            np.copyto(frames[t, f.rows, f.columns], colour.astype(np.uint8), where=f.mask[..., None])
        return
    extent = 2 * thing.radius // SUBPIXELS + 1
    cell = params.side * SUBPIXELS * params.texture_cell // 1000
    field = texture(stream, extent, extent, cell, 2, params.texture_falloff, thing.contrast * LEVEL)
    texels = ((field // LEVEL)[..., None] + colour).astype(np.uint8).reshape(-1, 3)
    for t, f in enumerate(shown):
        index = (f.v + np.int32(thing.radius)) // SUBPIXELS * extent + (f.u + np.int32(thing.radius)) // SUBPIXELS
        frames[t, f.rows, f.columns][f.mask] = texels[index[f.mask]]


def tight_box(labels: NDArray[np.uint8], label: int, around: NDArray[np.int16]) -> tuple[int, int, int, int]:
    """Return the tight box (x0, y0, x1, y1) of ``label`` in ``labels`` [H, W]; it lies within ``around``."""
    x, y, right, bottom = (int(edge) for edge in around)
    seen = labels[y:bottom, x:right] == label
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    return x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1
