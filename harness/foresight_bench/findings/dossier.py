"""What a results folder has to say of one cohort: its systems, how they stand at the gates, and which is in focus."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foresight_bench.cells import Cell, MetricResult
from foresight_bench.errors import DataError, ForesightError, UsageError
from foresight_bench.intake import Problem, problem, take
from foresight_bench.registry import Registry
from foresight_bench.specs import SuiteSpec
from foresight_bench.store import Store
from foresight_bench.tables import GateResult, System, combination, gate_result, gating, suite_experiments
from foresight_bench.validating import SMOKE
from foresight_bench.verdicts import Decision, Verdict


@dataclass(frozen=True)
class Standing:
    """One system, and what it made of the suite."""

    system: System
    cells: Mapping[str, Cell]
    """By experiment, in the suite's order; whatever became of them."""
    gates: tuple[GateResult, ...]
    """One for each gate of the suite."""

    @property
    def gated(self) -> list[tuple[str, MetricResult]]:
        """The gated metrics of finished cells, each with its experiment."""
        return [(experiment, result) for experiment, cell in self.cells.items() for result in gating(cell)]

    @property
    def proceeding(self) -> list[str]:
        """The experiments that proceed."""
        return [name for name, cell in self.cells.items() if cell.decision == Decision.PROCEED]

    @property
    def least(self) -> tuple[float, str, str]:
        """The least skill of a gated metric, with experiment and metric; minus infinity if one has none."""
        skills = [(-math.inf if r.skill is None else r.skill, name, r.metric) for name, r in self.gated]
        return min(skills, default=(-math.inf, "", ""))

    @property
    def rank(self) -> tuple[int, int, float, System]:
        """What sorts the best first: experiments that proceed, then finished ones, then the least skill."""
        finished = sum(cell.status == "ok" for cell in self.cells.values())
        return -len(self.proceeding), -finished, -self.least[0], self.system


@dataclass(frozen=True)
class Dossier:
    """The finished and failed cells of one cohort, each question answered once."""

    store: Store
    suite: SuiteSpec
    cohort: str
    cells: tuple[Cell, ...]
    controls: tuple[Cell, ...]
    """Of these cells, those of the suite's controls."""
    standings: tuple[Standing, ...]
    """Of every encoder that is no control, the best first."""
    left_out: tuple[Problem, ...]
    """Files that the document does not rest on, and why."""

    @property
    def candidates(self) -> list[Standing]:
        """The systems that are no control experiment on another (``~random``, ``~pooled``, ``~shuffled``)."""
        return [standing for standing in self.standings if "~" not in standing.system[0]]


def gather(root: Path, registry: Registry, suite: str | None = None, cohort: str | None = None) -> Dossier:
    """Read ``root`` and take one cohort.

    Raises:
        DataError: there is no such folder, or nothing in it is usable.
        UsageError: it holds several cohorts and none is named.
    """
    taken, store = take(root), Store(root)
    left_out = [*taken.faults, *taken.strays]
    sound: dict[str, list[Cell]] = {}
    for cell in taken.cells:
        if reason := _unusable(cell, registry):
            left_out.append(problem(root, store.path(cell), reason))
        elif suite in (None, cell.identity.suite) and cohort in (None, cell.identity.cohort):
            sound.setdefault(cell.identity.cohort, []).append(cell)
    if not sound:
        raise DataError(
            f"{root} holds no cells of whole cohorts{f' of {cohort or suite}' if cohort or suite else ''}.",
            str(left_out[0]) if left_out else "Run `foresight-bench run` first.",
        )
    if len(sound) > 1:
        raise UsageError(f"{root} holds {len(sound)} cohorts.", f"Name one with --cohort: {', '.join(sorted(sound))}.")
    ((found, cells),) = sound.items()
    spec = registry.suites[cells[0].identity.suite].spec
    kept = _once(cells)
    chosen = {store.path(cell) for cell in kept}  # not by id: another machine has a cell of the same one
    left_out += [
        problem(root, store.path(cell), "another cell, finished later, answers the same")
        for cell in cells
        if store.path(cell) not in chosen
    ]
    controls = tuple(cell for cell in kept if cell.identity.encoder in spec.controls)
    standings = _standings(spec, [cell for cell in kept if cell.identity.encoder not in spec.controls])
    return Dossier(store, spec, found, tuple(kept), controls, standings, tuple(left_out))


