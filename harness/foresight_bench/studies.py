"""An earlier study: each figure that it reported, and what its protocol gives where the answer is known beforehand.

A suite names the protocols in ``SuiteSpec.study``, ``"package.module:PROTOCOLS"``, a sequence of :class:`Protocol`.
They compute; ``foresight-bench study`` sets what they give beside the suite's own controls. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import FiniteFloat

from foresight_bench.calibration import Calibration, calibration
from foresight_bench.cells import Estimate, Record
from foresight_bench.errors import DataError, UsageError
from foresight_bench.specs import SuiteSpec
from foresight_bench.store import Store

if TYPE_CHECKING:
    from foresight_bench.registry import Registry

BLANK = "blank"
"""The floor that stands beside a study's blank features."""

Value = str | int | FiniteFloat | None


class Trap(Record):
    """An input whose outcome under any sound protocol is plain."""

    shown: str
    """What it is, as the beginning of a sentence."""
    value: FiniteFloat
    """What the study's protocol gives it."""
    must: Literal["pass", "fail"]
    """What a sound protocol would do with it."""


class Figure(Record):
    """One figure that the study reported, and what its protocol gives on control features."""

    experiment: str
    """Experiment of the suite that asks the same."""
    metric: str
    """Metric of the suite that answers it."""
    title: str
    """What the study called it."""
    reported: FiniteFloat
    """What the study reported."""
    perfect: FiniteFloat | None
    """On features that hold all there is to know; null if it is not defined."""
    blank: FiniteFloat | None
    """On features that hold nothing; null if it is not defined."""
    trap: Trap | None = None
    """A third input, where the first two do not tell."""


class Section(Record):
    """What is wrong with one protocol, in numbers."""

    title: str
    """What is wrong."""
    protocol: str
    """What the study did."""
    headers: tuple[str, ...]
    """Of the table; the first column says what was scored."""
    rows: tuple[tuple[Value, ...], ...]
    """Numbers as computed, null where undefined."""
    meaning: str
    """One or two sentences, which state no comparison that the numbers do not."""
    instead: str
    """What the suite does."""


@dataclass(frozen=True)
class Chapter:
    """What one protocol gives."""

    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Protocol:
    """One protocol of the study, run on control features."""

    title: str
    """Shown while it runs."""
    run: Callable[[Registry], Chapter]


class Row(Figure):
    """A figure beside what the suite's own protocol gives."""

    threshold: FiniteFloat
    """The same in the study and in the suite."""
    direction: Literal["higher", "lower"]
    """Which way is better."""
    ceiling: str
    """The suite's control that must pass."""
    suite_perfect: Estimate
    """What that control scores."""
    suite_blank: Estimate
    """What the suite's blank features score."""

    def passes(self, value: float) -> bool:
        """Return whether ``value`` lies beyond the threshold."""
        return value > self.threshold if self.direction == "higher" else value < self.threshold

    @property
    def finding(self) -> str:
        """What the study's protocol does that no sound one does; empty if nothing was found."""
        found = []
        if self.perfect is None or not self.passes(self.perfect):
            found.append("perfect features fail")
        if self.blank is not None and self.passes(self.blank):
            found.append("blank features pass")
        if not found and self.trap and self.passes(self.trap.value) != (self.trap.must == "pass"):
            found.append(f"{self.trap.shown} {'fails' if self.trap.must == 'pass' else 'passes'}")
        return ", ".join(found)


class Study(Record):
    """The whole page, as data."""

    suite: str
    """Suite whose protocols stand beside the study's."""
    rows: tuple[Row, ...]
    """One a figure, in the study's order."""
    sections: tuple[Section, ...]
    """One a defect."""


def compared(chapters: Iterable[Chapter], suite: SuiteSpec, controls: Calibration) -> Study:
    """Return what the protocols gave beside ``controls``.

    Raises:
        DataError: the calibration lacks a control.
    """
    every = list(chapters)
    rows = tuple(_row(figure, suite, controls) for chapter in every for figure in chapter.figures)
    return Study(suite=suite.name, rows=rows, sections=tuple(s for chapter in every for s in chapter.sections))


def controls(suite: SuiteSpec, store: Store) -> Calibration:
    """Return how the suite's controls did, through its default decoder.

    Raises:
        DataError: ``store`` holds none of them.
    """
    cells = [
        cell
        for cell in store.cells()
        if (cell.identity.suite, cell.status) == (suite.name, "ok")
        and cell.identity.suite_version == suite.version
        and cell.identity.encoder in suite.controls
        and cell.identity.decoder in (None, suite.default_decoder)
    ]
    if not cells:
        raise _no_controls(suite, f"{store.root} holds no controls of suite {suite.name}")
    if len({(cell.identity.cohort, cell.provenance.machine) for cell in cells}) > 1:
        raise DataError(
            f"{store.root} holds controls of suite {suite.name} from more than one cohort or machine.",
            "Give --results a folder that holds those of one.",
        )
    return calibration(suite, cells, store)


def protocols(suite: SuiteSpec) -> Sequence[Protocol]:
    """Return the protocols of the study that ``suite`` names.

    Raises:
        UsageError: it names none.
    """
    from foresight_bench.registry import target

    if not suite.study:
        raise UsageError(f"Suite {suite.name} reruns no study.", "Name another one with --suite.")
    found: Sequence[Protocol] = target(suite.study)
    return found


def _row(figure: Figure, suite: SuiteSpec, controls: Calibration) -> Row:
    checks = [c for c in controls.checks if (c.experiment, c.metric) == (figure.experiment, figure.metric)]
    perfect = next((c for c in checks if c.must == "pass"), None)
    blank = next((c for c in checks if c.control == BLANK), None)
    if perfect is None or blank is None or perfect.estimate is None or blank.estimate is None:
        raise _no_controls(suite, f"Of {figure.experiment} {figure.metric} a control is missing")
    return Row(
        **figure.model_dump(),
        threshold=perfect.threshold,
        direction="lower" if perfect.direction == "lower" else "higher",
        ceiling=perfect.control,
        suite_perfect=perfect.estimate,
        suite_blank=blank.estimate,
    )


def _no_controls(suite: SuiteSpec, what: str) -> DataError:
    return DataError(
        f"{what}.", f"Run `foresight-bench calibrate --suite {suite.name} --results DIR` and give --results DIR here."
    )
