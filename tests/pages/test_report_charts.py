"""What is drawn stands where the numbers say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from committed import QUICK
from foresight_bench.cells import Cell
from foresight_bench.pages import report_charts
from foresight_bench.series import bars, curves
from foresight_bench.store import Store


@pytest.fixture(scope="module")
def cells() -> dict[str, Cell]:
    return {
        cell.identity.experiment: cell
        for cell in Store(QUICK).cells()
        if cell.identity.encoder == "dinov2:small"
        and cell.identity.adapter in (None, "linear")
        and cell.identity.decoder in (None, "ltx-tiny")
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keep what is drawn."""
    kept: list[Figure] = []

    @contextmanager
    def keeping(width: float, height: float, label: str) -> Iterator[Any]:
        kept.append(Figure(figsize=(width, height)))
        yield SimpleNamespace(figure=kept[-1], svg=label)

    monkeypatch.setattr(report_charts, "chart", keeping)
    return kept


def verticals(figure: Figure) -> dict[str, list[float]]:
    """Return where lines from top to bottom, or across a bar, stand, by style and width."""
    found: dict[str, list[float]] = {}
    for line in figure.axes[0].lines:
        x = np.asarray(line.get_xdata(), dtype=float)
        if len(x) == 2 and x[0] == x[1]:
            found.setdefault(f"{line.get_color()} {line.get_linewidth():g}", []).append(float(x[0]))
    return found


def test_a_bar_stands_between_its_floor_and_its_ceiling(cells: dict[str, Cell], figures: list[Figure]) -> None:
    (lpips, *_) = bars([cells["C1"]])
    result = lpips.rows[0][1]
    assert result.ceiling is not None
    assert "mine: lpips" in report_charts.bars_chart(lpips, "mine")
    axes = figures[0].axes[0]
    between, value = axes.patches
    assert value.get_width() == result.estimate.value
    ends = between.get_x(), between.get_x() + between.get_width()
    floor = result.floors[result.best_floor].value
    assert ends == pytest.approx((floor, result.ceiling.value))
    found = verticals(figures[0])
    orange, green = (found[f"{colour} 3"] for colour in (report_charts.COLOURS[1], report_charts.COLOURS[2]))
    assert (orange, green) == ([floor], [result.ceiling.value])
    assert [0.35] in found.values(), "the threshold"
    (bar,) = (line for container in axes.collections for line in container.get_segments())
    assert [x for x, _ in bar] == pytest.approx([result.estimate.low, result.estimate.high])
    words = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert words == ["value, 95% interval", "threshold < .350", "floor .661 shuffled", "ceiling .175 oracle"]


def test_a_curve_goes_through_its_values_and_marks_the_tap_that_gates(
    cells: dict[str, Cell], figures: list[Figure]
) -> None:
    q2 = cells["Q2"]
    curve = curves(q2)[0]
    assert curve.gate is not None
    assert curve.gate.ceiling is not None
    report_charts.curve_chart(curve, "mine")
    axes = figures[0].axes[0]
    tokens, extent, pooled, _ = (container.lines[0] for container in axes.containers)
    assert list(tokens.get_ydata()) == [each.value for each in curve.readings["tokens"] if each]
    assert list(tokens.get_xdata()) == [0, 1, 2, 3, 4]
    assert list(extent.get_xdata()) == pytest.approx([0.08, 1.08, 2.08, 3.08, 4.08])
    assert [round(x) for x in pooled.get_xdata()] == [0, 1, 2, 3, 4]
    assert list(pooled.get_ydata()) == [each.value for each in curve.readings["pooled"] if each]
    reach = [segment[:, 1].tolist() for segment in axes.containers[0].lines[2][0].get_segments()]
    assert np.allclose(reach, [[each.low, each.high] for each in curve.readings["tokens"] if each])
    bands = sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in axes.patches)
    floor, ceiling = curve.gate.floors[curve.gate.best_floor], curve.gate.ceiling
    assert np.allclose(bands, [(floor.low, floor.high), (ceiling.low, ceiling.high)])
    limits = [line for line in axes.lines if (line.get_linestyle(), line.get_linewidth()) == ("--", 1.3)]
    dashed = [line.get_ydata()[0] for line in limits]
    assert dashed == [curve.gate.threshold]
    assert verticals(figures[0])["#8c8c8c 7"] == [q2.identity.taps.index(q2.tap)]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(curve.taps)


def test_many_taps_are_thinned_out_on_the_axis(cells: dict[str, Cell], figures: list[Figure]) -> None:
    curve = curves(cells["Q2"])[0]
    taps = tuple(f"block.{k}" for k in range(40))
    estimates = (curve.readings["tokens"] * 8)[:40]
    report_charts.curve_chart(type(curve)("m", "higher", taps, {"tokens": estimates}, None, "block.39"), "mine")
    names = [text.get_text() for text in figures[0].axes[0].get_xticklabels()]
    assert names == list(taps[::3])


def test_long_names_keep_both_their_ends_and_no_name_turns_the_page() -> None:
    assert report_charts.short("block.11") == "block.11"
    assert report_charts.short("a" * 20 + "b" * 20) == "aaaaaaaa…bbbbbbb"
    assert report_charts.short("\u202eab") == "\\u202eab"
