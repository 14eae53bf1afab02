"""Two systems compared over the same clips, and finished cells judged anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from committed import QUICK
from foresight_bench.cells import Cell
from foresight_bench.cli import main
from foresight_bench.contracts import Measurement, Outcome
from foresight_bench.errors import DataError
from foresight_bench.judging import estimate, metric_results
from foresight_bench.packing import Key, pack
from foresight_bench.registry import Entry, Registry, Shelf
from foresight_bench.rescoring import rescore
from foresight_bench.scores import FloatArray, Scores, mean_scores
from foresight_bench.store import Store

REGISTRY = Registry.installed()
CELLS = list(Store(QUICK).cells())
N = 400
RNG = np.random.default_rng(0)
BASE, NOISE = RNG.normal(0.5, 0.2, N), RNG.normal(0.0, 0.05, N)
SHIFT = 0.03


def invoke(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def find(**wanted: object) -> Cell:
    (cell,) = [c for c in CELLS if all(getattr(c.identity, name) == value for name, value in wanted.items())]
    return cell


SAMPLE = find(encoder="dinov2:small", experiment="C1", adapter="linear", decoder="ltx-tiny")


def put(root: Path, encoder: str, per_clip: FloatArray, **identity: object) -> Cell:
    """Write a C1 cell that scored ``per_clip`` by every metric; return it."""
    new = SAMPLE.identity.model_copy(update={"encoder": encoder, **identity})
    scores = mean_scores(per_clip)
    data = pack({Key(result.metric, result.tap, result.readout): scores for result in SAMPLE.metrics})
    update = {
        "identity": new,
        "id": new.cell_id(),
        "metrics": tuple(r.model_copy(update={"estimate": estimate(scores)}) for r in SAMPLE.metrics),
        "scores_sha256": sha256(data).hexdigest(),
        "picture_sha256": "",
    }
    cell = SAMPLE.model_copy(update=update)
    Store(root).write(cell, data)
    return cell


def compared(*arguments: object) -> dict[str, dict[str, Any]]:
    done = invoke("compare", *arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["comparisons"] == len(found["differences"])
    assert f"{found['comparisons']} comparison" in done.stderr
    assert "not corrected" in done.stderr
    return {each["metric"]: each for each in found["differences"]}


# Compare.


def test_a_system_against_itself_differs_by_exactly_nothing() -> None:
    found = compared(SAMPLE.id, SAMPLE.id[:6], "--results", QUICK)
    assert set(found) == {"lpips", "ssim", "spatial_iou", "psnr"}
    for each in found.values():
        assert each["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 100}
        assert each["better"] == "not separated"
        assert each["a"] == each["b"]


def test_of_all_taps_and_readouts_those_that_gate_are_compared() -> None:
    one, other = (find(encoder=name, experiment="Q2") for name in ("dinov2:small", "dinov2:small~pooled"))
    found = compared(one.id, other.id, "--results", QUICK)
    for cell, side in ((one, "a"), (other, "b")):
        at_tap = {r.metric: r for r in cell.metrics if (r.tap, r.readout) == (cell.tap, cell.readout)}
        assert len(cell.metrics) > len(at_tap)
        assert {name: each[side]["value"] for name, each in found.items()} == {
            name: result.estimate.value for name, result in at_tap.items()
        }


def test_a_planted_shift_is_found_with_the_interval_of_paired_differences(tmp_path: Path) -> None:
    put(tmp_path, "one", BASE + SHIFT + NOISE)
    put(tmp_path, "other", BASE)
    found = compared("one", "other", "--results", tmp_path)
    paired = SHIFT + NOISE
    half = 1.96 * paired.std() / np.sqrt(N)
    for each in found.values():
        difference = each["difference"]
        assert difference["value"] == pytest.approx(paired.mean(), abs=1e-9)
        # 1000 replicates know the ends to about a twentieth of the half-width; unpaired, that is 4 times as wide.
        assert difference["low"] == pytest.approx(paired.mean() - half, abs=0.15 * half)
        assert difference["high"] == pytest.approx(paired.mean() + half, abs=0.15 * half)
        assert difference["n"] == N
    assert 4 * half < 1.96 * BASE.std() * np.sqrt(2 / N)
    assert {name: each["better"] for name, each in found.items()} == {
        "lpips": "B", "ssim": "A", "spatial_iou": "A", "psnr": "A",
    }  # fmt: skip
    back = compared("other", "one", "--results", tmp_path)
    assert {name: each["better"] for name, each in back.items()} == {
        "lpips": "A", "ssim": "B", "spatial_iou": "B", "psnr": "B",
    }  # fmt: skip
    assert list(found) == ["lpips", "ssim", "spatial_iou", "psnr"]  # gated ones first
    assert [each["gates"] for each in found.values()] == [True, True, True, False]


def test_a_shift_within_its_interval_is_not_separated(tmp_path: Path) -> None:
    centred = NOISE - NOISE.mean()
    put(tmp_path, "one", BASE + centred + 1.0 * NOISE.std() / np.sqrt(N))
    put(tmp_path, "other", BASE)
    assert {each["better"] for each in compared("one", "other", "--results", tmp_path).values()} == {"not separated"}


def test_encoders_are_compared_wherever_all_but_the_encoder_is_equal(tmp_path: Path) -> None:
    for encoder, adapters, seeds in (("one", ("linear", "mlp"), (0, 1)), ("other", ("linear",), (0, 1, 2))):
        for adapter in adapters:
            for seed in seeds:
                put(tmp_path, encoder, BASE, adapter=adapter, seed=seed)
    done = invoke("compare", "one", "other", "--results", tmp_path)
    assert done.exit_code == 0
    rows = [line for line in done.stdout.splitlines() if line.startswith("C1")]
    assert len(rows) == 8
    assert sum("linear + ltx-tiny + seed 1 " in row for row in rows) == 4
    assert not any("mlp" in row for row in rows)
    assert sum("psnr (reported)" in row for row in rows) == 2
    assert invoke("compare", "one", "other", "--results", tmp_path, "-x", "Q1").exit_code == 4


def test_two_cells_of_one_experiment_compare_whatever_they_went_through(tmp_path: Path) -> None:
    one = put(tmp_path / "a", "one", BASE, adapter="linear")
    other = put(tmp_path / "b", "other", BASE, adapter="mlp")
    file = Store(tmp_path / "b").path(other)
    assert len(compared(one.id, file, "--results", tmp_path / "a")) == 4
    assert len(compared(one.id[:8], other.id[:8], "--results", tmp_path / "a", "--results-b", tmp_path / "b")) == 4


def _other_cohort(root: Path) -> None:
    put(root, "one", BASE)
    put(root, "other", BASE, cohort="quick-1-00000000")


def _fewer_clips(root: Path) -> None:
    put(root, "one", BASE)
    put(root, "other", BASE[:-1])


def _two_answers(root: Path) -> None:
    put(root, "one", BASE)
    put(root, "other", BASE)
    put(root, "other", BASE, libraries={})


def _nothing_shared(root: Path) -> None:
    put(root, "one", BASE, adapter="linear")
    put(root, "one", BASE, adapter="linear", seed=1)
    put(root, "other", BASE, adapter="mlp")


def _other_experiment(root: Path) -> None:
    put(root, "one", BASE)
    put(root, "other", BASE, experiment="Q1")


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (_other_cohort, "are different cohorts"),
        (_fewer_clips, "which do not pair"),
        (_two_answers, "More than one cell answers the same"),
        (_nothing_shared, "no experiment in common"),
        (_other_experiment, "no experiment in common"),
    ],
)
def test_what_does_not_compare_is_refused(prepare: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    done = invoke("compare", "one", "other", "--results", tmp_path)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stdout == ""


def test_names_that_name_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    cells = [put(tmp_path, "one", BASE, seed=seed) for seed in range(2)]
    unknown = invoke("compare", "one", "unknown", "--results", tmp_path)
    assert unknown.exit_code == 4
    assert "called unknown" in unknown.stderr
    assert "It holds one." in unknown.stderr
    assert invoke("compare", cells[0].id[:3], "one", "--results", tmp_path).exit_code == 4
    skipped = next(cell for cell in CELLS if cell.status == "skipped")
    done = invoke("compare", Store(QUICK).path(skipped), cells[0].id, "--results", tmp_path)
    assert done.exit_code == 4
    assert skipped.reason.removesuffix(".") in done.stderr


# Rescore.


def floor_of_another_readout(cell: Cell) -> bool:
    """Return whether ``cell`` was judged beside its own floor at a readout that does not gate, as Q2 once was."""
    if not cell.scores_sha256:
        return False
    scores = Store(QUICK).scores(cell)
    floors = {result.metric: result.floors["shuffled"].value for result in cell.metrics if "shuffled" in result.floors}
    return any(scores[Key(name, cell.tap, cell.readout, "shuffled")].value != floors[name] for name in floors)


MISJUDGED = {cell.id for cell in CELLS if floor_of_another_readout(cell)}


def test_rescoring_committed_results_gives_them_back(tmp_path: Path) -> None:
    done = invoke("rescore", QUICK, "-o", tmp_path / "first")
    assert done.exit_code == 0, done.output
    assert f"{len(CELLS)} cells" in done.stderr
    anew = {cell.id: cell for cell in Store(tmp_path / "first").cells()}
    assert set(done.stdout.split()) == MISJUDGED
    assert anew.keys() == {cell.id for cell in CELLS}
    for cell in CELLS:
        assert (anew[cell.id] == cell) == (cell.id not in done.stdout)
        assert anew[cell.id].decision == cell.decision
        assert [(r.verdict, r.estimate, r.ceiling) for r in anew[cell.id].metrics] == [
            (r.verdict, r.estimate, r.ceiling) for r in cell.metrics
        ]
    # And what it gives is a fixed point, byte for byte, scores included.
    assert rescore(tmp_path / "first", tmp_path / "second", REGISTRY).changed == ()
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*.*") if p.name != ".lock"}
        for root in (tmp_path / "first", tmp_path / "second")
    )
    assert first == second
    pictures = len(list(QUICK.rglob("*.png")))
    assert len(first) == pictures + sum(1 + bool(cell.scores_sha256) for cell in CELLS)


def with_threshold(metric: str, threshold: float) -> Registry:
    """Return the installed plugins with another threshold for ``metric`` in C1 of `quick`."""
    registry = Registry.installed()
    entry = registry.suites["quick"]
    experiments = tuple(
        replace(
            spec,
            criteria=tuple(
                replace(criterion, threshold=threshold)
                if (spec.name, criterion.metric) == ("C1", metric) and criterion.threshold is not None
                else criterion
                for criterion in spec.criteria
            ),
        )
        for spec in entry.spec.experiments
    )
    registry.suites = Shelf("suite", ())
    registry.suites.add(Entry(replace(entry.spec, experiments=experiments), entry.plugin))
    return registry


def test_another_threshold_gives_other_verdicts_to_its_experiment_alone(tmp_path: Path) -> None:
    ssim = next(result for result in SAMPLE.metrics if result.metric == "ssim")
    assert (ssim.verdict, ssim.threshold) == ("FAIL", 0.75)
    assert ssim.estimate.low is not None
    done = rescore(QUICK, tmp_path / "out", with_threshold("ssim", 0.6))
    anew = {cell.id: cell for cell in Store(tmp_path / "out").cells()}
    c1 = {cell.id for cell in CELLS if cell.identity.experiment == "C1" and cell.status == "ok"}
    assert set(done.changed) - MISJUDGED == c1
    (found,) = [result for result in anew[SAMPLE.id].metrics if result.metric == "ssim"]
    assert ssim.estimate.low > 0.6
    assert (found.verdict, found.threshold, found.estimate) == ("PASS", 0.6, ssim.estimate)
    assert {r.metric: r.verdict for r in anew[SAMPLE.id].metrics if r.metric != "ssim"} == {
        r.metric: r.verdict for r in SAMPLE.metrics if r.metric != "ssim"
    }
    proceeding = find(encoder="dinov2:small", experiment="C1", adapter="linear", decoder="patch-pca")
    rescore(QUICK, tmp_path / "strict", with_threshold("ssim", 0.95))
    strict = {cell.id: cell for cell in Store(tmp_path / "strict").cells()}
    assert proceeding.decision == "PROCEED"
    assert strict[proceeding.id].decision == "PIVOT"
    assert strict[proceeding.id].identity == proceeding.identity
    controls = [cell for cell in strict.values() if cell.identity.encoder in ("oracle", "blank")]
    assert all(cell.decision is None for cell in controls)


def subset(root: Path, keep: Callable[[Cell], bool], cell_of: Callable[[Cell], Cell] = lambda cell: cell) -> Path:
    store = Store(QUICK)
    for cell in filter(keep, CELLS):
        data = store.path(cell).with_suffix(".safetensors").read_bytes() if cell.scores_sha256 else b""
        Store(root).write(cell_of(cell), data)
    return root


def test_a_cell_is_never_judged_without_its_controls_nor_beside_two(tmp_path: Path) -> None:
    lone = subset(tmp_path / "lone", lambda cell: cell.identity.encoder != "blank")
    with pytest.raises(DataError, match="stand 0 cells of blank"):
        rescore(lone, tmp_path / "out", REGISTRY)
    assert not (tmp_path / "out").exists()
    both = subset(tmp_path / "both", lambda cell: True)

    def twin(cell: Cell) -> Cell:
        identity = cell.identity.model_copy(update={"libraries": {"torch": "0.0"}})
        return cell.model_copy(update={"identity": identity, "id": identity.cell_id()})

    subset(both, lambda cell: cell.identity.encoder == "oracle", twin)
    with pytest.raises(DataError, match="stand 2 cells of oracle"):
        rescore(both, tmp_path / "out", REGISTRY)


def test_controls_of_other_code_or_another_machine_are_not_taken(tmp_path: Path) -> None:
    def older(cell: Cell) -> Cell:
        code = {n: c.model_copy(update={"digest": "0" * 64}) for n, c in cell.identity.code.items()}
        identity = cell.identity.model_copy(update={"code": code})
        return cell.model_copy(update={"identity": identity, "id": identity.cell_id(), "decision": None})

    def elsewhere(cell: Cell) -> Cell:
        return cell.model_copy(update={"provenance": cell.provenance.model_copy(update={"machine": "other"})})

    def decoded(cell: Cell) -> Cell:
        identity = cell.identity.model_copy(update={"decoder": "another"})
        return cell.model_copy(update={"identity": identity, "id": identity.cell_id()})

    root = subset(tmp_path / "in", lambda cell: True)
    subset(root, lambda cell: (cell.identity.encoder, cell.identity.decoder) == ("oracle", "ltx-tiny"), decoded)
    subset(root, lambda cell: cell.identity.encoder in ("oracle", "blank", "pixels"), older)
    subset(root, lambda cell: cell.identity.encoder in ("oracle", "blank", "pixels"), elsewhere)
    assert set(rescore(root, tmp_path / "out", REGISTRY).changed) & {cell.id for cell in CELLS} == MISJUDGED


def test_a_row_that_was_judged_beside_no_controls_stays_unjudged(tmp_path: Path) -> None:
    put(tmp_path / "in", "lonely", BASE)
    judged = Store(tmp_path / "in").cells()
    assert next(judged).decision == "PIVOT"
    cell = find(encoder="dinov2:small", experiment="Q1", decoder="ltx-tiny")
    plain = tuple(
        r.model_copy(
            update={
                "verdict": None,
                "reason": "",
                "ceiling": None,
                "ceiling_name": "",
                "best_floor": "",
                "skill": None,
                "clips_needed": None,
                "details": {"p": None},
                "floors": {n: f for n, f in r.floors.items() if n == "shuffled"},
            }
        )
        for r in cell.metrics
    )
    root = subset(
        tmp_path / "alone",
        lambda each: each.id == cell.id,
        lambda each: each.model_copy(update={"decision": None, "metrics": plain}),
    )
    assert rescore(root, tmp_path / "out", REGISTRY).changed == ()


def test_scores_that_are_not_those_of_their_clips_are_not_rescored(tmp_path: Path) -> None:
    cell = find(encoder="oracle", experiment="C1", decoder="ltx-tiny")
    scores = Store(QUICK).scores(cell)
    key = next(key for key in scores if key.metric == "ssim")
    forged = pack({**scores, key: replace(scores[key], replicates=scores[key].replicates + 0.01)})
    Store(tmp_path / "in").write(cell.model_copy(update={"scores_sha256": sha256(forged).hexdigest()}), forged)
    done = invoke("rescore", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 4
    assert f"the scores {key} are not those of its clips" in done.stderr
    assert not (tmp_path / "out").exists()


def test_results_are_never_rescored_in_place_nor_by_another_suite(tmp_path: Path) -> None:
    root = subset(tmp_path / "in", lambda cell: cell.identity.encoder == "oracle")
    for out in (root, root / SAMPLE.identity.cohort):
        done = invoke("rescore", root, "-o", out)
        assert done.exit_code == 4
        assert "is there already" in done.stderr
    put(root, "other", BASE, cohort="quick-1-00000000")
    done = invoke("rescore", root, "-o", tmp_path / "out")
    assert done.exit_code == 4
    assert "not quick-1-" in done.stderr
    put(tmp_path / "unasked", "oracle", BASE, experiment="Z9")
    done = invoke("rescore", tmp_path / "unasked", "-o", tmp_path / "out")
    assert done.exit_code == 4
    assert "no experiment of the suite" in done.stderr


def test_a_rows_own_floor_is_read_as_the_row_is() -> None:
    (spec,) = [spec for spec in REGISTRY.suites["quick"].spec.experiments if spec.name == "Q2"]

    def scores(value: float) -> Scores:
        return mean_scores(np.full(20, value))

    measured = (Measurement("box_iou", "a", "tokens", scores(0.8)),)
    shuffled = (
        Measurement("box_iou", "a", "tokens", scores(0.1)),
        Measurement("box_iou", "a", "tokens-extent", scores(0.2)),
        Measurement("box_iou", "b", "tokens", scores(0.3)),
    )
    for order in (shuffled, shuffled[::-1]):
        results = metric_results(spec, Outcome("a", "tokens", measured, order), REGISTRY, None)
        floors = {r.metric: r.floors.get("shuffled") for r in results}
        assert floors["box_iou"] == estimate(scores(0.1))
