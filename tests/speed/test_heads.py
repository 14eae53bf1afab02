"""The speed benchmark of heads: that it runs, compares like with like, and notices if it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from foresight_bench import heads

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def speed(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import benchmarks/speed/heads.py, with sizes that take no time."""
    module = script("heads")
    tiny = module.Size(20, 2, 6, 8, 3, 2, taps=2, seeds=2, rates=2, rows=80, paths=2, columns=6, targets=3, penalties=4)
    monkeypatch.setitem(module.SIZES, "cpu", tiny)
    return module


def test_both_ways_are_timed_and_agree(speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "heads.json"
    assert speed.main(["--json", str(path)]) == 0
    results = json.loads(path.read_text("utf-8"))
    printed = capsys.readouterr().out
    assert speed.table(results) in printed
    assert "8 heads (2 taps x 2 seeds x 2 rates)" in printed
    for part in (results["heads"], results["ridge"]):
        assert all(value >= 0 for value in part.values())
    assert f"{results['heads']['one after another'] / results['heads']['together']:.1f}" in printed


def test_heads_that_differ_are_an_error(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    train = heads.train

    def wrong(*given: object) -> list[heads.Result]:
        found = train(*given)  # type: ignore[arg-type]
        assert isinstance(found[1], heads.TrainedAdapter)
        return [found[0], replace(found[1], val_error=1.01 * found[1].val_error), *found[2:]]

    monkeypatch.setattr(heads, "train", wrong)
    with pytest.raises(RuntimeError, match="Heads trained together differ"):
        speed.measure_heads(speed.SIZES["cpu"], torch.device("cpu"))


def test_coefficients_of_another_penalty_are_an_error(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    path = speed.ridge.RidgePath
    given = path.coefficients
    monkeypatch.setattr(path, "coefficients", lambda self, penalty: given(self, penalty * 1.01))
    with pytest.raises(RuntimeError, match="Coefficients differ"):
        speed.measure_paths(speed.SIZES["cpu"], torch.device("cpu"))


def test_the_page_shows_the_committed_results(speed: ModuleType) -> None:
    results = json.loads((SPEED / "results" / "heads-h200.json").read_text("utf-8"))
    assert speed.table(results) in (SPEED / "README.md").read_text("utf-8")
