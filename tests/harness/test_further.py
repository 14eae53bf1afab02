"""A metric that no suite names is reported where its kind is measured, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from foresight_bench import comparing
from foresight_bench.board import Row
from foresight_bench.building import build
from foresight_bench.cells import Cell, Provenance
from foresight_bench.cli import main
from foresight_bench.contracts import Data
from foresight_bench.engine import Engine
from foresight_bench.errors import PluginError, UsageError
from foresight_bench.further import PART, metrics, reporting
from foresight_bench.jobs import Job, Settings, cut
from foresight_bench.leaderboard import further_table
from foresight_bench.plan import Plan, Selection, plan
from foresight_bench.registry import Registry, code_digest, suite_data
from foresight_bench.store import Store
from foresight_bench.tables import experiment_table
from foresight_bench.validating import validate

PROVENANCE = Provenance(
    device="", machine="here", commit="", dirty=False, python="", libraries={}, weights_sources={}, finished=""
)
SPECS = """
from foresight_bench import hookimpl
from foresight_bench.specs import MetricSpec

@hookimpl
def foresight_metrics():
    return [
        MetricSpec("my-frames", "mine_parts:Frames", "", "frames", "higher", "7"),
        MetricSpec("my-boxes", "mine_parts:Boxes", "", "boxes", "higher", "8", {"low": 0.5, "high": 0.5}),
        MetricSpec("my-spaces", "mine_parts:Spaces", "", "spaces", "higher", "9"),
    ]
