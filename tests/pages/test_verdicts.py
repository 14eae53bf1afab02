"""The picture of the verdicts: every number and sign in its place, from the board alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from foresight_bench.board import Board
from foresight_bench.building import build
from foresight_bench.pages.verdicts import _ROW, FIRST, picture
from foresight_bench.registry import Registry
from foresight_bench.tables import gating, number

ROOT = Path(__file__).parents[2]
TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture(scope="module")
def board() -> Board:
    return build(ROOT / "benchmarks" / "results", Registry.installed())


def lines(svg: str) -> dict[str, list[str]]:
    """Return the texts of each row from left to right, by the first of them."""
    rows: dict[int, list[tuple[float, str]]] = {}
    for each in ElementTree.fromstring(svg).iter(TEXT):
        row = int((float(each.get("y", "0")) / 72 / _ROW - FIRST) // 1)
        rows.setdefault(row, []).append((float(each.get("x", "0")), "".join(each.itertext())))
    return {row[0][1]: [text for _, text in row[1:]] for row in map(sorted, rows.values())}


@pytest.mark.parametrize("suite", ["gate1", "quick"])
def test_each_number_stands_in_its_row_and_column_with_its_sign(board: Board, suite: str) -> None:
    (cohort,) = (each for each in board.cohorts if each.suite.name == suite)
    found = lines(picture(replace(board, cohorts=(cohort,))))
    rows = [row for section in cohort.sections for row in section.rows]
    mine = [r for r in rows if r.name == "dinov2:small" and r.through in ("linear + ltx-tiny", "ltx-tiny", "")]
    signs = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "≈"}
    gated = [result for row in mine for result in gating(row.cell)]
    assert len(gated) == 11
    expected = [f"{number(result.estimate.value)} {signs[result.verdict or '']}" for result in gated]
    assert found["dinov2:small, linear + ltx-tiny"] == [*expected, "✗ BLOCKED"]
    ceilings = [number(result.ceiling.value) for result in gated if result.ceiling]
    assert found["ceiling, ltx-tiny"] == ceilings
    assert found["best floor, ltx-tiny"] == [number(result.floors[result.best_floor].value) for result in gated]
    assert "dinov2:small, fusion + ltx-tiny" not in found  # not complete


def test_cohorts_stand_one_below_the_other(board: Board) -> None:
    alone = [lines(picture(replace(board, cohorts=(cohort,)))) for cohort in board.cohorts]
    assert min(map(len, alone)) > 3
    texts = list(ElementTree.fromstring(picture(board)).iter(TEXT))
    places = {"".join(each.itertext()): float(each.get("y", "0")) for each in texts}  # the last of several
    heads = [places[f"suite {cohort.suite.name}, version {cohort.suite.version}"] for cohort in board.cohorts]
    assert len(heads) == 2
    rows = sorted(float(each.get("y", "0")) for each in texts if "".join(each.itertext()) == "best floor, ltx-tiny")
    assert heads[0] < rows[0] < heads[1] < rows[1]


def test_the_same_board_gives_the_same_bytes(board: Board) -> None:
    assert picture(board) == picture(board)


def test_a_name_is_text_and_a_board_without_complete_systems_is_drawn(board: Board) -> None:
    cohort = board.cohorts[0]
    hostile = tuple(replace(each, encoder="<script>$x_1$") for each in cohort.candidates)
    svg = picture(replace(board, cohorts=(replace(cohort, candidates=hostile),)))
    assert "<script>" not in svg
    assert "<script>$x_1$, linear + ltx-tiny" in lines(svg)
    assert len(lines(picture(replace(board, cohorts=(replace(cohort, candidates=()),))))) >= 2
