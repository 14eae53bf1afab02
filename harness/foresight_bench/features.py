"""The feature pass: every selected tap of one encoder over the whole suite, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foresight_bench.batching import Batching, device_memory
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Data, Encoder
from foresight_bench.errors import ContractError
from foresight_bench.grids import Grid

COARSE_SIDE = 4
"""Side of the grid that whole-clip vectors are averaged onto."""


@dataclass(frozen=True)
class FeatureSet:
    """The features of one row. Keys are (tap, split)."""

    taps: tuple[str, ...]
    """In order of depth."""
    tokens: dict[tuple[str, str], tuple[Grid, ...]]
    """One float32 grid per block, for the dense splits."""
    coarse: dict[tuple[str, str], Tensor]
    """[N, COARSE_SIDE^2 * C] float32, clip averages on a coarse grid, for every split."""
    control: str = ""
    """The encoder spec's ``control``."""
    stem: tuple[str, ...] = ()
    """Taps of the variant's ``stem``."""
    seconds: float = 0.0
    frames: int = 0
    batch_frames: int = 0
    """Frames of the largest batch."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """The taps that may gate: those behind the stem, or all if there are no others."""
        return tuple(tap for tap in self.taps if tap not in self.stem) or self.taps


def extract(
    encoder: Encoder,
    taps: Sequence[str],
    data: Data,
    *,
    control: str = "",
    stem: Sequence[str] = (),
    device: torch.device | str = "cpu",
    batch_frames: int | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> FeatureSet:
    """Run ``encoder`` once over every split.

    Tokens are kept for ``data.dense`` splits; of the others only the coarse averages are. Whatever the encoder's
    precision, both are kept in float32, which is what heads and experiments compute in.

    Args:
        encoder: runs on ``device``.
        taps: in order of depth.
        data: the suite's.
        control: the encoder spec's.
        stem: the variant's.
        device: whose memory says how many frames go through at once.
        batch_frames: that number instead; like the one found, it is halved when memory runs out.
        progress: called with the frames of each batch once it is through.

    Raises:
        ContractError: a tap is missing, or its grid changes shape or clip count between batches.
        NonFinite: a grid holds NaN or infinity.
    """

    def encode(clips: ClipBatch) -> dict[str, tuple[Tensor, Tensor]]:
        grids = encoder.encode(clips, taps)
        checked = {tap: _checked(grids.get(tap), tap, len(clips)) for tap in taps}
        return {tap: (grid.values, grid.coarse(COARSE_SIDE)) for tap, grid in checked.items()}

    tokens: dict[tuple[str, str], tuple[Grid, ...]] = {}
    coarse: dict[tuple[str, str], Tensor] = {}
    batching = Batching(device_memory(device), batch_frames)
    started, frames = time.monotonic(), 0
    for split in data.names:
        kept: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        averages: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        for block in data.split(split).blocks:
            n, t, _, _ = block.shape
            for part, found in batching.run(block, encode):
                for tap in taps:
                    _put(averages[tap], part, n, found[tap][1], tap)
                    if split in data.dense:
                        _put(kept[tap], part, n, found[tap][0], tap)
                del found  # before the next batch runs
                clips = part.stop - part.start
                frames += clips * t
                progress(clips * t)
        for tap in taps:
            coarse[tap, split] = torch.cat(averages[tap])
            if split in data.dense:
                tokens[tap, split] = tuple(map(Grid, kept[tap]))
    seconds = time.monotonic() - started
    return FeatureSet(tuple(taps), tokens, coarse, control, tuple(stem), seconds, frames, batching.frames)


def _checked(grid: Grid | None, tap: str, clips: int) -> Grid:
    if grid is None:
        raise ContractError(f"The encoder returned no grid for tap '{tap}'.")
    if len(grid.values) != clips:
        raise ContractError(f"Tap '{tap}' returned {len(grid.values)} clips for a batch of {clips}.")
    grid.check_finite(f"Tap '{tap}'")
    return replace(grid, values=grid.values.float())


def _put(blocks: list[Tensor], part: slice, clips: int, values: Tensor, tap: str) -> None:
    """Put ``values`` of the clips ``part`` into the last of ``blocks``, or into a new one of ``clips`` clips.

    In place, because joining the batches of a block at its end would need the memory twice.
    """
    if part.start == 0:
        blocks.append(values.new_empty(clips, *values.shape[1:]))
    block = blocks[-1]
    if block.shape[1:] != values.shape[1:]:
        raise ContractError(
            f"Tap '{tap}' changed shape from {tuple(block.shape[1:])} to {tuple(values.shape[1:])} within a block."
        )
    block[part] = values[: part.stop - part.start]


def pooled(features: FeatureSet) -> FeatureSet:
    """Return ``features`` with every token replaced by the mean over its frame's tokens."""
    tokens = {key: tuple(pooled_grid(grid) for grid in grids) for key, grids in features.tokens.items()}
    coarse = {}
    for key, vectors in features.coarse.items():
        cells = vectors.reshape(len(vectors), COARSE_SIDE**2, -1)
        coarse[key] = cells.mean(1, keepdim=True).expand_as(cells).reshape(vectors.shape)
    return replace(features, tokens=tokens, coarse=coarse)


