"""The board: what a results folder says of every system, cohort by cohort, ranked where it may be."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from foresight_bench import names
from foresight_bench.admission import Admission, Admitted, admit
from foresight_bench.calibration import Calibration, calibration
from foresight_bench.cards import Card, cards
from foresight_bench.cells import Cell, MetricResult
from foresight_bench.errors import DataError, ForesightError
from foresight_bench.intake import Problem, plain
from foresight_bench.ranking import Rank, front, ranks
from foresight_bench.registry import Registry
from foresight_bench.specs import ExperimentSpec, GateSpec, SuiteSpec
from foresight_bench.store import Store
from foresight_bench.tables import GateResult, System, combination, gate_result, gating

Kind = Literal["system", "transformed", "control"]
"""A system competes. One with a transform (``~pooled``, ``~random``, ``~shuffled``) shows what a system owes to what
the transform takes away, and a control shows that the suite measures: both stand apart, without a rank."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which tables have them."""


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


def build(root: Path, registry: Registry) -> Board:
    """Return the board of a results folder.

    Raises:
        DataError: there is no such folder, or nothing in it is finished and of an installed suite.
    """
    found = admit(root, registry)
    keys = sorted({(a.cell.identity.cohort, a.cell.provenance.machine) for a in found.admitted if _ok(a)})
    if not keys:
        left = f" of its files, {len(found.left_out)} were left out" if found.left_out else ""
        raise DataError(
            f"{root} holds no finished cells of an installed suite{';' if left else ''}{left}.",
            "Run `foresight-bench run --results` first; `foresight-bench validate` says what is wrong with a file.",
        )
    return Board(tuple(_cohort(found, registry, *key) for key in keys), found.left_out)


def _ok(each: Admitted) -> bool:
    return each.cell.status == "ok"


def _cohort(found: Admission, registry: Registry, name: str, machine: str) -> Cohort:
    mine = [a for a in found.admitted if (a.cell.identity.cohort, a.cell.provenance.machine) == (name, machine)]
    suite = registry.suites[mine[0].cell.identity.suite].spec
    done = [each for each in mine if _ok(each)]
    sections = tuple(
        _section(spec, [each for each in done if each.cell.identity.experiment == spec.name], suite, registry)
        for spec in suite.experiments
    )
    controls = [each.source for each in done if each.cell.identity.encoder in suite.controls]
    checked = calibration(suite, controls, Store(found.taken.root))
    versions: dict[str, dict[str, None]] = {}
    for each in done:
        for library, version in each.cell.provenance.libraries.items():
            versions.setdefault(library, {})[version] = None
    return Cohort(
        suite,
        name,
        machine,
        tuple(sorted({each.cell.provenance.device for each in done})),
        tuple((library, " and ".join(sorted(each))) for library, each in versions.items()),
        _candidates(suite, [each.cell for each in mine], registry),
        sections,
        Calibration(tuple(replace(check, decoder=plain(check.decoder)) for check in checked.checks)),
        cards([each for each in done if each.cell.identity.encoder not in suite.controls], registry, found.taken),
    )


def _section(spec: ExperimentSpec, found: Sequence[Admitted], suite: SuiteSpec, registry: Registry) -> Section:
    """Return an experiment's rows, ranked metric by metric."""
    rows = {a.cell.id: _row(a.cell, spec, suite, registry) for a in found}
    ordered = sorted(rows.values(), key=lambda row: (KINDS.index(row.kind), combination(row.cell)))
    competing = [each for each in found if rows[each.cell.id].kind == "system"]
    placed: dict[str, dict[str, Placed]] = {row.cell.id: {} for row in ordered}
    for criterion in spec.criteria:
        results = {a.cell.id: result for a in found for result in gating(a.cell) if result.metric == criterion.metric}
        if not results:
            continue
        direction = next(iter(results.values())).direction
        places = ranks([each.scores.get(criterion.metric) for each in competing], direction)
        place = {each.cell.id: rank for each, rank in zip(competing, places, strict=True)}
        costs = {
            each.cell.id: (seconds, value)
            for each in competing
            if (seconds := rows[each.cell.id].seconds) is not None
            and (value := results[each.cell.id].estimate.value) is not None
        }
        on = front([cost for cost, _ in costs.values()], [value for _, value in costs.values()], direction)
        best = {cell_id for cell_id, is_on in zip(costs, on, strict=True) if is_on}
        for cell_id, result in results.items():
            placed[cell_id][criterion.metric] = Placed(result, place.get(cell_id), cell_id in best)
    return Section(spec, tuple(replace(row, placed=tuple(placed[row.cell.id].values())) for row in ordered))


