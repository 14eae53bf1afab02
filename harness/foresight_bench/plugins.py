"""Finding plugins: entry points of the group ``foresight_bench``, loaded one at a time.

A plugin that cannot be imported, takes too long, or whose hooks do not fit, is quarantined: it contributes nothing, it
is listed with its reason, and the others work.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from threading import Thread
from typing import Any, Literal

import pluggy

from foresight_bench import hookspecs
from foresight_bench.errors import PluginError
from foresight_bench.fitting import KINDS, OBSERVERS, Unfit, check, collect
from foresight_bench.hookspecs import PROJECT

ENVIRONMENT = "FORESIGHT_BENCH_PLUGINS"
"""Comma-separated names of the plugins to load; empty for none; unset for all."""
STRICT = "FORESIGHT_BENCH_STRICT_PLUGINS"
"""Set to anything: a quarantined plugin is an error. Both variables reach the workers of a run."""
SECONDS = 5.0
"""How long a plugin may take to be imported and to say what it provides. The built-in ones take .02 s together, one
that needlessly imports torch about 3."""

Origin = Literal["built-in", "installed", "editable"]


@dataclass(frozen=True)
class Plugin:
    """One entry point and what became of it."""

    name: str
    distribution: str
    version: str
    module: str
    quarantine: str = ""
    """Why it contributes nothing and what is to be done, one sentence; empty for a working plugin."""
    traceback: str = ""
    contributions: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """(hook, specs) pairs."""
    observers: tuple[tuple[str, Callable[..., Any]], ...] = ()
    """(hook, what calls it with keyword arguments) pairs."""
    origin: Origin = "installed"
    """Whether it is the harness's own, installed, or installed such that its sources may change at any time."""

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks it implements."""
        return tuple(hook for hook, _ in (*self.contributions, *self.observers))


@dataclass(frozen=True)
class Shadow:
    """A name that no plugin can be asked for by, because several provide it."""

    kind: str
    """``encoder``, ``adapter``, ``decoder``, ``metric`` or ``suite``."""
    name: str
    others: tuple[str, ...]
    """The other plugins that do."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}, which {' and '.join(self.others)} also provides"


def load(only: Sequence[str] | None = None) -> tuple[Plugin, ...]:
    """Load the installed plugins, sorted by name.

    Args:
        only: names to load; None reads ``FORESIGHT_BENCH_PLUGINS``, and loads all if that is unset.

    Raises:
        PluginError: one is quarantined, and ``FORESIGHT_BENCH_STRICT_PLUGINS`` is set.
    """
    if only is None and ENVIRONMENT in os.environ:
        only = [name.strip() for name in os.environ[ENVIRONMENT].split(",") if name.strip()]
    points, broken = _discovered()
    counts = Counter(point.name for point in points)
    found = [*broken]
    for point in points:
        if only is not None and point.name not in only:
            continue
        if counts[point.name] > 1 and _described(point).origin != "built-in":
            found.append(_namesake(point))
        else:
            found.append(load_one(point))
    quarantined = [plugin for plugin in found if plugin.quarantine]
    if quarantined and os.environ.get(STRICT):
        first = quarantined[0]
        raise PluginError(
            f"Plugin {first.name} is quarantined: {first.quarantine}", "See `foresight-bench plugins` for all of them."
        )
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


def built_in() -> tuple[str, ...]:
    """Return the names of the plugins that come with the harness."""
    return tuple(point.name for point in _discovered()[0] if _described(point).origin == "built-in")


def shadows(plugins: Sequence[Plugin]) -> dict[str, tuple[Shadow, ...]]:
    """Return the names that each of ``plugins``, by its name, shares with others."""
    providers: dict[tuple[str, str], list[str]] = {}
    for plugin in plugins:
        for hook, contributed in plugin.contributions:
            for spec in contributed:
                providers.setdefault((hook, spec.name), []).append(plugin.name)
    found: dict[str, tuple[Shadow, ...]] = {}
    for (hook, name), names in providers.items():
        for one in names if len(names) > 1 else ():
            shadow = Shadow(
                hook.removeprefix("foresight_").removesuffix("s"), name, tuple(each for each in names if each != one)
            )
            found[one] = (*found.get(one, ()), shadow)
    return found


