"""What people read: numbers, gate lines, tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from committed import QUICK
from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.engine import classify
from foresight_bench.errors import WeightsError
from foresight_bench.registry import Registry
from foresight_bench.specs import GateSpec
from foresight_bench.store import Store
from foresight_bench.tables import (
    combination,
    gate_line,
    gate_result,
    heading,
    number,
    retention,
    run_text,
    spaces_table,
    suite_experiments,
    system_text,
    systems,
)
from foresight_bench.verdicts import GateStatus

ROOT = Path(__file__).parents[2]
GATE = GateSpec("gate1", "Gate 1", ("C1", "Q1", "Q2"))


@pytest.fixture(scope="module")
def dinov2() -> list[Cell]:
    """The committed cells of DINOv2 small with the suite's own adapter and decoder."""
    suite = Registry.installed().suites["quick"].spec
    cells = [cell for cell in Store(QUICK).cells() if cell.identity.encoder == "dinov2:small"]
    return systems(cells)["dinov2:small", suite.default_adapter, suite.default_decoder, 0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.943, ".943"), (-0.0612, "-.061"), (1.0, "1.000"), (18.53, "18.5"), (0.0, ".000"), (221.4, "221"), (None, "-")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def decided(cells: list[Cell], decisions: str, taps: str) -> list[Cell]:
    """Return ``cells`` with the given decisions and taps, in order of experiment."""
    ordered = sorted(cells, key=lambda cell: cell.identity.experiment)
    changes = zip(ordered, decisions.split(), taps.split(), strict=True)
    return [cell.model_copy(update={"decision": decision, "tap": tap}) for cell, decision, tap in changes]


def test_a_gate_passes_only_at_one_tap(dinov2: list[Cell]) -> None:
    together = decided(dinov2, "PROCEED PROCEED PROCEED", "block.2 block.2 block.2")
    apart = decided(dinov2, "PROCEED PROCEED PROCEED", "block.2 block.2 block.5")
    assert gate_result(GATE, together).status is GateStatus.PASSED
    assert gate_result(GATE, apart).status is GateStatus.INCONCLUSIVE
    assert "ENCODER@TAP" in gate_line(GATE, gate_result(GATE, apart))
    blocked = decided(dinov2, "PROCEED PIVOT PROCEED", "block.2 block.2 block.5")
    assert gate_result(GATE, blocked).status is GateStatus.BLOCKED
    assert gate_result(GATE, together[:2]).status is GateStatus.INCONCLUSIVE
    assert "Q2 not run" in gate_line(GATE, gate_result(GATE, together[:2]))


def test_a_failed_cell_leaves_the_gate_inconclusive(dinov2: list[Cell]) -> None:
    cells = decided(dinov2, "PROCEED PROCEED PROCEED", "final final final")
    failed = cells[2].model_copy(update={"status": "oom", "decision": None, "tap": ""})
    assert gate_result(GATE, [*cells[:2], failed]).status is GateStatus.INCONCLUSIVE


def test_systems_share_the_experiments_that_need_no_adapter(dinov2: list[Cell]) -> None:
    c1 = next(cell for cell in dinov2 if cell.identity.experiment == "C1")
    other = c1.model_copy(update={"identity": c1.identity.model_copy(update={"adapter": "mlp"})})
    groups = systems([*dinov2, other])
    assert sorted(key[1] for key in groups) == ["linear", "mlp"]
    for group in groups.values():
        assert sorted(cell.identity.experiment for cell in group) == ["C1", "Q1", "Q2"]


def test_the_retention_plot_has_a_column_a_tap_and_full_height_at_the_ceiling(dinov2: list[Cell]) -> None:
    q2 = next(cell for cell in dinov2 if cell.identity.experiment == "Q2")
    lines = retention(q2).splitlines()
    assert lines[0].split() == list(q2.identity.taps)
    lpips = next(line for line in lines if line.split()[0] == "lpips")
    assert lpips.split()[1] == "█", "patch_embed decodes as well as pixels do"
    assert retention(q2.model_copy(update={"metrics": q2.metrics[:1]})) == ""


