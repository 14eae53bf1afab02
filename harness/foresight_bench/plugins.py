"""Finding plugins: entry points of the group ``foresight_bench``, loaded one at a time.

A plugin that cannot be imported, or whose hooks do not fit, is quarantined: it contributes nothing, it is
listed with its reason, and the others work.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pluggy

from foresight_bench import hookspecs, specs
from foresight_bench.hookspecs import PROJECT

ENVIRONMENT = "FORESIGHT_BENCH_PLUGINS"
"""Comma-separated names of the plugins to load; empty for none; unset for all."""

KINDS: dict[str, type[Any]] = {
    "foresight_encoders": specs.EncoderSpec,
    "foresight_adapters": specs.AdapterSpec,
    "foresight_decoders": specs.DecoderSpec,
    "foresight_metrics": specs.MetricSpec,
    "foresight_suites": specs.SuiteSpec,
}


@dataclass(frozen=True)
class Plugin:
    """One entry point and what became of it."""

    name: str
    distribution: str
    version: str
    module: str
    quarantine: str = ""
    """Why it contributes nothing; empty for a working plugin."""
    traceback: str = ""
    contributions: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """(hook, specs) pairs."""

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks it implements."""
        return tuple(hook for hook, _ in self.contributions)


def load(only: Sequence[str] | None = None) -> tuple[Plugin, ...]:
    """Load the installed plugins, sorted by name.

    Args:
        only: names to load; None reads ``FORESIGHT_BENCH_PLUGINS``, and loads all if that is unset.
    """
    if only is None and ENVIRONMENT in os.environ:
        only = [name.strip() for name in os.environ[ENVIRONMENT].split(",") if name.strip()]
    points = sorted(metadata.entry_points(group=PROJECT), key=lambda point: point.name)
    return tuple(load_one(point) for point in points if only is None or point.name in only)


def load_one(point: metadata.EntryPoint) -> Plugin:
    """Import one plugin and collect what its hooks return; never raises."""
    distribution = point.dist.name if point.dist else "unknown"
    version = point.dist.version if point.dist else "unknown"

    def quarantined(reason: str) -> Plugin:
        return Plugin(point.name, distribution, version, point.value, reason, traceback.format_exc())

    # A manager of its own: pluggy up to 1.6 leaves a plugin half registered after a validation error, and
    # a throw-away manager cannot leak that into the others.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        module = point.load()
        manager.register(module, name=point.name)
        manager.check_pending()
        contributions = tuple(
            (hook, _specs_of(hook, results[0])) for hook in KINDS if (results := getattr(manager.hook, hook)())
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may call sys.exit at import
        return quarantined(f"{type(error).__name__}: {error}")
    return Plugin(point.name, distribution, version, point.value, contributions=contributions)


def _specs_of(hook: str, result: Any) -> tuple[Any, ...]:
    kind = KINDS[hook]
    specs = tuple(result)
    for spec in specs:
        if not isinstance(spec, kind):
            raise TypeError(f"{hook} returned a {type(spec).__name__}, not a {kind.__name__}")
    return specs
