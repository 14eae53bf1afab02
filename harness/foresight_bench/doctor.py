"""What a run on this machine would find. Only looks: fetches, writes and repairs nothing. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from foresight_bench import cache, hub
from foresight_bench.devices import find_devices
from foresight_bench.errors import DataError, ForesightError
from foresight_bench.execution import usable_threads
from foresight_bench.hub import Absent
from foresight_bench.identities import KEYED_LIBRARIES, library_versions
from foresight_bench.memory import free_bytes
from foresight_bench.plugins import Plugin
from foresight_bench.pruning import DISK_SHARE, limit_bytes
from foresight_bench.registry import Registry
from foresight_bench.specs import Weights
from foresight_bench.store import Store
from foresight_bench.weights import converted

Needed = Callable[[str], bool]


@dataclass(frozen=True)
class Section:
    """What one look found."""

    title: str
    facts: Mapping[str, object] = field(default_factory=dict)
    """Plain data, by what it is called."""
    remarks: tuple[str, ...] = ()
    """What could be better, and a run works all the same."""
    problems: tuple[str, ...] = ()
    """What cannot be used, and what to do."""


def examine(plugins: Sequence[Plugin], device: str | None, results: Path) -> list[Section]:
    """Return what there is, in the order in which a run needs it; never raises.

    Args:
        plugins: loaded ones; quarantined ones contribute nothing.
        device: as in :func:`foresight_bench.devices.find_devices`.
        results: a results folder; need not exist.
    """
    looks: dict[str, Callable[[], Section]] = {
        "software": _software,
        "device": lambda: _device(device),
        "cache": _cache,
        "results": lambda: _results(results),
        "weights": lambda: _weights(Registry(plugins)),
    }
    found = []
    for title, look in looks.items():
        try:
            found.append(look())
        except ForesightError as error:
            found.append(Section(title, problems=(f"{error.message} {error.hint}".strip(),)))
        except Exception as error:  # whatever is broken here is what somebody calls a doctor for
            found.append(Section(title, problems=(f"It cannot be examined ({type(error).__name__}: {error}).",)))
    return found


def _software() -> Section:
    versions = library_versions(minor=False)
    missing = [name for name in KEYED_LIBRARIES if name not in versions]
    facts = {
        "foresight-bench": metadata.version("foresight-bench"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": dict(versions),
    }
    problems = (f"Not installed: {', '.join(missing)}. Install foresight-bench again.",) if missing else ()
    return Section("software", facts, problems=problems)


def _device(wanted: str | None) -> Section:
    devices = find_devices(wanted)
    driver, built = _driver(), _torch_cuda()
    free = {device.name: _amount(free_bytes(device)) for device in devices}
    facts = {
        "devices": {device.name: device.model for device in devices},
        "driver": driver or "none found",
        "torch built for": f"CUDA {built}" if built else "the CPU only",
        "memory free": free,
        "cpu threads": usable_threads(),
    }
    problems: tuple[str, ...] = ()
    if devices[0].name != "cpu" and not built:
        problems = ("The installed torch cannot use the GPU. Install a build of it for CUDA, or choose --device cpu.",)
    return Section("device", facts, problems=problems)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(sorted({line.strip() for line in output.splitlines() if line.strip()}))


def _torch_cuda() -> str:
    """Return the version of CUDA that torch was built for, empty for none; read, because an import takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=]*= *['\"]([0-9.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""


def _cache() -> Section:
    root, limit = cache.root(), limit_bytes()
    entries = cache.entries()
    bad = [each.key for each in entries if each.identity() is None or (each.is_whole() and each.manifest() is None)]
    disk, problems = _place(root, "FORESIGHT_BENCH_CACHE")
    facts = {
        "folder": str(root),
        "entries": len(entries),
        "unreadable": len(bad),
        "size": _amount(sum(each.size() for each in entries)),
        "limit": _amount(limit),
        **disk,
    }
    remarks = [f"{len(bad)} entries cannot be read; `foresight-bench cache verify` names them."] if bad else []
    return Section("cache", facts, (*remarks, *_tight(root)), problems)


def _results(root: Path) -> Section:
    store, counts, bad = Store(root), Counter[str](), []
    for path in sorted(root.glob("*/*/*/*.json")):
        try:
            counts[store.read(path).status] += 1
        except DataError:
            bad.append(str(path))
    disk, problems = _place(root, "--results")
    facts = {"folder": str(root), "cells": dict(sorted(counts.items())), "unreadable": len(bad), **disk}
    remarks = [f"{path} is no readable cell file. Delete it to recompute the cell." for path in bad]
    return Section("results", facts, tuple(remarks), problems)


def _weights(registry: Registry) -> Section:
    found = {weights.name: _located(weights, needed) for weights, needed in _wanted(registry)}
    missing = [name for name, where in found.items() if not where]
    facts = {name: where or "missing" for name, where in sorted(found.items())}
    remarks: tuple[str, ...] = ()
    if missing:
        remarks = (f"{len(missing)} of {len(found)} sets of weights are not here. A run fetches those that it needs.",)
    return Section("weights", facts, remarks)


def _wanted(registry: Registry) -> Iterator[tuple[Weights, Needed]]:
    """Yield all weights that a plugin names, and which of their tensors the taps need."""
    for entry in registry.encoders:
        for variant in entry.spec.variants:
            if variant.weights is not None:
                yield variant.weights, variant.needs(variant.taps)
    for shelf in (registry.decoders, registry.metrics):
        for entry in shelf:
            if entry.spec.weights is not None:
                yield entry.spec.weights, lambda name: True


def _located(weights: Weights, needed: Needed) -> str:
    """Return which source on this machine holds ``weights``; empty if none does."""
    try:
        if weights.package is not None:
            spec = importlib.util.find_spec(weights.package.package)
            origin = spec.origin if spec is not None else None
            there = origin is not None and (Path(origin).parent / weights.package.path).is_dir()
            return f"package {weights.package.package}" if there else ""
        if converted(weights) is not None:
            return "cache"
        return f"Hugging Face cache, {weights.hub.repo}" if weights.hub and hub.cached(weights.hub, needed) else ""
    except Absent:
        return ""
    except Exception as error:  # a checkpoint that cannot be read, a plugin's package that cannot be imported
        return f"not usable: {error}"


def _place(folder: Path, setting: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the free disk at ``folder``, and a problem if nothing can be written there."""
    existing = _existing(folder)
    facts: dict[str, object] = {"disk free": _amount(shutil.disk_usage(existing).free)}
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return facts, ()
    return facts, (f"Nothing can be written to {folder}. Choose another folder with {setting}.",)


def _tight(folder: Path) -> tuple[str, ...]:
    disk = shutil.disk_usage(_existing(folder))
    if disk.free >= DISK_SHARE * disk.total:
        return ()
    return (f"Less than {DISK_SHARE:.0%} of the disk is free: features are not cached.",)


def _existing(folder: Path) -> Path:
    return folder if os.path.lexists(folder) or folder == folder.parent else _existing(folder.parent)


def _amount(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.3g} GB"
