"""How much the feature cache may take, and what goes first when it is more. Imports no torch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from math import isfinite
from pathlib import Path

from foresight_bench import cache
from foresight_bench.cache import Entry
from foresight_bench.errors import UsageError

LIMIT_VARIABLE = "FORESIGHT_BENCH_CACHE_LIMIT"
LIMIT_GB = 100.0
"""One tap of 1024 channels on 16 x 16 tokens over the 6,048 frames of ``gate1`` takes 3.2 in bfloat16."""
DISK_SHARE = 0.1
"""Part of the disk that is left free."""
ABANDONED = 86_400.0
"""Seconds after which an entry that nobody finished is taken for a killed run's that nobody resumes."""


def limit_bytes() -> int:
    """Return the most that the cache may take by itself, in bytes.

    Raises:
        UsageError: the environment variable does not hold a number of GB.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(LIMIT_GB)
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not isfinite(found) or found < 0:
        raise UsageError(f"{LIMIT_VARIABLE} is '{text}', which is no number of GB.", "Set it to a number like 100.")
    return int(found * 1e9)


def make_room(needed: int, keep: Collection[str]) -> bool:
    """Prune until ``needed`` more bytes can be had; return whether they can. Nothing goes for what cannot be had.

    Args:
        needed: bytes.
        keep: keys of entries that are in use.
    """
    most, entries = limit_bytes(), cache.entries()
    sizes = {each.key: each.size() for each in entries}
    total = sum(sizes.values())
    disk = shutil.disk_usage(_existing(cache.root()))
    most = min(most, total + disk.free - int(DISK_SHARE * disk.total))
    if sum(size for key, size in sizes.items() if key in keep) + needed > most:
        return False
    prune(most - needed, keep)
    return sum(each.size() for each in cache.entries()) + needed <= most


def prune(most: int, keep: Collection[str] = ()) -> tuple[int, int]:
    """Remove what was abandoned, then whole entries, the least recently used first, until no more than ``most`` bytes
    are left.

    Args:
        most: bytes; 0 for removing all.
        keep: keys of entries that stay.

    Returns:
        How many entries went, and how many bytes.
    """
    now, count, freed = time.time(), 0, 0
    entries = sorted(cache.entries(), key=lambda each: (not _is_abandoned(each, now), each.used()))
    total = sum(each.size() for each in entries)
    for each in entries:
        if each.key in keep or not (_is_abandoned(each, now) or total - freed > most):
            continue
        if not each.is_whole() and not _is_abandoned(each, now) and most:
            continue  # somebody may be writing it
        freed += each.size()
        count += 1
        each.remove()
    return count, freed


def _is_abandoned(entry: Entry, now: float) -> bool:
    return not entry.is_whole() and now - entry.used() > ABANDONED


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
