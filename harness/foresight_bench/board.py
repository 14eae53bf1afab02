"""The board: what a results folder says of every system, cohort by cohort, ranked where it may be."""

from __future__ import annotations

from dataclasses import dataclass

from foresight_bench.calibration import Calibration
from foresight_bench.cards import Card
from foresight_bench.cells import Cell, MetricResult
from foresight_bench.intake import Problem
from foresight_bench.labels import Kind, seeded
from foresight_bench.ranking import Rank
from foresight_bench.specs import ExperimentSpec, GateSpec, SuiteSpec
from foresight_bench.tables import GateResult


@dataclass(frozen=True)
class Placed:
    """One gated metric of one row."""

    result: MetricResult
    rank: Rank | None
    """Among the systems of the experiment, over the same clips; None for what does not compete or was not computed."""
    front: bool
    """Whether no other system is as good by this metric for as few seconds, and better or faster."""


@dataclass(frozen=True)
class Row:
    """One finished cell."""

    cell: Cell
    """Every text in it is printable."""
    kind: Kind
    family: str
    """Encoder without variant, taps and transforms; of a hybrid all of them, joined by ``+``."""
    size: str
    """Its variant; empty for an encoder of one."""
    transforms: tuple[str, ...]
    hybrid: bool
    surrogate: str
    """Why its decoder only stands in for a published video decoder; empty if it does not, or there is none."""
    placed: tuple[Placed, ...]
    """In the order of the experiment's criteria."""
    command: str
    """Computes this very cell."""

    @property
    def name(self) -> str:
        """Encoder and seed."""
        return seeded(self.cell.identity.encoder, self.cell.identity.seed)

    @property
    def through(self) -> str:
        """Adapter and decoder."""
        return " + ".join(part for part in (self.cell.identity.adapter, self.cell.identity.decoder) if part)

    @property
    def seconds(self) -> float | None:
        """What the row took: the encoder's feature pass over the suite and the experiment."""
        cost = self.cell.cost
        return cost.feature_seconds + cost.wall_seconds if cost else None

    @property
    def reported(self) -> tuple[MetricResult, ...]:
        """What was read beside the gated metrics, at the same tap and readout."""
        at = self.cell.tap, self.cell.readout
        return tuple(each for each in self.cell.metrics if not each.gates and (each.tap, each.readout) == at)


@dataclass(frozen=True)
class Section:
    """One experiment of a cohort."""

    spec: ExperimentSpec
    rows: tuple[Row, ...]
    """Systems, transformed ones, controls; each in alphabetical order, for no mean is taken over unlike metrics."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The gated ones."""
        return tuple(each.metric for each in self.spec.criteria if each.threshold is not None)


@dataclass(frozen=True)
class Candidate:
    """One system before the gates."""

    encoder: str
    adapter: str
    decoder: str
    seed: int
    kind: Kind
    surrogate: str
    gates: tuple[tuple[GateSpec, GateResult], ...]
    present: int
    """Gated metrics that were computed."""
    expected: int
    """Gated metrics of the suite."""
    missing: tuple[str, ...]
    """What is not there, and why, in clauses."""

    @property
    def name(self) -> str:
        """Encoder and seed."""
        return seeded(self.encoder, self.seed)

    @property
    def complete(self) -> bool:
        """Whether every gated metric was computed."""
        return self.present == self.expected

    def answer(self, experiment: str) -> tuple[str, str]:
        """Return what an experiment decided and at which tap; empty if it was not run."""
        for _, result in self.gates:
            if experiment in result.decisions:
                return str(result.decisions[experiment]), result.taps.get(experiment, "")
        return "", ""


@dataclass(frozen=True)
class Cohort:
    """Results that may be compared: of one suite, one set of data, one set of metrics, and one kind of machine."""

    suite: SuiteSpec
    name: str
    machine: str
    devices: tuple[str, ...]
    libraries: tuple[tuple[str, str], ...]
    """Name and versions."""
    candidates: tuple[Candidate, ...]
    """Complete ones before the incomplete."""
    sections: tuple[Section, ...]
    calibration: Calibration
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Board:
    """Everything there is to show."""

    cohorts: tuple[Cohort, ...]
    left_out: tuple[Problem, ...]
