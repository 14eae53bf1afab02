"""Text for people: the table of an experiment, the retention curve over taps, the gate's status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from tabulate import tabulate

from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.specs import ExperimentSpec, GateSpec, SuiteSpec
from foresight_bench.verdicts import Decision, GateStatus, gate_status

BLOCKS = " ▁▂▃▄▅▆▇█"
SPACES = {"encoder": "encoder", "decoder": "decoder", "ratio": "decoder / encoder"}
"""Endings of the names of metrics that say the same thing of each space, as ``dim_mle_encoder``, and their headings."""


def number(value: float | None) -> str:
    """Return three significant decimals without a leading zero sign of false precision: ``.943``, ``18.5``."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def with_interval(estimate: Estimate | None) -> str:
    """Return ``.943 [.940, .946]``."""
    if estimate is None or estimate.value is None:
        return "-"
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def interval(estimate: Estimate) -> str:
    """Return ``[.940, .946]``."""
    return f"[{number(estimate.low)}, {number(estimate.high)}]" if estimate.value is not None else "-"


def threshold(result: MetricResult) -> str:
    """Return ``> .75`` or ``< .35``."""
    if result.threshold is None:
        return ""
    return f"{'>' if result.direction == 'higher' else '<'} {number(result.threshold)}"


def gating(cell: Cell) -> list[MetricResult]:
    """Return the metrics that the cell's verdict rests on."""
    return [result for result in cell.metrics if result.gates]


def experiment_table(cell: Cell, spec: ExperimentSpec, style: str = "simple") -> str:
    """Return the cell as a table: gated metrics first, then what else was read at the same tap and readout.

    What is said of each space by itself stands in a table of its own (:func:`spaces_table`).
    """
    rows = []
    for result in gating(cell):
        floor = result.floors.get(result.best_floor)
        verdict = result.verdict or ""
        if result.clips_needed is not None:
            verdict += f" (about {result.clips_needed} clips would decide)"
        rows.append(
            [
                result.metric,
                number(result.estimate.value),
                interval(result.estimate),
                threshold(result),
                f"{number(floor.value)} {result.best_floor}" if floor else "-",
                f"{number(result.ceiling.value)} {result.ceiling_name}" if result.ceiling else "-",
                number(result.skill),
                verdict,
            ]
        )
    for result in cell.metrics:
        if not result.gates and _at_tap(result, cell) and not _space(result):
            rows.append(
                [
                    result.metric,
                    number(result.estimate.value),
                    interval(result.estimate),
                    "",
                    "",
                    "",
                    "",
                    "reported",
                ]
            )
    headers = ["metric", "value", "95% interval", "threshold", "best floor", "ceiling", "skill", "verdict"]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True)


def spaces(cell: Cell) -> dict[str, dict[str, Estimate]]:
    """Return what was read of each space by itself at the cell's tap: by metric (``dim_mle``), then by ``SPACES``."""
    found: dict[str, dict[str, Estimate]] = {}
    for result in cell.metrics:
        if (space := _space(result)) and _at_tap(result, cell):
            found.setdefault(result.metric.removesuffix(f"_{space}"), {})[space] = result.estimate
    return found


def spaces_table(cell: Cell) -> str:
    """Return a table of both spaces side by side, one row a metric; empty if nothing was read of them."""
    rows = [[name, *(with_interval(values.get(space)) for space in SPACES)] for name, values in spaces(cell).items()]
    return tabulate(rows, ["reported", *SPACES.values()], disable_numparse=True) if rows else ""


def _space(result: MetricResult) -> str:
    """Return which space ``result`` is about by itself; empty if it compares the two."""
    return next((space for space in SPACES if result.metric.endswith(f"_{space}")), "")


def _at_tap(result: MetricResult, cell: Cell) -> bool:
    return (result.tap, result.readout) == (cell.tap, cell.readout)


def heading(cell: Cell, spec: ExperimentSpec) -> str:
    """Return the line above the table: experiment, decision, what was decoded with what, tap, clips."""
    identity = cell.identity
    through = [part for part in (identity.adapter, identity.decoder) if part]
    if identity.adapter and cell.cost is not None:
        through[0] += f" of {cell.cost.trainable_parameters:,} parameters"
    n = max((result.estimate.n for result in gating(cell)), default=0)
    where = ", ".join(([f"tap {cell.tap}"] if cell.tap else []) + through + ([f"{n} clips"] if n else []))
    decision = cell.decision or ("control" if cell.status == "ok" else cell.status.upper())
    return f"{spec.name} {decision}: {spec.question} ({where})"


def retention(cell: Cell) -> str:
    """Return a small plot of the gated metrics: one line a metric, one column a tap; empty for a single tap.

    A bar's height is where the value lies between the best floor and the ceiling.
    """
    read = {(r.metric, r.tap): r.estimate.value for r in cell.metrics if r.readout == cell.readout}
    taps = [tap for tap in cell.identity.taps if any(found == tap for _, found in read)]
    if len(taps) < 2:
        return ""
    rows = []
    for result in gating(cell):
        floor = result.floors[result.best_floor].value if result.best_floor else None
        ceiling = result.ceiling.value if result.ceiling else None
        values = [read.get((result.metric, tap)) for tap in taps]
        rows.append([result.metric] + [f"{_block(value, floor, ceiling)} {number(value)}" for value in values])
    aligned = ("right",) * (len(taps) + 1)
    return tabulate(rows, ["", *taps], tablefmt="plain", disable_numparse=True, colalign=aligned)


