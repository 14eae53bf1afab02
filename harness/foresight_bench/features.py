"""The features of one row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from foresight_bench.grids import Grid

COARSE_SIDE = 4
"""Side of the grid that whole-clip vectors are averaged onto."""


Key = tuple[str, str]
"""Tap and split."""
Grids = tuple[Grid, ...]
"""One grid for each block of a split, float32 on the device that heads compute on."""


class Tokens(Mapping[Key, Grids]):
    """Grids that are made when they are asked for, and anew each time: together they need not fit on the device.

    Args:
        keys: of what can be had.
        make: returns the grids of one of them.
    """

    def __init__(self, keys: Collection[Key], make: Callable[[Key], Grids]) -> None:
        self._keys, self._make = dict.fromkeys(keys), make

    def __getitem__(self, key: Key) -> Grids:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys  # the mixin's would make the grids

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class FeatureSet:
    """The features of one row. Keys are (tap, split)."""

    taps: tuple[str, ...]
    """In order of depth."""
    tokens: Mapping[Key, Grids]
    """Of the dense splits. Ask for what is needed now, and let go of it: see :class:`Tokens`."""
    coarse: dict[Key, Tensor]
    """[N, COARSE_SIDE^2 * C] float32, clip averages on a coarse grid, for every split."""
    control: str = ""
    """The encoder spec's ``control``."""
    stem: tuple[str, ...] = ()
    """Taps of the variant's ``stem``."""
    seconds: float = 0.0
    frames: int = 0
    batch_frames: int = 0
    """Frames of the largest batch."""
    cached: bool = False
    """Whether nothing was computed. Then seconds, frames and batch are those of the pass that computed most of it."""
    parameters: int = 0
    """Of the encoder as it was built for the pass; 0 if unknown, and of a control."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """The taps that may gate: those behind the stem, or all if there are no others."""
        return tuple(tap for tap in self.taps if tap not in self.stem) or self.taps

    def at(self, taps: tuple[str, ...]) -> FeatureSet:
        """Return these features at some of their taps."""
        tokens = Tokens([key for key in self.tokens if key[0] in taps], self.tokens.__getitem__)
        coarse = {key: vectors for key, vectors in self.coarse.items() if key[0] in taps}
        return replace(self, taps=taps, tokens=tokens, coarse=coarse)