def _row(cell: Cell, spec: ExperimentSpec, suite: SuiteSpec, registry: Registry) -> Row:
    streams = streams_of(cell.identity.encoder)
    return Row(
        cell,
        kind_of(cell.identity.encoder, suite),
        family_of(cell.identity.encoder),
        size_of(cell.identity.encoder),
        tuple(dict.fromkeys(transform for stream in streams for transform in stream.transforms)),
        len(streams) > 1,
        surrogate(cell.identity.decoder or "", registry),
        (),
        command(cell),
    )


def streams_of(encoder: str) -> tuple[names.Stream, ...]:
    """Return the streams of an encoder's label; none for what follows no grammar, as a file may hold anything."""
    try:
        return names.parse(encoder)
    except ForesightError:
        return ()


def family_of(encoder: str) -> str:
    """Return an encoder's name without variant, taps and transforms; of a hybrid all of them, joined by ``+``."""
    return "+".join(stream.name for stream in streams_of(encoder)) or encoder


def size_of(encoder: str) -> str:
    """Return an encoder's variant; of a hybrid all of them, joined by ``+``."""
    return "+".join(stream.variant for stream in streams_of(encoder) if stream.variant)


def kind_of(encoder: str, suite: SuiteSpec) -> Kind:
    """Return what the rows of an encoder are to the others."""
    if encoder in suite.controls:
        return "control"
    return "transformed" if any(stream.transforms for stream in streams_of(encoder)) else "system"


def surrogate(decoder: str, registry: Registry) -> str:
    """Return why a decoder is a surrogate; empty if it is none, there is none, or no plugin knows it."""
    try:
        return plain(registry.decoders[decoder].spec.surrogate)
    except ForesightError:
        return ""


def command(cell: Cell) -> str:
    """Return the command that computes this very cell, and the controls that it is judged beside."""
    identity = cell.identity
    words = ["foresight-bench", "run", "-e", identity.encoder, "-x", identity.experiment]
    words += ["-a", identity.adapter] if identity.adapter else []
    words += ["-d", identity.decoder] if identity.decoder else []
    words += ["--suite", identity.suite, "--seed", str(identity.seed), "--precision", identity.precision]
    return shlex.join(words)


def seeded(encoder: str, seed: int) -> str:
    """Return an encoder's label, with its seed if that is not the usual one."""
    return f"{encoder} (seed {seed})" if seed else encoder


def _candidates(suite: SuiteSpec, cells: Sequence[Cell], registry: Registry) -> tuple[Candidate, ...]:
    """Return every system that anything was run for; an experiment without adapter or decoder belongs to each."""
    mine = [cell for cell in cells if cell.identity.encoder not in suite.controls]
    every = {combination(cell) for cell in mine}
    found = []
    for system in sorted(each for each in every if not any(_within(each, other) for other in every - {each})):
        group = {cell.identity.experiment: cell for cell in mine if _within(combination(cell), system)}
        found.append(_candidate(suite, system, group, registry))
    return tuple(sorted(found, key=lambda each: (not each.complete, KINDS.index(each.kind))))


def _within(one: System, other: System) -> bool:
    """Return whether ``one`` says the same as ``other``, or says nothing of adapter or decoder."""
    same = one[0] == other[0] and one[3] == other[3]
    return same and all(mine in ("", theirs) for mine, theirs in zip(one[1:3], other[1:3], strict=True))


def _candidate(suite: SuiteSpec, system: System, cells: dict[str, Cell], registry: Registry) -> Candidate:
    present, expected, missing = 0, 0, []
    for spec in suite.experiments:
        wanted = [criterion.metric for criterion in spec.criteria if criterion.threshold is not None]
        expected += len(wanted)
        cell = cells.get(spec.name)
        if cell is None or cell.status != "ok":
            missing.append(f"{spec.name} {f'{cell.status}: {cell.reason}' if cell else 'not run'}")
            continue
        results = {result.metric: result for result in gating(cell)}
        there = [name for name in wanted if results[name].estimate.value is not None]
        present += len(there)
        missing += [f"{spec.name} {name} {results[name].verdict}" for name in wanted if name not in there]
    return Candidate(
        *system,
        kind_of(system[0], suite),
        surrogate(system[2], registry),
        tuple((gate, gate_result(gate, cells.values())) for gate in suite.gates),
        present,
        expected,
        tuple(missing),
    )
