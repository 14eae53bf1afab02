"""What becomes of features after the pass: pooled, shuffled, joined to a hybrid; done when the grids are asked for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foresight_bench.errors import ContractError
from foresight_bench.features import COARSE_SIDE, FeatureSet, Grids, Key, Tokens
from foresight_bench.grids import Grid
from foresight_bench.pairs import statistics


def pooled(features: FeatureSet) -> FeatureSet:
    """Return ``features`` with every token replaced by the mean over its frame's tokens."""
    tokens = Tokens(features.tokens, lambda key: tuple(map(pooled_grid, features.tokens[key])))
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

    def moved(key: Key) -> Grids:
        grids = features.tokens[key]
        return tuple(map(next_clip, grids)) if key[1] in scored else grids

    coarse = {
        (tap, split): vectors.roll(1, 0) if split in scored else vectors
        for (tap, split), vectors in features.coarse.items()
    }
    return replace(features, tokens=Tokens(features.tokens, moved), coarse=coarse)


def next_clip(grid: Grid) -> Grid:
    """Return ``grid`` with the clips rolled by one, which leaves none in its place."""
    return replace(grid, values=next_row(grid.values))


def next_row(values: Tensor) -> Tensor:
    """Return ``values`` [N, ...] of a block's clips, each at the place of the next.

    Raises:
        ContractError: there is only one.
    """
    if len(values) < 2:
        raise ContractError("A block needs two clips or more to be shuffled.")
    return values.roll(1, 0)


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
    coarse: dict[Key, Tensor] = {}
    scaled = [_standardised(stream) for stream in streams]
    splits = [split for _, split in streams[0].coarse]
    for split in splits:
        parts = [part.coarse[part.taps[0], split] for part in scaled]
        cells = [part.reshape(len(part), COARSE_SIDE**2, -1) for part in parts]
        coarse[label, split] = torch.cat(cells, -1).flatten(1)

    def joined(key: Key) -> Grids:
        blocks = zip(*(part.tokens[part.taps[0], key[1]] for part in scaled), strict=True)
        return tuple(_concatenated(block) for block in blocks)

    return FeatureSet(
        (label,),
        Tokens([(label, split) for split in splits if (streams[0].taps[0], split) in streams[0].tokens], joined),
        coarse,
        seconds=sum(stream.seconds for stream in streams),
        frames=max(stream.frames for stream in streams),
        batch_frames=max(stream.batch_frames for stream in streams),
        cached=all(stream.cached for stream in streams),
    )


def parameters(streams: Sequence[FeatureSet], models: Sequence[Hashable]) -> int:
    """Return the parameters of the streams of a hybrid together, 0 if those of one are unknown.

    Args:
        streams: as of :func:`hybrid`.
        models: what each is of; a model of which several are counts once.
    """
    found: dict[Hashable, int] = {}
    for stream, model in zip(streams, models, strict=True):
        if not stream.parameters and not stream.control:
            return 0
        found[model] = max(found.get(model, 0), stream.parameters)
    return sum(found.values())


def _standardised(features: FeatureSet) -> FeatureSet:
    train = features.tokens[features.taps[0], "train"]
    mean, std = (each.to(train[0].values.device) for each in statistics(train))
    del train

    def standardised(key: Key) -> Grids:
        return tuple(replace(grid, values=(grid.values - mean) / std) for grid in features.tokens[key])

    side = COARSE_SIDE**2
    coarse = {key: (v - mean.repeat(side)) / std.repeat(side) for key, v in features.coarse.items()}
    return replace(features, tokens=Tokens(features.tokens, standardised), coarse=coarse)


def _concatenated(grids: Sequence[Grid]) -> Grid:
    t, h, w = (max(grid.shape[axis] for grid in grids) for axis in (1, 2, 3))
    values = torch.cat([grid.resampled(t, h, w).values for grid in grids], -1)
    return Grid(values, streams=tuple(grid.shape[4] for grid in grids))
