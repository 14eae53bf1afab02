"""A counter-based random stream in 64-bit integers (splitmix64).

NumPy does not promise the same numbers from its own generators in every version; these never change.
"""

from __future__ import annotations

import hashlib
import json
from math import prod

import numpy as np
from numpy.typing import NDArray

# Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014), with Stafford's mix 13.
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


class Stream:
    """Random integers that depend only on the key and on how many were drawn before."""

    def __init__(self, *key: str | int) -> None:
        """Start the stream named by ``key``, e.g. ``Stream(0, "train", 17)``."""
        self._name = key
        text = json.dumps(key, separators=(",", ":"))
        self._state = int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "little")

    def child(self, name: str) -> Stream:
        """Return an independent stream; what is drawn here does not move it."""
        return Stream(*self._name, name)

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both included; the range is below 2**32."""
        self._state = (self._state + _GAMMA) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
        z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
        z ^= z >> 31
        return low + (((z >> 32) * (high - low + 1)) >> 32)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return int64 ``shape`` in [low, high]: the same numbers as that many calls of :meth:`integer`."""
        count = prod(shape)
        steps = np.arange(1, count + 1, dtype=np.uint64)
        z = steps * np.uint64(_GAMMA) + np.uint64(self._state)
        self._state = (self._state + count * _GAMMA) & _MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
        z ^= z >> np.uint64(31)
        scaled = ((z >> np.uint64(32)) * np.uint64(high - low + 1)) >> np.uint64(32)
        return scaled.astype(np.int64).reshape(shape) + low

    def chance(self, per_mille: int) -> bool:
        """Return True with probability ``per_mille`` / 1000."""
        return self.integer(0, 999) < per_mille
