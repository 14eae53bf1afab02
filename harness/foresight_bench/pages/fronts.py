"""Quality against cost: a chart for each gated metric of an experiment, with the front that nothing dominates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from foresight_bench.board import Placed, Row, Section
from foresight_bench.pages.charts import COLOURS, MARKERS, chart
from foresight_bench.tables import threshold

WIDE = 20
"""Ratio of the largest cost to the smallest from which on the axis is logarithmic."""
INTERVALS = 60
"""Rows up to which each shows its interval; of more, the lines would hide the points."""


@dataclass(frozen=True)
class Front:
    """One chart."""

    metric: str
    svg: Markup
    best: tuple[Row, ...]
    """The rows on the front, cheapest first, as they are numbered in the chart."""


@dataclass(frozen=True)
class _Point:
    row: Row
    placed: Placed
    seconds: float
    value: float


def fronts(section: Section, families: Sequence[str]) -> list[Front]:
    """Return the charts of an experiment; none for a metric that fewer than two systems have.

    Args:
        families: of all rows of the cohort: one keeps its colour and its marker from chart to chart.
    """
    found = []
    for metric in section.metrics:
        points = [
            _Point(row, placed, row.seconds, placed.result.estimate.value)
            for row in section.rows
            if row.kind == "system" and row.seconds is not None
            for placed in row.placed
            if placed.result.metric == metric and placed.result.estimate.value is not None
        ]
        if len(points) > 1:
            found.append(_front(section.spec.name, metric, points, families))
    return found


def _front(experiment: str, metric: str, points: Sequence[_Point], families: Sequence[str]) -> Front:
    best = sorted((point for point in points if point.placed.front), key=lambda point: (point.seconds, point.value))
    result = points[0].placed.result
    with chart(3.6, 2.8, f"{experiment}: {metric} of {len(points)} systems against their seconds") as drawing:
        axes = drawing.figure.add_subplot()
        for index, family in enumerate(families):
            mine = [point for point in points if point.row.family == family]
            if mine:
                _draw(axes, mine, index, len(points) <= INTERVALS)
        seconds, values = [point.seconds for point in best], [point.value for point in best]
        axes.step(seconds, values, where="post", color=COLOURS[-1], linewidth=1, zorder=1)
        for number, point in enumerate(best, 1):
            axes.annotate(str(number), (point.seconds, point.value), (5, 4), textcoords="offset points", fontsize=9)
        if result.threshold is not None:
            axes.axhline(result.threshold, color=COLOURS[-1], linestyle="--", linewidth=1, zorder=0)
        costs = [point.seconds for point in points]
        if max(costs) > WIDE * min(costs) > 0:
            axes.set_xscale("log")
        axes.margins(0.12)
        axes.set_xlabel("seconds: feature pass and experiment", parse_math=False)
        axes.set_ylabel(f"{metric} {threshold(result)}", parse_math=False)
    return Front(metric, drawing.svg, tuple(point.row for point in best))


def _draw(axes: Axes, points: Sequence[_Point], index: int, intervals: bool) -> None:
    """Draw the rows of one family: hollow where the decoder is a surrogate."""
    colour, marker = sign(index)
    if intervals:
        for point in points:
            found = point.placed.result.estimate
            if found.low is not None and found.high is not None:
                axes.plot([point.seconds] * 2, [found.low, found.high], color=colour, linewidth=1, zorder=2)
    for hollow in (False, True):
        some = [point for point in points if bool(point.row.surrogate) is hollow]
        axes.plot(
            [point.seconds for point in some],
            [point.value for point in some],
            linestyle="none",
            marker=marker,
            markersize=5,
            markeredgecolor=colour,
            markerfacecolor="none" if hollow else colour,
            zorder=3,
        )


def sign(index: int) -> tuple[str, str]:
    """Return colour and marker of the family number ``index``; the first 49 have pairs of their own."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
