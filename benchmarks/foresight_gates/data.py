"""The suites' data: which scenes make up each split."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Split
from foresight_gates.scenes import CLASS_NAMES, SceneParameters, assert_disjoint, digest, render_block
from foresight_gates.scenes.aside import Aside, shared
from foresight_gates.scenes.render import Canvas


@dataclass(frozen=True)
class Recipe:
    """How many clips of how many frames each split holds."""

    scene: SceneParameters
    splits: Mapping[str, tuple[tuple[int, int], ...]]
    """Split name to blocks of (clips, frames)."""


# `test` (C1, Q2) and `align` together are what Q1 is scored on: recall depends on how many clips there are,
# so their number is part of the suite. `align` needs no tokens, only one coarse vector a clip.
RECIPES = {
    "quick": Recipe(
        SceneParameters(side=224),
        {
            "train": ((192, 1),),
            "val": ((48, 1),),
            "test": ((96, 1), (4, 9)),
            "align": ((300, 1),),
        },
    ),
    "gate1": Recipe(
        SceneParameters(side=448),
        {
            "train": ((384, 9),),
            "val": ((96, 9),),
            "test": ((192, 9),),
            "align": ((808, 9),),
        },
    ),
}


STREAMED = 32
"""Clips held at a time where a split is only hashed."""


class SceneData:
    """Procedural clips; see :mod:`foresight_gates.scenes`."""

    names = ("train", "val", "test", "align")
    dense = ("train", "val", "test")
    scored = ("test", "align")
    class_names = CLASS_NAMES

    def __init__(self, recipe: str | Recipe) -> None:
        self.recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
        self._splits: dict[str, Split] = {}
        self._ahead: tuple[Aside, dict[str, list[Canvas]]] | None = None

    def render_ahead(self, processes: int) -> None:
        """Begin to render what is not yet, in ``processes`` beside this one; to be called before it has threads.

        On Linux, where it is safe to fork. Elsewhere splits are rendered when they are asked for.
        """
        if sys.platform != "linux":
            return
        canvases = {
            name: [
                Canvas.blank(replace(self.recipe.scene, frames=frames), name, start, clips, shared)
                for start, clips, frames in self._blocks(name)
            ]
            for name in self.names
            if name not in self._splits
        }
        self._ahead = Aside([canvas for blocks in canvases.values() for canvas in blocks], processes), canvases

    def split(self, name: str) -> Split:
        """Return a split, rendered once per process."""
        if self._ahead is not None:
            (aside, canvases), self._ahead = self._ahead, None
            aside.wait()
            self._splits |= {each: Split(tuple(c.batch() for c in blocks)) for each, blocks in canvases.items()}
        if name not in self._splits:
            self._splits[name] = Split(
                tuple(
                    render_block(replace(self.recipe.scene, frames=frames), name, start, clips)
                    for start, clips, frames in self._blocks(name)
                )
            )
        return self._splits[name]

    def blocks(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return (clips, frames) of each block of a split, without rendering any."""
        return self.recipe.splits[name]

    def limited(self, clips: int) -> SceneData:
        """Return the same data with at most ``clips`` clips in each block."""
        splits = {
            name: tuple((min(count, clips), frames) for count, frames in blocks)
            for name, blocks in self.recipe.splits.items()
        }
        return SceneData(replace(self.recipe, splits=splits))

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a split's bytes as rendered here."""
        return digest(self._clips(name))

    def check_disjoint(self) -> None:
        """Raise :class:`foresight_bench.errors.DataError` if two splits share a frame."""
        assert_disjoint({name: self._clips(name) for name in self.names})

    def _clips(self, name: str) -> Iterator[ClipBatch]:
        """Yield a split's clips: those in memory, or else a few at a time, since `gate1` is 19 GB in all."""
        if name in self._splits:
            yield from self._splits[name].blocks
            return
        for start, clips, frames in self._blocks(name):
            for first in range(start, start + clips, STREAMED):
                count = min(STREAMED, start + clips - first)
                yield render_block(replace(self.recipe.scene, frames=frames), name, first, count)

    def _blocks(self, name: str) -> Iterator[tuple[int, int, int]]:
        """Yield (first clip, clips, frames) of each block."""
        start = 0
        for clips, frames in self.recipe.splits[name]:
            yield start, clips, frames
            start += clips
