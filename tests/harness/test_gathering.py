"""What a feature grid knows of a latent cell, on grids whose answer can be written down."""

from __future__ import annotations

import pytest
import torch

from foresight_bench.gathering import FIRST, Gathering, Kind, readings
from foresight_bench.grids import Grid, Layout, finite

LTX = ((0, 1), (1, 9))
"""Nine frames as a video autoencoder of stride 8 sees them."""


def numbered(cells: int) -> Grid:
    """Return features whose only number is their place in time."""
    return Grid(torch.arange(float(cells)).reshape(1, cells, 1, 1, 1).expand(2, cells, 2, 2, 1))


@pytest.mark.parametrize(
    ("cells", "onto", "wanted"),
    [
        # Frame by frame.
        (3, Layout(3, 1, 1), [(FIRST, (0,)), (FIRST, (1,)), (FIRST, (2,))]),
        # Two frames share a token, and the ninth has one of its own.
        (2, Layout(4, 1, 1), [(FIRST, (0,)), (Kind(False, 1), (0,)), (FIRST, (1,)), (Kind(False, 1), (1,))]),
        # A latent frame for two features' frames.
        (4, Layout(2, 1, 1), [(Kind(True, 0), (0, 1)), (Kind(True, 0), (2, 3))]),
        (9, Layout(2, 1, 1, LTX), [(FIRST, (0,)), (Kind(True, 0), tuple(range(1, 9)))]),
        # Tokens of two frames: frame 1, in the second latent frame, shares its token with frame 0.
        (5, Layout(2, 1, 1, LTX), [(FIRST, (0,)), (Kind(True, 0), (0, 1, 2, 3, 4))]),
        # One token for the whole clip.
        (1, Layout(2, 1, 1, LTX), [(FIRST, (0,)), (Kind(False, 1), (0,))]),
        (1, Layout(1, 1, 1, ((0, 1),)), [(FIRST, (0,))]),
    ],
)
def test_readings(cells: int, onto: Layout, wanted: list[tuple[Kind, tuple[int, ...]]]) -> None:
    assert readings(cells, onto) == wanted


def test_the_mean_and_the_change_of_what_a_latent_frame_covers() -> None:
    onto = Layout(2, 2, 2, LTX)
    gathering = Gathering.of([(Layout(9, 2, 2), onto)])
    assert gathering.trend
    assert gathering.copies == 2
    mean, change = gathering.values(numbered(9), onto)[0, :, 0, 0].T.tolist()
    assert mean == [0.0, 4.5]
    assert change == pytest.approx([0.0, 7.0])  # from frame 1 to frame 8
    steady = Grid(torch.full((2, 9, 2, 2, 1), 3.0))
    assert gathering.values(steady, onto)[0, :, 0, 0, 1].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_train_split_of_single_frames_has_no_change_anywhere() -> None:
    gathering = Gathering.of([(Layout(1, 2, 2), Layout(1, 2, 2, ((0, 1),)))])
    assert not gathering.trend
    onto = Layout(2, 2, 2, LTX)
    found = gathering.values(numbered(9), onto)
    assert found.shape == (2, 2, 2, 2, 1)
    assert found[0, :, 0, 0, 0].tolist() == [0.0, 4.5]
    assert gathering.kind_of(9, onto) == [0, 0]


def test_kinds_are_numbered_as_train_has_them() -> None:
    blocks = [
        (Layout(1, 1, 1), Layout(1, 1, 1)),
        (Layout(2, 1, 1), Layout(4, 1, 1)),
        (Layout(4, 1, 1), Layout(2, 1, 1)),
    ]
    gathering = Gathering.of(blocks)
    assert gathering.kinds == (FIRST, Kind(False, 1), Kind(True, 0))
    assert gathering.kind_of(2, Layout(4, 1, 1)) == [0, 1, 0, 1]
    assert gathering.kind_of(2, Layout(6, 1, 1)) == [0, 1, 0, 0, 1, 0], "a third frame of a token is unknown"
    assert gathering.kind_of(4, Layout(2, 1, 1)) == [2, 2]


@pytest.mark.parametrize(
    ("features", "onto", "sub"),
    [
        ((16, 16), (7, 7), (2, 2)),
        ((16, 16), (16, 16), (1, 1)),
        ((16, 16), (12, 12), (1, 1)),
        ((64, 64), (7, 7), (2, 2)),
        ((7, 14), (14, 7), (1, 2)),
    ],
)
def test_at_most_two_by_two_tokens_are_kept_apart(
    features: tuple[int, int], onto: tuple[int, int], sub: tuple[int, int]
) -> None:
    gathering = Gathering.of([(Layout(1, *features), Layout(1, *onto))])
    assert gathering.sub == sub
    values = gathering.values(Grid(torch.zeros(2, 1, *features, 3)), Layout(1, *onto))
    assert values.shape == (2, 1, *onto, 3 * sub[0] * sub[1])


def test_tokens_stand_in_raster_order_within_their_cell() -> None:
    tokens = torch.arange(4 * 6.0).reshape(1, 1, 4, 6, 1)
    values = torch.cat([tokens, -tokens], -1)
    gathering = Gathering.of([(Layout(1, 4, 6), Layout(1, 2, 3))])
    found = gathering.values(Grid(values), Layout(1, 2, 3))
    assert found[0, 0, 1, 2].tolist() == [16, -16, 17, -17, 22, -22, 23, -23]


def test_statistics_are_those_of_the_columns() -> None:
    x = torch.randn(400, 2, 4, 4, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]) + 7
    rows = x.flatten(0, 3)
    gathering = Gathering.of([(Layout(2, 4, 4), Layout(2, 2, 2))])
    mean, std = gathering.statistics(rows.mean(0), rows.std(0))
    values = gathering.values(Grid(x), Layout(2, 2, 2)).flatten(0, 3)
    torch.testing.assert_close(values.mean(0), mean, atol=0.2, rtol=0)
    torch.testing.assert_close(values.std(0), std, rtol=0.1, atol=0)
    trending = Gathering.of([(Layout(2, 2, 2), Layout(1, 2, 2))])
    mean, std = trending.statistics(rows.mean(0), rows.std(0))
    values = trending.values(Grid(x[:, :, :2, :2]), Layout(1, 2, 2))
    assert values.shape[-1] == len(mean) == len(std) == 6
    assert not mean[3:].any(), "a change has no mean"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_seen(value: float) -> None:
    values = torch.zeros(2, 1, 3, 3, 4)
    assert finite(values)
    values[1, 0, 2, 1, 3] = value
    assert not finite(values)