def pooled_grid(grid: Grid) -> Grid:
    """Return ``grid`` with the mean over each frame's cells broadcast back."""
    return replace(grid, values=grid.values.mean((2, 3), keepdim=True).expand_as(grid.values))


def shuffled(features: FeatureSet, scored: Sequence[str]) -> FeatureSet:
    """Return ``features`` where each clip of the ``scored`` splits has the features of another clip.

    Train and val stay paired, so heads are the real ones and only their input is wrong.
    """
    tokens = {
        (tap, split): tuple(map(next_clip, grids)) if split in scored else grids
        for (tap, split), grids in features.tokens.items()
    }
    coarse = {
        (tap, split): vectors.roll(1, 0) if split in scored else vectors
        for (tap, split), vectors in features.coarse.items()
    }
    return replace(features, tokens=tokens, coarse=coarse)


def next_clip(grid: Grid) -> Grid:
    """Return ``grid`` with the clips rolled by one, which leaves none in its place."""
    if len(grid.values) < 2:
        raise ContractError("A block needs two clips or more to be shuffled.")
    return replace(grid, values=grid.values.roll(1, 0))


def hybrid(streams: Sequence[FeatureSet], names: Sequence[str]) -> FeatureSet:
    """Return one row from several, each with a single tap.

    Grids are resampled onto the finest one, standardised per channel on ``train`` so that no stream drowns
    the others, and concatenated along channels.

    Raises:
        ContractError: a stream has more than one tap.
    """
    for stream, name in zip(streams, names, strict=True):
        if len(stream.taps) != 1:
            raise ContractError(f"In a hybrid each stream needs one tap; '{name}' has {len(stream.taps)}.")
    label = "+".join(f"{name}@{stream.taps[0]}" for stream, name in zip(streams, names, strict=True))
    tokens: dict[tuple[str, str], tuple[Grid, ...]] = {}
    coarse: dict[tuple[str, str], Tensor] = {}
    scaled = [_standardised(stream) for stream in streams]
    splits = [split for _, split in streams[0].coarse]
    for split in splits:
        parts = [part.coarse[part.taps[0], split] for part in scaled]
        cells = [part.reshape(len(part), COARSE_SIDE**2, -1) for part in parts]
        coarse[label, split] = torch.cat(cells, -1).flatten(1)
        if (streams[0].taps[0], split) in streams[0].tokens:
            blocks = zip(*(part.tokens[part.taps[0], split] for part in scaled), strict=True)
            tokens[label, split] = tuple(_concatenated(block) for block in blocks)
    return FeatureSet(
        (label,),
        tokens,
        coarse,
        seconds=sum(stream.seconds for stream in streams),
        frames=max(stream.frames for stream in streams),
        batch_frames=max(stream.batch_frames for stream in streams),
    )


def _standardised(features: FeatureSet) -> FeatureSet:
    tap = features.taps[0]
    total = torch.cat([grid.values.flatten(0, 3) for grid in features.tokens[tap, "train"]])
    mean, std = total.mean(0), total.std(0).clamp_min(1e-12)
    tokens = {
        key: tuple(replace(g, values=(g.values - mean) / std) for g in grids) for key, grids in features.tokens.items()
    }
    side = COARSE_SIDE**2
    coarse = {key: (v - mean.repeat(side)) / std.repeat(side) for key, v in features.coarse.items()}
    return replace(features, tokens=tokens, coarse=coarse)


def _concatenated(grids: Sequence[Grid]) -> Grid:
    t, h, w = (max(grid.shape[axis] for grid in grids) for axis in (1, 2, 3))
    values = torch.cat([grid.resampled(t, h, w).values for grid in grids], -1)
    return Grid(values, streams=tuple(grid.shape[4] for grid in grids))
