"""What a report of a run shows, out of a results folder: one cohort on one machine, and what was left out of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foresight_bench.cells import Cell
from foresight_bench.errors import DataError, ForesightError, UsageError
from foresight_bench.identities import LIMITED, cohort
from foresight_bench.intake import Intake, Problem, plain, problem, take
from foresight_bench.registry import Registry
from foresight_bench.specs import GateSpec, SuiteSpec
from foresight_bench.tables import GateResult, System, combination, gate_result, suite_experiments, systems
from foresight_bench.verdicts import Decision

SMOKE = re.compile(rf".*{re.escape(LIMITED)}([0-9]+)")
"""Name of a cohort of which only some clips were used."""

Group = tuple[str, str, str]
"""Cohort, machine, suite: cells that may stand on one page."""


@dataclass(frozen=True)
class Subject:
    """One encoder with one seed, and all that was asked of it."""

    encoder: str
    seed: int
    cells: tuple[Cell, ...]
    """The latest to each question, in order of experiment, decoder, adapter."""
    gates: tuple[tuple[System, GateSpec, GateResult], ...]
    """Each gate's status, system by system."""

    @property
    def name(self) -> str:
        """The encoder, and the seed unless it is 0."""
        return f"{self.encoder}, seed {self.seed}" if self.seed else self.encoder


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    suite: SuiteSpec
    cohort: str
    machine: str
    subjects: tuple[Subject, ...]
    controls: tuple[Cell, ...]
    """The latest cells of the suite's controls."""
    left_out: tuple[Problem, ...]
    """Files and folders that are not on the page, and why."""
    notes: tuple[str, ...]
    """What a reader must know before any number."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells on the page."""
        return tuple(cell for subject in self.subjects for cell in subject.cells) + self.controls

    def asked(self, experiment: str) -> list[Cell]:
        """Return the cells of one experiment, controls left out."""
        return [cell for one in self.subjects for cell in one.cells if cell.identity.experiment == experiment]

    @property
    def unfinished(self) -> tuple[Cell, ...]:
        """Cells without a score."""
        return tuple(cell for cell in self.cells if cell.status != "ok")