def load_one(point: metadata.EntryPoint) -> Plugin:
    """Import one plugin and collect what its hooks return; never raises, and returns after :data:`SECONDS`.

    What it prints goes to standard error: standard output is the command's.
    """
    plugin, done = _described(point), list[Plugin]()
    # A thread can be left behind: it ends with the process, which does not wait for it.
    thread = Thread(target=lambda: done.append(_loaded(plugin, point)), daemon=True)
    with redirect_stdout(sys.stderr):
        thread.start()
        thread.join(SECONDS)
    if done:
        return done[0]
    frame = sys._current_frames().get(thread.ident or 0)
    where = "".join(traceback.format_stack(frame)) if frame else ""
    reason = (
        f"it was not imported within {SECONDS:g} s; import what is heavy only in the modules that its targets name."
    )
    return replace(plugin, quarantine=reason, traceback=f"Traceback (where it was then):\n{where}")


def _loaded(plugin: Plugin, point: metadata.EntryPoint) -> Plugin:
    # A manager of its own: pluggy up to 1.6 leaves a plugin half registered after a validation error, and
    # a throw-away manager cannot leak that into the others.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    doing = f"its module {point.value} could not be imported"
    try:
        module = point.load()
        doing = "its hooks could not be read"
        check(module)
        manager.register(module, name=point.name)
        manager.check_pending()
        contributions = []
        for hook in KINDS:
            doing = f"its {hook} failed"
            if implementations := getattr(manager.hook, hook).get_hookimpls():
                contributions.append((hook, collect(hook, [each.function for each in implementations])))
        callers = [(hook, getattr(manager.hook, hook)) for hook in OBSERVERS]
    except BaseException as error:  # a plugin may call sys.exit at import
        advice = "install what it lacks" if isinstance(error, ImportError) else "update"
        said = " ".join(traceback.format_exception_only(error)[-1].split())[:300]  # never fails, unlike str(error)
        reason = str(error) if isinstance(error, Unfit) else f"{doing} ({said}); {advice} or uninstall it"
        end = "" if reason.endswith("?") else "."
        return replace(plugin, quarantine=reason + end, traceback=traceback.format_exc())
    observers = tuple((hook, caller) for hook, caller in callers if caller.get_hookimpls())
    return replace(plugin, contributions=tuple(contributions), observers=observers)


def _namesake(point: metadata.EntryPoint) -> Plugin:
    reason = "another installed distribution has a plugin of the same name; uninstall one of them."
    return replace(_described(point), quarantine=reason)


def _discovered() -> tuple[list[metadata.EntryPoint], list[Plugin]]:
    """Return the entry points of the group, and a quarantined plugin for every distribution whose cannot be read.

    Not ``metadata.entry_points``: one distribution's broken file ends that for all.
    """
    points: dict[tuple[str, str, str], metadata.EntryPoint] = {}
    broken = []
    for distribution in metadata.distributions():
        text = ""
        with suppress(Exception):
            text = distribution.read_text("entry_points.txt") or ""
        if not re.search(rf"^\s*\[\s*{PROJECT}\s*\]", text, re.MULTILINE):
            continue
        try:
            for point in distribution.entry_points.select(group=PROJECT):
                points.setdefault((point.name, point.value, _described(point).distribution), point)
        except Exception:
            reason = "its entry_points.txt cannot be read; install it again."
            name, version, origin = _facts(distribution)
            broken.append(Plugin(name, name, version, "", reason, traceback.format_exc(), origin=origin))
    return sorted(points.values(), key=lambda point: point.name), broken


def _described(point: metadata.EntryPoint) -> Plugin:
    name, version, origin = _facts(point.dist)
    return Plugin(point.name, name, version, point.value, origin=origin)


def _facts(distribution: metadata.Distribution | None) -> tuple[str, str, Origin]:
    """Return name, version and origin, as far as its metadata can be read."""
    name, version, editable = "", "", False
    with suppress(Exception):
        assert distribution is not None
        name, version = distribution.name or "", distribution.version or ""
        facts = json.loads(distribution.read_text("direct_url.json") or "{}")
        editable = bool(facts.get("dir_info", {}).get("editable"))
    own = re.sub(r"[-_.]+", "-", name).lower() == "foresight-bench"
    return name or "unknown", version or "unknown", "built-in" if own else "editable" if editable else "installed"
