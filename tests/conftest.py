"""Fixtures: an installed third-party plugin with a toy suite, small enough to run every experiment in seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: as many tests run at once as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from click.testing import CliRunner
from filelock import FileLock

from foresight_bench.cli import main

TOY = Path(__file__).parent / "toy_plugin.py"
METADATA = "Metadata-Version: 2.1\nName: toy-plugin\nVersion: 0.1\n"
ENTRY_POINTS = "[foresight_bench]\ntoy_plugin = toy_plugin\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test: begun last, its four minutes would follow those of all others."""
    items.sort(key=lambda item: item.path.name != "test_samples.py")


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


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    exit_code: int
    stdout: str
    output: str


def _ran(results: Path, *arguments: str) -> Ran:
    done = CliRunner().invoke(main, [*arguments, "--suite", "toy", "--device", "cpu", "--results", str(results)])
    return Ran(done.exit_code, done.stdout, done.output)


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Ran]) -> tuple[Path, Ran]:
    """Return the results that ``make`` leaves, and what it returns, made once for all processes that run tests."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    said = folder / "said.json"
    with FileLock(folder.with_suffix(".lock")):
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            with pytest.MonkeyPatch.context() as monkeypatch:
                ran = make(_installed(folder, monkeypatch))
            said.write_text(json.dumps(asdict(ran)))
    return folder / "results", Ran(**json.loads(said.read_text()))


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """Return the results of all controls of the toy suite, and what `calibrate` said of them."""
    return _once(tmp_path_factory, "calibrated", lambda results: _ran(results, "calibrate"))


@pytest.fixture
def controlled(toy: Path, calibrated: tuple[Path, Ran]) -> Path:
    """As ``toy``, where the cells of all controls are finished already."""
    shutil.copytree(calibrated[0], toy)
    return toy


ROWS = ("-e", "sound", "-e", "sound~pooled", "-e", "sound:shift=0.5", "-x", "C1", "-x", "Q2", "-a", "tiny")
"""What `undisturbed` ran."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, calibrated: tuple[Path, Ran]) -> Path:
    """Return the results of two experiments on three rows of two encoders, and of controls; nothing went wrong."""

    def make(results: Path) -> Ran:
        shutil.copytree(calibrated[0], results)
        return _ran(results, "run", *ROWS)

    results, ran = _once(tmp_path_factory, "undisturbed", make)
    assert ran.exit_code == 0, ran.output
    return results


@pytest.fixture
def beside(toy: Path, undisturbed: Path) -> Path:
    """As ``toy``, where the controls of what `undisturbed` ran are finished already."""
    shutil.copytree(undisturbed, toy, ignore=shutil.ignore_patterns("sound*"))
    return toy
