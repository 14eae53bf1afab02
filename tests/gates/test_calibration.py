"""The suite's own test: every ceiling passes and every floor fails each threshold, by the whole interval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from foresight_bench.cli import main
from foresight_bench.errors import WeightsError
from foresight_bench.registry import Registry
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
    arguments = ["calibrate", "--suite", "quick", "--device", "cpu", "--results", str(tmp_path), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    checks = json.loads(done.stdout)
    assert len(checks) == 11 * 4
    assert {check["must"] for check in checks} == {"pass", "fail"}
    assert all(check["holds"] for check in checks)
