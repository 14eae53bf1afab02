"""What the loaded plugins provide, by kind and name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Generic, TypeVar

from foresight_bench import names
from foresight_bench.contracts import Data
from foresight_bench.errors import PluginError, UsageError, unknown
from foresight_bench.plugins import Plugin, load
from foresight_bench.specs import (
    AdapterSpec,
    DecoderSpec,
    EncoderSpec,
    MetricSpec,
    Parameter,
    SuiteSpec,
    Variant,
    Weights,
)

S = TypeVar("S", EncoderSpec, AdapterSpec, DecoderSpec, MetricSpec, SuiteSpec)


@dataclass(frozen=True)
class Entry(Generic[S]):
    """A spec and the plugin it came from."""

    spec: S
    plugin: Plugin


class Shelf(Generic[S]):
    """The specs of one kind."""

    def __init__(self, kind: str, quarantined: Sequence[str]) -> None:
        self.kind = kind
        self._quarantined = quarantined
        self._entries: dict[str, list[Entry[S]]] = {}

    def add(self, entry: Entry[S]) -> None:
        """Put an entry on the shelf."""
        self._entries.setdefault(entry.spec.name, []).append(entry)

    def __iter__(self) -> Any:
        """Iterate over what can be asked for by its name: not over what more than one plugin provides."""
        return (entries[0] for _, entries in sorted(self._entries.items()) if len(entries) == 1)

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def __getitem__(self, name: str) -> Entry[S]:
        """Return the entry called ``name``.

        Raises:
            PluginError: no plugin provides it, or more than one does.
        """
        entries = self._entries.get(name)
        if not entries:
            raise unknown(self.kind, name, self._entries, self._quarantined)
        if len(entries) > 1:
            providers = ", ".join(entry.plugin.name for entry in entries)
            raise PluginError(
                f"The {self.kind} '{name}' is provided by more than one plugin: {providers}.",
                "Load one of them only, by naming the plugins to load in FORESIGHT_BENCH_PLUGINS.",
            )
        return entries[0]


class Registry:
    """Everything that the loaded plugins provide."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self.plugins = tuple(plugins)
        self.quarantined = tuple(plugin.name for plugin in self.plugins if plugin.quarantine)
        self.encoders: Shelf[EncoderSpec] = Shelf("encoder", self.quarantined)
        self.adapters: Shelf[AdapterSpec] = Shelf("adapter", self.quarantined)
        self.decoders: Shelf[DecoderSpec] = Shelf("decoder", self.quarantined)
        self.metrics: Shelf[MetricSpec] = Shelf("metric", self.quarantined)
        self.suites: Shelf[SuiteSpec] = Shelf("suite", self.quarantined)
        shelves: dict[str, Shelf[Any]] = {
            "foresight_encoders": self.encoders,
            "foresight_adapters": self.adapters,
            "foresight_decoders": self.decoders,
            "foresight_metrics": self.metrics,
            "foresight_suites": self.suites,
        }
        for plugin in self.plugins:
            for hook, contributed in plugin.contributions:
                for spec in contributed:
                    shelves[hook].add(Entry(spec, plugin))

    @classmethod
    def installed(cls) -> Registry:
        """Return the registry of the installed plugins."""
        return cls(load())

    def variant(self, stream: names.Stream) -> Variant:
        """Return the variant that ``stream`` names, the first one if it names none."""
        variants = self.encoders[stream.name].spec.variants
        if not stream.variant:
            return variants[0]
        for variant in variants:
            if variant.name == stream.variant:
                return variant
        raise unknown(f"variant of {stream.name}", stream.variant, [v.name for v in variants])

    def resolve(self, text: str) -> tuple[names.Stream, ...]:
        """Parse an encoder name, check every part of it, and fill in the variants."""
        streams = names.parse(text)
        resolved = []
        for stream in streams:
            variant = self.variant(stream)
            if len(streams) > 1 and not stream.taps:
                stream = replace(stream, taps=variant.output or variant.taps[-1])
            taps = names.select_taps(stream.taps, variant.taps, variant.default_taps)
            if len(streams) > 1 and len(taps) > 1:
                raise UsageError(
                    f"In a hybrid each stream brings one tap; '{stream}' brings {len(taps)}.",
                    f"Write one hybrid per tap, for example {stream.name}@{taps[-1]}.",
                )
            if stream.random and variant.weights is None:
                raise PluginError(f"'{stream}' asks for random weights, but {stream.name} has no weights.")
            self.params(stream)
            resolved.append(replace(stream, variant=variant.name))
        return tuple(resolved)

    def weights(self) -> dict[str, Weights]:
        """Return all weights that any plugin names, by name."""
        named = [variant.weights for entry in self.encoders for variant in entry.spec.variants]
        named += [entry.spec.weights for shelf in (self.decoders, self.metrics) for entry in shelf]
        return {weights.name: weights for weights in named if weights is not None}

    def params(self, stream: names.Stream) -> dict[str, Parameter]:
        """Return the keyword arguments of the encoder's target: the variant's, the options, what the name sets.

        Raises:
            PluginError: the name sets an option that the encoder does not have.
            UsageError: a value is not of the option's type.
        """
        options = dict(self.encoders[stream.name].spec.options)
        for key, text in stream.params:
            if key not in options:
                raise unknown(f"option of {stream.name}", key, options)
            options[key] = _read(key, text, options[key])
        return {**self.variant(stream).params, **options}

    def needs(self, stream: names.Stream) -> Callable[[str], bool]:
        """Return which tensors of the weights the taps of ``stream`` need, by name."""
        return self.variant(stream).needs(self.taps(stream))

    def taps(self, stream: names.Stream) -> tuple[str, ...]:
        """Return the taps that ``stream`` selects, in order of depth."""
        variant = self.variant(stream)
        return names.select_taps(stream.taps, variant.taps, variant.default_taps)

    def label(self, streams: Sequence[names.Stream]) -> str:
        """Return the shortest name that resolves to ``streams``: a sole variant goes without saying."""
        parts = []
        for stream in streams:
            sole = len(self.encoders[stream.name].spec.variants) == 1
            parts.append(str(replace(stream, variant="" if sole else stream.variant)))
        return "+".join(parts)


def _read(key: str, text: str, default: Parameter) -> Parameter:
    """Return ``text`` as a value of the type of ``default``."""
    if isinstance(default, bool):
        if text in ("true", "false"):
            return text == "true"
        raise UsageError(f"'{text}' is no value of {key}.", "Write true or false.")
    try:
        return type(default)(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no value of {key}.", f"It takes a value like {default}.") from error


def target(path: str) -> Any:
    """Import what ``package.module:Name`` names."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"Cannot import {path}: {error}.", "Is the plugin's extra installed?") from error


def suite_data(suite: SuiteSpec, limit: int = 0) -> Data:
    """Return the data of ``suite``, with at most ``limit`` clips in each block; 0 for all."""
    data: Data = target(suite.target)(**suite.params)
    return data.limited(limit) if limit else data


@lru_cache(maxsize=64)
def code_digest(package: str) -> str:
    """Return a SHA-256 over the Python sources of an import package, and what of it is compiled.

    The content, not the version, so that an editable or locally changed install is told apart.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise PluginError(f"Cannot find the package {package}.")
    origin = Path(spec.origin)
    files = [origin]
    if origin.name == "__init__.py":
        code = (".py", *EXTENSION_SUFFIXES)
        files = sorted(file for file in origin.parent.rglob("*") if file.name.endswith(code) and file.is_file())
    digest = sha256()
    for file in files:
        digest.update(file.relative_to(origin.parent).as_posix().encode())
        digest.update(b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
