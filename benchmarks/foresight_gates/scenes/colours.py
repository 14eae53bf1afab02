"""Colours of objects and of background, chosen such that every pixel of an object stands out.

Redness is R - (G + B) / 2, greenness and blueness likewise; a colour difference of d along one of them is a
Euclidean distance of at least d / sqrt(1.5). A background pixel reaches 2 * TINT in any of them, an object
pixel at least CHROMA_MIN in that of its own family, whatever the texture: texture moves all three channels
alike. So each object pixel differs from any background pixel by (130 - 2 * 27 - 1) / 1.225 = 61 levels.
"""

from __future__ import annotations

from foresight_gates.scenes.random import Stream

FAMILIES = ("red", "green", "blue")
MIN_CONTRAST = 60
"""Least Euclidean RGB distance, in levels, between any object pixel and the plate beneath it."""
TINT = 27
"""Most that a channel of the background departs from grey, in levels."""
CHROMA_MIN, CHROMA_MAX = 130, 165
FILL = 36
"""Most that texture moves an object's colour, in levels; colours keep this far from 0 and 255."""


def object_colour(stream: Stream, family: int) -> tuple[int, int, int]:
    """Return an RGB colour of ``FAMILIES[family]`` with random saturation, hue and brightness."""
    chroma = stream.integer(CHROMA_MIN, CHROMA_MAX)
    top = 255 - FILL - chroma
    hue = stream.integer(-(top - FILL) // 2, (top - FILL) // 2)
    base = stream.integer(FILL + abs(hue), top)
    channels = [base + hue, base - hue]
    channels.insert(family, base + chroma)
    return channels[0], channels[1], channels[2]


def distance_squared(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    """Return the squared Euclidean distance of two RGB colours, in levels squared."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