"""
PARTS = """
from foresight_plugins.metrics.mean_ap import MeanAP as Boxes
from foresight_plugins.metrics.psnr import Psnr as Frames
from foresight_plugins.metrics.ridge_r2 import RidgeR2 as Spaces
"""
SAME = {"my-frames": "psnr", "my-boxes": "map50", "my-spaces": "ridge_r2"}
"""The built-in metric that each is, under another name."""
FITS = {"C1": {"my-frames"}, "Q1": {"my-spaces"}, "Q2": {"my-frames", "my-boxes"}}


@pytest.fixture
def mine(toy: Path) -> Path:
    """Install three metrics beside the toy suite; return an empty folder for results."""
    site = toy.parent / "site"
    info = site / "mine-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[foresight_bench]\nmine = mine_specs\n")
    (site / "mine_specs.py").write_text(SPECS)
    (site / "mine_parts.py").write_text(PARTS)
    return toy


def planned(*names: str, controls: bool = True) -> Plan:
    return plan(Registry.installed(), Selection("toy", ("sound",), controls=controls, metrics=names))


def computed(found: Plan, data: Data, results: Path) -> dict[str, Cell]:
    """Compute ``found`` in this process; return its cells by experiment."""
    (job,) = cut(found, frozenset(cell.id for cell in found.cells), Settings(results, PROVENANCE, "cpu"), 1)
    job = Job.model_validate_json(job.model_dump_json())
    assert not Engine(Registry.installed(), job, {}, data, lambda event: None).run()
    wanted = {cell.id for cell in found.cells}
    return {cell.identity.experiment: cell for cell in Store(results).cells() if cell.id in wanted}


def board_rows(results: Path, registry: Registry) -> list[Row]:
    """Return the rows of the board of one cohort."""
    (board,) = build(results, registry).cohorts
    return [row for section in board.sections for row in section.rows]


def test_it_is_measured_reported_and_shown_and_every_other_number_stays(mine: Path) -> None:
    data = suite_data(Registry.installed().suites["toy"].spec)
    apart = mine.with_name("plain")
    plain = computed(planned(controls=False), data, apart)
    full = computed(planned(*SAME, controls=False), data, mine)
    registry, store = Registry.installed(), Store(mine)
    suite = registry.suites["toy"].spec
    for name, cell in full.items():
        assert cell.status == "ok", cell.reason
        further = [result for result in cell.metrics if result.metric in SAME]
        assert {result.metric for result in further} == FITS[name]
        for result in further:
            assert not result.gates
            assert result.verdict is None
            assert (result.tap, result.readout) == (cell.tap, cell.readout)
            (same,) = [
                other
                for other in cell.metrics
                if (other.metric, other.tap, other.readout) == (SAME[result.metric], result.tap, result.readout)
            ]
            assert result.estimate == same.estimate
            assert result.implementation == registry.metrics[result.metric].spec.version
        assert tuple(result for result in cell.metrics if result.metric not in SAME) == plain[name].metrics
        assert (cell.tap, cell.decision, cell.details) == (plain[name].tap, plain[name].decision, plain[name].details)
        scores, others = store.scores(cell), Store(apart).scores(plain[name])
        assert {key.metric for key in scores.keys() - others.keys()} == FITS[name]
        for key, each in others.items():
            assert each.value == scores[key].value
            assert np.array_equal(each.replicates, scores[key].replicates)
        spec = next(each for each in suite.experiments if each.name == name)
        lines = experiment_table(cell, spec).splitlines()
        assert {line.split()[0] for line in lines if line.endswith("reported")} >= FITS[name]
    rows, without = (board_rows(folder, registry) for folder in (mine, apart))
    shown = [[part.strip() for part in line.split("|")] for line in further_table(suite, rows).splitlines()]
    assert [(row[2], row[4], row[5]) for row in shown[2:]] == [
        ("C1", "my-frames", "7"),
        ("Q1", "my-spaces", "9"),
        ("Q2", "my-frames", "7"),
        ("Q2", "my-boxes", "8"),
    ]
    assert further_table(suite, without) == ""
    assert sum("--metric my-frames" in row.command for row in rows) == 2
    assert not any("--metric" in row.command for row in without)
    found = comparing.Found(full["C1"], store.path(full["C1"]).with_suffix(".safetensors"))
    differences = {each.metric: each for each in comparing.compare(found, found)}
    assert differences["my-frames"].difference.value == 0
    assert not differences["my-frames"].gates
    assert not validate(mine, registry)


def test_its_name_version_and_code_are_in_the_identity_and_controls_stay_as_they_were(mine: Path) -> None:
    plain, full = planned(), planned(*SAME)
    assert full.cohort == plain.cohort
    for one, other in zip(plain.rows, full.rows, strict=True):
        if one.control:
            assert other == one
            continue
        for a, b in zip(one.cells, other.cells, strict=True):
            fits = FITS[a.identity.experiment]
            assert a.id != b.id
            assert PART not in a.identity.parameters
            assert b.identity.parameters[PART].keys() == fits
            code = b.identity.code["mine_parts"]
            assert (code.distribution, code.version, code.digest) == ("mine", "2.5", code_digest("mine_parts"))
            rest = {part: values for part, values in b.identity.parameters.items() if part != PART}
            assert rest == a.identity.parameters
            assert dict(a.controls) == dict(b.controls)


def test_one_that_the_suite_names_is_the_same_cell(mine: Path) -> None:
    assert planned("psnr", "box_iou").cells == planned().cells
    assert planned("my-spaces").rows[-1].cells[0] == planned().rows[-1].cells[0]  # C1 measures no spaces


def test_what_nothing_measures_and_what_is_unknown_are_refused(mine: Path) -> None:
    registry = Registry.installed()
    c1, q1, q2 = registry.suites["toy"].spec.experiments
    with pytest.raises(UsageError, match=r"No selected experiment \(Q1\) measures boxes, which my-boxes scores"):
        reporting(registry, [q1], ["my-spaces", "my-boxes"])
    with pytest.raises(PluginError, match="Unknown metric 'my-box'"):
        reporting(registry, [c1, q1, q2], ["my-box"])
    assert reporting(registry, [c1, q1, q2], ["psnr", "box_iou"]) == (c1, q1, q2)
    twice = reporting(registry, [q2], ["my-boxes", "my-boxes"])
    assert metrics(twice[0]) == (*metrics(q2), "my-boxes")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--metric", "my-box"), 3, "Did you mean my-boxes"),
        (("--metric", "my-boxes", "-x", "C1"), 2, "No selected experiment (C1) measures boxes, which my-boxes scores."),
        (("--metric", "my-boxes", "-x", "Q2", "--metric", "my-frames", "--json"), 0, '"my-boxes",\n   "my-frames"'),
    ],
)
def test_the_command_line_takes_several_and_says_what_is_wrong(
    arguments: tuple[str, ...], code: int, said: str, mine: Path
) -> None:
    done = CliRunner().invoke(main, ["plan", "--suite", "toy", "-e", "sound", "--results", str(mine), *arguments])
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output
