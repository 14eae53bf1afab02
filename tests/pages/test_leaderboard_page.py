"""The leaderboard in a real browser: sorted, filtered, linked to, copied from, at any size and with any name."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
from playwright.sync_api import Page, expect

from committed import QUICK
from foresight_bench.board import Board, Row
from foresight_bench.building import build
from foresight_bench.intake import Problem
from foresight_bench.pages.leaderboard import MOST, rendered
from foresight_bench.ranking import Rank
from foresight_bench.registry import Registry
from foresight_bench.store import Store

LONG = "x" * 300
HOSTILE = f"""<script>alert(1)</script>"' onload=x </script><img src=x onerror=alert(2)> \u202egnihtemos {LONG}"""
Barriers, Overflow, Opened = Callable[[Page], list[str]], Callable[[Page], int], Callable[..., Page]


@pytest.fixture(scope="module")
def board() -> Board:
    return build(QUICK, Registry.installed())


@pytest.fixture(scope="module")
def two(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two cohorts: the committed one and, on another machine, the first system alone."""
    cohort = board.cohorts[0]
    sections = tuple(replace(each, rows=tuple(map(_moved, each.rows))) for each in few(board).cohorts[0].sections)
    other = replace(cohort, machine="elsewhere", sections=sections, cards=())
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(rendered(replace(board, cohorts=(cohort, other))), "utf-8")
    return path


def few(board: Board) -> Board:
    """Return the first system and one control alone: what there is on a page, and few rows of it."""
    cohort = board.cohorts[0]
    sections = tuple(
        replace(section, rows=tuple(row for row in section.rows if row.name in ("dinov2:small", "oracle")))
        for section in cohort.sections
    )
    links = {row.cell.id for section in sections for row in section.rows}
    card = replace(cohort.cards[0], cells=tuple(cell for cell in cohort.cards[0].cells if cell in links))
    return replace(board, cohorts=(replace(cohort, sections=sections, cards=(card,)),))


def _moved(row: Row) -> Row:
    """Return a row with another id."""
    return replace(row, cell=row.cell.model_copy(update={"id": row.cell.id[::-1]}))


def names(page: Page, experiment: str = "C1", group: int = 0) -> list[str]:
    """Return the first column of a table, in the shown cohort."""
    body = page.locator(f".cohort:not([hidden]) table[data-sheet={experiment}] tbody").nth(group)
    return [re.sub(r"\s+", " ", text) for text in body.locator("tr[data-kind] > th").all_inner_texts()]


def heading(page: Page, name: str, experiment: str = "C1") -> object:
    """Return the heading called ``name``, in the shown cohort."""
    return page.locator(f".cohort:not([hidden]) table[data-sheet={experiment}] thead th", has_text=name).first


def test_a_column_is_sorted_by_mouse_and_by_keyboard(opened: Opened, two: Path) -> None:
    page = opened(two)
    first = names(page)
    assert first == sorted(first)
    assert len(first) == 6
    ssim = heading(page, "ssim")
    expect(ssim).to_have_attribute("aria-sort", "none")
    expect(heading(page, "system")).to_have_attribute("aria-sort", "ascending")
    ssim.locator("button").click()  # SSIM is the better the higher: the best is on top at once
    expect(ssim).to_have_attribute("aria-sort", "descending")
    expect(heading(page, "system")).to_have_attribute("aria-sort", "none")
    assert names(page)[0] == "dinov2:small linear + patch-pca†"
    assert names(page)[-1] == "dinov2:small query + ltx-tiny†"
    assert names(page, group=2)[0].startswith(("oracle", "pixels")), "controls stay in a group of their own"
    lpips = heading(page, "lpips").locator("button")
    lpips.focus()
    page.keyboard.press("Enter")
    expect(heading(page, "lpips")).to_have_attribute("aria-sort", "ascending")
    assert names(page)[0] == "dinov2:small linear + patch-pca†"
    page.keyboard.press("Space")
    expect(heading(page, "lpips")).to_have_attribute("aria-sort", "descending")
    assert names(page)[-1] == "dinov2:small linear + patch-pca†"
    assert sorted(names(page)) == first


def test_rows_are_filtered_and_the_address_says_how(opened: Opened, two: Path) -> None:
    page = opened(two)
    form = page.locator(".cohort:not([hidden]) form")
    expect(form.get_by_role("status")).to_have_text("34 of 34 rows")
    form.get_by_label("Decoder").select_option("patch-pca")
    assert names(page) == ["dinov2:small linear + patch-pca†"]
    assert names(page, group=2) == [
        f"{name} patch-pca†" for name in ("blank linear +", "mean-rgb linear +", "oracle", "pixels linear +")
    ]
    assert len(names(page, "Q2")) == 1, "an experiment without a decoder belongs to every one"
    form.get_by_label("Search").fill("RANDOM")
    assert names(page) == []
    assert len(names(page, group=1)) == 3
    heading(page, "ssim").locator("button").click()
    assert "decoder=patch-pca" in page.url
    again = opened(two, fragment="#" + page.url.split("#")[1])
    assert names(again, group=1) == names(page, group=1)
    expect(heading(again, "ssim")).to_have_attribute("aria-sort", "descending")
    expect(again.locator(".cohort:not([hidden]) form").get_by_label("Search")).to_have_value("RANDOM")
    form.get_by_role("button", name="show all").click()
    expect(form.get_by_role("status")).to_have_text("34 of 34 rows")
    form.get_by_label("Tap").select_option("final")
    assert [len(names(page, sheet)) for sheet in ("C1", "Q1", "Q2")] == [0, 0, 0]
    assert len(names(page, "Q1", 1)) == 3
    strange = opened(two, fragment="#family=none&sort=C1~99~ascending&sort=x&cohort=y")
    assert len(names(strange)) == 6


def test_cohorts_are_shown_one_at_a_time(opened: Opened, two: Path) -> None:
    page = opened(two)
    expect(page.locator(".cohort:not([hidden])")).to_have_count(1)
    page.get_by_label("Cohort", exact=True).select_option(index=1)
    expect(page.locator(".cohort:not([hidden])")).to_have_count(1)
    assert "elsewhere" in page.url
    assert len(names(page)) == 6
    assert names(page, group=1) == ["oracle ltx-tiny†", "oracle patch-pca†"]
    again = opened(two, fragment="#" + page.url.split("#")[1])
    assert names(again, group=1) == names(page, group=1)


def test_a_permalink_leads_to_its_row_whatever_is_hidden(opened: Opened, two: Path, board: Board) -> None:
    row = board.cohorts[0].sections[1].rows[1]
    page = opened(two, fragment=f"#cell-{row.cell.id}")
    line = page.locator(f"#cell-{row.cell.id}")
    expect(line).to_be_in_viewport()
    expect(line).to_have_class(re.compile("chosen"))
    detail = page.locator("tr.detail")
    expect(detail).to_contain_text(row.command)
    expect(detail).to_contain_text("dim_mle_encoder")
    moved = row.cell.id[::-1]  # the same of the other cohort
    page.evaluate(f"location.hash = 'cell-{moved}'")
    expect(page.locator(f"#cell-{moved}")).to_be_in_viewport()
    expect(page.get_by_label("Cohort", exact=True)).to_have_value(re.compile("elsewhere$"))
    # A row that the filters hide is shown, and a link of the page is one.
    page = opened(two)
    page.locator(".cohort:not([hidden]) form").get_by_label("Search").fill("pooled")
    page.evaluate(f"location.hash = 'cell-{row.cell.id}'")
    expect(page.locator(f"#cell-{row.cell.id}")).to_be_in_viewport()
    page.locator(f"#cell-{row.cell.id} a").click()
    assert page.url.endswith(f"#cell-{row.cell.id}")


def test_details_show_what_was_measured_and_copy_the_command(opened: Opened, two: Path, board: Board) -> None:
    row = board.cohorts[0].sections[2].rows[0]
    page = opened(two, permissions=["clipboard-read", "clipboard-write"])
    button = page.locator(f"#cell-{row.cell.id} button[data-row]")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    detail = page.locator("tr.detail")
    for words in (
        "FAIL: misses the threshold",
        "patch_embed",
        "psnr",
        "22,056,192 encoder parameters · 233,310 trained values",
        "block.5",
    ):
        expect(detail).to_contain_text(words)
    detail.get_by_role("button", name="copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == row.command
    heading(page, "box_iou", "Q2").locator("button").click()  # the details stay with their row
    below = page.locator(f"#cell-{row.cell.id} + tr")
    expect(below).to_have_class("detail")
    button.click()
    expect(page.locator("tr.detail")).to_have_count(0)
    expect(button).to_have_attribute("aria-expanded", "false")


def test_a_card_says_how_large_an_encoder_is_and_what_it_does_to_frames(
    opened: Opened, board: Board, tmp_path: Path
) -> None:
    made, path = few(board), tmp_path / "index.html"
    (cohort,) = made.cohorts
    for card, expected in (
        (
            replace(cohort.cards[0], encoder_parameters=()),
            {"parameters": "unknown", "preprocessing": cohort.cards[0].preprocessing},
        ),
        (
            replace(cohort.cards[0], encoder_parameters=(632_000_000, 8_292_000_000), preprocessing=""),
            {"parameters": "632 M to 8.29 B, as loaded for the taps read", "preprocessing": "not stated"},
        ),
    ):
        path.write_text(rendered(replace(made, cohorts=(replace(cohort, cards=(card,)),))), "utf-8")
        shown = opened(path).locator(".card dl")
        for name, words in expected.items():
            term = shown.get_by_text(name, exact=True)
            expect(term.locator("xpath=following-sibling::dd[1]")).to_have_text(words)


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_nothing_bars_a_reader(
    opened: Opened, barriers: Barriers, overflow: Overflow, board: Board, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "index.html"
    path.write_text(rendered(replace(few(board), left_out=(Problem("notes.txt", "no cell"),))), "utf-8")
    page = opened(path, width, color_scheme=scheme)
    page.locator("button[data-row]").first.click()
    assert overflow(page) == 0
    assert barriers(page) == []


def test_charts_show_quality_against_cost_with_their_front(opened: Opened, two: Path) -> None:
    page = opened(two)
    charts = page.locator(".cohort:not([hidden]) svg.chart")
    labels = [charts.nth(index).get_attribute("aria-label") for index in range(charts.count())]
    assert [label.split(" against")[0] for label in labels if label] == [
        *(f"C1: {name} of 6 systems" for name in ("lpips", "ssim", "spatial_iou")),
        *(f"Q1: {name} of 2 systems" for name in ("ridge_r2", "spearman", "recall10", "cka")),
    ]
    expect(page.locator("figcaption").first).to_have_text("Front: 1 dinov2:small, linear + patch-pca.")


def test_it_prints_every_row_of_the_shown_cohort(opened: Opened, two: Path) -> None:
    page = opened(two)
    page.emulate_media(media="print")
    expect(page.locator(".cohort:not([hidden]) table[data-sheet=C1] tr[data-kind]")).to_have_count(32)
    expect(page.locator("form.controls").first).to_be_hidden()
    expect(page.locator("button[data-row]").first).to_be_hidden()
    expect(page.locator(".verdict").first).to_be_visible()


def test_hostile_names_are_text_and_break_no_layout(opened: Opened, overflow: Overflow, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(QUICK, results, ignore=shutil.ignore_patterns("*.png"))
    store = Store(results)
    (sample,) = (
        cell
        for cell in store.cells()
        if (cell.identity.encoder, cell.identity.adapter, cell.identity.experiment) == ("dinov2:small", "mlp", "C1")
    )
    identity = sample.identity.model_copy(update={"encoder": f"<b>{LONG[:60]}", "adapter": HOSTILE, "decoder": HOSTILE})
    hostile = sample.model_copy(update={"identity": identity, "id": identity.cell_id()})
    scores = store.path(sample).with_suffix(".safetensors").read_bytes()
    store.write(hostile, scores)
    (results / "<img src=x onerror=alert(3)>").write_text("")
    made = build(results, Registry.installed())
    cohort = made.cohorts[0]
    card = replace(
        cohort.cards[0], description=HOSTILE, licence=HOSTILE, parameters=((HOSTILE, HOSTILE),), preprocessing=HOSTILE
    )
    suite = replace(cohort.suite, description=HOSTILE)
    made = replace(made, cohorts=(replace(cohort, suite=suite, cards=(card,)),))
    made = replace(made, left_out=(*made.left_out, Problem(HOSTILE, HOSTILE)))
    path = tmp_path / "index.html"
    path.write_text(rendered(made), "utf-8")
    for width in (1200, 360):
        page = opened(path, width, fragment=f"#cell-{hostile.id}")
        expect(page.locator(f"#cell-{hostile.id}")).to_contain_text("<script>alert(1)</script>")
        expect(page.locator(f"#cell-{hostile.id}")).to_contain_text("\\u202egnihtemos")
        expect(page.locator("tr.detail")).to_contain_text(f"cell {hostile.id}")
        expect(page.locator("img")).to_have_count(0)
        assert page.evaluate("document.querySelectorAll('b').length === document.querySelectorAll('td > b').length")
        assert overflow(page) == 0
        wide = page.locator(f"#cell-{hostile.id} > th").bounding_box()
        assert wide is not None
        assert wide["width"] < 400


@pytest.mark.slow
def test_two_thousand_rows_open_in_two_seconds_and_sort_in_a_fifth(
    opened: Opened, board: Board, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    cohort = board.cohorts[0]
    section = cohort.sections[0]
    rng = random.Random(0)
    rows = tuple(_synthetic(section.rows[0], index, rng) for index in range(2000))
    sections = (replace(section, rows=rows + section.rows[6:]), *cohort.sections[1:])
    path = tmp_path / "index.html"
    path.write_text(rendered(replace(board, cohorts=(replace(cohort, sections=sections, cards=()),))), "utf-8")
    started = perf_counter()
    page = opened(path)
    opening = perf_counter() - started
    assert len(names(page)) == MOST
    page.evaluate("document.body.offsetHeight")
    sort = """(button) => { const t = performance.now(); button.click(); document.body.offsetHeight;
        return performance.now() - t; }"""
    button = heading(page, "ssim").locator("button")
    sorting = [button.evaluate(sort) for _ in range(6)]
    record_property("opening_seconds", round(opening, 2))
    record_property("sorting_milliseconds", [round(each) for each in sorting])
    print(f"2,000 rows: open {opening:.2f} s, sort {', '.join(f'{each:.0f}' for each in sorting)} ms")
    # The best of several: what else the machine does is not the page's doing.
    assert min(sorting) < 200
    assert opening < 2 * 2.5, "2 s on a machine that does nothing else"
    shown = [float(text) for text in page.locator("table[data-sheet=C1] tbody").first.evaluate(VALUES)]
    assert shown == sorted(shown)
    assert shown[0] == min(row.placed[1].result.estimate.value or 0 for row in rows)
    last = rows[1999].cell.id
    page.evaluate(f"location.hash = 'cell-{last}'")
    expect(page.locator(f"#cell-{last}")).to_be_in_viewport()
    expect(page.locator("table[data-sheet=C1] tbody").first.locator("tr[data-kind]")).to_have_count(2000)


VALUES = "body => [...body.querySelectorAll('tr[data-kind]')].map(row => row.cells[3].dataset.v)"


def _synthetic(row: Row, index: int, rng: random.Random) -> Row:
    """Return a row of a system of its own, with values of its own."""
    identity = row.cell.identity.model_copy(update={"encoder": f"e{index % 40}:v{index}", "adapter": f"a{index % 7}"})
    placed = tuple(
        replace(
            each,
            result=each.result.model_copy(
                update={"estimate": each.result.estimate.model_copy(update={"value": rng.random()})}
            ),
            rank=Rank(rng.randrange(1, 2000), False),
            front=False,
        )
        for each in row.placed
    )
    cell = row.cell.model_copy(update={"identity": identity, "id": f"{index:016x}"})
    return replace(row, cell=cell, family=f"e{index % 40}", size=f"v{index}", placed=placed)
