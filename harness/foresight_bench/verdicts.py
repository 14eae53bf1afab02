"""Verdicts: what a score means beside its threshold, its floors and its ceiling.

Pure functions; the rule is the suite's and the same for every metric. A number without a control decides
nothing: a threshold that a floor can reach is VACUOUS, one that the ceiling cannot reach is UNREACHABLE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from foresight_bench.scores import Scores

MDE_FACTOR = 2.8
"""Minimum detectable effect in standard errors: z(.975) + z(.80) = 1.96 + .84 (two-sided 5 %, power 80 %)."""
MARGIN_SHARE = 0.1
"""A passing score also stands off the best floor by this share of ceiling minus floor."""


class Verdict(StrEnum):
    """Verdict on one metric."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    VACUOUS = "VACUOUS"
    UNREACHABLE = "UNREACHABLE"
    NOT_RUN = "NOT RUN"


class Decision(StrEnum):
    """Verdict on one experiment."""

    PROCEED = "PROCEED"
    PIVOT = "PIVOT"
    INCONCLUSIVE = "INCONCLUSIVE"


class GateStatus(StrEnum):
    """Verdict on a gate."""

    PASSED = "PASSED"
    BLOCKED = "BLOCKED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Judgement:
    """A verdict with what it rests on."""

    verdict: Verdict
    reason: str
    """One clause for the reader."""
    floor: str = ""
    """Name of the best floor."""
    skill: float | None = None
    """(score - floor) / (ceiling - floor)."""
    clips_needed: int | None = None
    """For INCONCLUSIVE: about how many clips would decide it."""


def judge(
    score: Scores | None,
    threshold: float,
    direction: str,
    floors: Mapping[str, Scores | None],
    ceiling: Scores | None,
) -> Judgement:
    """Judge one metric.

    Args:
        score: the row's score; None if it was not computed.
        threshold: the passing side is strictly beyond it.
        direction: ``higher`` or ``lower`` is better.
        floors: the floor rows' scores on the same clips, by name.
        ceiling: the ceiling row's score on the same clips.
    """
    if score is None or not score.finite:
        return Judgement(Verdict.NOT_RUN, "not computed" if score is None else "not finite")
    absent = [name for name, floor in floors.items() if floor is None or not floor.finite]
    if ceiling is None or not ceiling.finite:
        absent.append("ceiling")
    if absent or not floors or ceiling is None:
        return Judgement(Verdict.NOT_RUN, f"no value for its control {', '.join(absent) or 'floor'}")

    sign = 1.0 if direction == "higher" else -1.0
    present = {name: floor for name, floor in floors.items() if floor is not None}
    best = max(present, key=lambda name: sign * present[name].value)
    floor = present[best]
    span = sign * (ceiling.value - floor.value)
    skill = sign * (score.value - floor.value) / span if span > 0 else None

    reaching = [name for name, other in present.items() if _bounds(other, sign)[1] > sign * threshold]
    if reaching:
        return Judgement(Verdict.VACUOUS, f"the floor {', '.join(reaching)} reaches the threshold", best, skill)
    if _bounds(ceiling, sign)[0] <= sign * threshold:
        return Judgement(Verdict.UNREACHABLE, "the ceiling does not clear the threshold", best, skill)

    low, high = _bounds(score, sign)
    gain = score.minus(floor)
    gain_low, _ = _bounds(gain, sign)
    margin = max(MDE_FACTOR * gain.standard_error(), MARGIN_SHARE * span)
    if low > sign * threshold and gain_low > margin:
        return Judgement(Verdict.PASS, f"clears the threshold and the floor {best}", best, skill)
    if high <= sign * threshold:
        return Judgement(Verdict.FAIL, "misses the threshold", best, skill)
    if low > sign * threshold:
        reason, distance, half = (
            f"too close to the floor {best}",
            sign * gain.value - margin,
            sign * gain.value - gain_low,
        )
    else:
        reason, half = "its interval holds the threshold", (high - low) / 2
        distance = abs(score.value - threshold)
    needed = math.ceil(score.n * (half / distance) ** 2) if distance > 0 and half > 0 else None
    return Judgement(Verdict.INCONCLUSIVE, reason, best, skill, needed)


def _bounds(scores: Scores, sign: float) -> tuple[float, float]:
    """Return the interval turned so that higher is better."""
    low, high = scores.interval()
    return (low, high) if sign > 0 else (-high, -low)


def decide(verdicts: Sequence[Verdict]) -> Decision:
    """Return the experiment's verdict: PROCEED if all its gated metrics pass, PIVOT if any fails."""
    if any(verdict is Verdict.FAIL for verdict in verdicts):
        return Decision.PIVOT
    if verdicts and all(verdict is Verdict.PASS for verdict in verdicts):
        return Decision.PROCEED
    return Decision.INCONCLUSIVE


def gate_status(decisions: Sequence[Decision]) -> GateStatus:
    """Return the gate's verdict: PASSED if all experiments proceed, BLOCKED if any pivots."""
    if any(decision is Decision.PIVOT for decision in decisions):
        return GateStatus.BLOCKED
    if decisions and all(decision is Decision.PROCEED for decision in decisions):
        return GateStatus.PASSED
    return GateStatus.INCONCLUSIVE
