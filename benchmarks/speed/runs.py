"""Measure whole runs: what the harness adds to the work, resuming, cached features, and several GPUs against one.

    python benchmarks/speed/runs.py overhead [--encoder NAME] [--device cpu] [--json FILE]
    python benchmarks/speed/runs.py scaling --devices 1 2 [--encoders NAME ...] [--json FILE] [further options of run]
    python benchmarks/speed/runs.py table FILE

Every run is the command a user types, in a process of its own, with an empty results folder and an empty feature
cache; weights that were fetched before are found. Overhead is the wall time of the command less the feature passes and
less the experiments (latents, heads, decoding, metrics), as the cells have them: interpreters, imports, planning,
rendering and hashing the data, building encoders, files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tabulate import tabulate

from foresight_bench.cells import Cell, parse
from foresight_bench.devices import find_devices
from foresight_bench.digests import cache_root
from foresight_bench.tables import combination

ENCODERS = (
    *(f"dinov2:{size}{registers}~random" for size in ("giant", "large", "base", "small") for registers in ("-reg", "")),
    *(f"sam:{size}~random" for size in ("vit_h", "vit_l", "vit_b")),
    "qwen2.5-vl:7b@pre_merge~random",
)
"""Twelve jobs of unlike length, on weights that need not be fetched."""


def run(results: Path, cache: Path, arguments: Sequence[str], visible: str | None = None) -> float:
    """Run `foresight-bench run` and return the seconds that it took.

    Raises:
        CalledProcessError: it did not end well.
    """
    given = {"FORESIGHT_BENCH_CACHE": str(cache)} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    started = time.monotonic()
    command = [sys.executable, "-m", "foresight_bench", "run", "--results", str(results), *arguments]
    subprocess.run(command, env={**os.environ, **given}, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def fresh_cache(folder: Path) -> Path:
    """Return a cache in ``folder`` that holds nothing but the weights that were fetched before."""
    folder.mkdir()
    weights = cache_root() / "weights"
    if weights.is_dir():
        (folder / "weights").symlink_to(weights.resolve())
    return folder


def cells(results: Path) -> list[Cell]:
    """Return the cells of a results folder."""
    return [parse(path.read_bytes()) for path in sorted(results.glob("*/*/*/*.json"))]


def work(found: Sequence[Cell]) -> tuple[float, float]:
    """Return the seconds of all feature passes and of all experiments."""
    passes, experiments = {}, 0.0
    for cell in found:
        assert cell.cost is not None
        passes[cell.identity.encoder] = cell.cost.feature_seconds
        experiments += cell.cost.wall_seconds
    return sum(passes.values()), experiments


def overhead(encoder: str, suite: str, device: str | None) -> dict[str, Any]:
    """Measure a run from nothing, the same again, and one that finds its features in the cache."""
    arguments = ["-e", encoder, "--suite", suite, *(["--device", device] if device else [])]
    with TemporaryDirectory() as folder:
        cache = fresh_cache(Path(folder, "cache"))
        first = run(Path(folder, "first"), cache, arguments)
        passes, experiments = work(cells(Path(folder, "first")))
        again = run(Path(folder, "first"), cache, arguments)
        cached = run(Path(folder, "cached"), cache, arguments)
        pairs = zip(cells(Path(folder, "first")), cells(Path(folder, "cached")), strict=True)
        same = all(one.scores_sha256 == other.scores_sha256 for one, other in pairs)
    return {
        "command": f"foresight-bench run {' '.join(arguments)}",
        "whole": first,
        "feature passes": passes,
        "experiments": experiments,
        "overhead": first - passes - experiments,
        "resumed": again,
        "cached": cached,
        "cached scores equal": same,
    }


def scaling(encoders: Sequence[str], suite: str, devices: Sequence[int], further: Sequence[str] = ()) -> dict[str, Any]:
    """Measure the same run on each number of GPUs, and whether its scores are the same on all."""
    arguments = [item for name in encoders for item in ("-e", name)] + ["--suite", suite, "--no-compile"]
    arguments += further
    seconds, scores, count_of_cells = {}, {}, 0
    for count in devices:
        with TemporaryDirectory() as folder:
            results = Path(folder, "results")
            visible = ",".join(map(str, range(count)))
            seconds[str(count)] = run(results, fresh_cache(Path(folder, "cache")), arguments, visible)
            print(f"{count} GPUs: {seconds[str(count)]:.1f} s", file=sys.stderr, flush=True)
            found = sorted(
                f"{combination(cell)} {cell.identity.experiment} {cell.scores_sha256}" for cell in cells(results)
            )
            scores[str(count)], count_of_cells = sha256("\n".join(found).encode()).hexdigest(), len(found)
    return {
        "command": f"foresight-bench run {' '.join(arguments)}",
        "jobs": len(encoders),
        "cells": count_of_cells,
        "seconds": seconds,
        "scores": scores,
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    if "seconds" in results:
        base = results["seconds"].get("1", float("nan"))
        rows = [
            [f"{count} GPU{'s' if count != '1' else ''}", seconds, base / seconds, base / seconds / int(count)]
            for count, seconds in results["seconds"].items()
        ]
        equal = {0: "", 1: ", the same scores, bit for bit"}.get(
            len(set(results.get("scores", {}).values())), ", scores that differ"
        )
        text = tabulate(rows, ["on", "s", "speed-up", "efficiency"], "github", floatfmt=("", ".0f", ".2f", ".2f"))
        return f"{about}. {results['jobs']} encoder jobs, {results['cells']} cells{equal}.\n\n{text}"
    whole = results["whole"]
    names = {
        "whole": "whole run, from nothing",
        "feature passes": "of it in feature passes",
        "experiments": "of it in experiments",
        "overhead": "of it in everything else",
        "resumed": "the same again, all finished",
        "cached": "with features in the cache",
    }
    rows = [[label, results[key], f"{results[key] / whole:.1%}"] for key, label in names.items()]
    equal = "the same scores" if results["cached scores equal"] else "other scores"
    text = tabulate(rows, ["what", "s", "share"], "github", floatfmt=("", ".1f", ""))
    return f"{about}. `{results['command']}`; cached features give {equal}.\n\n{text}"


def environment() -> dict[str, str]:
    """Return the hardware and the versions that the numbers belong to."""
    found = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    found["device"] = find_devices(None)[0].model
    return found | {name: metadata.version(name) for name in ("torch", "timm", "transformers", "diffusers")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("overhead", "scaling"):
        command = commands.add_parser(name)
        command.add_argument("--suite", default="quick")
        command.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
        if name == "overhead":
            command.add_argument("--encoder", default="dinov2")
            command.add_argument("--device")
        else:
            command.add_argument("--devices", type=int, nargs="+", default=[1, 2])
            command.add_argument("--encoders", nargs="+", default=ENCODERS)
    commands.add_parser("table").add_argument("file", type=Path)
    options, further = parser.parse_known_args(arguments)
    if further and options.command != "scaling":
        parser.error(f"unknown: {' '.join(further)}")
    if options.command == "table":
        print(table(json.loads(options.file.read_text("utf-8"))))
        return 0
    if options.command == "overhead":
        results = overhead(options.encoder, options.suite, options.device)
    else:
        results = scaling(options.encoders, options.suite, options.devices, further)
    results = {"environment": environment(), **results}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
