"""Errors a user can cause: one sentence, a hint, and the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

OK = 0
CELL_FAILED = 1
USAGE = 2
PLUGIN = 3
ENVIRONMENT = 4
NOTHING_SELECTED = 5
CHECK_FAILED = 6
INTERRUPTED = 130


class ForesightError(Exception):
    """An expected error.

    Shown as one sentence and a hint, without a traceback; ``exit_code`` is what the process ends with.
    """

    exit_code = CELL_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ForesightError):
    """The command line or a name in it is malformed."""

    exit_code = USAGE


class PluginError(ForesightError):
    """A plugin, or a name that a plugin should provide, is unknown, ambiguous or quarantined."""

    exit_code = PLUGIN


class EnvironmentFault(ForesightError):
    """A device, weights, data or writable folder is missing."""

    exit_code = ENVIRONMENT


class WeightsError(EnvironmentFault):
    """No source holds the weights, or the file that was found is not the file that was expected."""


class DataError(EnvironmentFault):
    """The data is missing, altered, or its splits share content."""


class NothingSelected(ForesightError):
    """The selection names no cell."""

    exit_code = NOTHING_SELECTED


class CheckFailed(ForesightError):
    """A check that the user asked for failed."""

    exit_code = CHECK_FAILED


class Unsupported(ForesightError):
    """This part cannot serve that input; its cells are skipped, with the reason."""


class OutOfMemory(ForesightError):
    """What must be kept in memory at once does not fit; ends the cells it serves and no others."""


class ContractError(ForesightError):
    """A plugin broke its contract; ends the cells it serves and no others."""


class NonFinite(ContractError):
    """Features, latents or predictions hold NaN or infinity."""


def unknown(kind: str, name: str, choices: Iterable[str], quarantined: Sequence[str] = ()) -> PluginError:
    """Return the error for an unknown ``name``, with the nearest of ``choices`` in its hint.

    Args:
        quarantined: plugins that could not be loaded, any of which may be the one that was meant.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    elif known:
        hint = f"Known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}."
    else:
        hint = f"No plugin provides any {kind}; see `foresight-bench plugins`."
    if quarantined:
        hint += f" Quarantined: {', '.join(quarantined)}; `foresight-bench plugins` says why."
    return PluginError(f"Unknown {kind} '{name}'.", hint)
