"""What a report shows of a results folder, what it leaves out, and what its charts say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from committed import QUICK
from foresight_bench.cells import Cell, Estimate, seal
from foresight_bench.cli import main
from foresight_bench.errors import DataError, UsageError
from foresight_bench.registry import Registry
from foresight_bench.reporting import Report, gather, place
from foresight_bench.series import Bars, Curve, bars, curves
from foresight_bench.store import Store
from foresight_bench.tables import gate_result, systems

REGISTRY = Registry.installed()
SUITE = REGISTRY.suites["quick"].spec
LATER = "2100-01-01T00:00:00+00:00"


def cell_of(encoder: str, experiment: str, adapter: str | None = None, decoder: str | None = None) -> Cell:
    wanted = encoder, experiment, adapter, decoder
    (found,) = (
        cell
        for cell in Store(QUICK).cells()
        if (cell.identity.encoder, cell.identity.experiment, cell.identity.adapter, cell.identity.decoder) == wanted
        and cell.identity.seed == 0
    )
    return found


C1, Q1, Q2 = (
    cell_of("dinov2:small", *where) for where in (("C1", "linear", "ltx-tiny"), ("Q1", None, "ltx-tiny"), ("Q2",))
)
ORACLE = cell_of("oracle", "C1", None, "ltx-tiny")


def changed(cell: Cell, finished: str = "", machine: str = "", **identity: object) -> Cell:
    """Return ``cell`` with another identity, and the id of it."""
    new = cell.identity.model_copy(update=identity)
    origin = {"finished": finished or cell.provenance.finished, "machine": machine or cell.provenance.machine}
    provenance = cell.provenance.model_copy(update=origin)
    return cell.model_copy(update={"identity": new, "id": new.cell_id(), "provenance": provenance})


def put(root: Path, *cells: Cell) -> None:
    for cell in cells:
        Store(root).write(cell.model_copy(update={"scores_sha256": "", "picture_sha256": ""}))


def shown(root: Path, *encoders: str, suite: str | None = None) -> Report:
    return gather(root, REGISTRY, encoders, suite)[0]


def reasons(report: Report) -> dict[str, str]:
    return {each.path: each.text for each in report.left_out}


def test_a_run_is_shown_in_the_order_of_its_suite(tmp_path: Path) -> None:
    skipped = changed(C1, adapter="fusion").model_copy(update={"status": "skipped", "reason": "no hybrid", "tap": ""})
    put(tmp_path, Q2, ORACLE, C1, changed(C1, adapter="mlp"), Q1, skipped.model_copy(update={"decision": None}))
    report = shown(tmp_path)
    (subject,) = report.subjects
    assert [(cell.identity.experiment, cell.identity.adapter) for cell in subject.cells] == [
        ("C1", "fusion"), ("C1", "linear"), ("C1", "mlp"), ("Q1", None), ("Q2", None),
    ]  # fmt: skip
    assert [cell.id for cell in report.controls] == [ORACLE.id]
    assert [cell.identity.adapter for cell in report.unfinished] == ["fusion"]
    assert len(report.asked("C1")) == 3
    expected = {key: gate_result(SUITE.gates[0], group) for key, group in systems(subject.cells).items()}
    assert {system: result for system, _, result in subject.gates} == expected
    assert (report.suite, report.left_out, report.notes) == (SUITE, (), ())


def test_seeds_and_encoders_are_subjects_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, Q2, changed(Q2, seed=3), changed(Q2, encoder="dinov2:small~random"))
    assert [subject.name for subject in shown(tmp_path).subjects] == [
        "dinov2:small", "dinov2:small, seed 3", "dinov2:small~random",
    ]  # fmt: skip
    assert [subject.encoder for subject in shown(tmp_path, "dinov2~random").subjects] == ["dinov2:small~random"]
    with pytest.raises(UsageError, match="no results of sam") as error:
        shown(tmp_path, "sam")
    assert "dinov2:small~random" in error.value.hint


def test_a_folder_may_be_that_of_a_cohort_or_a_machine(tmp_path: Path) -> None:
    put(tmp_path, Q2, changed(Q2, cohort="quick-1-00000000"), changed(Q1, cohort="quick-1-00000000", machine="gpu"))
    cohort = tmp_path / Q2.identity.cohort
    assert place(tmp_path) == (tmp_path, ())
    assert place(cohort) == (tmp_path, (cohort.name,))
    assert place(cohort / "cpu-x86_64") == (tmp_path, (cohort.name, "cpu-x86_64"))
    assert shown(cohort).cohort == Q2.identity.cohort
    gpu = shown(tmp_path / "quick-1-00000000" / "gpu")
    assert (gpu.cohort, gpu.machine, gpu.left_out) == ("quick-1-00000000", "gpu", ())
    for folder in (tmp_path / "none", cohort / "cpu-x86_64" / "dinov2_small"):
        with pytest.raises(DataError):
            place(folder)


def test_of_several_cohorts_the_last_is_shown_and_the_others_are_named(tmp_path: Path) -> None:
    newer = changed(Q2, finished=LATER, cohort="quick-1-00000000")
    elsewhere = changed(Q1, machine="gpu")
    lost = [changed(cell, finished="2200", suite="lost", cohort="lost-1-0") for cell in (Q1, Q2)]
    put(tmp_path, Q2, newer, elsewhere, *lost)
    report = shown(tmp_path)
    assert [cell.id for cell in report.cells] == [newer.id]
    assert reasons(report) == {
        f"{Q2.identity.cohort}/cpu-x86_64": "1 cell of another cohort or machine, never shown beside these",
        f"{Q2.identity.cohort}/gpu": "1 cell of another cohort or machine, never shown beside these",
        "lost-1-0/cpu-x86_64": "2 cells of the suite lost, which is not installed, never shown beside these",
    }
    assert report.notes == (f"The cohort is not that of the installed suite, {Q2.identity.cohort}: other data or other metrics.",)  # fmt: skip  # noqa: E501
    for suite in ("lost", "gate1"):
        with pytest.raises(DataError, match=f"no results of the suite {suite}"):
            shown(tmp_path, suite=suite)


def test_of_several_answers_the_last_counts_and_the_others_are_named(tmp_path: Path) -> None:
    newer = changed(Q2, finished=LATER, libraries={"torch": "9.9"})
    unheard = changed(Q1, experiment="X9")
    undecided = C1.model_copy(update={"decision": "PERHAPS"})
    put(tmp_path, Q2, newer, unheard, undecided)
    report = shown(tmp_path)
    assert [cell.id for cell in report.cells] == [newer.id]
    folder = f"{Q2.identity.cohort}/cpu-x86_64/dinov2_small"
    assert reasons(report) == {
        f"{folder}/{Q2.id}.json": f"the cell {newer.id} answers the same, and is later",
        f"{folder}/{undecided.id}.json": "PERHAPS is no decision",
        f"{folder}/{unheard.id}.json": "X9 is no experiment of the suite quick",
    }


def test_what_is_no_sound_cell_is_named(tmp_path: Path) -> None:
    put(tmp_path, Q2, Q1, C1, ORACLE)
    store = Store(tmp_path)
    future = json.loads(store.path(Q1).read_text())
    future["schema_version"] = 2
    store.path(Q1).write_text(json.dumps({**future, "seal": seal(future)}))
    store.path(C1).write_text(store.path(C1).read_text().replace("PIVOT", "PROCEED"))
    store.path(ORACLE).write_bytes(b"{")
    foreign = store.folder("quick-1-11111111", "cpu-x86_64") / "dinov2_small" / f"{Q2.id}.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(store.path(Q2).read_bytes())
    report = shown(tmp_path)
    assert [cell.id for cell in report.cells] == [Q2.id]
    found = reasons(report)
    assert len(found) == 4
    assert "schema_version: Input should be 1" in found[str(store.path(Q1).relative_to(tmp_path))]
    assert found[str(store.path(C1).relative_to(tmp_path))] == "its seal is broken"
    assert str(store.path(ORACLE).relative_to(tmp_path)) in found
    assert "it belongs at" in found[str(foreign.relative_to(tmp_path))]
    inside = shown(tmp_path / Q2.identity.cohort)
    assert len(inside.left_out) == 3, "of the folder that was asked for"


def test_nothing_but_controls_is_no_report(tmp_path: Path) -> None:
    put(tmp_path, ORACLE)
    with pytest.raises(UsageError, match="but of controls"):
        shown(tmp_path)


def test_a_reader_is_told_what_to_beware_of(tmp_path: Path) -> None:
    dirty = Q2.provenance.model_copy(update={"dirty": True})
    cell = changed(Q2, cohort=f"{Q2.identity.cohort}-limit16")
    put(tmp_path, cell.model_copy(update={"provenance": dirty, "warnings": ("os.getcwd was changed.",)}))
    smoke, tree, warning = shown(tmp_path).notes
    assert "at most 16 clips" in smoke
    assert "uncommitted" in tree
    assert warning == "os.getcwd was changed."


def test_the_command_writes_the_page_and_names_what_it_left_out(tmp_path: Path) -> None:
    put(tmp_path / "results", Q2, changed(Q2, cohort="quick-1-00000000"))
    output = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(tmp_path / "results"), "-e", "dinov2", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert f"left out {sorted({Q2.identity.cohort, 'quick-1-00000000'})[0]}/cpu-x86_64: 1 cell" in done.stderr
    page = output.read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert str(tmp_path) not in page
    again = tmp_path / "again.html"
    CliRunner().invoke(main, ["report", str(tmp_path / "results"), "-o", str(again)])
    assert again.read_bytes() == output.read_bytes()
    assert CliRunner().invoke(main, ["report", str(tmp_path / "nothing")]).exit_code == 4
    assert CliRunner().invoke(main, ["report", str(tmp_path / "results"), "-e", "sam"]).exit_code == 2


# Charts.


def estimate(value: float | None) -> Estimate:
    return Estimate(value=value, low=None if value is None else value - 0.1, high=None if value is None else value + 0.1, n=9)  # fmt: skip  # noqa: E501


def test_curves_hold_every_readout_of_a_metric_at_its_tap() -> None:
    found = {curve.metric: curve for curve in curves(Q2)}
    assert list(found) == ["box_iou", "lpips", "edge_f1", "map50"], "what was read at one tap has no curve"
    curve = found["box_iou"]
    assert list(curve.readings) == ["tokens", "tokens-extent", "pooled", "pooled-extent"]
    assert curve.taps == Q2.identity.taps
    for readout, wanted in (("pooled", {Q2.tap}), ("tokens", set(curve.taps))):
        read = {r.tap: r.estimate for r in Q2.metrics if (r.metric, r.readout) == ("box_iou", readout)}
        assert wanted <= read.keys()
        assert list(curve.readings[readout]) == [read.get(tap) for tap in curve.taps]
    assert curve.gate is not None
    assert (curve.gate.threshold, curve.tap) == (0.7, Q2.tap)


def test_one_tap_makes_no_curve() -> None:
    one = Q2.model_copy(update={"metrics": tuple(r for r in Q2.metrics if r.tap == Q2.tap)})
    assert curves(one) == []


@pytest.mark.parametrize(("direction", "best"), [("higher", "best .900 at b"), ("lower", "best .100 at c")])
def test_a_curve_says_where_it_is_best(direction: str, best: str) -> None:
    readings = {"tokens": (estimate(0.5), estimate(0.9), estimate(0.1)), "pooled": (None, estimate(0.3), None)}
    curve = Curve("score", direction, ("a", "b", "c"), readings, None, "b")
    assert curve.finding == f".500 at a, .100 at c; {best}; .900 at b, which gates."
    assert (
        curve.sentence
        == f"score ({direction} is better) over taps, read from tokens: {curve.finding} Beside it: pooled."
    )
    nothing = Curve("score", direction, ("a",), {"tokens": (estimate(None),)}, None, "a")
    assert nothing.finding == "No value is finite."


def test_a_bar_says_whether_its_threshold_tells_the_controls_apart() -> None:
    lpips = bars([C1, changed(C1, adapter="mlp")])[0]
    assert [name for name, _ in lpips.rows] == ["linear", "mlp"]
    assert lpips.sentence == (
        "lpips (lower is better): linear .333 [.326, .340] PASS, mlp .333 [.326, .340] PASS; "
        "threshold < .350, best floor .661 (shuffled), ceiling .175 (oracle)."
    )
    assert lpips.meaning.startswith(
        "The threshold tells them apart: oracle clears it with .175, the best floor, shuffled,"
    )
    result = lpips.rows[0][1]
    for update, meaning in (
        ({"verdict": "VACUOUS"}, "A floor reaches the threshold"),
        ({"verdict": "UNREACHABLE"}, "The ceiling does not clear"),
        ({"ceiling": None}, "A control is missing"),
        ({"floors": {}}, "A control is missing"),
    ):
        each = Bars("lpips", "lower", (("linear", result.model_copy(update=update)),))
        assert each.meaning.startswith(meaning)
