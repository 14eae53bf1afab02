"""Measure the feature cache's shards: written, read back with every byte verified, beside what disk and hash can do.

    python benchmarks/speed/cache.py [--gb 2] [--folder DIR] [--threads 1 2] [--json FILE]

Everything is in GB/s over the same bytes, bfloat16 values in shards of 64 MiB. Cold means that the system was told to
forget the files. "plain" reads the files and does nothing with them; "hash" hashes memory and reads nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from foresight_bench import shards
from foresight_bench.caching import SHARD_BYTES, Staging
from foresight_bench.devices import find_devices
from foresight_bench.shards import Array, Place

KEY = "0" * 32
COLUMNS = 16 * 64
"""Values of the averages of one clip, at 64 channels."""


def places(total: int, clip: int) -> list[Place]:
    """Return the places of as many shards of clips of ``clip`` bytes as ``total`` bytes take."""
    clips = max(1, (SHARD_BYTES - shards.MOST_HEADER) // clip)
    count = max(1, total // (clips * clip))
    return [Place(KEY, "train", 0, i * clips, (i + 1) * clips) for i in range(count)]


def timed(work: Callable[[Path], Any], paths: Sequence[Path], threads: int) -> float:
    """Return the GB/s at which ``threads`` threads do ``work`` on all files."""
    total = sum(path.stat().st_size for path in paths)
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(work, paths))
        return total / 1e9 / (time.perf_counter() - started)


def forget(paths: Sequence[Path]) -> None:
    """Have the system write the files out and drop them from its memory."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, total: int, threads: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return the rates in GB/s, by what is measured and by number of threads."""
    side, channels = 16, 64
    clip = 2 * side * side * channels + 4 * COLUMNS
    wanted = places(total, clip)
    count = wanted[0].stop
    values = torch.randn(count, 1, side, side, channels, generator=torch.Generator().manual_seed(0)).bfloat16()
    coarse = torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(1))
    arrays = {
        "coarse": Array("F32", tuple(coarse.shape), coarse.view(torch.uint8).flatten().numpy().data),
        "values": Array("BF16", tuple(values.shape), values.view(torch.uint8).flatten().numpy().data),
    }
    by_path = {folder / f"{index}.safetensors": place for index, place in enumerate(wanted)}
    paths = list(by_path)
    for path in paths:
        path.touch()
    started = time.perf_counter()
    for path, place in by_path.items():
        shards.write(path, place, arrays)
    size = sum(path.stat().st_size for path in paths)
    written = size / 1e9 / (time.perf_counter() - started)
    forget(paths)
    synced = size / 1e9 / (time.perf_counter() - started)

    staging = Staging(device)

    def verified(path: Path) -> None:
        shards.read(path, by_path[path], staging.take)

    def uploaded(path: Path) -> None:
        _, found = shards.read(path, by_path[path], staging.take)
        staging.tensor(found["values"], found["coarse"].nbytes)

    def plain(path: Path) -> None:
        view = staging.take(path.stat().st_size)
        with path.open("rb", buffering=0) as file:
            while file.readinto(view[: shards.CHUNK]):
                pass

    def hashed(path: Path) -> None:
        sha256(arrays["values"].data).update(arrays["coarse"].data)

    readings = {"verified": verified, "plain": plain} | (
        {"verified, to the GPU": uploaded} if device.type != "cpu" else {}
    )
    rates: dict[str, dict[int, float]] = {}
    for name, work in readings.items():
        for label in ("cold", "warm"):
            rates[f"{name}, {label}"] = {}
            for number in threads:
                if label == "cold":
                    forget(paths)
                rates[f"{name}, {label}"][number] = timed(work, paths, number)
    rates["hash"] = {number: timed(hashed, paths, number) for number in threads}
    return {"bytes": size, "files": len(paths), "written": written, "written and synced": synced, "read": rates}


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    threads = [int(number) for number in results["read"]["hash"]]
    rows = [[name, *(f"{rate:.2f}" for rate in rates.values())] for name, rates in results["read"].items()]
    rows.append(["written", f"{results['written']:.2f}"])
    rows.append(["written and synced", f"{results['written and synced']:.2f}"])
    headers = ["GB/s", *(f"{number} thread{'s' * (number > 1)}" for number in threads)]
    size = f"{results['bytes'] / 1e9:.2f} GB in {results['files']} files, {results['device']}, {results['date']}\n\n"
    return size + tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the files go for as long as it takes; the cache's disk")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), int(options.gb * 1e9), options.threads, torch.device(options.device))
    results["device"] = find_devices(options.device)[0].model
    results["date"] = datetime.now(UTC).date().isoformat()
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
