"""The speed benchmark of whole runs: that its arithmetic is right, and that the page shows what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Script = Callable[[str], ModuleType]
SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def runs(script: Script, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import benchmarks/speed/runs.py, where a run takes 100 s, or as many less as there are GPUs, and writes cells."""
    module = script("runs")
    cells = sorted((SPEED.parent / "results").glob("*/*/dinov2_small/*.json"))[:3]

    def run(results: Path, cache: Path, arguments: Sequence[str], visible: str | None = None) -> float:
        assert cache.is_dir()
        folder = results / "cohort" / "machine" / "encoder"
        again = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        for path in cells:
            (folder / path.name).write_bytes(path.read_bytes())
        return 1.0 if again else 100.0 / len((visible or "0").split(","))

    monkeypatch.setattr(module, "run", run)
    return module


def test_overhead_is_what_neither_passes_nor_experiments_took(runs: ModuleType) -> None:
    found = runs.overhead("dinov2", "quick", "cpu")
    costs = [cell.cost for cell in runs.cells(SPEED.parent / "results") if cell.identity.encoder == "dinov2:small"][:3]
    assert found["feature passes"] == costs[0].feature_seconds, "one pass for three cells"
    assert found["experiments"] == pytest.approx(sum(cost.wall_seconds for cost in costs))
    assert found["overhead"] == pytest.approx(100 - found["feature passes"] - found["experiments"])
    assert (found["whole"], found["resumed"], found["cached"]) == (100.0, 1.0, 100.0)
    assert found["cached scores equal"]


def test_efficiency_is_speed_up_by_device(runs: ModuleType) -> None:
    found = {"environment": {"device": "one"}, **runs.scaling(["a", "b"], "quick", [1, 2, 4])}
    assert found["seconds"] == {"1": 100.0, "2": 50.0, "4": 25.0}
    assert (found["jobs"], found["cells"]) == (2, 3)
    assert "the same scores" in runs.table(found)
    found["scores"]["4"] = "other"
    assert "scores that differ" in runs.table(found)
    found["seconds"]["4"] = 50.0
    rows = [[field.strip() for field in line.split("|")[1:-1]] for line in runs.table(found).splitlines()[-3:]]
    assert rows == [
        ["1 GPU", "100", "1.00", "1.00"],
        ["2 GPUs", "50", "2.00", "1.00"],
        ["4 GPUs", "50", "2.00", "0.50"],
    ]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("runs", "overhead-h200"),
        ("runs", "overhead-cpu"),
        ("runs", "scaling-h200"),
        ("runs", "scores-h200"),
        ("cache", "cache-h200"),
    ],
)
def test_the_page_shows_the_committed_results(name: str, file: str, script: Script) -> None:
    results: dict[str, Any] = json.loads((SPEED / "results" / f"{file}.json").read_text("utf-8"))
    assert script(name).table(results) in (SPEED / "README.md").read_text("utf-8")
