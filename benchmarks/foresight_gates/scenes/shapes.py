"""Which pixels a rotated shape covers, from integers alone."""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

import numpy as np
from numpy.typing import NDArray

SHAPES = ("disc", "square", "triangle", "cross")
TURN = 4096
"""Steps in a full turn: at a radius of 100 px a step moves the rim by 0.15 px."""
_ONE_BITS = 14
_FINE_BITS = 30


def _quarter() -> list[tuple[int, int]]:
    """Return (cosine, sine) in Q30 for the first quarter turn, both ends included, by repeated bisection."""
    one = 1 << _FINE_BITS
    points = [(one, 0), (0, one)]
    while len(points) <= TURN // 4:
        finer = points[:1]
        for (x0, y0), (x1, y1) in pairwise(points):
            x, y = x0 + x1, y0 + y1
            length = isqrt(x * x + y * y)
            finer += [((x << _FINE_BITS) // length, (y << _FINE_BITS) // length), (x1, y1)]
        points = finer
    return points


def _sines() -> tuple[int, ...]:
    drop = _FINE_BITS - _ONE_BITS
    first = [(y + (1 << drop - 1)) >> drop for _, y in _quarter()]
    half = first[:-1] + first[:0:-1]
    return tuple(half + [-y for y in half])


SINES = _sines()
"""Sine of each step of a turn, in Q14."""


def sine(angle: int) -> int:
    """Return the sine of ``angle`` / TURN turns in Q14."""
    return SINES[angle % TURN]


def cosine(angle: int) -> int:
    """Return the cosine of ``angle`` / TURN turns in Q14."""
    return SINES[(angle + TURN // 4) % TURN]


def rotate(x: NDArray[np.int32], y: NDArray[np.int32], angle: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the coordinates (u, v), int32 [h, w], of the grid x [w] by y [h] in a frame turned by ``angle``.

    Coordinates are sixteenths of a pixel from the shape's centre, below 2**16.
    """
    c, s = np.int32(cosine(angle)), np.int32(sine(angle))
    u = (x * c)[None, :] + (y * s)[:, None]
    v = (x * -s)[None, :] + (y * c)[:, None]
    u >>= _ONE_BITS
    v >>= _ONE_BITS
    return u, v


def inside(shape: int, u: NDArray[np.int32], v: NDArray[np.int32], radius: int) -> NDArray[np.bool_]:
    """Return bool [h, w]: where ``SHAPES[shape]`` with circumscribed circle ``radius`` covers (u, v).

    Each ratio is rounded such that no shape leaves its circle.
    """
    r = np.int32(radius)
    if shape == 0:
        return u * u + v * v <= r * r
    if shape == 2:
        # 444 / 256 is the square root of 3, rounded up.
        return (v <= r // 2) & (np.abs(u) * np.int32(444) <= (v + r) * np.int32(256))
    u, v = np.abs(u), np.abs(v)
    if shape == 1:
        # 181 / 256 is the square root of 1/2, rounded down.
        half = r * np.int32(181) >> 8
        return (u <= half) & (v <= half)
    # Arms three times as long as they are wide: 242 / 256 and 80 / 256, hypotenuse 0.9956.
    length, width = r * np.int32(242) >> 8, r * np.int32(80) >> 8
    return (np.maximum(u, v) <= length) & (np.minimum(u, v) <= width)
