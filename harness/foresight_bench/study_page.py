"""A study's figures beside the suite's, as Markdown and as a picture: the same numbers always give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import fill

from tabulate import tabulate

from foresight_bench.pages.charts import COLOURS, MARKERS, chart
from foresight_bench.studies import Row, Section, Study, Value
from foresight_bench.tables import number

INTRODUCTION = """\
Suite `{suite}` grew from a study whose figures are below. Beside each stands what its own protocol gives where the
answer is known beforehand: on features that hold all there is to know, which must pass, and on features that hold
nothing, which must fail. Of a protocol that does otherwise no figure says anything, whatever the features.

What the study reported is quoted; every other figure on this page is computed by `foresight-bench study`, on pictures
drawn as the study drew them, with every seed set. No model of vision is run. The columns of this suite are the controls
of its calibration, which `foresight-bench calibrate` runs."""
WIDTH = 120


def page(study: Study, picture: str = "") -> str:
    """Return the page as Markdown.

    Args:
        study: its numbers.
        picture: address of :func:`picture` beside the page; empty for none.
    """
    parts = [
        "# The study, rerun on features whose worth is known",
        INTRODUCTION.format(suite=study.suite),
        _table(study),
    ]
    if picture:
        parts.append(f"![Each figure of the table, as a mark beside its threshold]({picture})")
    parts.append(_summary(study))
    parts += [_section(section) for section in study.sections]
    return "\n\n".join(parts) + "\n"


def picture(study: Study) -> str:
    """Return an SVG file: one line a figure, with what was reported, both controls of the study's, and the threshold.

    Every line is turned and scaled so that the threshold stands at one place and better is to the right.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    label = "Each figure of the study beside its threshold, and what its protocol gives on perfect and blank features"
    rows = study.rows
    with chart(8.0, 0.5 * len(rows) + 1.0, label) as drawing:
        figure = drawing.figure
        figure.add_artist(Rectangle((0, 0), 1, 1, transform=figure.transFigure, color="white", zorder=-10))
        axes = figure.add_subplot()
        axes.axvspan(0, 1.15, color=COLOURS[2], alpha=0.1, linewidth=0)
        axes.axvline(0, color="black", linewidth=1)
        for place, row in enumerate(rows):
            axes.axhline(place, color="#cccccc", linewidth=0.5, zorder=0)
            # One above the other, since equal values would hide each other.
            marks = [(row.reported, 0, -0.27), (row.perfect, 2, -0.09), (row.blank, 1, 0.09)]
            if row.trap:
                marks.append((row.trap.value, 3, 0.27))
            for value, kind, away in marks:
                if value is not None:
                    axes.plot(
                        scaled(row, value), place + away, MARKERS[kind], color=COLOURS[kind], markersize=8, mec="white"
                    )
        axes.set_yticks(range(len(rows)), [f"{row.experiment} {row.title}" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-1.15, 1.15)
        axes.set_xticks((-1, 0, 1), ("worst", "threshold", "best"))
        names = ("reported", "blank features", "perfect features", "third input, see table")
        handles = [
            Line2D([], [], linestyle="", marker=MARKERS[kind], color=COLOURS[kind], markersize=8, label=name)
            for kind, name in enumerate(names)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return str(drawing.svg) + "\n"


def scaled(row: Row, value: float) -> float:
    """Return where ``value`` stands: 0 at the threshold, 1 at the best value, -1 at 0 (at 1 if lower is better).

    What lies beyond either end stands at that end.
    """
    best, worst = (1.0, 0.0) if row.direction == "higher" else (0.0, 1.0)
    end = best if row.passes(value) else worst
    place = abs(value - row.threshold) / abs(end - row.threshold)
    return min(1.0, place) if row.passes(value) else -min(1.0, place)


def _table(study: Study) -> str:
    body = [
        [
            row.experiment,
            row.title,
            f"{'>' if row.direction == 'higher' else '<'} {number(row.threshold)}",
            number(row.reported),
            _shown(row.perfect),
            _shown(row.blank),
            f"{_cell(row.trap.shown.strip(','))}: {number(row.trap.value)}" if row.trap else "",
            _cell(row.finding) or "-",
            f"{number(row.suite_perfect.value)} {row.ceiling}",
            number(row.suite_blank.value),
        ]
        for row in study.rows
    ]
    headers = ["", "figure", "threshold", "reported", "perfect", "blank", "a third input", "finding"]
    headers += ["this suite, perfect", "this suite, blank"]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def _summary(study: Study) -> str:
    found = [row for row in study.rows if row.finding]
    clean = [f"{row.experiment} {row.title}" for row in study.rows if not row.finding]
    text = (
        f"Of {len(study.rows)} thresholds, {len(found)} let something pass that must fail, or fail something that "
        "must pass."
        + (f" The controls find nothing against {_and(clean)}; its section says what else there is." if clean else "")
        + " The suite's own protocol passes its perfect features and fails its blank ones at "
        f"{sum(_separates(row) for row in study.rows)} of {len(study.rows)}, by the whole interval."
        " A dash is no value: constant features have no distances to correlate."
    )
    return _wrapped(text)


def _separates(row: Row) -> bool:
    ends = ((row.suite_perfect.low, row.suite_perfect.high), (row.suite_blank.low, row.suite_blank.high))
    perfect, blank = ([row.passes(end) for end in pair if end is not None] for pair in ends)
    return len(perfect) == len(blank) == 2 and all(perfect) and not any(blank)


def _section(section: Section) -> str:
    rows = [[_cell(_shown(value)) for value in row] for row in section.rows]
    table = tabulate(rows, [_cell(each) for each in section.headers], tablefmt="github", disable_numparse=True)
    said = (section.protocol, section.meaning, f"**Instead.** {section.instead}")
    protocol, meaning, instead = (_wrapped(_text(each)) for each in said)
    return "\n\n".join((f"## {_text(section.title)}", protocol, table, meaning, instead))


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return number(value)
    return "-" if value is None else str(value)


def _text(text: str) -> str:
    """Return ``text`` without what Markdown or HTML would take for markup."""
    return re.sub(r"([<>&`\[\]|\\])", lambda found: f"&#{ord(found[1])};", text)


def _cell(text: str) -> str:
    return " ".join(_text(text).split())


def _wrapped(text: str) -> str:
    return fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