def _unusable(cell: Cell, registry: Registry) -> str:
    """Return why the document cannot rest on ``cell``; empty if it can."""
    identity = cell.identity
    if smoke := SMOKE.fullmatch(identity.cohort):
        return f"a smoke cohort, of at most {smoke['limit']} clips a block"
    if identity.suite not in registry.suites.names():
        return f"its suite {identity.suite} is not installed"
    spec = registry.suites[identity.suite].spec
    if identity.suite_version != spec.version:
        return f"of version {identity.suite_version} of {spec.name}; version {spec.version} is installed"
    if identity.experiment not in suite_experiments(spec):
        return f"{spec.name} has no experiment {identity.experiment}"
    said = {result.verdict for result in gating(cell)} - {None}
    if cell.decision not in (None, *Decision) or not said <= set(Verdict):
        return "it says what is no verdict"
    return ""


def _question(cell: Cell) -> tuple[str, System]:
    return cell.identity.experiment, combination(cell)


def _once(cells: Sequence[Cell]) -> list[Cell]:
    """Return one cell a question: the one that finished last, of those that are ok if any is."""
    latest: dict[tuple[str, System], Cell] = {}
    for cell in sorted(cells, key=lambda each: (each.status == "ok", each.provenance.finished, each.id)):
        latest[_question(cell)] = cell
    return sorted(latest.values(), key=_question)


def _standings(suite: SuiteSpec, cells: Sequence[Cell]) -> tuple[Standing, ...]:
    """Return every system: a cell without adapter or decoder belongs to each that has one."""
    every = {combination(cell) for cell in cells}
    whole = [one for one in every if not any(one != other and _within(one, other) for other in every)]
    found = []
    for system in whole:
        mine = {cell.identity.experiment: cell for cell in cells if _within(combination(cell), system)}
        ordered = {name: mine[name] for name in suite_experiments(suite) if name in mine}
        gates = tuple(gate_result(gate, ordered.values()) for gate in suite.gates)
        found.append(Standing(system, ordered, gates))
    return tuple(sorted(found, key=lambda standing: standing.rank))


def _within(part: System, whole: System) -> bool:
    """Return whether a cell of ``part`` belongs to the system ``whole``."""
    return all(mine in ("", theirs) for mine, theirs in zip(part, whole, strict=True))


def focus(found: Dossier, registry: Registry, encoders: Collection[str] = ()) -> tuple[Standing, str]:
    """Return the system that the document is about, and in a clause why this one.

    Of ``encoders``, or of all that are neither hybrids nor single taps, those through the suite's default decoder and
    adapter, if any went through them; of these the best-standing.

    Raises:
        DataError: there is no system, or none of an encoder of that name.
    """
    labels = {_label(text, registry, found) for text in encoders}
    pool = [s for s in found.standings if s.system[0] in labels] if labels else found.candidates
    if not labels:
        pool = [s for s in pool if not {"+", "@"} & set(s.system[0])] or pool
    if not pool:
        raise DataError(f"{found.store.root} holds controls alone.", "Run an encoder: `foresight-bench run -e NAME`.")
    for place, default in ((2, found.suite.default_decoder), (1, found.suite.default_adapter)):
        pool = [s for s in pool if s.system[place] == default] or pool
    pool = [s for s in pool if s.system[3] == min(each.system[3] for each in pool)]
    best = min(pool, key=lambda standing: standing.rank)
    named = " named with -e" if labels else ""
    if len(pool) == 1:
        return best, f"the only encoder{named or ' that is no hybrid and no single tap'}"
    why = "by experiments that proceed, then by those that finished, then by the skill of the worst gated metric"
    return best, f"the best-standing of {len(pool)} encoders{named}, {why}"


def _label(text: str, registry: Registry, found: Dossier) -> str:
    """Return the encoder that ``text`` names, as it is called in results."""
    held = sorted({standing.system[0] for standing in found.standings})
    if text in held:
        return text
    try:
        label = registry.label(registry.resolve(text))
    except ForesightError:
        label = ""
    if label not in held:
        raise DataError(f"{found.cohort} holds no cells of {text}.", f"It holds {', '.join(held) or 'controls alone'}.")
    return label
