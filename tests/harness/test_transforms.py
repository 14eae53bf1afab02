"""What is made of features after the pass: hybrids of several streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foresight_bench.errors import ContractError
from foresight_bench.features import COARSE_SIDE, FeatureSet, Grids, Key, Tokens
from foresight_bench.grids import Grid
from foresight_bench.transforms import hybrid, next_clip, parameters, pooled, pooled_grid, shuffled

CELLS = COARSE_SIDE**2


def stream(tap: str, blocks: dict[str, list[Tensor]], **facts: float) -> FeatureSet:
    """Return a row with one tap; ``blocks`` are grids by split."""
    tokens = {(tap, split): tuple(Grid(values) for values in grids) for split, grids in blocks.items()}
    coarse = {key: torch.cat([grid.coarse(COARSE_SIDE) for grid in grids]) for key, grids in tokens.items()}
    return FeatureSet((tap,), tokens, coarse, **facts)  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_streams_that_disagree_in_time_are_brought_to_the_longer_one_by_the_nearest_cell() -> None:
    # Train: single frames, 1 beside 1. Test: a video encoder's 5 cells beside 9, each numbered.
    short = torch.arange(5.0).reshape(1, 5, 1, 1, 1).expand(2, 5, 4, 4, 3)
    long = torch.arange(9.0).reshape(1, 9, 1, 1, 1).expand(2, 9, 4, 4, 2)
    a = stream("post_merge", {"train": [noise(6, 1, 4, 4, 3)], "test": [short]})
    b = stream("final", {"train": [noise(6, 1, 4, 4, 2, seed=1)], "test": [long]})
    row = hybrid([a, b], ["qwen2.5-vl", "dinov2"])
    (tap,) = row.taps
    assert tap == "qwen2.5-vl@post_merge+dinov2@final"
    assert row.tokens[tap, "train"][0].shape == (6, 1, 4, 4, 5)
    (grid,) = row.tokens[tap, "test"]
    assert grid.shape == (2, 9, 4, 4, 5)

    def restored(part: FeatureSet, values: Tensor) -> Tensor:
        train = part.tokens[part.taps[0], "train"][0].values.flatten(0, 3)
        return values * train.std(0, correction=0) + train.mean(0)

    cells = restored(a, grid.values[..., :3])[0, :, 0, 0, 0]
    frames = restored(b, grid.values[..., 3:])[0, :, 0, 0, 0]
    assert torch.allclose(cells, torch.tensor([0.0, 0, 1, 1, 2, 2, 3, 3, 4]), atol=1e-5)
    assert torch.allclose(frames, torch.arange(9.0), atol=1e-5)


def test_streams_that_disagree_in_space_are_brought_to_the_finer_one() -> None:
    ramp = torch.arange(2.0).reshape(1, 1, 1, 2, 1).expand(4, 1, 2, 2, 1)
    a = stream("x", {"train": [ramp + 0 * noise(4, 1, 2, 2, 1)]})
    b = stream("y", {"train": [noise(4, 1, 4, 4, 1)]})
    (grid,) = next(iter(hybrid([a, b], ["a", "b"]).tokens.values()))
    assert grid.shape == (4, 1, 4, 4, 2)
    row = grid.values[0, 0, 0, :, 0]  # bilinear between cell centres: 0, 1/4, 3/4, 1 of the way
    assert torch.allclose((row - row[0]) / (row[-1] - row[0]), torch.tensor([0, 0.25, 0.75, 1]), atol=1e-6)


def test_each_stream_is_standardised_on_its_own_train_tokens() -> None:
    # Two channels with a known mean and deviation; the test split is shifted, and must stay so.
    scale, shift = torch.tensor([100.0, 0.01]), torch.tensor([-7.0, 3.0])
    loud = noise(50, 1, 4, 4, 2) * scale + shift
    quiet = noise(50, 1, 4, 4, 1, seed=1)
    moved = loud[:10] + 2 * scale
    a = stream("x", {"train": [loud[:20], loud[20:]], "test": [moved]})
    b = stream("y", {"train": [quiet[:20], quiet[20:]], "test": [quiet[:10]]})
    row = hybrid([a, b], ["a", "b"])
    (tap,) = row.taps
    train = torch.cat([grid.values for grid in row.tokens[tap, "train"]]).flatten(0, 3)
    assert torch.allclose(train.mean(0), torch.zeros(3), atol=1e-4)  # 3 / 0.01 roundings of float32
    assert torch.allclose(train.std(0, correction=0), torch.ones(3), atol=1e-4)
    test = row.tokens[tap, "test"][0].values
    deviation = loud.flatten(0, 3).std(0, correction=0)
    expected = (moved - loud.flatten(0, 3).mean(0)) / deviation
    assert torch.allclose(test[..., :2], expected, atol=1e-4)
    # Clip averages are scaled as the tokens are, cell by cell and stream beside stream.
    assert torch.allclose(row.coarse[tap, "test"].reshape(10, CELLS, 3), test.reshape(10, CELLS, 3), atol=1e-4)


def test_a_constant_channel_stays_finite() -> None:
    a = stream("x", {"train": [torch.ones(4, 1, 4, 4, 1)]})
    b = stream("y", {"train": [noise(4, 1, 4, 4, 1)]})
    row = hybrid([a, b], ["a", "b"])
    assert all(bool(torch.isfinite(grid.values).all()) for grids in row.tokens.values() for grid in grids)


def test_splits_without_tokens_keep_their_averages() -> None:
    streams = []
    for tap, seed in (("x", 0), ("y", 1)):
        part = stream(tap, {"train": [noise(6, 1, 4, 4, 2, seed=seed)], "align": [noise(3, 1, 4, 4, 2, seed=seed)]})
        del part.tokens[tap, "align"]  # type: ignore[attr-defined]
        streams.append(part)
    row = hybrid(streams, ["a", "b"])
    (tap,) = row.taps
    assert (tap, "align") not in row.tokens
    assert row.coarse[tap, "align"].shape == (3, CELLS * 4)


def test_what_the_passes_took_is_kept() -> None:
    a = stream("x", {"train": [noise(4, 1, 4, 4, 1)]}, seconds=2.0, frames=40, batch_frames=64)
    b = stream("y", {"train": [noise(4, 1, 4, 4, 1)]}, seconds=3.0, frames=40, batch_frames=16)
    row = hybrid([a, b], ["a", "b"])
    assert (row.seconds, row.frames, row.batch_frames) == (5.0, 40, 64)


@pytest.mark.parametrize(("a", "b"), [(True, True), (True, False), (False, False)])
def test_a_row_is_cached_if_all_its_streams_are(a: bool, b: bool) -> None:
    streams = [stream("x", {"train": [noise(4, 1, 4, 4, 1)]}, cached=cached) for cached in (a, b)]
    assert hybrid(streams, ["a", "b"]).cached is (a and b)


@pytest.mark.parametrize(
    ("streams", "count"),
    [
        ([("a", 5, ""), ("b", 7, "")], 12),
        ([("a", 5, ""), ("a", 5, "")], 5),
        ([("a~random", 5, ""), ("a~random", 9, "")], 9),  # random weights are built for each stream's own tap
        ([("a", 5, ""), ("pixels", 0, "pixels")], 5),
        ([("a", 5, ""), ("c", 0, "")], 0),
        ([("pixels", 0, "pixels"), ("blank", 0, "floor")], 0),
    ],
)
def test_a_hybrid_has_the_parameters_of_each_of_its_models_once(
    streams: list[tuple[str, int, str]], count: int
) -> None:
    rows = [FeatureSet(("x",), {}, {}, control=control, parameters=each) for _, each, control in streams]
    assert parameters(rows, [model for model, _, _ in streams]) == count


def test_a_stream_with_several_taps_is_an_error() -> None:
    one = stream("x", {"train": [noise(4, 1, 4, 4, 1)]})
    two = FeatureSet(("x", "y"), {}, {})
    with pytest.raises(ContractError, match="'b' has 2"):
        hybrid([one, two], ["a", "b"])


def test_a_hybrid_says_which_channels_are_whose() -> None:
    a = stream("x", {"train": [noise(6, 1, 2, 2, 3)]})
    b = stream("y", {"train": [noise(6, 1, 4, 4, 5, seed=1)]})
    (grid,) = next(iter(hybrid([a, b], ["a", "b"]).tokens.values()))
    assert grid.streams == (3, 5)
    assert a.tokens["x", "train"][0].streams == ()


def test_what_only_changes_the_values_keeps_the_rest() -> None:
    grid = Grid(noise(3, 2, 4, 4, 5), ((0, 1), (1, 9)), (2, 3))
    for made in (next_clip(grid), pooled_grid(grid)):
        assert (made.spans, made.streams) == (grid.spans, grid.streams)
        assert not torch.equal(made.values, grid.values)


def test_grids_are_made_when_they_are_asked_for_and_only_then() -> None:
    asked: list[Key] = []

    def make(key: Key) -> Grids:
        asked.append(key)
        return (Grid(noise(4, 1, 4, 4, 2, seed=len(key[0]))),)

    keys = [(tap, split) for tap in ("x", "deep") for split in ("train", "test")]
    row = FeatureSet(("x", "deep"), Tokens(keys, make), {})
    shallow = shuffled(pooled(row), ["test"]).at(("x",))
    assert (list(shallow.tokens), len(shallow.tokens), asked) == ([("x", "train"), ("x", "test")], 2, [])
    assert ("deep", "train") not in shallow.tokens
    with pytest.raises(KeyError):
        shallow.tokens["deep", "train"]
    assert asked == []
    (grid,) = shallow.tokens["x", "test"]
    assert asked == [("x", "test")]
    assert torch.equal(grid.values, next_clip(pooled_grid(make(("x", "test"))[0])).values)
    (grid,) = shallow.tokens["x", "train"]
    assert torch.equal(grid.values, pooled_grid(make(("x", "train"))[0]).values)
