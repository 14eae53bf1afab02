"""Cutting a plan into jobs and parts: what shares a worker, what waits for what; no cell is lost or done twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from foresight_bench.cells import Cell, Provenance
from foresight_bench.cli import main
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import EnvironmentFault, WeightsError
from foresight_bench.identities import Needed
from foresight_bench.jobs import CELL_UNITS, Event, Job, Settings, cut, frame_count, units
from foresight_bench.plan import Plan, Selection, plan
from foresight_bench.registry import Registry
from foresight_bench.specs import Weights
from foresight_bench.store import Store

SETTINGS = Settings(
    results=Path("results"),
    provenance=Provenance(
        device="", machine="here", commit="", dirty=False, python="", libraries={}, weights_sources={}, finished=""
    ),
    device="cpu",
    threads=3,
)
CONTROLS = ["oracle", "pixels", "blank", "mean-rgb"]
NAMES = ("sound", "nan", "sound~pooled", "sound:shift=0.5", "sound@early+pixels", "short")
Planned = Callable[..., Plan]


@pytest.fixture
def planned(toy: Path) -> Planned:
    """Return a function from a selection of the toy suite to its plan."""
    return lambda *encoders, **chosen: plan(Registry.installed(), Selection("toy", encoders, **chosen))


def ids(found: Plan) -> frozenset[str]:
    return frozenset(cell.id for cell in found.cells)


def labels(jobs: list[Job]) -> list[list[str]]:
    return [[row.label for row in job.rows] for job in jobs]


def test_rows_of_one_backbone_share_a_job_and_controls_ride_with_the_first(planned: Planned) -> None:
    found = planned(*NAMES)
    jobs = cut(found, ids(found), SETTINGS, 1)
    assert labels(jobs) == [
        [*CONTROLS, "sound", "sound~pooled"],
        ["nan"],
        ["sound:shift=0.5"],
        ["sound@early+pixels@patches"],
        ["short"],
    ]
    assert jobs[0].awaits == frozenset()
    assert jobs[1].awaits == {cell.id for row in found.rows if row.control for cell in row.cells}


def test_on_several_slots_controls_are_dealt_out_and_every_encoder_awaits_them(planned: Planned) -> None:
    found = planned("sound", "nan", "sound~pooled", experiments=("Q2",))
    controls = {cell.id for row in found.rows if row.control for cell in row.cells}
    for slots, dealt in ((2, [["oracle", "blank"], ["pixels", "mean-rgb"]]), (9, [[name] for name in CONTROLS])):
        jobs = cut(found, ids(found), SETTINGS, slots)
        assert labels(jobs) == [*dealt, ["sound", "sound~pooled"], ["nan"]]
        assert [job.awaits for job in jobs] == [frozenset()] * len(dealt) + [controls] * 2


@pytest.mark.parametrize("slots", [1, 3])
def test_every_missing_cell_is_in_one_job_with_the_controls_it_is_judged_beside(planned: Planned, slots: int) -> None:
    found = planned(*NAMES, seeds=(0, 1))
    missing = frozenset(sorted(ids(found))[::2])
    jobs = cut(found, missing, SETTINGS, slots)
    assert Counter(cell for job in jobs for cell in job.ids) == Counter(missing)
    planned_controls = {cell.id: dict(cell.controls) for cell in found.cells}
    for job in jobs:
        assert (job.suite, job.cohort, job.device, job.threads) == ("toy", found.cohort, "cpu", 3)
        for row in job.rows:
            assert row.cells
            for cell in row.cells:
                assert cell.controls == planned_controls[cell.identity.cell_id()]
    assert cut(found, frozenset(), SETTINGS, slots) == []


def test_controls_that_run_with_other_libraries_do_not_ride_along(planned: Planned, toy: Path) -> None:
    other = plan(Registry.installed(), Selection("toy", ("sound", "nan")), libraries={"sound": {"torch": "1.0"}})
    jobs = cut(other, ids(other), SETTINGS, 1)
    assert labels(jobs) == [CONTROLS, ["sound"], ["nan"]]


def test_a_job_travels_as_text(planned: Planned) -> None:
    found = planned("sound")
    weights = {"some": ResolvedWeights(Path("/a/file"), "0" * 64, "archive", {"file": "1" * 64})}
    (job,) = cut(replace(found, weights=weights), ids(found), SETTINGS, 1)
    read = Job.model_validate_json(job.model_dump_json())
    assert read == job
    assert read.weights["some"].resolved() == weights["some"]
    registry = Registry.installed()
    assert tuple(replace(row.planned(registry), wanted=True) for row in read.rows) == tuple(
        replace(row, wanted=True) for row in found.rows
    )


def test_what_is_settled_leaves_the_job(planned: Planned) -> None:
    found = planned("sound", "sound~pooled")
    (job,) = cut(found, ids(found), SETTINGS, 1)
    blank = {cell.identity.cell_id() for row in job.rows if row.label == "blank" for cell in row.cells}
    one = job.rows[-1].cells[0].identity.cell_id()
    rest = job.without({*blank, one})
    assert rest.ids == job.ids - blank - {one}
    assert "blank" not in [row.label for row in rest.rows]
    assert rest.awaits == blank  # they are judged beside those all the same
    assert job.without(job.ids).rows == ()
    assert job.without(["elsewhere"]) == job


def test_units_count_cells_and_passes(planned: Planned) -> None:
    found = planned("sound", "sound~pooled", "sound:shift=0.5", "sound@early+pixels")
    assert len(found.rows) == 8
    # Controls that an experiment does not name have no cell of it: `pixels` none of C1 and of Q1.
    assert len(found.cells) == 3 + 1 + 3 + 3 + 4 * 3
    # Passes: four controls, `sound` once for all rows that read it, and once more where its option differs.
    assert units(found.rows, ids(found), 1000) == CELL_UNITS * len(found.cells) + 1000 * 6
    pooled = frozenset(cell.id for row in found.rows if row.label == "sound~pooled" for cell in row.cells)
    assert units(found.rows, pooled, 1000) == CELL_UNITS * 3 + 1000
    assert units(found.rows, frozenset(), 1000) == 0
    assert frame_count({"train": [(24, 1), (2, 3)], "val": [(8, 1)]}) == 38


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"7", b'"text"', b"null", b'{"colour": 1}', b"\xff\xfe", b"[" * 100_000, b'{"text": "cut'],
)
def test_what_is_no_event_is_none(line: bytes) -> None:
    assert Event.read(line) is None


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_parts_hold_every_cell_once_except_shared_controls(planned: Planned, of: int) -> None:
    found = planned(*NAMES)
    parts = [found.part(index, of) for index in range(1, of + 1)]
    controls = {cell.id for row in found.rows if row.control for cell in row.cells}
    assert Counter(cell.id for part in parts for cell in part.cells if cell.id not in controls) == Counter(
        ids(found) - controls
    )
    for part in parts:
        for cell in part.cells:
            assert set(cell.controls.values()) <= ids(part)
        backbones = {row.streams[0].backbone for row in part.rows if not row.control}
        assert len(backbones) <= -(-5 // of)  # five backbones, shared out evenly
        assert not part.cells or backbones  # no part computes controls for nobody
    assert [row.label for row in found.part(1, 1).rows] == [row.label for row in found.rows]
    assert "sound~pooled" in [row.label for row in found.part(1, of).rows]  # beside `sound`


def test_controls_that_were_asked_for_are_in_the_first_part(planned: Planned) -> None:
    found = planned("blank", "sound", experiments=("Q1",))
    parts = [found.part(index, 2) for index in (1, 2)]
    assert [[row.label for row in part.rows if row.wanted] for part in parts] == [["blank"], ["sound"]]
    assert [row.label for row in parts[0].rows] == ["blank"]
    assert ids(parts[0]) < ids(parts[1])


def test_keeping_cells_keeps_their_controls_and_refuses_strangers(planned: Planned) -> None:
    found = planned("sound", "nan")
    (cell,) = (each for each in found.cells if (each.identity.encoder, each.identity.experiment) == ("nan", "Q1"))
    kept = found.keep([cell.id])
    assert ids(kept) == {cell.id, *cell.controls.values()}
    assert [row.label for row in kept.rows if row.wanted] == ["nan"]
    assert found.keep(ids(found)) == replace(found, rows=tuple(replace(row, wanted=True) for row in found.rows))
    with pytest.raises(EnvironmentFault, match=r"2 cells, the first ab, are not of this plan\.") as error:
        found.keep([cell.id, "cd", "ab"])
    assert "plan again" in error.value.hint


def test_all_stands_for_every_encoder_that_is_no_control(toy: Path, tmp_path: Path) -> None:
    registry = Registry.installed()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    def find(weights: Weights, needed: Needed) -> ResolvedWeights:
        return ResolvedWeights(path, weights.name, "file")

    found = plan(registry, Selection("toy", ("all",)), find)
    names = {entry.spec.name for entry in registry.encoders if not entry.spec.control}
    assert {"sound", "dinov2"} < names
    assert {row.streams[0].name for row in found.rows if row.wanted} == names
    assert len([row for row in found.rows if row.wanted]) == len(names)
    assert [row.label for row in found.rows if not row.wanted] == CONTROLS


def test_weights_that_cannot_be_had_end_the_plan_only_if_nothing_else_was_asked_for(toy: Path) -> None:
    def find(weights: Weights, needed: Needed) -> ResolvedWeights:
        raise WeightsError(f"No source has {weights.name}.")

    registry = Registry.installed()
    found = plan(registry, Selection("toy", ("dinov2", "sound")), find)
    for cell in found.cells:
        assert (cell.lacking is not None) is (cell.identity.encoder == "dinov2:small")
        if cell.lacking:
            assert cell.lacking.message == "No source has dinov2-small."
            assert cell.identity.weights == {"dinov2-small": ""}
    with pytest.raises(WeightsError, match="No source has dinov2-small"):
        plan(registry, Selection("toy", ("dinov2",)), find)


def run(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", "--suite", "toy", "--device", "cpu", "--results", str(results), *arguments])


def cells(results: Path) -> dict[tuple[str, str], Cell]:
    return {(cell.identity.encoder, cell.identity.experiment): cell for cell in Store(results).cells()}


def test_an_encoder_without_weights_does_not_keep_the_others_from_running(beside: Path, undisturbed: Path) -> None:
    arguments = ("-x", "Q2", "-e", "dinov2", "--weights", "dinov2-small=nowhere.safetensors")
    before = sorted(beside.rglob("*"))
    alone = run(beside, *arguments)
    assert alone.exit_code == 4, alone.output
    assert sorted(beside.rglob("*")) == before
    done = run(beside, *arguments, "-e", "sound")
    assert done.exit_code == 4, done.output
    assert "nowhere.safetensors" in done.stderr
    assert "Traceback" not in done.output
    found = cells(beside)
    assert found["dinov2:small", "Q2"].status == "weights_missing"
    assert "nowhere.safetensors" in found["dinov2:small", "Q2"].reason
    assert found["sound", "Q2"].scores_sha256 == cells(undisturbed)["sound", "Q2"].scores_sha256


def test_a_shard_is_its_part_of_the_run(beside: Path, undisturbed: Path) -> None:
    done = run(beside, "-e", "sound", "-e", "sound:shift=0.5", "-x", "Q2", "--shard", "2/2", "--json")
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert record["identity"]["encoder"] == "sound:shift=0.5"
    found, whole = cells(beside), cells(undisturbed)
    assert ("sound", "Q2") not in found
    mine = "sound:shift=0.5", "Q2"
    assert (found[mine].scores_sha256, found[mine].metrics) == (whole[mine].scores_sha256, whole[mine].metrics)
