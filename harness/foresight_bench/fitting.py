"""Whether what a plugin hands over fits: the version it was written for, its hooks, and its specs field by field.

What does not fit is found here, before anything uses it: a name that is no text would break the sorting of all names.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from foresight_bench import hookspecs, specs
from foresight_bench.hookspecs import API, PROJECT

KINDS: dict[str, type[Any]] = {
    "foresight_encoders": specs.EncoderSpec,
    "foresight_adapters": specs.AdapterSpec,
    "foresight_decoders": specs.DecoderSpec,
    "foresight_metrics": specs.MetricSpec,
    "foresight_suites": specs.SuiteSpec,
}
HOOKS = {
    name: tuple(inspect.signature(hook).parameters)
    for name, hook in vars(hookspecs).items()
    if name.startswith("foresight_")
}
"""Arguments of every hook."""
OBSERVERS = tuple(name for name in HOOKS if name not in KINDS)


class Unfit(Exception):
    """A plugin does not fit. The text goes on from the plugin's name: in what, and what is to be done."""


def check(plugin: Any) -> None:
    """Raise :class:`Unfit` if ``plugin`` was written for another version, or a hook of it is misspelt."""
    version = getattr(plugin, "FORESIGHT_API", API)
    if version != API:
        raise Unfit(
            f"it was written for version {version} of the plugin interface and this release has version {API}; install"
            " a release of one that fits the other"
        )
    for name in dir(plugin):
        value = getattr(plugin, name)
        if not inspect.isroutine(value):
            continue
        options = getattr(value, f"{PROJECT}_impl", None)
        if isinstance(options, dict):
            _check_hook(options.get("specname") or name, value)
        elif name.startswith("foresight_") and not _is_imported(value, plugin):
            if name in HOOKS:
                raise Unfit(f"its {name} is not marked as a hook; put @hookimpl of foresight_bench above it")
            raise _no_hook(name)


def collect(hook: str, implementations: Iterable[Callable[[], Any]]) -> tuple[Any, ...]:
    """Return the specs that the implementations of ``hook`` in one plugin return.

    Raises:
        Unfit: something is no spec of the hook's kind, or a field of it is not of its type.
        BaseException: what an implementation raises.
    """
    kind = KINDS[hook]
    found: dict[str, Any] = {}
    for implementation in implementations:
        result = implementation()
        if isinstance(result, kind) or not isinstance(result, Iterable):
            raise Unfit(f"its {hook} returned a {type(result).__name__}; return a list of {kind.__name__}")
        for spec in result:
            # Not a subclass: a spec holds no code, so that reading it cannot fail.
            if type(spec) is not kind:
                raise Unfit(
                    f"its {hook} returned a {type(spec).__name__} in a list of {kind.__name__}; return only those"
                )
            if misfit := _misfit(spec, kind, kind.__name__):
                raise Unfit(f"in what its {hook} returned, {misfit}; mend that")
            if lacking := _lacking(spec):
                raise Unfit(f"its {hook} returned one without {lacking}; give it one")
            if spec.name in found:
                raise Unfit(f"its {hook} returned '{spec.name}' twice; rename one")
            found[spec.name] = spec
    return tuple(found.values())


def _lacking(spec: Any) -> str:
    if not spec.name:
        return "a name"
    if isinstance(spec, specs.EncoderSpec):
        return (
            ""
            if spec.variants and all(variant.taps for variant in spec.variants)
            else "a variant, or one without a tap"
        )
    return ""


def _is_imported(value: Any, plugin: Any) -> bool:
    return isinstance(plugin, ModuleType) and value.__module__ != plugin.__name__


def _check_hook(name: str, implementation: Callable[..., Any]) -> None:
    if name not in HOOKS:
        raise _no_hook(name)
    taken = inspect.signature(implementation).parameters.values()
    for argument in (each.name for each in taken if each.default is each.empty):
        if argument not in HOOKS[name]:
            near = difflib.get_close_matches(argument, HOOKS[name], n=1)
            known = " and ".join(HOOKS[name]) or "none"
            advice = f"did you mean {near[0]}?" if near else f"there is {known}"
            raise Unfit(f"its {name} takes an argument '{argument}' that the hook does not have; {advice}")


def _no_hook(name: str) -> Unfit:
    near = difflib.get_close_matches(name, HOOKS, n=1)
    advice = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(HOOKS)}"
    return Unfit(f"its function {name} is called like a hook and there is none of that name; {advice}")


@cache
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _misfit(value: Any, wanted: Any, where: str) -> str:
    """Return in what ``value`` is not of the type ``wanted``, as a clause; empty if it is."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    clauses: Iterable[str]
    if is_dataclass(wanted):
        if type(value) is not wanted:
            return _not(value, where, getattr(wanted, "__name__", ""))
        clauses = (
            _misfit(getattr(value, f.name), _hints(type(value))[f.name], f"{where}.{f.name}") for f in fields(value)
        )
    elif origin in (Union, UnionType):
        if type(value) in arguments and is_dataclass(value):
            return _misfit(value, type(value), where)
        return _not(value, where, wanted) if all(_misfit(value, each, where) for each in arguments) else ""
    elif origin is Literal:
        return "" if value in arguments else f"{where} is none of {', '.join(map(repr, arguments))}"
    elif origin is tuple:
        if not isinstance(value, tuple) or (arguments[-1] is not ... and len(value) != len(arguments)):
            return _not(value, where, wanted)
        clauses = (_misfit(each, arguments[0], f"{where}[{index}]") for index, each in enumerate(value))
    elif origin is not None:  # a mapping
        if not isinstance(value, origin):
            return _not(value, where, wanted)
        clauses = (
            _misfit(key, arguments[0], f"a key of {where}") or _misfit(each, arguments[1], f"{where}[{key!r}]")
            for key, each in value.items()
        )
    else:
        fits = isinstance(value, (int, float) if wanted is float else wanted)
        return "" if fits else _not(value, where, getattr(wanted, "__name__", wanted))
    return next((clause for clause in clauses if clause), "")


def _not(value: Any, where: str, wanted: Any) -> str:
    expected = str(wanted).replace("foresight_bench.specs.", "").replace("collections.abc.", "")
    return f"{where} is of type {type(value).__name__}, not {expected}"
