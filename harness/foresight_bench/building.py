"""From a results folder to its board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foresight_bench.admission import Admission, Admitted, admit
from foresight_bench.board import Board, Cohort, Placed, Row, Section
from foresight_bench.calibration import Calibration, calibration
from foresight_bench.candidates import candidates
from foresight_bench.cards import cards
from foresight_bench.cells import Cell
from foresight_bench.errors import DataError
from foresight_bench.intake import plain
from foresight_bench.labels import KINDS, command, family_of, kind_of, size_of, streams_of, surrogate
from foresight_bench.ranking import front, ranks
from foresight_bench.registry import Registry
from foresight_bench.specs import ExperimentSpec, SuiteSpec
from foresight_bench.store import Store
from foresight_bench.tables import combination, gating


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
        candidates(suite, [each.cell for each in mine], registry),
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
