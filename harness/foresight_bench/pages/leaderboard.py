"""The leaderboard as one page: tables to sort and filter, charts, cards. What is shown is what the board says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from foresight_bench.board import Board, Cohort, Placed, Row, Section
from foresight_bench.board_files import rounded, row_record
from foresight_bench.cards import Card
from foresight_bench.cells import MetricResult
from foresight_bench.labels import Kind, family_of, size_of
from foresight_bench.pages import shell
from foresight_bench.pages.fronts import Front, fronts
from foresight_bench.tables import threshold

ORDER = {"PROCEED": 0, "PASSED": 0, "INCONCLUSIVE": 1, "PIVOT": 2, "BLOCKED": 2}
"""In which decisions are sorted."""
GROUPS: dict[Kind, str] = {
    "system": "",
    "transformed": "With a transform: what a system owes to what the transform takes away; not ranked",
    "control": "Controls, whose outcome is known beforehand; not ranked",
}
"""Headings of the groups of rows; those of the first need none."""
MOST = 100
"""Rows of a group that are laid out before more are asked for: 2,000 take a browser a second, 100 a tenth of one."""
FILTERS = ("family", "size", "tap", "adapter", "decoder")


@dataclass(frozen=True)
class Column:
    """A heading that sorts."""

    label: str
    first: str
    """``ascending`` or ``descending``: what the first press gives, the best on top."""


@dataclass(frozen=True)
class Sheet:
    """One experiment as a table."""

    section: Section
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    """Heading and rows."""
    charts: tuple[Front, ...]


@dataclass(frozen=True)
class View:
    """One cohort on the page."""

    cohort: Cohort
    key: str
    """Names it in the address."""
    sheets: tuple[Sheet, ...]
    filters: tuple[tuple[str, tuple[str, ...]], ...]
    """What can be chosen, and from what."""
    surrogates: tuple[tuple[str, str], ...]
    """Decoders, and why each is one."""
    links: dict[str, str]
    """Of every row: what it is called, by its cell's id."""
    records: Markup
    """JSON of every row by its cell's id, safe inside a script."""


def rendered(board: Board) -> str:
    """Return the page."""
    return shell.rendered(
        "leaderboard.html.j2",
        views=[_view(cohort) for cohort in board.cohorts],
        left_out=board.left_out,
        order=ORDER,
        groups=GROUPS,
        filters=FILTERS,
        most=MOST,
        facet=facet,
        by_metric=by_metric,
        family=family_of,
        size=size_of,
        webp=webp,
    )


def _view(cohort: Cohort) -> View:
    rows = [row for section in cohort.sections for row in section.rows]
    competing = [row for row in rows if row.kind != "control"]
    families = sorted({row.family for row in competing})
    return View(
        cohort,
        f"{cohort.name}/{cohort.machine}",
        tuple(_sheet(section, families) for section in cohort.sections if section.rows),
        tuple((name, _choices(competing, name)) for name in FILTERS),
        tuple(sorted({each.decoder: each.surrogate for each in cohort.candidates if each.surrogate}.items())),
        {row.cell.id: f"{row.cell.identity.experiment} {_name(row)}" for row in rows},
        htmlsafe_json_dumps(
            {row.cell.id: rounded(row_record(row)) for row in rows}, separators=(",", ":"), sort_keys=False
        ),
    )


def _name(row: Row) -> str:
    return f"{row.name}, {row.through}" if row.through else row.name


def _sheet(section: Section, families: Sequence[str]) -> Sheet:
    sample: dict[str, MetricResult] = {each.result.metric: each.result for row in section.rows for each in row.placed}
    columns = [Column("system", "ascending"), Column("tap", "ascending")]
    for name in section.metrics:
        lower = name in sample and sample[name].direction == "lower"
        label = f"{name} {threshold(sample[name])}" if name in sample else name
        columns.append(Column(label, "ascending" if lower else "descending"))
    columns += [Column("verdict", "ascending"), Column("seconds", "ascending")]
    groups = groupby(section.rows, key=lambda row: row.kind)
    return Sheet(
        section,
        tuple(columns),
        tuple((GROUPS[kind], tuple(rows)) for kind, rows in groups),
        tuple(fronts(section, families)),
    )


def _choices(rows: Sequence[Row], name: str) -> tuple[str, ...]:
    return tuple(sorted({facet(row, name) for row in rows} - {""}))


def facet(row: Row, name: str) -> str:
    """Return what a row is filtered by."""
    found = {
        "family": row.family,
        "size": row.size,
        "tap": row.cell.tap,
        "adapter": row.cell.identity.adapter or "",
        "decoder": row.cell.identity.decoder or "",
    }
    return found[name]


def by_metric(row: Row) -> dict[str, Placed]:
    """Return what a row scored by each gated metric."""
    return {each.result.metric: each for each in row.placed}


def webp(card: Card) -> str:
    """Return a card's picture as an address that holds it."""
    return shell.png(card.picture).replace("image/png", "image/webp", 1)
