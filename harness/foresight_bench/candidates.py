"""Which systems there are, what the gates say of each, and what is missing of those that are not complete."""

from __future__ import annotations

from collections.abc import Sequence

from foresight_bench.board import Candidate
from foresight_bench.cells import Cell
from foresight_bench.labels import KINDS, kind_of, surrogate
from foresight_bench.registry import Registry
from foresight_bench.specs import SuiteSpec
from foresight_bench.tables import System, combination, gate_result, gating


def candidates(suite: SuiteSpec, cells: Sequence[Cell], registry: Registry) -> tuple[Candidate, ...]:
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
