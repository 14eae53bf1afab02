"""From names to cells: which share a feature pass, which controls they stand beside, what their identity holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from foresight_bench.cells import Provenance
from foresight_bench.cli import main
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.engine import Engine
from foresight_bench.errors import EnvironmentFault, ForesightError, PluginError, WeightsError
from foresight_bench.identities import Needed, adapter_parameters
from foresight_bench.jobs import Job, Settings, cut
from foresight_bench.plan import Plan, Row, Selection, plan
from foresight_bench.registry import Registry, suite_data
from foresight_bench.specs import AdapterSpec, Recipe, Weights
from foresight_bench.store import Store
from foresight_bench.tables import run_text, systems

PROVENANCE = Provenance(
    device="", machine="here", commit="", dirty=False, python="", libraries={}, weights_sources={}, finished=""
)
CONTROLS = ("oracle", "pixels", "blank", "mean-rgb")
Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """Return a function from a selection to its plan, in which any weights are one small file."""
    path = tmp_path / "weights.safetensors"
    save_file({"blocks.0.w": np.zeros(3, np.float32)}, path)

    def find(weights: Weights, needed: Needed) -> ResolvedWeights:
        return ResolvedWeights(path, weights.name, "file")

    return lambda **chosen: plan(Registry.installed(), Selection("quick", **chosen), find)


def seeds(found: Plan) -> dict[str, list[list[int]]]:
    """Return, by encoder, the seeds of each of its rows."""
    rows: dict[str, list[list[int]]] = {}
    for row in found.rows:
        rows.setdefault(row.label, []).append(sorted({cell.identity.seed for cell in row.cells}))
    return rows


def test_seeds_share_a_feature_pass_unless_the_weights_are_drawn_from_them(planned: Planned) -> None:
    names = ("dinov2", "dinov2~random", "dinov2~random+pixels", "dinov2~pooled")
    found = planned(encoders=names, seeds=(0, 2, 1, 2))
    assert seeds(found) == {
        **{name: [[0]] for name in CONTROLS},
        "dinov2:small": [[0, 1, 2]],
        "dinov2:small~random": [[0], [2], [1]],
        "dinov2:small@final~random+pixels@patches": [[0], [2], [1]],
        "dinov2:small~pooled": [[0, 1, 2]],
    }
    for row in found.rows:  # every seed has every experiment, once
        asked = [(cell.identity.seed, cell.identity.experiment) for cell in row.cells]
        assert len(asked) == len(set(asked))
        if not row.control:
            assert len(asked) == 3 * len({seed for seed, _ in asked})


def test_cells_of_every_seed_stand_beside_the_same_controls(planned: Planned) -> None:
    found = planned(encoders=("dinov2",), seeds=(0, 7), adapters=("linear", "mlp"))
    controls = {cell.id: cell.identity for row in found.rows if row.control for cell in row.cells}
    (row,) = (row for row in found.rows if not row.control)
    assert {cell.identity.seed for cell in row.cells} == {0, 7}
    for cell in row.cells:
        mine = cell.identity
        assert set(cell.controls) == {"oracle", "blank", "mean-rgb"} | (
            {"pixels"} if mine.experiment == "Q2" else set()
        )
        for name, cell_id in cell.controls.items():
            other = controls[cell_id]
            assert (other.encoder, other.seed, other.experiment) == (name, 0, mine.experiment)
            # The oracle needs no adapter: it has the latents.
            assert (other.adapter, other.decoder) == (None if name == "oracle" else mine.adapter, mine.decoder)
    assert not any(cell.controls for row in found.rows if row.control for cell in row.cells)


def test_a_control_asked_for_by_name_has_one_row_and_seed_0(planned: Planned) -> None:
    found = planned(encoders=("pixels",), seeds=(3, 4))
    assert seeds(found) == {name: [[0]] for name in CONTROLS}
    (row,) = (row for row in found.rows if row.label == "pixels")
    assert [cell.identity.experiment for cell in row.cells] == ["C1", "Q1", "Q2"]


def test_all_stands_for_every_adapter_and_decoder_once(planned: Planned) -> None:
    registry = Registry.installed()
    found = planned(encoders=("blank",), adapters=("mlp", "all", "mlp"), decoders=("all",), experiments=("C1",))
    pairs = [(cell.identity.adapter, cell.identity.decoder) for row in found.rows[-1:] for cell in row.cells]
    everything = {(a, d) for a in registry.adapters.names() for d in registry.decoders.names()}
    assert set(pairs) == everything
    assert len(pairs) == len(everything) >= 2 * 8
    assert pairs[0][0] == "mlp", "in the order asked for"
    with pytest.raises(PluginError) as caught:
        planned(encoders=("blank",), adapters=("all", "liner"), experiments=("Q2",))  # where none is used
    assert "linear" in caught.value.hint


def test_an_adapters_identity_holds_its_parameters_and_its_recipe() -> None:
    recipe = Recipe(learning_rates=(1e-3, 3e-4), epochs=7, batch=8, weight_decay=0.1, warmup=0.0, patience=2)
    spec = AdapterSpec("mine", "m:M", "", {"width": 64}, recipe)
    assert adapter_parameters(spec) == {
        "width": 64,
        "recipe.learning_rates": "0.001, 0.0003",
        "recipe.epochs": 7,
        "recipe.batch": 8,
        "recipe.weight_decay": 0.1,
        "recipe.warmup": 0.0,
        "recipe.patience": 2,
    }
    assert adapter_parameters(replace(spec, recipe=None)) == {"width": 64}


def test_a_cells_id_depends_on_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.installed()
    entry = registry.adapters["linear"]

    def cell_id(recipe: Recipe | None) -> str:
        changed = replace(entry, spec=replace(entry.spec, recipe=recipe))
        monkeypatch.setitem(registry.adapters._entries, "linear", [changed])
        chosen = Selection("quick", ("blank",), ("C1",))
        return plan(registry, chosen, lambda w, n: ResolvedWeights(Path(), w.name, "file")).rows[-1].cells[0].id

    ids = [cell_id(recipe) for recipe in (None, Recipe(), Recipe(learning_rates=(1e-3, 1e-2)), Recipe())]
    assert len(set(ids)) == 3
    assert ids[1] == ids[3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Selection("quick", ("dinov2",))),
        (["--seed", "4", "--seed", "0"], Selection("quick", ("dinov2",), seeds=(4, 0))),
        (["-a", "all", "-d", "all"], Selection("quick", ("dinov2",), adapters=("all",), decoders=("all",))),
    ],
)
def test_the_command_line_selects(arguments: list[str], expected: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Selection] = []

    def session(selection: Selection, *rest: object) -> None:
        asked.append(selection)
        raise ForesightError("enough")

    monkeypatch.setattr("foresight_bench.commands.selecting._session", session)
    CliRunner().invoke(main, ["run", "-e", "dinov2", *arguments])
    assert asked == [expected]


def test_rows_reach_the_worker_as_they_were_planned(planned: Planned, tmp_path: Path) -> None:
    found = planned(encoders=("dinov2~random", "dinov2@block.2~pooled"), adapters=("linear", "mlp"), seeds=(0, 3))
    settings = Settings(tmp_path, PROVENANCE, "cpu", compiled=False, threads=3)
    jobs = cut(found, frozenset(cell.id for cell in found.cells), settings, slots=1)
    registry = Registry.installed()
    sent = [Job.model_validate_json(job.model_dump_json()) for job in jobs]
    assert sent == jobs
    rows = [row.planned(registry) for job in sent for row in job.rows]
    assert {(row.label, row.streams, row.cells) for row in map(plain, rows)} == {
        (row.label, row.streams, row.cells) for row in map(plain, found.rows)
    }
    assert {job.threads for job in sent} == {3}


def plain(row: Row) -> Row:
    """Return ``row`` with cells that can be put into a set."""
    return replace(row, cells=tuple((cell.id, tuple(sorted(cell.controls.items()))) for cell in row.cells))  # type: ignore[misc]


def test_several_seeds_run_on_one_feature_pass_and_are_shown_apart(toy: Path) -> None:
    registry = Registry.installed()
    found = plan(registry, Selection("toy", ("sound",), ("Q1",), seeds=(0, 5), controls=False))
    said: list[str] = []
    store = Store(toy)
    (job,) = cut(found, frozenset(cell.id for cell in found.cells), Settings(toy, PROVENANCE, "cpu"), slots=1)
    data = suite_data(registry.suites["toy"].spec)
    assert not Engine(registry, job, {}, data, lambda event: said.append(event.text)).run()
    assert said.count("sound: loading") == 1
    cells = list(store.cells())
    assert [cell.status for cell in cells] == ["ok", "ok"]
    text = run_text(registry.suites["toy"].spec, systems(cells))
    assert re.findall(r"^sound .*seed (\d)", text, re.MULTILINE) == ["0", "5"]
    assert text.count("ridge_r2 ") == 4, "a table and a curve for each"


def test_weights_that_cannot_be_had_leave_the_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"blocks.0.w": np.zeros(3, np.float32)}, path)

    def find(weights: Weights, needed: Needed) -> ResolvedWeights:
        if weights.name.startswith("dinov2-large"):
            raise WeightsError("dinov2-large is nowhere.")
        return ResolvedWeights(path, weights.name, "file")

    both = plan(Registry.installed(), Selection("quick", ("dinov2", "dinov2:large")), find)
    lacking = {cell.identity.encoder for cell in both.cells if cell.lacking}
    assert lacking == {"dinov2:large"}
    assert all(cell.identity.weights["dinov2-large"] == "" for cell in both.cells if cell.lacking)
    with pytest.raises(WeightsError, match="nowhere"):
        plan(Registry.installed(), Selection("quick", ("dinov2:large",)), find)


def test_all_stands_for_every_encoder_that_is_no_control(planned: Planned) -> None:
    registry = Registry.installed()
    rows = planned(encoders=("all", "dinov2:base"), experiments=("Q2",)).rows
    wanted = [row.streams[0].name for row in rows if row.wanted]
    everything = [entry.spec.name for entry in registry.encoders if not entry.spec.control]
    assert wanted == [*everything, "dinov2"]


def test_parts_of_a_plan_hold_each_encoder_once_and_the_controls_it_stands_beside(planned: Planned) -> None:
    names = ("dinov2", "dinov2~pooled", "dinov2:base", "dinov2:large", "pixels")
    found = planned(encoders=names, experiments=("Q2",))
    parts = [found.part(index, 3) for index in (1, 2, 3)]
    assert [[row.label for row in part.rows if row.wanted] for part in parts] == [
        ["pixels", "dinov2:large"],
        ["dinov2:small", "dinov2:small~pooled"],
        ["dinov2:base"],
    ]
    assert {cell.id for part in parts for cell in part.cells} == {cell.id for cell in found.cells}
    for part in parts:
        ids = {cell.id for cell in part.cells}
        assert all(control in ids for cell in part.cells for control in cell.controls.values())
    assert found.part(1, 1) == found
    assert not found.part(5, 5).cells


def test_cells_of_another_plan_are_refused(planned: Planned) -> None:
    found = planned(encoders=("dinov2",), experiments=("Q2",))
    one = found.rows[-1].cells[0]
    kept = found.keep({one.id})
    assert {cell.id for cell in kept.cells} == {one.id, *one.controls.values()}
    assert [row.label for row in kept.rows if row.wanted] == ["dinov2:small"]
    with pytest.raises(EnvironmentFault, match="1 cells, the first 0123"):
        found.keep({one.id, "0123"})


def test_a_limited_cohort_is_another_one(planned: Planned) -> None:
    whole, limited = (planned(encoders=("dinov2",), limit=limit) for limit in (0, 16))
    assert limited.cohort == f"{whole.cohort}-limit16"
    assert {cell.id for cell in whole.cells}.isdisjoint(cell.id for cell in limited.cells)
