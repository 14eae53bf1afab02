"""From a name to what is checked, and by which checks."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from foresight_bench import names
from foresight_bench.errors import UsageError, unknown
from foresight_bench.registry import Registry
from foresight_bench.testing.kit import Checks
from foresight_bench.testing.subjects import EncoderSubject, PartSubject

KINDS = ("encoder", "adapter", "decoder", "metric")


def checks_of(kind: str) -> Checks[Any]:
    """Return the checks of a kind of plugin; they import torch."""
    found: Checks[Any] = getattr(import_module(f"foresight_bench.testing.{kind}s"), f"{kind.upper()}_CHECKS")
    return found


def kind_of(name: str) -> str:
    """Return what ``name`` is the name of.

    Raises:
        PluginError: nothing, or several kinds of things.
    """
    registry = Registry.installed()
    found = [kind for kind in KINDS if _base(kind, name) in _shelf(registry, kind).names()]
    if not found:
        every = {each for kind in KINDS for each in _shelf(registry, kind).names()}
        raise unknown("encoder, adapter, decoder or metric", name, every, registry.quarantined)
    if len(found) > 1:
        raise UsageError(f"'{name}' names {' and '.join(found)}.", "Say which with --kind.")
    return found[0]


def subject_of(kind: str, name: str, device: str) -> EncoderSubject | PartSubject:
    """Return what is called ``name``, ready to be checked on ``device``.

    Raises:
        PluginError: there is none.
    """
    if kind == "encoder":
        return EncoderSubject.named(name, device)
    registry = Registry.installed()
    return PartSubject(registry, _shelf(registry, kind)[name].spec, device)


def _base(kind: str, name: str) -> str:
    """Return the plugin's own name; an encoder's is followed by variant, taps and transforms."""
    if kind != "encoder":
        return name
    try:
        return names.parse(name)[0].name
    except UsageError:
        return name


def _shelf(registry: Registry, kind: str) -> Any:
    return getattr(registry, f"{kind}s")
