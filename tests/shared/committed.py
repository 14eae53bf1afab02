"""What is committed of suite ``quick``, in a folder of its own: most tests want one cohort, and there are several."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

ALL = Path(__file__).parents[2] / "benchmarks" / "results"

_folder = Path(tempfile.mkdtemp(prefix="foresight-bench-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
QUICK = _folder / "results"
for _cohort in ALL.glob("quick-*"):
    shutil.copytree(_cohort, QUICK / _cohort.name)
