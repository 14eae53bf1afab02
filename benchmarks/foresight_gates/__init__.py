"""The gate suite: scenes, experiments, thresholds and controls."""

from __future__ import annotations

from collections.abc import Sequence

from foresight_bench import hookimpl
from foresight_bench.specs import EncoderSpec, SuiteSpec


@hookimpl
def foresight_encoders() -> Sequence[EncoderSpec]:
    """Return the control encoders."""
    from foresight_gates.control_specs import CONTROLS

    return CONTROLS


@hookimpl
def foresight_suites() -> Sequence[SuiteSpec]:
    """Return the suites."""
    from foresight_gates.suites import SUITES

    return SUITES
