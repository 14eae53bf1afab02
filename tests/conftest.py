"""Fixtures: an installed third-party plugin with a toy suite, small enough to run every experiment in seconds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from foresight_bench.cli import main

TOY = Path(__file__).parent / "toy_plugin.py"
METADATA = "Metadata-Version: 2.1\nName: toy-plugin\nVersion: 0.1\n"
ENTRY_POINTS = "[foresight_bench]\ntoy_plugin = toy_plugin\n"


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install ``toy_plugin`` in ``folder`` for this process and its workers; return where results may go."""
    site = folder / "site"
    info = site / "toy_plugin-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "toy_plugin.py").write_text(TOY.read_text())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("FORESIGHT_BENCH_CACHE", str(folder / "cache"))  # no features but a test's own
    return folder / "results"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install ``toy_plugin``; return an empty folder for results."""
    return _installed(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return the results of all controls of the toy suite, and what `calibrate` said of them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        results = _installed(tmp_path_factory.mktemp("calibrated"), monkeypatch)
        arguments = ["calibrate", "--suite", "toy", "--device", "cpu", "--results", str(results)]
        return results, CliRunner().invoke(main, arguments)


@pytest.fixture
def controlled(toy: Path, calibrated: tuple[Path, Result]) -> Path:
    """As ``toy``, where the cells of all controls are finished already."""
    shutil.copytree(calibrated[0], toy)
    return toy


ROWS = ("-e", "sound", "-e", "sound~pooled", "-e", "sound:shift=0.5", "-x", "C1", "-x", "Q2", "-a", "tiny")
"""What `undisturbed` ran."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, calibrated: tuple[Path, Result]) -> Path:
    """Return the results of two experiments on three rows of two encoders, and of controls; nothing went wrong."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        results = _installed(tmp_path_factory.mktemp("undisturbed"), monkeypatch)
        shutil.copytree(calibrated[0], results)
        arguments = ["run", "--suite", "toy", "--device", "cpu", "--results", str(results), *ROWS]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return results


@pytest.fixture
def beside(toy: Path, undisturbed: Path) -> Path:
    """As ``toy``, where the controls of what `undisturbed` ran are finished already."""
    shutil.copytree(undisturbed, toy, ignore=shutil.ignore_patterns("sound*"))
    return toy
