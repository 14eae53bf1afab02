"""Replicates: coverage of the interval, and what each resampling plan promises."""

from __future__ import annotations

import numpy as np
import pytest

from foresight_bench.scores import (
    Scores,
    bootstrap_counts,
    half_scores,
    halves,
    mean_scores,
    weighted_scores,
)

CLIPS, FRAMES, ICC = 50, 16, 0.6


def coverage(by_clip: bool, trials: int) -> float:
    """Return how often the interval holds the true mean, 0, of clips whose frames resemble each other."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(trials):
        clip = rng.normal(size=(CLIPS, 1)) * np.sqrt(ICC)
        frames = clip + rng.normal(size=(CLIPS, FRAMES)) * np.sqrt(1 - ICC)
        low, high = mean_scores(frames.mean(1) if by_clip else frames.ravel()).interval()
        held += low <= 0 <= high
    return held / trials


def test_interval_over_clips_covers() -> None:
    assert 0.92 <= coverage(by_clip=True, trials=1000) <= 0.98


def test_frames_taken_as_samples_cover_far_too_rarely() -> None:
    assert coverage(by_clip=False, trials=200) < 0.65


@pytest.mark.parametrize("n", [50, 400])
def test_both_plans_give_the_standard_error_of_a_mean(n: int) -> None:
    values = np.random.default_rng(1).normal(size=n)
    expected = values.std(ddof=1) / np.sqrt(n)
    assert mean_scores(values).standard_error() == pytest.approx(expected, rel=0.1)
    assert half_scores(lambda i: float(values[i].mean()), n).standard_error() == pytest.approx(expected, rel=0.15)


def test_plans() -> None:
    assert (bootstrap_counts(30).sum(1) == 30).all()
    index = halves(31)
    assert index.shape[1] == 15
    assert all(len(set(row)) == 15 for row in index.tolist()), "a half-sample must not draw a clip twice"
    assert (np.diff(index, axis=1) > 0).all()
    with pytest.raises(ValueError, match="read-only"):
        index[0, 0] = 1


def test_weighted_statistic_equals_the_mean() -> None:
    values = np.random.default_rng(2).normal(size=40)
    weighted = weighted_scores(lambda w: float(w @ values / w.sum()), 40)
    assert weighted.value == pytest.approx(values.mean())
    assert np.allclose(weighted.replicates, mean_scores(values).replicates)


def test_differences_pair_replicate_by_replicate() -> None:
    rng = np.random.default_rng(3)
    clip = rng.normal(size=100)
    a, b = mean_scores(clip + 0.1), mean_scores(clip)
    difference = a.minus(b)
    assert difference.value == pytest.approx(0.1)
    assert difference.standard_error() < 1e-12 < a.standard_error()
    with pytest.raises(ValueError, match="pair"):
        a.minus(mean_scores(clip[:50]))
    with pytest.raises(ValueError, match="pair"):
        a.minus(half_scores(lambda i: float(clip[i].mean()), 100))


def test_order_of_clips_changes_the_interval_only_by_resampling() -> None:
    values = np.random.default_rng(4).exponential(size=80)
    a, b = mean_scores(values), mean_scores(values[::-1])
    assert a.value == pytest.approx(b.value)
    assert np.allclose(a.interval(), b.interval(), atol=0.25 * a.standard_error())


def test_interval_is_centred_on_the_value_and_keeps_skew() -> None:
    scores = Scores(5.0, np.random.default_rng(5).exponential(size=1000), 50)
    low, high = scores.interval()
    assert low < 5 < high
    assert high - 5 > 2 * (5 - low)


def test_not_finite_has_no_interval() -> None:
    scores = mean_scores(np.array([1.0, np.nan, 2.0]))
    assert not scores.finite
    assert all(np.isnan(scores.interval()))
