"""Paths along one axis, in whole sixteenths of a pixel."""

from __future__ import annotations

KINDS = ("linear", "accelerated", "bouncing")


def eased(start: int, travel: int, bend: int, frames: int) -> list[int]:
    """Return ``frames`` positions from ``start`` to ``start + travel`` under constant acceleration.

    ``bend`` in thousandths: 0 is uniform motion, 1000 starts at rest, -1000 ends at rest. The path never
    leaves the segment between its ends, and its top speed is ``1 + |bend| / 1000`` times the mean.
    """
    n = max(frames - 1, 1)
    return [start + travel * ((1000 - bend) * t * n + bend * t * t) // (1000 * n * n) for t in range(frames)]


def bouncing(start: int, velocity: int, low: int, high: int, frames: int) -> list[int]:
    """Return ``frames`` positions at ``velocity`` per frame, reflected at ``low`` and ``high``."""
    span = high - low
    if span <= 0:
        return [low] * frames
    return [low + span - abs((start - low + velocity * t) % (2 * span) - span) for t in range(frames)]
