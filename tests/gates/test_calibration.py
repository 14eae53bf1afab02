"""The suite's own test: every ceiling passes and every floor fails each threshold, by the whole interval."""

from __future__ import annotations

from pathlib import Path

from foresight_bench.calibration import calibration
from foresight_bench.registry import Registry
from foresight_bench.store import Store


def test_the_committed_controls_separate_with_either_decoder() -> None:
    store = Store(Path(__file__).parents[2] / "benchmarks/results")
    suite = Registry.installed().suites["quick"].spec
    cells = [cell for cell in store.cells() if cell.identity.encoder in suite.controls]
    table = calibration(suite, cells, store)
    # C1 and Q1 with two decoders, Q2 with none: thresholds, each with a ceiling and three floors.
    assert len(table.checks) == (2 * 3 + 2 * 4 + 4) * 4
    assert {check.decoder for check in table.checks} == {"ltx-tiny", "patch-pca", ""}
    assert table.separates
    # One decoder's controls do not stand in for another's.
    half = [cell for cell in cells if cell.identity.decoder != "patch-pca" or cell.identity.encoder != "oracle"]
    assert not calibration(suite, half, store).separates
