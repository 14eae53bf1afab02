"""Ranks against the paired bootstrap of `compare`, planted shifts and ties; the front against its definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight_bench.ranking import Rank, alike, better, front, ranks
from foresight_bench.scores import Scores, mean_scores

N = 100
RNG = np.random.default_rng(1)
BASE = RNG.normal(0.5, 0.2, N)


def shifted(shift: float, noise: float = 0.05) -> Scores:
    return mean_scores(BASE + shift + RNG.normal(0, noise, N))


ROWS = [shifted(shift) for shift in (0.0, 0.002, 0.02, 0.05, 0.051, 0.3)]


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_better_is_what_the_interval_of_each_paired_difference_says(direction: str) -> None:
    found = better(ROWS, direction)
    seen = set()
    for i, j in product(range(len(ROWS)), repeat=2):
        low, high = ROWS[i].minus(ROWS[j]).interval()
        seen.add((low > 0, high < 0))
        assert found[i, j] == (low > 0 if direction == "higher" else high < 0)
    assert len(seen) == 3  # better, worse and not separated all occur


def test_rows_that_cannot_be_told_apart_share_a_rank() -> None:
    rows: list[Scores | None] = [shifted(0.3), shifted(0.0, 0.01), shifted(0.0, 0.01), shifted(-0.3)]
    assert [str(rank) for rank in ranks(rows, "higher")] == ["1", "2=", "2=", "4"]
    assert [str(rank) for rank in ranks(rows, "lower")] == ["4", "2=", "2=", "1"]
    assert ranks(rows, "none") == [None] * 4
    same = mean_scores(BASE)
    assert ranks([same, same], "higher") == [Rank(1, True), Rank(1, True)]


def test_not_being_separated_is_not_transitive() -> None:
    a, b, c = (Scores(value, np.array([-1.0, 1.0, 0.0, 0.0]) * value, 4) for value in (1.0, 2.0, 6.0))
    wins = better([a, b, c], "higher")
    assert (wins[1, 0], wins[2, 1], wins[2, 0]) == (True, True, True)
    rng = np.random.default_rng(2)
    a, b, c = (Scores(value, rng.normal(0, 1, 1000), 50) for value in (0.0, 2.0, 4.0))
    wins = better([a, b, c], "higher")
    assert (wins[1, 0], wins[2, 1], wins[2, 0]) == (False, False, True)
    assert [str(rank) for rank in ranks([a, b, c], "higher")] == ["2", "1=", "1="]


def test_a_row_that_is_absent_not_finite_or_over_other_clips_has_no_rank() -> None:
    other = mean_scores(BASE[:50] + 9)
    broken = Scores(float("nan"), np.full(1000, np.nan), N)
    rows = [ROWS[0], None, broken, other, ROWS[5]]
    assert alike(rows) == [True, False, False, False, True]
    assert ranks(rows, "higher") == [Rank(2, False), None, None, None, Rank(1, False)]
    assert ranks([], "higher") == []
    assert ranks([None], "higher") == [None]
    assert ranks([ROWS[0]], "higher") == [Rank(1, False)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12), st.sampled_from(["higher", "lower"]))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]], direction: str) -> None:
    sign = 1 if direction == "higher" else -1

    def dominates(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] <= other[0] and sign * one[1] >= sign * other[1]

    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert front([cost for cost, _ in points], [value for _, value in points], direction) == expected
