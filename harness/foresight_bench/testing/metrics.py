"""The checks of metrics: of frames, of boxes and of pairs of spaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foresight_bench.contracts import CrossedMetric
from foresight_bench.errors import ForesightError
from foresight_bench.registry import target
from foresight_bench.scores import Scores, mean_scores
from foresight_bench.specs import MetricSpec
from foresight_bench.testing.cases import BoxCase, Case, FrameCase, box_case, frame_case, space_case
from foresight_bench.testing.kit import Broken, Checks, NotApplicable
from foresight_bench.testing.parts import (
    bytes_of,
    generators_kept,
    move_generators,
    require_light,
    require_settings_kept,
    untouched,
)
from foresight_bench.testing.subjects import PartSubject

METRIC_CHECKS: Checks[PartSubject] = Checks()

CLIPS = 32
LEVELS = (0.0, 0.05, 0.15, 0.4, 1.0)
"""Noise, from none to as much as there is signal."""

IDENTICAL = 0.01
"""Most that identical input may be short of the best value, as a share of it (of 1 if it is 0): `ridge_r2` is short by
what its penalty takes, .001."""
SLACK = 0.05
"""Most that a score may improve from one level of noise to the next, as a share of its whole change."""
EQUAL = 1e-4
"""Most that a score may move with what is beside it, as a share of 1 and of itself: float32 sums make 1e-6 of it."""

DATASETS, SAMPLE = 60, 40
COVERED = 0.8
"""Least share of simulated samples whose interval holds the true value. Of a 95 % interval 93 % of them are expected at
40 clips, with a deviation of 3 %: four of those below."""
WIDEST = 3.0
"""Most that intervals may be wider than the spread of the scores asks for. Half-samples of 40 clips: up to 1.9."""


@METRIC_CHECKS.must("The module of the entry point imports no torch.")
def import_light(subject: PartSubject) -> None:
    """See :func:`foresight_bench.testing.parts.require_light`."""
    require_light(subject)


@METRIC_CHECKS.must("No setting of the process is left changed.")
def no_global_state(subject: PartSubject) -> None:
    """Building and scoring."""
    case = _case(subject).noisy(LEVELS[2])
    require_settings_kept(lambda: _measured(replace(subject, cache={}), case))


@METRIC_CHECKS.must("The spec states the version of the implementation.")
def version_stated(subject: PartSubject) -> None:
    """It is part of the cohort: without one, results of two implementations would be compared."""
    if not _spec(subject).version.strip():
        raise Broken("MetricSpec.version is empty; begin with '1' and raise it with every change of the values.")


@METRIC_CHECKS.must("Identical input has the value that the definition gives it: an end of the range.")
def identity(subject: PartSubject) -> None:
    """Of the two ends the nearer one; which of them is better is for `direction` to say."""
    _require_direction(subject)
    ends = [end for end in _spec(subject).range or () if np.isfinite(end)]
    if not ends:
        raise NotApplicable("Its range has no finite end, so identical input has no known value.")
    found = _values(subject, 0)
    end = min(ends, key=lambda end: abs(end - float(found.mean())))
    worst = float(found[np.abs(found - end).argmax()])
    if not abs(worst - end) <= IDENTICAL * (abs(end) or 1):
        raise Broken(
            f"Identical input scores {worst:.4g}, where the nearest end of the range is {end:g}. Usually a constant in "
            "a denominator is too large, a mean is taken over the wrong axes, or the range is that of another unit."
        )


@METRIC_CHECKS.must("A score gets no better as noise grows.")
def monotone(subject: PartSubject) -> None:
    """Over four levels; ties are allowed, a score that never changes is not."""
    _require_direction(subject)
    means = np.array([float(_values(subject, level).mean()) for level in LEVELS])
    change = means[-1] - means[0]
    told = ", ".join(f"{mean:.4g}" for mean in means)
    if not abs(change) > 1e-9:
        raise Broken(
            f"Scores under growing noise are {told}: the prediction has no part in them. Usually the truth is compared "
            "with itself."
        )
    if (np.diff(means) * np.sign(change) < -SLACK * abs(change)).any():
        raise Broken(
            f"Scores under growing noise are {told}, which is no steady change. Usually a value wraps around (uint8), "
            "is taken absolute where its sign counts, or noise is scored as detail."
        )


@METRIC_CHECKS.must("The direction that the spec declares is the true one.")
def direction(subject: PartSubject) -> None:
    """Identical input scores better than pure noise."""
    declared = _require_direction(subject)
    best, worst = (float(_values(subject, level).mean()) for level in (LEVELS[0], LEVELS[-1]))
    if best < worst if declared == "higher" else best > worst:
        raise Broken(
            f"Identical input scores {best:.4g} and noise {worst:.4g}, so '{declared}' is not better. Usually a "
            "distance was declared as a similarity, or the other way round; correct MetricSpec.direction."
        )


@METRIC_CHECKS.must("A metric that the spec declares symmetric is.")
def symmetric(subject: PartSubject) -> None:
    """Truth and prediction, or the two spaces, change places."""
    if not _spec(subject).symmetric:
        raise NotApplicable("The spec does not declare it symmetric.")
    case = _case(subject).noisy(LEVELS[2])
    one, other = _score(subject, case), _score(subject, case.swapped())
    if not np.allclose(one, other, rtol=EQUAL, atol=EQUAL):
        raise Broken(
            f"It scores {one.mean():.6g}, and {other.mean():.6g} with both sides exchanged. Usually the error is "
            "divided by something of one side alone; correct it, or MetricSpec.symmetric."
        )


@METRIC_CHECKS.must("Where a metric of frames has `crossed`, it gives what `score` does.")
def crossed(subject: PartSubject) -> None:
    """Of noisy frames as they stand, and in another order."""
    metric, case = _built(subject), _case(subject).noisy(LEVELS[2])
    if not (isinstance(metric, CrossedMetric) and isinstance(case, FrameCase)):
        raise NotApplicable("It has no `crossed`; frames are then scored twice.")
    order = torch.from_numpy(np.random.default_rng(1).permutation(CLIPS))
    found = metric.crossed(case.given, metric.prepare(case.truth), order)
    for given, values in zip((case.given, case.given[order]), found, strict=True):
        expected = _score(subject, replace(case, given=given))
        if not np.allclose(values.double().cpu().numpy(), expected, rtol=EQUAL, atol=EQUAL):
            raise Broken(
                f"`crossed` gives {float(values.mean()):.6g} where `score` gives {expected.mean():.6g}. Usually the "
                "order is taken for its inverse: frame order[i] stands beside frame i of the truth."
            )


@METRIC_CHECKS.must("Scores stay within the range that the spec declares.")
def in_range(subject: PartSubject) -> None:
    """For identical, noisy and unrelated input, and for input that holds nothing."""
    limits = _spec(subject).range
    if limits is None:
        raise NotApplicable("The spec declares no range.")
    case, low, high = _case(subject), *limits
    inputs = {f"noise of {level:g}": case.noisy(level) for level in LEVELS}
    if _spec(subject).direction != "none":  # a description of nothing may be undefined
        inputs["nothing to see"] = case.empty()
    for name, given in inputs.items():
        found = _score(subject, given)
        outside = found[~((found >= low - 1e-6) & (found <= high + 1e-6))]
        if len(outside):
            raise Broken(
                f"With {name} it scores {outside[0]:.4g}, outside [{low:g}, {high:g}]. Usually a division by zero, a "
                "missing clamp, or a range that was declared in another unit."
            )


@METRIC_CHECKS.must("A clip's score does not depend on the clips beside it, nor any score on their order.")
def per_clip(subject: PartSubject) -> None:
    """Frames: alone and permuted. Boxes and spaces: the score of all clips in another order."""
    case = _case(subject).noisy(LEVELS[2])
    order = np.random.default_rng(1).permutation(CLIPS)
    whole, permuted = _score(subject, case), _score(subject, case.taken(order))
    expected = whole[order] if isinstance(case, FrameCase) else whole
    if not np.allclose(permuted, expected, rtol=EQUAL, atol=EQUAL):
        raise Broken(
            "Clips in another order score otherwise. Usually something is carried from one clip to the next, or "
            "`clip` is taken for sorted where it only says which clip a frame belongs to."
        )
    if isinstance(case, FrameCase):
        alone = np.concatenate([_score(subject, case.taken(np.array([n]))) for n in range(4)])
        if not np.allclose(alone, whole[:4], rtol=EQUAL, atol=EQUAL):
            raise Broken(
                f"A frame alone scores {alone[0]:.6g}, and {whole[0]:.6g} among others. Usually an extreme, a mean or "
                "a normalisation runs over the whole batch where it should run over one frame."
            )


@METRIC_CHECKS.must("The 95 % interval of a score covers the true value, and is no wider than it needs to be.")
def interval_covers(subject: PartSubject) -> None:
    """On simulated samples of 40 clips; the true value is the mean over all samples."""
    _require_direction(subject)  # no decision rests on the interval of a description
    samples = _samples(subject)
    values = np.array([scores.value for scores in samples])
    if not all(scores.finite for scores in samples) or values.std() == 0:
        raise NotApplicable("On simulated samples its value does not vary, or is not finite.")
    bounds = np.array([scores.interval() for scores in samples])
    covered = float(((bounds[:, 0] <= values.mean()) & (values.mean() <= bounds[:, 1])).mean())
    width = float((bounds[:, 1] - bounds[:, 0]).mean() / (2 * 1.96 * values.std()))
    if covered < COVERED or width > WIDEST:
        raise Broken(
            f"Intervals cover the true value in {covered:.0%} of the samples and are {width:.1f} times as wide as the "
            "scores spread. Usually frames or pairs are resampled where the clip is the sample; see `scores`."
        )


@METRIC_CHECKS.must("Pixels outside [0, 1], or that are no numbers, score no better than pixels inside.")
def data_range(subject: PartSubject) -> None:
    """They are clamped or refused; the harness refuses what is not finite, but not what is out of range."""
    case = _case(subject)
    if not isinstance(case, FrameCase):
        raise NotApplicable("It does not score pixels.")
    sign = {"higher": 1, "lower": -1}[_require_direction(subject)]
    inside = _score(subject, replace(case, given=(3 * case.given - 1).clamp(0, 1)))
    tries = {"stretched to [-1, 2]": 3 * case.given - 1, "not a number": torch.full_like(case.given, float("nan"))}
    for name, given in tries.items():
        try:
            found = _score(subject, replace(case, given=given))
        except (ForesightError, ValueError):
            continue
        if (sign * (found - inside) > EQUAL * (1 + np.abs(inside))).any():
            raise Broken(
                f"Frames that are {name} score {np.nanmean(found):.4g}; the same frames clamped to [0, 1] score "
                f"{inside.mean():.4g}. Usually the reconstruction is scaled by its own extremes, or compared by "
                "correlation alone, or NaN is replaced."
            )


@METRIC_CHECKS.must("Equal input has an equal score, bit for bit.")
def deterministic(subject: PartSubject) -> None:
    """Whatever the global random generators hold; also of every replicate."""
    case, found = _case(subject).noisy(LEVELS[2]), []
    with generators_kept():
        for seed in (1, 2):
            move_generators(seed)
            result = _measured(subject, case)
            found.append(bytes_of(result.replicates if isinstance(result, Scores) else result))
    if found[0] != found[1]:
        raise Broken(
            "Two calls on the same input differ. Usually resamples or permutations are drawn from a global generator; "
            "draw them from a seed of their own, or use `scores`."
        )


@METRIC_CHECKS.must("Truth and prediction are left as they are.")
def input_untouched(subject: PartSubject) -> None:
    """In ``prepare`` and ``score``."""
    case = _case(subject).noisy(LEVELS[2])
    with untouched(case.named()):
        _measured(subject, case)


def _spec(subject: PartSubject) -> MetricSpec:
    assert isinstance(subject.spec, MetricSpec)
    return subject.spec


def _require_direction(subject: PartSubject) -> str:
    declared = _spec(subject).direction
    if declared == "none":
        raise NotApplicable("It describes: no value is better than another.")
    return declared


def _built(subject: PartSubject) -> Any:
    """Return the metric, built as a run builds it."""
    spec = _spec(subject)
    extra: dict[str, Any] = {}
    if spec.kind == "frames":
        extra = {"device": torch.device(subject.device), "weights": subject.weights}
    return target(spec.target)(**extra, **spec.params)


def _case(subject: PartSubject) -> Case:
    makers: dict[str, Callable[[int, int], Case]] = {"frames": frame_case, "boxes": box_case, "spaces": space_case}
    return makers[_spec(subject).kind](CLIPS, 0)


def _measured(subject: PartSubject, case: Case) -> Any:
    """Return what the metric returns."""
    if "metric" not in subject.cache:
        subject.cache["metric"] = _built(subject)
    return case.score(subject.cache["metric"])


def _score(subject: PartSubject, case: Case) -> NDArray[np.float64]:
    """Return the scores: of frames one each, of boxes and spaces a single one."""
    result = _measured(subject, case)
    if isinstance(case, FrameCase):
        return np.asarray(torch.as_tensor(result).double().cpu().numpy())
    return np.array([result.value])


def _values(subject: PartSubject, level: float) -> NDArray[np.float64]:
    """Return the scores at a level of noise."""
    key = f"level {level}"
    if key not in subject.cache:
        subject.cache[key] = _score(subject, _case(subject).noisy(level))
    found: NDArray[np.float64] = subject.cache[key]
    return found


def _samples(subject: PartSubject) -> list[Scores]:
    """Return scores of simulated samples; the harness resamples those of frames as it does in a run."""
    rng = np.random.default_rng(2)
    case = _case(subject)
    if isinstance(case, FrameCase):
        pool = np.concatenate([_values(subject, level) for level in LEVELS[1:]])
        return [mean_scores(rng.choice(pool, SAMPLE)) for _ in range(DATASETS)]
    if isinstance(case, BoxCase):
        many = box_case(4 * SAMPLE, 1).noisy(LEVELS[3])
        return [_measured(subject, many.taken(rng.permutation(4 * SAMPLE)[:SAMPLE])) for _ in range(DATASETS)]
    return [_measured(subject, space_case(SAMPLE, 1 + number).noisy(LEVELS[3])) for number in range(DATASETS)]
