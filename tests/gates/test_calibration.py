"""The suite's own test: every ceiling passes and every floor fails each threshold, by the whole interval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from foresight_bench.calibration import calibration
from foresight_bench.cli import main
from foresight_bench.errors import WeightsError
from foresight_bench.registry import Registry
from foresight_bench.store import Store
from foresight_bench.weights import resolve


@pytest.mark.slow
@pytest.mark.archives
def test_quick_is_calibrated(tmp_path: Path) -> None:
    weights = Registry.installed().metrics["lpips"].spec.weights
    assert weights is not None
    try:
        resolve(weights)
    except WeightsError as error:
        pytest.skip(f"needs the LPIPS archive: {error}")
    arguments = [
        "calibrate",
        "-d",
        "ltx-tiny",
        "-d",
        "patch-pca",
        "--device",
        "cpu",
        "--results",
        str(tmp_path),
        "--json",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    checks = json.loads(done.stdout)
    assert len(checks) == 11 * 4
    assert {check["decoder"] for check in checks} == {"ltx-tiny", ""}
    assert {check["must"] for check in checks} == {"pass", "fail"}
    assert all(check["holds"] for check in checks)


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
