"""What the checks of encoders share: clips, and an encoder's grids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps

import numpy as np
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder
from foresight_bench.errors import ContractError, DataError
from foresight_bench.grids import Grid, finite
from foresight_bench.isolation import restored
from foresight_bench.testing.kit import Broken, Unverified
from foresight_bench.testing.subjects import EncoderSubject

Size = tuple[int, int]

SQUARE: Sequence[Size] = ((224, 224), (448, 448), (256, 256), (1024, 1024))
"""Height and width of frames, tried in order until the encoder takes one; 224 is a multiple of 14, 16, 28 and 32."""
OBLONG: Sequence[Size] = ((224, 336), (224, 448), (256, 384), (448, 672))
"""As :data:`SQUARE`; that an encoder takes none of them is no fault."""


def isolated(check: Callable[[EncoderSubject], None]) -> Callable[[EncoderSubject], None]:
    """Return ``check`` so that what the encoder changes in the process is put back behind it, unsaid.

    One check says it; to the others, and to whatever else the process does, it must not matter.
    """

    @wraps(check)
    def run(subject: EncoderSubject) -> None:
        with restored(lambda sentence: None):
            check(subject)

    return run


def noise(size: Size, clips: int = 2, frames: int = 1, seed: int = 0) -> ClipBatch:
    """Return clips of uniform noise, [clips, frames, *size, 3]."""
    values = np.random.default_rng(seed).integers(0, 256, (clips, frames, *size, 3), dtype=np.uint8)
    return ClipBatch(values, tuple(f"{seed}-{number}" for number in range(clips)))


def accepted(encoder: Encoder, taps: Sequence[str], sizes: Sequence[Size] = SQUARE) -> Size | None:
    """Return the first of ``sizes`` for which there is no DataError, None if there is none."""
    for size in sizes:
        try:
            encoder.encode(noise(size, clips=1), taps)
        except DataError:
            continue
        except ContractError:
            return size  # what is wrong with the grids is for others to say
        return size
    return None


def square(encoder: Encoder, taps: Sequence[str]) -> Size:
    """Return the size of :data:`SQUARE` that the encoder takes.

    Raises:
        Unverified: it takes none.
    """
    size = accepted(encoder, taps)
    if size is None:
        tried = ", ".join(f"{h} x {w}" for h, w in SQUARE)
        raise Unverified(f"The encoder takes frames of no size that was tried: {tried}.")
    return size


def grids(encoder: Encoder, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
    """Return the grids of ``clips``.

    Raises:
        Broken: they are not one well-formed grid a tap.
    """
    try:
        found = encoder.encode(clips, taps)
    except ContractError as error:
        raise Broken(f"{error.message} Drop prefix tokens, and unflatten the others into rows and columns.") from error
    if missing := [tap for tap in taps if tap not in found]:
        raise Broken(f"No grid for {', '.join(missing)} of {', '.join(taps)}: encode must return every tap asked for.")
    if extra := [str(tap) for tap in found if tap not in taps]:
        raise Broken(
            f"A grid for {', '.join(extra)}, when only {', '.join(taps)} was asked for: what nobody reads still takes "
            "memory. Usually all of setup.taps are returned, not the taps of the call."
        )
    for tap, grid in found.items():
        if not isinstance(grid, Grid):
            raise Broken(f"Tap '{tap}' is a {type(grid).__name__}; wrap it: Grid(values).")
        if len(grid.values) != len(clips):
            raise Broken(
                f"Tap '{tap}' holds {len(grid.values)} clips; {len(clips)} of {clips.shape[1]} frames were given. "
                "Usually frames were flattened into the batch and not unflattened into [N, T', H', W', C]."
            )
        if 0 in grid.shape:
            raise Broken(f"Tap '{tap}' is empty: {list(grid.shape)}.")
    return found


def formed(encoder: Encoder, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
    """Return the grids of ``clips``, where there is nothing wrong with their form.

    Raises:
        Unverified: there is, which the check ``shapes`` says.
    """
    try:
        return grids(encoder, clips, taps)
    except Broken as error:
        raise Unverified("The grids are not as they must be; see the check 'shapes'.") from error


def values(encoder: Encoder, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the values of the grids of a copy of ``clips``, where there is nothing wrong with them.

    Raises:
        Unverified: there is, which the checks ``shapes`` and ``finite`` say.
    """
    copied = ClipBatch(clips.frames.copy(), clips.ids)
    found = {tap: grid.values.detach() for tap, grid in formed(encoder, copied, taps).items()}
    if not all(finite(each) for each in found.values()):
        raise Unverified("The grids hold NaN or infinity; see the check 'finite'.")
    return found
