"""The verdicts of a board as one picture: a row a system, a column a gated metric, between floor and ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from foresight_bench.board import Board, Candidate, Cohort
from foresight_bench.cells import Estimate, MetricResult
from foresight_bench.pages.charts import chart
from foresight_bench.pages.shell import GLYPHS, TONES
from foresight_bench.tables import number, threshold

INK, PAPER, QUIET = "#1b1f24", "#ffffff", "#57606a"
FILLS = {"yes": "#cfe8f7", "no": "#fbdcc7", "open": "#e6e6e6", "": PAPER}
"""By tone; each stands beside its sign, so that nothing rests on the colour."""
MOST = 12
"""Systems shown; a table has the others."""
FIRST = 3.2
"""Heights of a row above the first one."""
Column = tuple[str, str]
"""Experiment and metric."""
_LEFT, _COLUMN, _RIGHT, _ROW = 3.0, 0.82, 1.1, 0.27  # inches


@dataclass(frozen=True)
class _Line:
    """One row of the picture."""

    label: str
    values: tuple[tuple[str, str], ...]
    """Text and tone of each metric."""
    end: tuple[str, str] = ("", "")
    """Text and tone of the gate."""


@dataclass(frozen=True)
class _Block:
    """What is shown of a cohort."""

    cohort: Cohort
    columns: tuple[Column, ...]
    lines: tuple[_Line, ...]
    thresholds: Mapping[Column, str]

    @classmethod
    def of(cls, cohort: Cohort) -> _Block:
        columns = tuple((section.spec.name, metric) for section in cohort.sections for metric in section.metrics)
        lines, thresholds = _lines(cohort, columns)
        return cls(cohort, columns, tuple(lines), thresholds)

    @property
    def rows(self) -> int:
        """Heights of a row that it takes, heading and space below included."""
        return len(self.lines) + 4

    @property
    def said(self) -> str:
        """The same in words."""
        verdicts = "; ".join(f"{line.label} {line.end[0]}" for line in self.lines if line.end[0])
        return f"Verdicts of suite {self.cohort.suite.name}: {verdicts}"


def picture(board: Board) -> str:
    """Return an SVG file: of each cohort the complete systems, and what the controls give beside them."""
    blocks = [_Block.of(cohort) for cohort in board.cohorts]
    width = _LEFT + _COLUMN * max(len(block.columns) for block in blocks) + _RIGHT
    height = _ROW * sum(block.rows for block in blocks)
    with chart(width, height, ". ".join(block.said for block in blocks)) as drawing:
        drawing.figure.set_layout_engine("none")
        axes = drawing.figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        first = 0
        for block in blocks:
            _head(axes, block, first * _ROW)
            for index, line in enumerate(block.lines):
                _draw(axes, line, (first + index + FIRST) * _ROW)
            first += block.rows
    opening, rest = drawing.svg.replace("currentColor", INK).split(">", 1)
    return f'{opening}><rect width="100%" height="100%" fill="{PAPER}"/>{rest}'


def _lines(cohort: Cohort, columns: Sequence[Column]) -> tuple[list[_Line], dict[Column, str]]:
    """Return the rows, and the threshold of each column."""
    shown = [each for each in cohort.candidates if each.complete and each.kind != "control" and not each.seed]
    shown = sorted(shown, key=lambda each: each.kind != "system")[:MOST]
    usual = cohort.suite.default_adapter, cohort.suite.default_decoder
    default = next((each for each in shown if (each.adapter, each.decoder) == usual), None)
    beside = _results(cohort, default) if default else {}
    lines: list[_Line] = []
    if default:
        ceilings = {column: result.ceiling for column, result in beside.items()}
        lines.append(_control(f"ceiling, {default.decoder}", ceilings, columns))
    lines += [_system(each, _results(cohort, each), columns) for each in shown]
    if default:
        floors = {column: result.floors.get(result.best_floor) for column, result in beside.items()}
        lines.append(_control(f"best floor, {default.decoder}", floors, columns))
    return lines, {column: threshold(result) for column, result in beside.items()}


def _results(cohort: Cohort, each: Candidate) -> dict[Column, MetricResult]:
    """Return what a system scored, by experiment and metric."""
    mine = each.encoder, each.seed
    return {
        (section.spec.name, placed.result.metric): placed.result
        for section in cohort.sections
        for row in section.rows
        if (identity := row.cell.identity) and (identity.encoder, identity.seed) == mine
        if identity.adapter in (None, each.adapter) and identity.decoder in (None, each.decoder)
        for placed in row.placed
    }


def _control(label: str, values: Mapping[Column, Estimate | None], columns: Sequence[Column]) -> _Line:
    texts = [number(each.value) if (each := values.get(column)) else "–" for column in columns]
    return _Line(label, tuple((text, "") for text in texts))


def _system(each: Candidate, results: Mapping[Column, MetricResult], columns: Sequence[Column]) -> _Line:
    values = []
    for column in columns:
        result = results.get(column)
        values.append(_worded(number(result.estimate.value), result.verdict or "") if result else ("–", ""))
    status = str(each.gates[0][1].status) if each.gates else ""
    through = " + ".join(part for part in (each.adapter, each.decoder) if part)
    return _Line(f"{each.name}, {through}", tuple(values), _worded("", status, f" {status}"))


def _worded(value: str, verdict: str, word: str = "") -> tuple[str, str]:
    sign = GLYPHS.get(verdict, "")
    return f"{value} {sign}{word}".strip(), TONES.get(sign, "open") if sign else ""


def _head(axes: Axes, block: _Block, top: float) -> None:
    cohort, columns = block.cohort, block.columns
    names, metrics, limits = (top + rows * _ROW for rows in (0.6, 1.5, 2.3))
    for index, column in enumerate(columns):
        x = _LEFT + (index + 0.5) * _COLUMN
        if index == 0 or columns[index - 1][0] != column[0]:
            axes.text(x - 0.5 * _COLUMN + 0.04, names, column[0], weight="bold", va="center", parse_math=False)
        axes.text(x, metrics, column[1], ha="center", va="center", size=7.5, parse_math=False)
        axes.text(x, limits, block.thresholds.get(column, ""), ha="center", va="center", size=7.5, color=QUIET)
    title = cohort.suite.gates[0].title.partition(":")[0] if cohort.suite.gates else ""
    axes.text(_LEFT + _COLUMN * len(columns) + 0.5 * _RIGHT, names, title, weight="bold", ha="center", va="center")
    label = f"suite {cohort.suite.name}, version {cohort.suite.version}"
    axes.text(0.08, names, label, va="center", color=QUIET, parse_math=False)
    axes.text(0.08, metrics, cohort.machine, va="center", size=7.5, color=QUIET, parse_math=False)


def _draw(axes: Axes, line: _Line, top: float) -> None:
    middle = top + _ROW / 2
    axes.text(0.08, middle, line.label, va="center", size=8, parse_math=False, clip_on=True)
    for index, (text, tone) in enumerate(line.values):
        left = _LEFT + index * _COLUMN
        axes.fill_between([left + 0.03, left + _COLUMN - 0.03], top + 0.02, top + _ROW - 0.02, color=FILLS[tone], lw=0)
        axes.text(left + _COLUMN / 2, middle, text, ha="center", va="center", size=8, parse_math=False)
    left = _LEFT + len(line.values) * _COLUMN
    text, tone = line.end
    axes.fill_between([left + 0.05, left + _RIGHT - 0.05], top + 0.02, top + _ROW - 0.02, color=FILLS[tone], lw=0)
    axes.text(left + _RIGHT / 2, middle, text, ha="center", va="center", size=8, weight="bold", parse_math=False)
