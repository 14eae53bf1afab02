"""The hooks that a plugin may implement: those that return frozen specs, and those of observers.

A hook's module imports nothing heavy. An implementation may leave out arguments that it does not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from foresight_bench.specs import AdapterSpec, DecoderSpec, EncoderSpec, MetricSpec, SuiteSpec

PROJECT = "foresight_bench"
API = 1
"""Version of these hooks and of the specs. A plugin may say which it was written for, ``FORESIGHT_API = 1`` in its
module; one that says another is not used."""
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


# Observers are called in the process of the command, one at a time, never in a worker; the run waits for them. What
# they are given is plain data of their own, as JSON has it: changing it changes nothing. What they raise is a warning.


@hookspec
def foresight_run_started(plan: Mapping[str, Any]) -> None:
    """Take note that a run begins.

    Args:
        plan: ``suite`` and ``cohort``, their names, and ``cells``, a list with the ``id`` and the ``identity`` of each
            cell, and ``reused``: whether it was finished before, and is not computed.
    """


@hookspec
def foresight_run_finished(cells: Sequence[Mapping[str, Any]]) -> None:
    """Take note that the run has ended, interrupted or not.

    Args:
        cells: every cell of the plan that has a file, reused ones too, as ``foresight_cell_finished`` has them.
    """


@hookspec
def foresight_cell_started(id: str, identity: Mapping[str, Any]) -> None:
    """Take note that a cell is worked on from now on.

    A cell that is tried again starts again. One that cannot be tried, because weights are missing, never starts.

    Args:
        id: of the cell.
        identity: what is measured, as the cell's file has it: encoder, experiment, adapter, decoder, seed and so on.
    """


@hookspec
def foresight_cell_finished(cell: Mapping[str, Any]) -> None:
    """Take note that a cell has ended and its file is written, whatever its ``status``.

    Args:
        cell: what the file holds; ``foresight-bench show --schema`` says what that is.
    """