def place(run: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the results folder that ``run`` is or lies in, and the cohort and machine that it is, as far as it is one.

    Raises:
        DataError: there is no such folder, or it holds no results.
    """
    run = run.resolve()
    if not run.is_dir():
        raise DataError(f"There is no folder {run.name}.", "Name a results folder, as `run --results` writes it.")
    for pattern, root in (("*/*/*/*.json", run), ("*/*/*.json", run.parent), ("*/*.json", run.parent.parent)):
        if any(run.glob(pattern)):
            return root, run.relative_to(root).parts
    raise DataError(f"{run.name} holds no results.", "Run `foresight-bench run` first, or name another folder.")


def gather(
    run: Path, registry: Registry, encoders: Sequence[str] = (), suite: str | None = None
) -> tuple[Report, Intake]:
    """Return what a report of ``run`` shows, and the results it was taken from.

    Of several cohorts or machines the one with the latest cell is shown. Of several cells that answer the same question
    (after a change of code, say) the latest is.

    Args:
        run: a results folder, or the folder of a cohort or of a machine in it.
        encoders: the encoders to show; empty for all but controls.
        suite: the suite to show; None for whichever was run last.

    Raises:
        DataError: there are no results to show.
        UsageError: none of that encoder.
    """
    root, chosen = place(run)
    taken = take(root)
    within = [cell for cell in taken.cells if taken.path(cell).relative_to(root).parts[: len(chosen)] == chosen]
    groups: dict[Group, list[Cell]] = {}
    for cell in within:
        groups.setdefault((cell.identity.cohort, cell.provenance.machine, cell.identity.suite), []).append(cell)
    installed = set(registry.suites.names())
    open_to = [group for group in groups if group[2] in installed and suite in (None, group[2])]
    if not open_to:
        raise DataError(
            f"{run.name or run} holds no results of {f'the suite {suite}' if suite else 'an installed suite'}.",
            f"It holds results of {', '.join(sorted({plain(group[2]) for group in groups})) or 'none'}"
            f"{f', and {len(taken.faults)} files that are no sound cells' if taken.faults else ''}.",
        )
    shown = max(open_to, key=lambda group: (max(cell.provenance.finished for cell in groups[group]), group))
    spec = registry.suites[shown[2]].spec
    latest, superseded = _latest(groups[shown], spec)
    left_out = [
        *(each for each in (*taken.faults, *taken.strays) if Path(each.path).parts[: len(chosen)] == chosen),
        *(_elsewhere(group, groups[group], installed) for group in groups if group != shown),
        *(problem(root, taken.path(cell), reason) for cell, reason in superseded),
    ]
    subjects = _subjects(spec, latest, _named(encoders, registry))
    if not subjects:
        known = sorted({cell.identity.encoder for cell in latest} - set(spec.controls))
        wanted = f"of {', '.join(encoders)}" if encoders else "but of controls"
        raise UsageError(
            f"{run.name or run} holds no results {wanted} in the cohort {shown[0]}.",
            f"It holds {', '.join(known)}." if known else "Run an encoder first: `foresight-bench run -e dinov2`.",
        )
    controls = tuple(cell for cell in latest if cell.identity.encoder in spec.controls)
    seen = [cell for subject in subjects for cell in subject.cells] + list(controls)
    notes = tuple(_notes(seen, cohort(registry, spec)))
    return Report(spec, shown[0], shown[1], subjects, controls, tuple(left_out), notes), taken


def _latest(cells: Iterable[Cell], suite: SuiteSpec) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """Return the latest cell to each question, in the suite's order, and the others with the reason."""
    experiments = list(suite_experiments(suite))
    found: dict[object, Cell] = {}
    others = []
    for cell in sorted(cells, key=lambda cell: (cell.provenance.finished, cell.id)):
        if cell.identity.experiment not in experiments:
            others.append((cell, f"{cell.identity.experiment} is no experiment of the suite {suite.name}"))
            continue
        if cell.decision is not None and cell.decision not in list(Decision):
            others.append((cell, f"{cell.decision} is no decision"))
            continue
        question = cell.identity.experiment, combination(cell)
        if question in found:
            others.append((found[question], f"the cell {cell.id} answers the same, and is later"))
        found[question] = cell
    order = sorted(found.values(), key=lambda cell: (experiments.index(cell.identity.experiment), _order(cell)))
    return order, others


def _order(cell: Cell) -> tuple[str, int, str, str]:
    encoder, adapter, decoder, seed = combination(cell)
    return encoder, seed, decoder, adapter


def _elsewhere(group: Group, cells: Sequence[Cell], installed: set[str]) -> Problem:
    name, machine, suite = group
    why = "of another cohort or machine" if suite in installed else f"of the suite {suite}, which is not installed"
    count = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
    return Problem(plain(f"{name}/{machine}"), plain(f"{count} {why}, never shown beside these"))


def _named(encoders: Sequence[str], registry: Registry) -> set[str]:
    """Return ``encoders`` as results call them: what is installed may be named in short."""
    found = set(encoders)
    for name in encoders:
        try:
            found.add(registry.label(registry.resolve(name)))
        except ForesightError:
            continue  # results outlive a plugin
    return found


def _subjects(suite: SuiteSpec, cells: Sequence[Cell], encoders: set[str]) -> tuple[Subject, ...]:
    rows: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        encoder = cell.identity.encoder
        if encoder not in suite.controls and (not encoders or encoder in encoders):
            rows.setdefault((encoder, cell.identity.seed), []).append(cell)
    found = []
    for (encoder, seed), mine in sorted(rows.items()):
        gates = [
            (system, gate, gate_result(gate, group)) for system, group in systems(mine).items() for gate in suite.gates
        ]
        found.append(Subject(encoder, seed, tuple(mine), tuple(gates)))
    return tuple(found)


def _notes(cells: Sequence[Cell], expected: str) -> Iterable[str]:
    name = cells[0].identity.cohort
    smoke = SMOKE.fullmatch(name)
    if smoke:
        yield f"A first try on at most {smoke[1]} clips a block: no table accepts these numbers."
    elif name != expected:
        yield f"The cohort is not that of the installed suite, {expected}: other data or other metrics."
    if any(cell.provenance.dirty for cell in cells):
        yield "Some cells were computed from a source tree with uncommitted changes."
    yield from dict.fromkeys(warning for cell in cells for warning in cell.warnings)
