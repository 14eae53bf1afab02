"""Before a feature pass, a scramble that is proven is refused, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Split
from foresight_bench.errors import ContractError
from foresight_bench.extraction import extract
from foresight_bench.grids import Grid
from foresight_bench.layout import PROBES, refuse_scrambled
from foresight_bench.scrambles import Hits, proven

SIDE = 112
"""8 x 8 cells of 14 pixels."""

Change = Callable[[Tensor], Tensor]


class Means:
    """Means over cells; ``change`` is applied to the grid. Remembers what it was asked for."""

    def __init__(self, change: Change = lambda values: values, cell: int = 14) -> None:
        self.change, self.cell = change, cell
        self.asked: list[ClipBatch] = []

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        self.asked.append(clips)
        n, t, h, w = clips.shape
        cells = torch.tensor(clips.frames).float()
        means = cells.reshape(n, t, h // self.cell, self.cell, w // self.cell, self.cell, 3).mean((3, 5))
        return {tap: Grid(means if tap == "early" else self.change(means)) for tap in taps}


class FakeData:
    names, dense, scored, class_names = ("train", "test"), ("train",), ("test",), ()

    def __init__(self) -> None:
        rng = np.random.default_rng(0)

        def block(name: str, clips: int, frames: int) -> ClipBatch:
            values = rng.integers(0, 256, (clips, frames, SIDE, SIDE, 3), dtype=np.uint8)
            return ClipBatch(values, tuple(f"{name}-{index}" for index in range(clips)))

        self._splits = {
            "train": Split((block("long", 3, 3), block("short", 20, 1))),
            "test": Split((block("t", 2, 3),)),
        }

    def split(self, name: str) -> Split:
        return self._splits[name]


def features(encoder: Means, **options: Any) -> Any:
    return extract(lambda: encoder, ("early", "late"), FakeData(), probed=True, **options)  # type: ignore[arg-type]


def raster(change: Change) -> Change:
    return lambda values: change(values.flatten(2, 3)).reshape(values.shape)


def windows(side: int) -> Change:
    def change(values: Tensor) -> Tensor:
        n, t, h, w, c = values.shape
        split = values.reshape(n, t, h // side, side, w // side, side, c)
        return split.permute(0, 1, 2, 4, 3, 5, 6).reshape(values.shape)

    return change


def left_in(prefix: int) -> Change:
    return raster(lambda x: torch.cat([x.mean(2, keepdim=True).expand(-1, -1, prefix, -1), x[:, :, :-prefix]], 2))


SCRAMBLES: dict[str, tuple[Change, str]] = {
    "windows": (windows(2), "tokens stand in windows of 2 x 2"),
    "large windows": (windows(4), "tokens stand in windows of 4 x 4"),
    "transposed": (lambda v: v.transpose(2, 3), "the grid is transposed: its tokens run down the columns"),
    "upside down": (lambda v: v.flip(2), "the grid is upside down"),
    "mirrored": (lambda v: v.flip(3), "the grid is mirrored left to right"),
    "turned": (lambda v: v.flip(2, 3), "the grid is turned by half a turn"),
    "rolled": (lambda v: v.roll(1, 2), "the grid is rolled by 1 rows and 0 columns"),
    "rolled back": (lambda v: v.roll((-3, -2), (2, 3)), "the grid is rolled by -3 rows and -2 columns"),
    "class token": (left_in(1), "tokens stand 1 late in raster order, as if 1 prefix tokens had been left in"),
    "registers": (left_in(5), "tokens stand 5 late in raster order, as if 5 prefix tokens had been left in"),
}


@pytest.mark.parametrize("name", SCRAMBLES)
def test_a_scramble_is_named_with_its_tap(name: str) -> None:
    change, diagnosis = SCRAMBLES[name]
    with pytest.raises(ContractError, match=f"^Tap 'late': {diagnosis}; \\d+% of 15 changes of one patch"):
        features(Means(change))


def convolved(values: Tensor) -> Tensor:
    """All that changes moves one column to the right and one row down, and is lost beyond the edge."""
    return F.pad(values, (0, 0, 1, 0, 1, 0))[:, :, :-1, :-1]


def clamped(values: Tensor) -> Tensor:
    """As ``convolved``, where the last row and column keep what they have."""
    moved = convolved(values)
    moved[:, :, -1] += 2 * values[:, :, -1]
    moved[:, :, :, -1] += 2 * values[:, :, :, -1]
    return moved


def smeared(values: Tensor) -> Tensor:
    n, t, h, w, c = values.shape
    planes = values.reshape(n * t, h, w, c).permute(0, 3, 1, 2)
    kernel = torch.randn(c, 1, 5, 5, generator=torch.manual_seed(0))
    return F.conv2d(planes, kernel, padding=2, groups=c).permute(0, 2, 3, 1).reshape(values.shape)


HONEST: dict[str, Change] = {
    "as it is": lambda v: v,
    "to the neighbour": convolved,
    "to the neighbour, and held at the edge": clamped,
    "smeared": smeared,
    "into one token": lambda v: torch.cat([v.mean((2, 3), keepdim=True).expand_as(v[:, :, :1]), 0 * v[:, :, 1:]], 2),
    "everywhere": lambda v: v.mean((2, 3), keepdim=True).expand_as(v),
    "blind": torch.zeros_like,
    "in no order": raster(lambda x: x[:, :, torch.randperm(64, generator=torch.manual_seed(0))]),
    "two by two": lambda v: v.reshape(*v.shape[:2], 2, 4, 2, 4, 3).mean((3, 5)).flip(2),
    "one cell": lambda v: v.mean((2, 3), keepdim=True),
    "one row": lambda v: v.flatten(2, 3)[:, :, None],
}


@pytest.mark.parametrize("name", HONEST)
def test_what_no_permutation_of_a_grid_explains_is_let_through(name: str) -> None:
    features(Means(HONEST[name]))


def test_a_grid_of_more_cells_than_pixels_hides_no_scramble_of_the_others() -> None:
    class Fine(Means):
        def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
            found = dict(super().encode(clips, taps))
            values = found["early"].values
            return found | {"early": Grid(values.repeat_interleave(20, 2).repeat_interleave(20, 3))}

    features(Fine())
    with pytest.raises(ContractError, match="Tap 'late': tokens stand in windows of 2 x 2"):
        features(Fine(windows(2)))


def test_the_probe_is_one_clip_and_changed_copies_of_the_shortest_length_and_changes_no_feature() -> None:
    probed, plain = Means(), Means()
    found, told = features(probed), list[int]()
    expected = extract(lambda: plain, ("early", "late"), FakeData(), progress=told.append)  # type: ignore[arg-type]
    base, changed = probed.asked[:2]
    assert (base.shape, changed.shape) == ((1, 1, SIDE, SIDE), (PROBES, 1, SIDE, SIDE))
    assert {*base.ids, *changed.ids} == {"short-0"}
    differs = (changed.frames != base.frames).any(-1)[:, 0]
    assert len({tuple(np.argwhere(each).min(0)) for each in differs}) == PROBES
    assert all(each.sum() <= 14 * 14 for each in differs)
    assert [clips.shape for clips in probed.asked[2:]] == [clips.shape for clips in plain.asked]
    assert (found.frames, found.batch_frames) == (expected.frames, expected.batch_frames)
    for key, grids in expected.tokens.items():
        assert all(torch.equal(a.values, b.values) for a, b in zip(grids, found.tokens[key], strict=True))
    assert all(torch.equal(found.coarse[key], each) for key, each in expected.coarse.items())


def test_the_probe_touches_no_generator_and_gives_signs_of_life() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, numpys, told = torch.get_rng_state(), np.random.get_state()[1].copy(), list[int]()  # type: ignore[index]  # noqa: NPY002
    features(Means(), progress=told.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # type: ignore[index]  # noqa: NPY002
    assert told[:2] == [0, 0]
    assert sum(told) == 3 * 3 + 20 + 2 * 3


def test_probes_go_through_in_batches_that_fit() -> None:
    encoder = Means(windows(2))
    with pytest.raises(ContractError, match="windows of 2 x 2"):
        features(encoder, batch_frames=4)
    assert [len(clips) for clips in encoder.asked] == [1, 4, 4, 4, 3]


def hits(expected: Sequence[int], found: Sequence[int], side: int = 4) -> Hits:
    def places(cells: Sequence[int]) -> Any:
        return np.array([(0, cell // side, cell % side) for cell in cells])

    return Hits((1, side, side), places(expected), places(found), np.zeros(len(expected), dtype=np.int64))


def test_proof_takes_enough_places_and_enough_agreement() -> None:
    def turned(cells: Sequence[int]) -> list[int]:
        return [15 - cell for cell in cells]

    ten = list(range(10))
    assert "half a turn" in proven(hits(ten, turned(ten)))
    assert proven(hits(ten[:8], turned(ten[:8])))
    assert not proven(hits(ten[:7], turned(ten[:7])))
    assert not proven(hits(ten[:7] * 2, turned(ten[:7] * 2)))
    assert proven(hits(ten, [*turned(ten[:8]), 8, 9]))
    assert not proven(hits(ten, [*turned(ten[:7]), 7, 8, 9]))


def test_places_that_a_scramble_leaves_where_they_are_prove_nothing() -> None:
    diagonal = [9 * index for index in range(8)]
    assert not proven(hits(diagonal, diagonal, side=8))


def test_a_displacement_that_does_not_go_around_proves_nothing() -> None:
    inner = [cell for cell in range(64) if cell % 8 < 7]
    assert not proven(hits(inner, [cell + 1 for cell in inner], side=8))
    held = [7, 15, 23]
    assert not proven(hits(inner + held, [cell + 1 for cell in inner] + held, side=8))
    every = list(range(64))
    assert "rolled by 0 rows and 1 columns" in proven(
        hits(every, [cell // 8 * 8 + (cell + 1) % 8 for cell in every], side=8)
    )


def test_a_grid_whose_shape_depends_on_the_batch_is_an_error() -> None:
    def encode(clips: ClipBatch) -> Iterator[tuple[slice, Mapping[str, Tensor]]]:
        yield slice(0, len(clips)), {"tap": torch.zeros(len(clips), 1, 2 + len(clips), 2, 3)}

    with pytest.raises(ContractError, match="changed its shape"):
        refuse_scrambled(encode, FakeData().split("train").blocks[1][:1])
