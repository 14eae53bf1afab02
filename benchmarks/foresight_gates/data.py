"""The suites' data: which scenes make up each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from foresight_bench.contracts import Split
from foresight_gates.scenes import CLASS_NAMES, SceneParameters, assert_disjoint, digest, render_block


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
            "train": ((256, 1),),
            "val": ((64, 1),),
            "test": ((120, 1), (8, 9)),
            "align": ((272, 1),),
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


class SceneData:
    """Procedural clips; see :mod:`foresight_gates.scenes`."""

    names = ("train", "val", "test", "align")
    dense = ("train", "val", "test")
    scored = ("test", "align")
    class_names = CLASS_NAMES

    def __init__(self, recipe: str | Recipe) -> None:
        self.recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """Return a split, rendered once per process."""
        if name not in self._splits:
            blocks, start = [], 0
            for clips, frames in self.recipe.splits[name]:
                blocks.append(render_block(replace(self.recipe.scene, frames=frames), name, start, clips))
                start += clips
            self._splits[name] = Split(tuple(blocks))
        return self._splits[name]

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a split's bytes as rendered here."""
        return digest(self.split(name))

    def check_disjoint(self) -> None:
        """Raise :class:`foresight_bench.errors.DataError` if two splits share a frame."""
        assert_disjoint({name: self.split(name) for name in self.names})