def with_spaces(cell: Cell) -> Cell:
    """Return a Q1 cell that also read both spaces by themselves, at its tap and at another."""
    like = next(result for result in cell.metrics if result.metric == "spearman" and not result.gates)

    def reported(metric: str, value: float, tap: str) -> MetricResult:
        estimate = Estimate(value=value, low=value - 1, high=value + 1, n=400)
        return like.model_copy(update={"metric": metric, "tap": tap, "readout": cell.readout, "estimate": estimate})

    read = {"dim_mle_encoder": 12.1, "dim_mle_decoder": 45.8, "dim_mle_ratio": 3.785, "dim_pca95_encoder": 286.0}
    more = [reported(name, value, cell.tap) for name, value in read.items()]
    elsewhere = [reported("dim_mle_encoder", 77.7, next(tap for tap in cell.identity.taps if tap != cell.tap))]
    kept = tuple(result for result in cell.metrics if not result.metric.startswith("dim_"))
    return cell.model_copy(update={"metrics": (*kept, *more, *elsewhere)})


def test_what_is_said_of_each_space_stands_side_by_side(dinov2: list[Cell]) -> None:
    suite = Registry.installed().suites["quick"].spec
    q1 = with_spaces(next(cell for cell in dinov2 if cell.identity.experiment == "Q1"))
    header, _, *rows = (re.split(r"  +", line.strip()) for line in spaces_table(q1).splitlines())
    assert header == ["reported", "encoder", "decoder", "decoder / encoder"]
    assert rows == [
        ["dim_mle", "12.1 [11.1, 13.1]", "45.8 [44.8, 46.8]", "3.785 [2.785, 4.785]"],
        ["dim_pca95", "286 [285, 287]", "-", "-"],
    ]
    text = system_text(suite, combination(q1), [q1])
    assert spaces_table(q1) in text
    assert text.count("dim_mle") == 1, "and not in the table above as well"
    assert spaces_table(next(cell for cell in dinov2 if cell.identity.experiment == "Q2")) == ""


def test_what_adapters_share_is_shown_once(dinov2: list[Cell]) -> None:
    suite = Registry.installed().suites["quick"].spec
    c1, q1 = (next(cell for cell in dinov2 if cell.identity.experiment == name) for name in ("C1", "Q1"))
    identity = c1.identity.model_copy(update={"adapter": "mlp"})
    other = c1.model_copy(update={"identity": identity, "id": identity.cell_id()})
    groups = systems([*dinov2, other])
    first, second = (system_text(suite, system, group) for system, group in groups.items())
    text = run_text(suite, groups)
    assert text.startswith(first)
    assert text.count("lpips ") == 2 * first.count("lpips ") - 2, "C1's table twice, Q2's table and curve once"
    assert text.count(heading(q1, suite_experiments(suite)["Q1"])) == 2
    assert text.count("as above") == 2
    assert text.splitlines()[-2:] == second.splitlines()[-2:], "every system has its gate"


def test_seeds_are_systems_of_their_own(dinov2: list[Cell]) -> None:
    again = [cell.model_copy(update={"identity": cell.identity.model_copy(update={"seed": 4})}) for cell in dinov2]
    groups = systems([*dinov2, *again])
    assert [system[3] for system in groups] == [0, 4]
    for (_, _, _, seed), group in groups.items():
        assert [cell.identity.seed for cell in group] == [seed] * 3


def test_committed_cells_are_whole_clean_and_anonymous() -> None:
    store = Store(QUICK)
    cells = list(store.cells())
    assert cells
    for cell in cells:
        assert cell.id == cell.identity.cell_id()
        assert not cell.provenance.dirty
        if cell.status == "skipped":
            assert cell.reason
        else:
            assert cell.status == "ok"
            assert store.scores(cell)


def test_a_reason_holds_no_folder() -> None:
    failure = classify(WeightsError("The weights file /home/somebody/cache/alex.safetensors is broken: 1/2 of it."))
    assert failure.reason == "The weights file alex.safetensors is broken: 1/2 of it."
