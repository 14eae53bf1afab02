"""The verdict rule, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from foresight_bench.scores import Scores, mean_scores
from foresight_bench.verdicts import Decision, GateStatus, Verdict, decide, gate_status, judge

N = 100


def scores(mean: float, sd: float = 0.05, seed: int = 0) -> Scores:
    values = np.random.default_rng(seed).normal(size=N)
    values = (values - values.mean()) / values.std()
    return mean_scores(mean + sd * values)


FLOOR, CEILING = scores(0.1, seed=1), scores(0.95, seed=2)


def verdict(score: Scores | None, floor: Scores | None = FLOOR, ceiling: Scores | None = CEILING) -> Verdict:
    return judge(score, 0.5, "higher", {"blank": floor}, ceiling).verdict


def test_each_verdict() -> None:
    assert verdict(scores(0.8)) is Verdict.PASS
    assert verdict(scores(0.3)) is Verdict.FAIL
    assert verdict(scores(0.5)) is Verdict.INCONCLUSIVE
    assert verdict(scores(0.8), floor=scores(0.6)) is Verdict.VACUOUS
    assert verdict(scores(0.8), ceiling=scores(0.4)) is Verdict.UNREACHABLE
    assert verdict(None) is Verdict.NOT_RUN


def test_lower_is_better_mirrors() -> None:
    def mirrored(value: float) -> Verdict:
        return judge(scores(value), 0.35, "lower", {"blank": scores(0.7)}, scores(0.02)).verdict

    assert mirrored(0.1) is Verdict.PASS
    assert mirrored(0.5) is Verdict.FAIL
    assert mirrored(0.35) is Verdict.INCONCLUSIVE
    assert judge(scores(0.1), 0.35, "lower", {"blank": scores(0.3)}, scores(0.02)).verdict is Verdict.VACUOUS
    assert judge(scores(0.1), 0.35, "lower", {"blank": scores(0.7)}, scores(0.4)).verdict is Verdict.UNREACHABLE


def test_a_floor_that_only_touches_the_threshold_is_vacuous() -> None:
    assert verdict(scores(0.9), floor=scores(0.495)) is Verdict.VACUOUS


def test_vacuous_comes_before_the_score() -> None:
    assert verdict(scores(0.3), floor=scores(0.6)) is Verdict.VACUOUS


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_not_finite_is_not_run(broken: float) -> None:
    assert verdict(mean_scores(np.full(N, broken))) is Verdict.NOT_RUN


@pytest.mark.parametrize("missing", ["floor", "ceiling"])
def test_a_missing_control_is_not_run(missing: str) -> None:
    found = judge(
        scores(0.8),
        0.5,
        "higher",
        {"blank": None if missing == "floor" else FLOOR},
        None if missing == "ceiling" else CEILING,
    )
    assert found.verdict is Verdict.NOT_RUN


def test_passing_needs_distance_from_the_best_floor() -> None:
    floor, ceiling = scores(0.46, 0.02, seed=3), scores(0.99, 0.01, seed=4)
    near = scores(0.51, 0.01, seed=5)  # clears .5 by its interval, but not the floor by a tenth of .53
    found = judge(near, 0.5, "higher", {"blank": floor}, ceiling)
    assert near.interval()[0] > 0.5
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "blank" in found.reason
    assert judge(scores(0.6, 0.01, seed=5), 0.5, "higher", {"blank": floor}, ceiling).verdict is Verdict.PASS


def test_the_best_floor_and_skill_are_named() -> None:
    found = judge(
        scores(0.7), 0.5, "higher", {"blank": scores(0.0, 0.01), "mean-rgb": scores(0.2, 0.01)}, scores(1.0, 0.0)
    )
    assert found.floor == "mean-rgb"
    assert found.skill == pytest.approx((0.7 - 0.2) / 0.8)


def test_inconclusive_says_how_many_clips_would_decide() -> None:
    found = judge(scores(0.505, 0.05), 0.5, "higher", {"blank": FLOOR}, CEILING)
    # half-width 1.96 * .05 / sqrt(100) = .0098 against a distance of .005: (1.96)^2 * 100 = 384 clips
    assert found.clips_needed == pytest.approx(384, rel=0.15)


def test_experiments_and_gates() -> None:
    assert decide([Verdict.PASS, Verdict.PASS]) is Decision.PROCEED
    assert decide([Verdict.PASS, Verdict.FAIL, Verdict.NOT_RUN]) is Decision.PIVOT
    assert decide([Verdict.PASS, Verdict.VACUOUS]) is Decision.INCONCLUSIVE
    assert decide([Verdict.PASS, Verdict.NOT_RUN]) is Decision.INCONCLUSIVE
    assert decide([]) is Decision.INCONCLUSIVE
    assert gate_status([Decision.PROCEED] * 3) is GateStatus.PASSED
    assert gate_status([Decision.PROCEED, Decision.PIVOT, Decision.INCONCLUSIVE]) is GateStatus.BLOCKED
    assert gate_status([Decision.PROCEED, Decision.INCONCLUSIVE]) is GateStatus.INCONCLUSIVE
    assert gate_status([]) is GateStatus.INCONCLUSIVE
