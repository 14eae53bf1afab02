"""The experiments on features whose answer is known: perfect ones, useless ones, scrambled ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from foresight_bench.bench import Bench, Workbench
from foresight_bench.contracts import EncoderSetup, Measurement, Outcome
from foresight_bench.extraction import extract
from foresight_bench.features import FeatureSet
from foresight_bench.grids import Grid
from foresight_bench.registry import Registry, target
from foresight_bench.scores import Scores
from foresight_bench.specs import Criterion, ExperimentSpec
from foresight_bench.tables import number
from foresight_bench.transforms import pooled_grid, shuffled
from foresight_gates.data import Recipe, SceneData
from foresight_gates.probes import Heads, Reading
from foresight_gates.q1 import _Pair, cleaned, nuisances
from foresight_gates.q2 import InformationPreservation, _blocks, same
from foresight_gates.scenes import SceneParameters
from foresight_gates.targets import cell_pixels, cell_targets, from_pixels
from foresight_plugins.metrics.dimension import mle
from foresight_plugins.metrics.pairwise import squared_distances

SPLITS = {"train": ((96, 1),), "val": ((24, 1),), "test": ((36, 1), (2, 5)), "align": ((60, 1),)}
Scramble = Callable[[torch.Tensor], torch.Tensor]


CLIPS = {"train": ((24, 4),), "val": ((8, 3),), "test": ((4, 5), (6, 1)), "align": ((8, 2),)}


@cache
def shared(moving: bool = False) -> Workbench:
    # 224 pixels: at 14 pixels a cell the smallest objects still fill one.
    data = SceneData(Recipe(SceneParameters(side=224, objects_max=3), CLIPS if moving else SPLITS))
    return Workbench(Registry.installed(), data, "cpu", {})


def experiment(name: str) -> ExperimentSpec:
    spec = {spec.name: spec for spec in shared().registry.suites["quick"].spec.experiments}[name]
    # Without LPIPS, whose weights are not needed to tell perfect features from useless ones.
    return replace(spec, criteria=tuple(c for c in spec.criteria if c.metric != "lpips"))


@cache
def features(encoder: str, moving: bool = False) -> FeatureSet:
    spec = shared().registry.encoders[encoder].spec
    (variant,) = spec.variants
    model = target(spec.target)(EncoderSetup(), **variant.params)
    return extract(lambda: model, variant.default_taps, shared(moving).data, control=spec.control)


def scrambled(encoder: str, change: Scramble, splits: tuple[str, ...]) -> FeatureSet:
    whole = features(encoder)
    tokens = {
        key: tuple(Grid(change(grid.values)) for grid in grids) if key[1] in splits else grids
        for key, grids in whole.tokens.items()
    }
    return replace(whole, tokens=tokens)


def run(name: str, row: FeatureSet, moving: bool = False) -> Outcome:
    spec = experiment(name)
    bench = Bench(shared(moving), row, 0, "linear", "patch-pca")
    outcome: Outcome = target(spec.target)(spec).run(bench, lambda text: None)
    return outcome


def values(outcome: Outcome, *, of_others: bool = False) -> dict[str, float]:
    rows = outcome.shuffled if of_others else outcome.measurements
    return {m.metric: m.scores.value for m in rows if (m.tap, m.readout) == (outcome.tap, outcome.readout)}


def thresholds(name: str) -> dict[str, tuple[float, int]]:
    metrics = shared().registry.metrics
    return {
        c.metric: (c.threshold, 1 if metrics[c.metric].spec.direction == "higher" else -1)
        for c in experiment(name).criteria
        if c.threshold is not None
    }


def assert_all_fail(name: str, found: dict[str, float]) -> None:
    for metric, (threshold, sign) in thresholds(name).items():
        assert sign * (found[metric] - threshold) < 0, (metric, found[metric])


def test_oracle_tokens_through_the_dense_probe() -> None:
    found = values(run("Q2", features("oracle")))
    assert found["map50"] >= 0.95
    assert found["box_iou"] >= 0.9


def test_pixels_decode_themselves() -> None:
    outcome = run("Q2", features("pixels"))
    assert values(outcome)["edge_f1"] >= 0.99
    assert_all_fail("Q2", values(outcome, of_others=True))


@pytest.mark.parametrize("name", ["Q2", "C1"])
def test_tokens_of_two_frames_are_read_frame_by_frame(name: str) -> None:
    def paired(grid: Grid) -> Grid:
        values = torch.cat([grid.values, grid.values[:, -1:]], 1)[:, : grid.shape[1] + grid.shape[1] % 2]
        return Grid(values.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(4))

    single = features("pixels", moving=True)
    double = replace(single, tokens={key: tuple(map(paired, grids)) for key, grids in single.tokens.items()})
    mean = replace(double, tokens={key: tuple(map(averaged, grids)) for key, grids in double.tokens.items()})
    best, found, blurred = (values(run(name, row, moving=True)) for row in (single, double, mean))
    metric = {"Q2": "edge_f1", "C1": "ssim"}[name]
    assert found[metric] == pytest.approx(best[metric], abs=0.01)
    assert blurred[metric] < found[metric] - 0.02


def averaged(grid: Grid) -> Grid:
    """Tokens that hold the mean of their two frames, and so cannot tell them apart."""
    return Grid(grid.values.unflatten(-1, (2, -1)).mean(-2))


def test_pixels_reach_the_round_trip_through_the_linear_adapter() -> None:
    # The codec's latents are linear in the patch, so nothing but rounding stands between the two.
    through, ceiling = values(run("C1", features("pixels"))), values(run("C1", features("oracle")))
    for metric, value in ceiling.items():
        assert through[metric] == pytest.approx(value, abs=0.005)


def test_c1_draws_every_test_split_and_titles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **style: said.append(text))
    outcome = run("C1", features("oracle"))
    assert Image.open(io.BytesIO(outcome.picture)).format == "PNG"
    (ssim,) = (m.scores.per_clip for m in outcome.measurements if m.metric == "ssim")
    assert said[-2].startswith(" at truth, its own latents to patch-pca: ssim ")
    assert any(text.startswith(f"best of 36: {number(float(ssim[:36].max()))}\n") for text in said)
    assert any(text.startswith(f"worst of 2: {number(float(ssim[36:].min()))}, frames 0, 2, 4\n") for text in said)


@pytest.mark.parametrize("name", ["C1", "Q1", "Q2"])
@pytest.mark.parametrize("floor", ["blank", "mean-rgb"])
def test_floors_fail_every_threshold(name: str, floor: str) -> None:
    assert_all_fail(name, values(run(name, features(floor))))


@pytest.mark.parametrize("name", ["C1", "Q1"])
def test_the_ceiling_passes_and_shuffled_fails_every_threshold(name: str) -> None:
    outcome = run(name, features("oracle"))
    for metric, (threshold, sign) in thresholds(name).items():
        assert sign * (values(outcome)[metric] - threshold) > 0, metric
    assert_all_fail(name, values(outcome, of_others=True))


@cache
def q1_of_half_noise() -> Outcome:
    """Q1 of features half of which show the patches and half nothing, at two taps; one is mixed up on `val`."""
    whole, rng = features("pixels"), torch.Generator().manual_seed(0)
    some = torch.randn(whole.coarse["patches", "val"].shape[1], 320, generator=rng)
    coarse = {}
    for (_, split), vectors in whole.coarse.items():
        mixed = torch.cat([vectors @ some, torch.randn(len(vectors), 320, generator=rng)], 1)
        coarse |= {("good", split): mixed, ("bad", split): mixed.roll(int(split == "val"), 0)}
    return run("Q1", replace(whole, taps=("bad", "good"), coarse=coarse, control=""))


def test_q1_reports_the_other_direction_at_the_tap_that_val_chose() -> None:
    outcome = q1_of_half_noise()
    assert outcome.tap == "good"
    found = values(outcome)
    # Every feature has unit variance, so what is noise in them, and no decoder can know, is half of all there is.
    assert found["ridge_r2"] > 0.7
    assert 0.3 < found["ridge_r2_reverse"] < 0.5
    measured = [(m.tap, m.readout) for m in outcome.measurements if m.metric == "ridge_r2_reverse"]
    assert measured == [("good", "grid4")]


def test_q1_reports_the_dimension_of_both_spaces_and_the_gap() -> None:
    found = values(q1_of_half_noise())
    reported = {c.metric for c in experiment("Q1").criteria if c.threshold is None and c.metric.startswith("dim_")}
    assert reported == {name for name in found if name.startswith("dim_")}
    assert len(reported) == 8
    for estimator in ("two_nn", "mle"):
        encoder, decoder = found[f"dim_{estimator}_encoder"], found[f"dim_{estimator}_decoder"]
        assert found[f"dim_{estimator}_ratio"] == pytest.approx(decoder / encoder)
    # The decoder's latents are the same whatever the features, and so is their dimension.
    spaces = _Pair(Bench(shared(), features("mean-rgb"), 0, "", "patch-pca"), "colour").spaces(("test", "align"))
    assert found["dim_mle_decoder"] == pytest.approx(mle(squared_distances(spaces.y)))
    metrics = shared().registry.metrics
    assert all(metrics[name].spec.direction == "none" for name in reported), "so that nothing can gate on it"


SCRAMBLES: dict[str, Scramble] = {
    "transposed": lambda v: v.transpose(2, 3),
    "rolled by two rows": lambda v: v.roll(2, 2),
    "flipped": lambda v: v.flip(3),
    "windows read as raster": lambda v: v.unflatten(2, (4, 4)).unflatten(4, (4, 4)).transpose(3, 4).reshape(v.shape),
}


@pytest.mark.parametrize("change", SCRAMBLES.values(), ids=SCRAMBLES)
def test_scrambled_tokens_ruin_detection(change: Scramble) -> None:
    # Scrambled on test alone, as by a tap whose order depends on the batch: boxes then point elsewhere.
    found = values(run("Q2", scrambled("oracle", change, ("test",))))
    assert found["box_iou"] < 0.5


@pytest.mark.parametrize("suite", ["quick", "gate1"])
def test_every_readout_stands_at_every_tap(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(
        self: object, bench: Bench, fitted: Any, split: str, tap: str, readout: str, metrics: Any, shuffled: Any = ()
    ) -> object:
        assert (fitted.tap, fitted.pooled) == (tap, readout == "pooled"), "each from its own heads"
        scores = Scores(0.5, np.full(2, 0.5), 2)
        return tuple([Measurement(metric, tap, readout, scores) for metric in row] for row in (metrics, shuffled))

    def fit(self: object, bench: Bench, tap: str, view: Callable[[Grid], Grid]) -> object:
        return SimpleNamespace(tap=tap, pooled=view is not same, heads=())

    spec = next(each for each in shared().registry.suites[suite].spec.experiments if each.name == "Q2")
    for name, stub in (("_measure", measure), ("_fit", fit), ("_picture", lambda *_: b"")):
        monkeypatch.setattr(InformationPreservation, name, stub)
    whole = features("pixels")
    tokens = {(tap, split): grids for tap in ("shallow", "deep") for (_, split), grids in whole.tokens.items()}
    row = replace(whole, taps=("shallow", "deep"), stem=("shallow",), control="", tokens=tokens)
    outcome = InformationPreservation(spec).run(Bench(shared(), row, 0), lambda text: None)
    assert outcome.tap == "deep"
    for readout in ("tokens", "pooled"):
        rows = [m for m in outcome.measurements if m.readout == readout and m.metric in gating(spec)]
        measured = [(row.metric, row.tap) for row in rows]
        assert sorted(measured) == sorted((metric, tap) for metric in gating(spec) for tap in ("shallow", "deep"))
    further = {(m.metric, m.tap, m.readout) for m in outcome.measurements if m.metric not in gating(spec)}
    assert further == {(metric, "deep", "tokens") for metric in ("map", "ssim", "psnr")}
    assert {(m.metric, m.tap) for m in outcome.shuffled} == {(metric, "deep") for metric in gating(spec)}


def gating(spec: ExperimentSpec) -> set[str]:
    return {criterion.metric for criterion in spec.criteria if criterion.threshold is not None}


@pytest.mark.parametrize("name", ["C1", "Q2"])
@pytest.mark.parametrize("moving", [False, True])
def test_shuffled_is_what_shuffled_features_score(name: str, moving: bool) -> None:
    row = features("pixels", moving)
    apart = values(run(name, shuffled(row, shared(moving).data.scored), moving))
    found = values(run(name, row, moving), of_others=True)
    assert found.keys() == thresholds(name).keys()
    assert found == pytest.approx({metric: apart[metric] for metric in found}, rel=1e-5)


def test_tokens_that_a_frame_shares_are_read_as_if_each_cell_had_its_own() -> None:
    def heads(view: Callable[[Grid], Grid]) -> tuple[Heads, Reading]:
        train, val = (_blocks(bench, "patches", split, view) for split in ("train", "val"))
        fitted = Heads.fitted(train[0], val[0], len(bench.data.class_names))
        return fitted, fitted.read(view(bench.tokens("patches", "test")[0]), 224, 224)

    def colours(grid: Grid) -> Grid:
        """Six channels of which the mean over a frame is well conditioned, as that of raw pixels is not."""
        mean = grid.values.unflatten(-1, (3, -1)).mean(-1)
        return Grid(torch.cat([mean, mean.square()], -1))

    whole = features("pixels")
    tokens = {key: tuple(map(colours, grids)) for key, grids in whole.tokens.items()}
    bench = Bench(shared(), replace(whole, tokens=tokens), 0)
    one, reading = heads(pooled_grid)
    other, apart = heads(lambda grid: Grid(pooled_grid(grid).values.contiguous()))
    assert torch.allclose(one.standard.std, other.standard.std, rtol=1e-5)
    for head, same_head in ((one.inside, other.inside), (one.everywhere, other.everywhere)):
        # Rounding may decide between two penalties that are as good as each other.
        assert (head.penalty == same_head.penalty).double().mean() > 0.99
    assert torch.allclose(reading.frames, apart.frames, atol=1e-4)
    assert torch.allclose(reading.cover, apart.cover, atol=1e-4)
    for found, expected in zip(reading.proposals, apart.proposals, strict=True):
        assert np.allclose(found.boxes, expected.boxes, atol=1e-2)
    assert reading.frames.std(0).max() > 0.01, "frames differ, or nothing was compared"


def test_pixels_of_cells_are_those_of_windows_that_do_not_overlap() -> None:
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    cells = cell_pixels(images, 3, 5)
    windows = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2).reshape(2, 3, 5, -1)
    assert torch.equal(cells, windows)
    assert torch.equal(from_pixels(cells, 4), images)


def test_targets_own_every_visible_object_and_name_its_box() -> None:
    block = shared().split("test").blocks[0]
    assert block.truth is not None
    targets = cell_targets(block.truth, 16, 16, torch.device("cpu"))
    seen = torch.from_numpy(block.truth.boxes[:, 0, :, 2] > block.truth.boxes[:, 0, :, 0])
    for frame, slot in seen.nonzero().tolist():
        mine = targets.owner[frame] == slot
        assert mine.any(), "every visible object owns a cell"
        assert (targets.central[frame] & mine).any(), "and one of them trains the box head"
        row, column = mine.nonzero()[0].tolist()
        left, top, right, bottom = (targets.distances[frame, row, column] * 224).tolist()
        x, y = (column + 0.5) * 14, (row + 0.5) * 14
        found = [x - left, y - top, x + right, y + bottom]
        assert found == pytest.approx(block.truth.boxes[frame, 0, slot].tolist(), abs=1e-3)
        assert targets.classes[frame, row, column] == block.truth.classes[frame, slot]


def test_regressing_nuisances_out_leaves_nothing_of_a_space_made_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(300, 5, generator=generator, dtype=torch.float64)
    made = (u @ torch.randn(5, 12, generator=generator, dtype=torch.float64)).float().double()
    train, scored = cleaned(made[:200], made[200:], u[:200], u[200:])
    assert not train.any()
    assert not scored.any(), "rounding must not be blown up to features"
    independent = torch.randn(300, 12, generator=generator, dtype=torch.float64)
    kept, _ = cleaned(independent[:200], independent[200:], u[:200], u[200:])
    assert kept.std(0) == pytest.approx(torch.ones(12), abs=1e-6)


def test_nuisances_are_means_over_all_frames_of_a_clip() -> None:
    found = nuisances(Bench(shared(), features("blank"), 0), "test").numpy()
    expected = []
    for block in shared().split("test").blocks:
        assert block.truth is not None
        colour = block.frames.mean((1, 2, 3), dtype=np.float64) / 255
        area = (block.truth.labels > 0).mean((1, 2, 3))
        expected.append(np.column_stack([colour, area, (block.truth.classes >= 0).sum(1)]))
    assert np.array_equal(found, np.concatenate(expected))  # exactly: the sums are of integers


def test_a_metric_measured_twice_or_not_at_all_is_not_run() -> None:
    from foresight_bench.judging import metric_results

    spec = experiment("C1")
    outcome = run("C1", features("oracle"))
    controls = {
        name: {m.metric: m.scores for m in run("C1", features(name)).measurements}
        for name in ("oracle", "blank", "mean-rgb")
    }

    def verdicts(changed: Outcome) -> dict[str, str | None]:
        found = metric_results(spec, changed, shared().registry, controls)
        return {result.metric: result.verdict for result in found if result.gates}

    assert verdicts(outcome) == {"ssim": "PASS", "spatial_iou": "PASS"}
    twice = replace(outcome, measurements=(*outcome.measurements, outcome.measurements[0]))
    assert verdicts(twice)["ssim"] == "NOT RUN"
    absent = replace(outcome, measurements=outcome.measurements[1:])
    assert verdicts(absent)["ssim"] == "NOT RUN"


def test_criteria_name_controls_that_the_suite_has() -> None:
    for suite in shared().registry.suites:
        for spec in suite.spec.experiments:
            for criterion in spec.criteria:
                assert isinstance(criterion, Criterion)
                rows = {criterion.ceiling, *criterion.floors} - {"", "shuffled"}
                assert rows <= set(suite.spec.controls)
                if criterion.threshold is not None:
                    assert criterion.ceiling
                    assert len(criterion.floors) == 3
