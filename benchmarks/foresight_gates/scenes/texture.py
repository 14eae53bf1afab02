"""Smooth random fields in fixed point: value noise in octaves, and linear gradients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foresight_gates.scenes.random import Stream

Field = NDArray[np.int32]

SUBPIXELS = 16
"""Lengths and positions are whole sixteenths of a pixel."""
LEVEL = 256
"""Brightness is computed in 1/256 of one of the 256 levels of a channel."""
_WEIGHT_BITS = 12


def _knots(length: int, cell: int, offset: int) -> tuple[NDArray[np.int64], Field]:
    """Return for each of ``length`` pixels the lattice knot on its left and its smoothstep weight in Q12."""
    position = np.arange(length, dtype=np.int64) * SUBPIXELS + offset
    knot, rest = np.divmod(position, cell)
    f = (rest << _WEIGHT_BITS) // cell
    weight = (f * f * ((3 << _WEIGHT_BITS) - 2 * f)) >> (2 * _WEIGHT_BITS)
    return knot, weight.astype(np.int32)


def noise(stream: Stream, height: int, width: int, cell: int, amplitude: int) -> Field:
    """Return one octave of value noise: int32 [height, width] in [-amplitude, amplitude].

    ``cell`` is the lattice spacing in sixteenths of a pixel; the lattice's phase is random, so that it is
    never aligned with an encoder's patches. ``amplitude`` is below 2**17.
    """
    rows, row_weight = _knots(height, cell, stream.integer(0, cell - 1))
    columns, column_weight = _knots(width, cell, stream.integer(0, cell - 1))
    shape = (int(rows[-1]) + 2, int(columns[-1]) + 2)
    # Light or dark, never grey: knots spread evenly would halve the variance that the same range can hold
    # (a third of the amplitude squared, against 0.73), and it is the range that 8 bits limit.
    spread = amplitude * 3 // 10
    lattice = stream.integers(-spread, spread, shape).astype(np.int32)
    lattice += np.where(lattice < 0, spread - amplitude, amplitude - spread).astype(np.int32)
    # Columns first, while there are few rows: the second pass then gathers whole rows, which is a copy.
    left = lattice[:, columns]
    bands = (left << _WEIGHT_BITS) + (lattice[:, columns + 1] - left) * column_weight >> _WEIGHT_BITS
    field: Field = np.take(np.diff(bands, axis=0), rows, axis=0)
    field *= row_weight[:, None]
    field >>= _WEIGHT_BITS
    field += np.take(bands, rows, axis=0)
    return field


def texture(stream: Stream, height: int, width: int, cell: int, octaves: int, falloff: int, amplitude: int) -> Field:
    """Return ``octaves`` of noise, each half as wide as the one before: int32 [height, width].

    The amplitude of an octave is ``falloff`` percent of the one before, and all together reach
    ``amplitude`` at most. In two dimensions a falloff of 50 gives an amplitude spectrum of 1/f^2.
    """
    shares = [100**octaves * falloff**k // 100**k for k in range(octaves)]
    field: Field = np.zeros((height, width), dtype=np.int32)
    for k, share in enumerate(shares):
        # Two pixels a cell is the finest lattice that still interpolates anything.
        finer = max(cell >> k, 2 * SUBPIXELS)
        field += noise(stream, height, width, finer, amplitude * share // sum(shares))
    return field


def gradient(stream: Stream, height: int, width: int, amplitude: int) -> tuple[Field, Field]:
    """Return a linear gradient, int32 [height, 1] and [1, width]; their sum is within ``amplitude`` of 0."""
    down = stream.integer(-amplitude, amplitude)
    across = stream.integer(-(amplitude - abs(down)), amplitude - abs(down))
    rows = down * (2 * np.arange(height, dtype=np.int64) + 1 - height) // height
    columns = across * (2 * np.arange(width, dtype=np.int64) + 1 - width) // width
    return rows.astype(np.int32)[:, None], columns.astype(np.int32)[None, :]
