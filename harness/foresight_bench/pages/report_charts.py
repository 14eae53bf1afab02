"""The charts of a report: a bar between its controls for each gated metric, and each metric over the taps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from foresight_bench.intake import plain
from foresight_bench.pages.charts import COLOURS, MARKERS, chart
from foresight_bench.series import Bars, Curve, best_floor, better
from foresight_bench.tables import number, threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from foresight_bench.cells import Estimate, MetricResult

WIDTH = 3.4
"""Inches: 326 pixels, which a telephone shows without shrinking them."""
LONGEST = 16
"""Characters of a name on an axis; the table below the chart has it whole."""
ASIDE = 0.08
"""Of the way to the next tap: how far readings of one tap stand apart, so that none hides another."""
LARGEST = 1e9
"""What stands beyond is drawn there: no metric gives it, and a file that says 1e308 leaves no room for an axis."""
TICKS = 14
"""Names of taps on an axis at most."""

_INK = "#010203"
_VALUE = COLOURS[0]
_FLOOR: dict[str, Any] = {"color": COLOURS[1], "linestyle": (0, (1, 0.6))}
_CEILING: dict[str, Any] = {"color": COLOURS[2], "linestyle": "-"}


def short(text: str) -> str:
    """Return ``text`` in printable characters, its middle left out if it is long."""
    text = plain(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[1 - LONGEST // 2 :]}"


def bars_chart(bars: Bars, subject: str) -> Markup:
    """Return the SVG of ``bars``: a bar a cell, its interval, and where the floor, the threshold and the ceiling are.

    Args:
        subject: what the cells are of, so that no two charts of a page are alike.
    """
    with chart(WIDTH, 1.25 + 0.3 * len(bars.rows), f"{subject}: {bars.sentence}") as drawing:
        axes = drawing.figure.add_subplot()
        axes.use_sticky_edges = False  # else what stands at the end of the axis is cut in two
        for y, (_, result) in enumerate(bars.rows):
            _between(axes, result, y)
            estimate = result.estimate
            if estimate.value is not None:
                axes.barh(y, _at(estimate.value), height=0.36, color=_VALUE)
                axes.errorbar(
                    _at(estimate.value), y, xerr=_error([estimate]), fmt="none", ecolor=_INK, capsize=3, linewidth=1.2
                )
        limit = bars.rows[0][1].threshold
        if limit is not None:
            axes.axvline(_at(limit), color=_INK, linestyle="--", linewidth=1.3)
        names = [short(name) for name, _ in bars.rows]
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_title(f"{plain(bars.metric)}, {better(bars.direction)}", loc="left")
        _legend(drawing.figure, [Patch(color=_VALUE, label="value, 95% interval")], bars.rows[0][1])
    return drawing.svg


def _between(axes: Axes, result: MetricResult, y: float) -> None:
    """Mark the floor and the ceiling of one row by their intervals, and what lies between them."""
    floor, ceiling = best_floor(result), result.ceiling
    if floor is not None and ceiling is not None and floor.value is not None and ceiling.value is not None:
        start, stop = _at(floor.value), _at(ceiling.value)
        axes.barh(y, stop - start, left=start, height=0.74, color="#8c8c8c", alpha=0.22, zorder=0)
    for estimate, style in ((floor, _FLOOR), (ceiling, _CEILING)):
        if estimate is not None and estimate.value is not None:
            axes.plot([_at(estimate.value)] * 2, [y - 0.37, y + 0.37], linewidth=3, solid_capstyle="butt", **style)


def curve_chart(curve: Curve, subject: str) -> Markup:
    """Return the SVG of ``curve``: a line a readout, floor and ceiling as bands, the tap that gates marked.

    Args:
        subject: what the curve is of, so that no two charts of a page are alike.
    """
    with chart(WIDTH, 3.3, f"{subject}: {curve.sentence}") as drawing:
        axes = drawing.figure.add_subplot()
        places = np.arange(len(curve.taps))
        handles: list[Line2D | Patch] = []
        for index, (readout, estimates) in enumerate(curve.readings.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            here = [(x, e) for x, e in zip(places, estimates, strict=True) if e is not None and e.value is not None]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5}
            style["linestyle"] = "--" if index else "-"
            axes.errorbar(
                [x + ASIDE * index for x, _ in here],
                [_at(e.value) for _, e in here],
                yerr=_error([e for _, e in here]),
                capsize=2.5,
                linewidth=1 if index else 1.5,
                **style,
            )
            handles.append(Line2D([], [], label=short(readout), **style))
        if curve.gate is not None:
            _bands(axes, curve.gate)
        if curve.tap in curve.taps:
            axes.axvline(curve.taps.index(curve.tap), color="#8c8c8c", linewidth=7, alpha=0.25, zorder=0)
            handles.append(Patch(color="#8c8c8c", alpha=0.25, label="tap that gates"))
        step = -(-len(places) // TICKS)
        axes.set_xticks(places[::step], [short(tap) for tap in curve.taps[::step]], rotation=40, ha="right")
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_title(f"{plain(curve.metric)}, {better(curve.direction)}", loc="left")
        _legend(drawing.figure, handles, curve.gate)
    return drawing.svg


def _bands(axes: Axes, gate: MetricResult) -> None:
    for estimate, style in ((best_floor(gate), _FLOOR), (gate.ceiling, _CEILING)):
        if estimate is not None and estimate.low is not None and estimate.high is not None:
            axes.axhspan(_at(estimate.low), _at(estimate.high), color=style["color"], alpha=0.3, linewidth=0, zorder=0)
            for edge in (estimate.low, estimate.high):
                axes.axhline(_at(edge), linewidth=1, zorder=0, **style)
    if gate.threshold is not None:
        axes.axhline(_at(gate.threshold), color=_INK, linestyle="--", linewidth=1.3)


def _legend(figure: Figure, handles: list[Line2D | Patch], gate: MetricResult | None) -> None:
    """Say below the axes what is what."""
    shown = list(handles)
    if gate is not None:
        floor = best_floor(gate)
        shown.append(Line2D([], [], color=_INK, linestyle="--", label=f"threshold {threshold(gate)}"))
        for name, who, estimate, style in (
            ("floor", gate.best_floor, floor, _FLOOR),
            ("ceiling", gate.ceiling_name, gate.ceiling, _CEILING),
        ):
            if estimate is not None:
                label = f"{name} {short(number(estimate.value))} {short(who)}"
                shown.append(Line2D([], [], linewidth=3, label=label, **style))
    figure.legend(handles=shown, loc="outside lower left", ncols=2, fontsize=8, handlelength=1.6, columnspacing=1)


def _error(estimates: list[Estimate]) -> np.ndarray | None:
    """Return [2, N] how far the intervals reach below and above their values; None for no estimate."""
    if not estimates:
        return None
    reach = []
    for each in estimates:
        value = _at(each.value)
        low, high = (value if end is None else _at(end) for end in (each.low, each.high))
        reach.append((value - low, high - value))
    return np.array(reach).T.clip(0, None)


def _at(value: float | None) -> float:
    """Return where ``value`` is drawn."""
    return min(max(value or 0.0, -LARGEST), LARGEST)
