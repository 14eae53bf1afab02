"""Third parties' packages in an environment of their own: the guide's commands as written, then three built as wheels.

What the environment has beside its own packages is this one: the harness, torch and all, through a ``.pth`` file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from foresight_bench.digests import cache_root
from foresight_bench.registry import Registry
from foresight_bench.store import Store

GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
RASTER = "Grid(found[tap].reshape(n, t, h, w, -1))"
WINDOWS = "Grid(found[tap].reshape(n, t, h // 2, 2, w // 2, 2, -1).transpose(3, 4).reshape(n, t, h, w, -1))"
WHOLE, EVEN = "height % self.patch or width % self.patch", "height % (2 * self.patch) or width % (2 * self.patch)"
CALIBRATED = "FORESIGHT_CALIBRATED"
"""Environment variable: the results of `calibrate --suite quick`, if it was run before; that saves two minutes."""
DIAGNOSIS = "tokens stand in windows of 2 x 2; "


@dataclass(frozen=True)
class Clean:
    """A clean environment, and a folder to work in."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: str, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a line of shell; fail unless it ends with ``code``."""
        arguments = ["bash", "-c", command]
        where = cwd or self.folder
        done = subprocess.run(
            arguments, cwd=where, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture
def clean(tmp_path: Path) -> Clean:
    """Make an environment with commands for what it shares, where pip reaches no registry."""
    place = tmp_path / "environment"
    venv.create(place)
    (own,) = place.glob("lib/*/site-packages")
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "beside.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in shared))
    for command, module in (("pip", "pip"), ("pytest", "pytest"), ("foresight-bench", "foresight_bench")):
        script = place / "bin" / command
        script.write_text(f'#!/bin/sh\nexec {place}/bin/python -m {module} "$@"\n')
        script.chmod(0o755)
    cache = tmp_path / "cache"
    cache.mkdir()
    weights = cache_root() / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    (cache / "weights").symlink_to(weights)  # LPIPS need not be fetched again; features are not to be left there
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    added = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FORESIGHT_BENCH_CACHE": str(cache),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "off",  # that is: none
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    work = tmp_path / "work"
    work.mkdir()
    return Clean(work, {**kept, **added})


@pytest.mark.slow
@pytest.mark.archives
def test_packages_of_third_parties(clean: Clean) -> None:
    folder = clean.folder
    for command in COMMANDS:
        if command.startswith("cd "):
            folder = folder / command.removeprefix("cd ")
            if known := os.environ.get(CALIBRATED):
                shutil.copytree(known, folder / "results")
        else:
            clean.run(command, cwd=folder)
    assert (folder.name, (folder / "results").is_dir()) == ("foresight-my-vit", True)
    results = folder / "results"
    _as_wheels(clean)
    _good_ones_reach_the_leaderboard(clean, results)
    _bad_one_is_refused(clean, results)


def _as_wheels(clean: Clean) -> None:
    """Install the guide's encoder, a metric, and an encoder with its tokens in windows, none of which is here."""
    clean.run("foresight-bench new metric my-error && foresight-bench new encoder bad-vit")
    module = clean.folder / "foresight-bad-vit" / "foresight_bad_vit" / "encoder.py"
    text = module.read_text()
    assert (text.count(RASTER), text.count(WHOLE)) == (1, 1)
    module.write_text(text.replace(RASTER, WINDOWS).replace(WHOLE, EVEN))
    names = "my-vit", "my-error", "bad-vit"
    folders = " ".join(f"./foresight-{name}" for name in names)
    clean.run(f"pip wheel -q --no-deps --no-build-isolation -w wheels {folders}")
    clean.run("pip install -q --no-deps --force-reinstall wheels/*.whl")
    installed = json.loads(clean.run("foresight-bench plugins --json").stdout)
    origins = {plugin["distribution"]: plugin["origin"] for plugin in installed}
    assert {name: origins.get(f"foresight-{name}") for name in names} == dict.fromkeys(names, "installed")
    assert not {f"foresight-{name}" for name in names} & {each.distribution for each in Registry.installed().plugins}


def _good_ones_reach_the_leaderboard(clean: Clean, results: Path) -> None:
    listed = clean.run("foresight-bench list").stdout
    assert all(re.search(rf"^  {name}: ", listed, re.MULTILINE) for name in ("my-vit", "my-error", "bad-vit")), listed
    done = clean.run(f"foresight-bench run -e my-vit~random --metric my-error --results {results}")
    reused = re.search(r"13 cells, (\d+) reused", done.stderr)
    assert reused
    # Q1 of the guide's run, the same code from a wheel, with its controls; or all controls.
    assert int(reused[1]) == (11 if CALIBRATED in os.environ else 4)
    mine = [cell for cell in Store(results).cells() if cell.identity.encoder == "my-vit~random"]
    assert {(cell.identity.experiment, cell.status) for cell in mine} == {("C1", "ok"), ("Q1", "ok"), ("Q2", "ok")}
    for cell in mine:
        assert cell.identity.code["foresight_my_vit"].distribution == "foresight-my-vit"
        reported = {each.metric: each for each in cell.metrics}.get("my-error")
        assert (reported is None) == (cell.identity.experiment == "Q1")
        assert reported is None or 0 < (reported.estimate.value or 0) < 0.2
    clean.run(f"foresight-bench leaderboard --results {results} --output page.md")
    page = (clean.folder / "page.md").read_text()
    assert any("my-vit" in line and "my-error" in line for line in page.splitlines())


def _bad_one_is_refused(clean: Clean, results: Path) -> None:
    findings = json.loads(clean.run("foresight-bench check bad-vit@final~random --json", code=6).stdout)
    failed = {each["check"]: each["message"] for each in findings if each["status"] == "fail"}
    assert failed.keys() == {"layout"}
    assert DIAGNOSIS in failed["layout"]
    done = clean.run(f"foresight-bench run -e bad-vit~random -x Q2 --results {results}", code=1)
    (bad,) = [cell for cell in Store(results).cells() if cell.identity.encoder == "bad-vit~random"]
    assert (bad.status, bad.metrics, bad.decision) == ("contract", (), None)
    assert re.fullmatch(rf"Tap 'patch_embed': {DIAGNOSIS}\d+% of 15 changes of one patch show up in .*", bad.reason)
    assert bad.reason in done.stderr
