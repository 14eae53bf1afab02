"""What the charts of a report show, as data, and what each of them says in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.tables import gating, number, threshold, with_interval


@dataclass(frozen=True)
class Curve:
    """One metric over the taps."""

    metric: str
    direction: str
    taps: tuple[str, ...]
    """In order of depth."""
    readings: Mapping[str, tuple[Estimate | None, ...]]
    """By readout, the one that gates first: an estimate a tap, None where none was measured."""
    gate: MetricResult | None
    """The result that the verdict rests on, with threshold, floors and ceiling; None if the metric has no threshold."""
    tap: str
    """The tap that gates."""

    @property
    def finding(self) -> str:
        """Where it begins, where it ends, and where it is best."""
        estimates = next(iter(self.readings.values()))
        read = [(tap, e.value) for tap, e in zip(self.taps, estimates, strict=True) if e and e.value is not None]
        if not read:
            return "No value is finite."
        best = (min if self.direction == "lower" else max)(read, key=lambda each: each[1])
        parts = [f"{number(read[0][1])} at {read[0][0]}, {number(read[-1][1])} at {read[-1][0]}"]
        parts.append(f"{'highest' if self.direction == 'none' else 'best'} {number(best[1])} at {best[0]}")
        parts += [f"{number(value)} at {tap}, which gates" for tap, value in read if tap == self.tap]
        return f"{'; '.join(parts)}."

    @property
    def sentence(self) -> str:
        """What the chart shows, for those who do not see it."""
        readout = next(iter(self.readings))
        limits = f" {bounds(self.gate).capitalize()}." if self.gate is not None else ""
        others = [name for name in self.readings if name != readout]
        beside = f" Beside it: {', '.join(others)}." if others else ""
        return (
            f"{self.metric} ({better(self.direction)}) over taps, read from {readout}: {self.finding}{limits}{beside}"
        )


def curves(cell: Cell) -> list[Curve]:
    """Return a curve for each metric that was read at two taps or more by the readout that gates."""
    taps = cell.identity.taps
    found: dict[str, dict[str, dict[str, MetricResult]]] = {}
    for result in cell.metrics:
        if result.tap in taps:
            found.setdefault(result.metric, {}).setdefault(result.readout, {})[result.tap] = result
    gates = {result.metric: result for result in gating(cell)}
    made = []
    for metric, readouts in found.items():
        if len(readouts.get(cell.readout, ())) < 2:
            continue
        order = sorted(readouts, key=lambda name: (name != cell.readout, -len(readouts[name])))
        readings = {
            name: tuple(readouts[name][tap].estimate if tap in readouts[name] else None for tap in taps)
            for name in order
        }
        direction = next(iter(readouts[cell.readout].values())).direction
        made.append(Curve(metric, direction, taps, readings, gates.get(metric), cell.tap))
    return made


@dataclass(frozen=True)
class Bars:
    """One gated metric of several cells that are judged beside controls through the same decoder."""

    metric: str
    direction: str
    rows: tuple[tuple[str, MetricResult], ...]
    """What tells the cells apart, and the result of each."""

    @property
    def sentence(self) -> str:
        """What the chart shows, for those who do not see it."""
        values = [
            f"{name + ' ' if name else ''}{with_interval(result.estimate)} {result.verdict or ''}".strip()
            for name, result in self.rows
        ]
        return f"{self.metric} ({better(self.direction)}): {', '.join(values)}; {bounds(self.rows[0][1])}."

    @property
    def meaning(self) -> str:
        """Whether the threshold tells the controls apart."""
        first = self.rows[0][1]
        floor, ceiling = best_floor(first), first.ceiling
        if floor is None or floor.value is None or ceiling is None or ceiling.value is None:
            return "A control is missing, so the threshold says nothing here."
        if any(result.verdict == "VACUOUS" for _, result in self.rows):
            return "A floor reaches the threshold, so to pass it means nothing."
        if any(result.verdict == "UNREACHABLE" for _, result in self.rows):
            return "The ceiling does not clear the threshold, so to miss it means nothing."
        return (
            f"The threshold tells them apart: {first.ceiling_name} clears it with {number(ceiling.value)}, "
            f"the best floor, {first.best_floor}, misses it with {number(floor.value)}."
        )


def bars(cells: Sequence[Cell]) -> list[Bars]:
    """Return one chart's data for each gated metric of ``cells``, which differ in the adapter alone."""
    found: dict[str, list[tuple[str, MetricResult]]] = {}
    for cell in cells:
        for result in gating(cell):
            found.setdefault(result.metric, []).append((cell.identity.adapter or "", result))
    return [Bars(metric, rows[0][1].direction, tuple(rows)) for metric, rows in found.items()]


def best_floor(result: MetricResult) -> Estimate | None:
    """Return the floor that came closest, None if there is none."""
    return result.floors.get(result.best_floor)


def bounds(result: MetricResult) -> str:
    """Return threshold, best floor and ceiling in a clause."""
    floor, parts = best_floor(result), [f"threshold {threshold(result)}"]
    if floor is not None:
        parts.append(f"best floor {number(floor.value)} ({result.best_floor})")
    if result.ceiling is not None:
        parts.append(f"ceiling {number(result.ceiling.value)} ({result.ceiling_name})")
    return ", ".join(parts)


def better(direction: str) -> str:
    """Return which way a metric is better, in words."""
    return "reported" if direction == "none" else f"{direction} is better"
