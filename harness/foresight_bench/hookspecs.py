"""The hooks that a plugin may implement. Each returns frozen specs and imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from foresight_bench.specs import AdapterSpec, DecoderSpec, EncoderSpec, MetricSpec, SuiteSpec

PROJECT = "foresight_bench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def foresight_encoders() -> Sequence[EncoderSpec]:  # type: ignore[empty-body]
    """Return the encoders that this plugin provides."""


@hookspec
def foresight_adapters() -> Sequence[AdapterSpec]:  # type: ignore[empty-body]
    """Return the adapters that this plugin provides."""


@hookspec
def foresight_decoders() -> Sequence[DecoderSpec]:  # type: ignore[empty-body]
    """Return the decoders that this plugin provides."""


@hookspec
def foresight_metrics() -> Sequence[MetricSpec]:  # type: ignore[empty-body]
    """Return the metrics that this plugin provides."""


@hookspec
def foresight_suites() -> Sequence[SuiteSpec]:  # type: ignore[empty-body]
    """Return the suites that this plugin provides."""
