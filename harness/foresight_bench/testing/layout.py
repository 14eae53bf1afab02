"""The layout check: does token (t, r, c) describe the image region at (t, r, c)?

A scrambled token order raises no error and destroys every spatial score. The check changes one small region
of one frame and asks which token changes most: it must be the token whose cell covers the region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder
from foresight_bench.errors import ContractError
from foresight_bench.grids import Grid
from foresight_bench.layout import Shape, hits, most_changed, noise, planned
from foresight_bench.scrambles import diagnose


@dataclass(frozen=True)
class LayoutFinding:
    """What the check found at one tap."""

    tap: str
    passed: bool
    misplaced: float
    """Share of the probes, in [0, 1], whose most changed token was not the one that covers the change."""
    diagnosis: str
    """What the tokens look like instead; empty if the tap passed."""


def check_layout(
    encoder: Encoder,
    taps: Sequence[str],
    *,
    size: tuple[int, int] = (168, 224),
    frames: int = 1,
    batch: int = 2,
    probes: int = 24,
    tolerance: float = 0.0,
    seed: int = 0,
) -> list[LayoutFinding]:
    """Return one finding per tap: whether the token that changes most is the one that covers the change.

    The clips are uniform noise, and a region is changed by drawing it anew, one per clip at once and always
    in different places, so a token in the wrong clip or frame is found out as well. The four corners
    come first, then cells in random order. Every probe counts.

    Args:
        encoder: the encoder; it is called on ``batch`` clips at a time.
        taps: the taps to check; an encoder's taps without locality have no place here.
        size: height and width of the frames; unequal ones tell a transposed grid apart soonest.
        frames: frames per clip; more than one checks the order in time too.
        batch: clips per call; fewer than two cannot show clips that are mixed up.
        probes: changes made in all, rounded up to a multiple of ``batch``.
        tolerance: share of misplaced probes that passes, for encoders whose last layers smear (a
            convolution after the last block). A scramble misplaces nearly all: stay below 0.3.
        seed: of the clips and the places.

    Raises:
        ContractError: a tap is missing, or its grid has another number of clips than were given.
        NonFinite: a grid holds NaN or infinite values.
    """
    rng = np.random.default_rng(seed)
    base = noise(rng, (batch, frames, *size, 3))
    before = _encode(encoder, base, taps)
    shapes = {tap: grid.shape[1:4] for tap, grid in before.items()}
    plan = planned(rng, list(shapes.values()), size, frames, batch, probes)
    found: dict[str, list[Shape]] = {tap: [] for tap in taps}
    for pass_ in range(len(plan) // batch):
        changed = base.copy()
        for probe in plan[pass_ * batch : (pass_ + 1) * batch]:
            probe.change(changed, rng)
        after = _encode(encoder, changed, taps)
        for tap in taps:
            found[tap] += most_changed(before[tap].values, after[tap].values)
    findings = []
    for tap, shape in shapes.items():
        seen = hits(plan, found[tap], shape, frames, size)
        passed = seen.misplaced <= tolerance
        findings.append(LayoutFinding(tap, passed, seen.misplaced, "" if passed else diagnose(seen, size)))
    return findings


def _encode(encoder: Encoder, frames: NDArray[np.uint8], taps: Sequence[str]) -> Mapping[str, Grid]:
    grids = encoder.encode(ClipBatch(frames, tuple(f"layout-{n}" for n in range(len(frames)))), taps)
    for tap in taps:
        if tap not in grids:
            raise ContractError(f"The encoder returned no grid for tap '{tap}'.")
        if grids[tap].shape[0] != len(frames):
            raise ContractError(
                f"Tap '{tap}' holds {grids[tap].shape[0]} clips; {len(frames)} were given.",
                "A grid is [N, T', H', W', C], N being the number of clips.",
            )
        grids[tap].check_finite(f"Tap '{tap}'")
    return {tap: grids[tap] for tap in taps}
