"""What a conformance check is, and how a set of them is run. Imports no torch.

Every MUST of a contract has one check: a function that takes the subject and returns if the MUST holds. Otherwise it
raises :class:`Broken` with what is wrong and how that usually comes about, :class:`NotApplicable` where the MUST does
not concern the subject, or :class:`Unverified` where it cannot be told here, as without a GPU.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S")


class Broken(Exception):
    """The MUST does not hold; the message says what is wrong, and how it is usually caused."""


class NotApplicable(Exception):
    """The MUST does not concern the subject; the message says why."""


class Unverified(Exception):
    """Whether the MUST holds cannot be told here; the message says what it would take."""


class Status(StrEnum):
    """What became of a check."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not-applicable"
    UNVERIFIED = "unverified"
    EXPECTED = "expected failure"


@dataclass(frozen=True)
class Check(Generic[S]):
    """One MUST of a contract."""

    name: str
    """What it is called on the command line and in ``expected_failed_checks``: ``layout``."""
    must: str
    """The MUST, one sentence."""
    run: Callable[[S], None]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    must: str
    status: Status
    message: str
    """Why it did not pass; empty if it did."""
    seconds: float
    traceback: str = ""
    """Of an error that no check expects."""


class Checks(Generic[S]):
    """The checks of one kind of plugin, in the order in which they are defined."""

    def __init__(self) -> None:
        self._checks: list[Check[S]] = []

    def must(self, sentence: str) -> Callable[[Callable[[S], None]], Callable[[S], None]]:
        """Register the decorated function as the check of the MUST that ``sentence`` states."""

        def register(function: Callable[[S], None]) -> Callable[[S], None]:
            self._checks.append(Check(function.__name__.replace("_", "-"), sentence, function))
            return function

        return register

    def __iter__(self) -> Iterator[Check[S]]:
        return iter(self._checks)

    def names(self) -> list[str]:
        """Return the names of all checks."""
        return [check.name for check in self]


def run_check(check: Check[S], subject: S, expected: Mapping[str, str] | None = None) -> Finding:
    """Run one check; no exception but an interrupt gets out.

    Args:
        expected: reasons by name of the checks that are known to fail; such a one that passes is a failure, so that the
            list stays true.
    """
    started = time.monotonic()
    status, message, trace = Status.PASS, "", ""
    try:
        check.run(subject)
    except Broken as found:
        status, message = Status.FAIL, str(found)
    except NotApplicable as found:
        status, message = Status.NOT_APPLICABLE, str(found)
    except Unverified as found:
        status, message = Status.UNVERIFIED, str(found)
    except Exception as error:
        status, trace = Status.FAIL, traceback.format_exc()
        message = f"{type(error).__name__}: {error}".splitlines()[0]
    reason = (expected or {}).get(check.name)
    if reason is not None and status is Status.FAIL:
        status, message = Status.EXPECTED, f"{reason} ({message})"
    elif reason is not None and status is Status.PASS:
        status, message = Status.FAIL, "It is listed as expected to fail, and passes; take it off the list."
    return Finding(check.name, check.must, status, message, time.monotonic() - started, trace)


def run_checks(checks: Checks[S], subject: S, expected: Mapping[str, str] | None = None) -> Sequence[Finding]:
    """Run all checks, in order; see :func:`run_check`."""
    return [run_check(check, subject, expected) for check in checks]
