"""Fixtures: an installed third-party plugin with a toy suite, small enough to run every experiment in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy_plugin.py"
METADATA = "Metadata-Version: 2.1\nName: toy-plugin\nVersion: 0.1\n"
ENTRY_POINTS = "[foresight_bench]\ntoy_plugin = toy_plugin\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install ``toy_plugin`` for this process and its workers; return an empty folder for results."""
    site = tmp_path / "site"
    info = site / "toy_plugin-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "toy_plugin.py").write_text(TOY.read_text())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    return tmp_path / "results"