def _block(value: float | None, floor: float | None, ceiling: float | None) -> str:
    if value is None or floor is None or ceiling is None or ceiling == floor:
        return " "
    share = min(1.0, max(0.0, (value - floor) / (ceiling - floor)))
    return BLOCKS[round(share * (len(BLOCKS) - 1))]


def decisions(cells: Iterable[Cell], names: Sequence[str]) -> dict[str, Decision]:
    """Return the decision of each experiment of ``names`` that ``cells`` hold; a failed cell is INCONCLUSIVE."""
    found: dict[str, Decision] = {}
    for cell in cells:
        if cell.identity.experiment in names:
            decision = Decision(cell.decision) if cell.decision else Decision.INCONCLUSIVE
            found[cell.identity.experiment] = decision
    return found


@dataclass(frozen=True)
class GateResult:
    """What one system made of a gate."""

    status: GateStatus
    decisions: Mapping[str, Decision]
    taps: Mapping[str, str]
    """The tap that each experiment chose."""

    @property
    def one_tap(self) -> bool:
        """Whether all experiments were answered at the same tap."""
        return len(set(self.taps.values())) <= 1


def gate_result(gate: GateSpec, cells: Iterable[Cell]) -> GateResult:
    """Return the gate's status for one system.

    An experiment that was not run leaves the gate INCONCLUSIVE, and so do experiments that all proceed at
    different taps: no one representation has then been shown to do it all.
    """
    mine = [cell for cell in cells if cell.identity.experiment in gate.experiments]
    found = decisions(mine, gate.experiments)
    chosen = {cell.identity.experiment: cell.tap for cell in mine}
    taps = {name: chosen[name] for name in gate.experiments if chosen.get(name)}
    status = gate_status([found.get(name, Decision.INCONCLUSIVE) for name in gate.experiments])
    result = GateResult(status, found, taps)
    if status is GateStatus.PASSED and not result.one_tap:
        return replace(result, status=GateStatus.INCONCLUSIVE)
    return result


def gate_line(gate: GateSpec, result: GateResult) -> str:
    """Return the gate's status in one line, and a second one if the experiments chose different taps."""
    proceed = sum(decision is Decision.PROCEED for decision in result.decisions.values())
    parts = ", ".join(f"{name} {result.decisions.get(name, 'not run')}" for name in gate.experiments)
    line = f"{gate.title}: {result.status}, {proceed}/{len(gate.experiments)} proceed ({parts})"
    if result.one_tap:
        return line
    taps = ", ".join(f"{name} {tap}" for name, tap in result.taps.items())
    return f"{line}\nEach experiment took its best tap ({taps}); ask one tap all questions with ENCODER@TAP."


System = tuple[str, str, str, int]
"""Encoder, adapter, decoder, seed."""


def combination(cell: Cell) -> System:
    """Return what makes cells one system: encoder, adapter, decoder, seed."""
    i = cell.identity
    return i.encoder, i.adapter or "", i.decoder or "", i.seed


def systems(cells: Iterable[Cell]) -> dict[System, list[Cell]]:
    """Group cells into systems: an experiment that uses no adapter or decoder belongs to each of them."""
    every = list(cells)
    whole = [cell for cell in every if cell.identity.adapter is not None]
    whole = whole or [cell for cell in every if cell.identity.decoder is not None] or every
    full = sorted({combination(cell) for cell in whole})
    groups: dict[System, list[Cell]] = {}
    for key in full:
        groups[key] = [
            cell
            for cell in every
            if all(mine in (None, "", theirs) for mine, theirs in zip(_axes(cell), key, strict=True))
        ]
    return groups


def _axes(cell: Cell) -> tuple[object, ...]:
    i = cell.identity
    return i.encoder, i.adapter, i.decoder, i.seed


def run_text(suite: SuiteSpec, groups: Mapping[System, Sequence[Cell]]) -> str:
    """Return what there is to read about several systems; a cell that some of them share is shown with the first."""
    seen: set[str] = set()
    texts = []
    for system, cells in groups.items():
        texts.append(system_text(suite, system, cells, seen))
        seen.update(cell.id for cell in cells)
    return "\n\n".join(texts)


def system_text(suite: SuiteSpec, system: System, cells: Sequence[Cell], shown: AbstractSet[str] = frozenset()) -> str:
    """Return everything there is to read about one system: a table per experiment, curves, the gates' status.

    Of cells whose ids are among ``shown``, only the heading.
    """
    encoder, adapter, decoder, seed = system
    through = " + ".join(part for part in (adapter, decoder) if part)
    parts = [f"{encoder}  ({through + ', ' if through else ''}suite {suite.name}, seed {seed})"]
    experiments = suite_experiments(suite)
    for cell in sorted(cells, key=lambda cell: list(experiments).index(cell.identity.experiment)):
        spec = experiments[cell.identity.experiment]
        if cell.id in shown:
            parts.append(f"{heading(cell, spec)}\n  as above")
            continue
        body = experiment_table(cell, spec) if cell.status == "ok" else f"  {cell.reason}"
        parts.append(f"{heading(cell, spec)}\n{body}")
        if both := spaces_table(cell):
            parts.append(both)
        if curve := retention(cell):
            parts.append(f"Retention over taps ({cell.readout}; bars from best floor to ceiling)\n{curve}")
    if encoder not in suite.controls:  # a control is not judged
        parts += [gate_line(gate, gate_result(gate, cells)) for gate in suite.gates]
    return "\n\n".join(parts)


def suite_experiments(suite: SuiteSpec) -> dict[str, ExperimentSpec]:
    """Return the suite's experiments by name."""
    return {spec.name: spec for spec in suite.experiments}
