"""The report in a browser: of a whole run, of cells that failed, of one tap, without pictures, from a hostile hand."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from committed import QUICK
from foresight_bench.cells import Cell, Estimate
from foresight_bench.pages.report import page as written
from foresight_bench.pages.report import picture
from foresight_bench.registry import Registry
from foresight_bench.reporting import gather
from foresight_bench.store import Store

REGISTRY = Registry.installed()
SYSTEM = {"dinov2:small": ("linear", "ltx-tiny"), "oracle": (None, "ltx-tiny")}
HOSTILE = "\"><img src=x onerror='alert(1)'>$x_{$<b>"
LONG = "w" * 300
TURNED = "\u202egnihtemos </script><script>alert(2)</script>"

Opened = Callable[..., Page]
Barriers = Callable[[Page], list[str]]
Overflow = Callable[[Page], int]


def committed() -> list[Cell]:
    """Return a run of one encoder through one adapter, with the oracle's cells."""
    cells = [
        cell
        for cell in Store(QUICK).cells()
        if cell.identity.encoder in SYSTEM
        and cell.identity.seed == 0
        and cell.identity.adapter in (None, SYSTEM[cell.identity.encoder][0])
        and cell.identity.decoder in (None, "ltx-tiny")
    ]
    return sorted(cells, key=lambda cell: (cell.identity.encoder, cell.identity.experiment))


def mine() -> list[Cell]:
    """Return the encoder's own cells: C1, Q1, Q2."""
    return committed()[:3]


def changed(cell: Cell, update: dict[str, object], **identity: object) -> Cell:
    new = cell.identity.model_copy(update=identity)
    return cell.model_copy(update={"identity": new, "id": new.cell_id(), **update})


def png(colour: str, size: tuple[int, int] = (1000, 400)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, cell: Cell, drawn: bytes = b"") -> Path:
    digest = sha256(drawn).hexdigest() if drawn else ""
    store, new = Store(root), cell.model_copy(update={"scores_sha256": "", "picture_sha256": digest})
    store.write(new, b"", drawn)
    return store.path(new)


def page_of(root: Path) -> Path:
    path = root / "page.html"
    path.write_text(written(*gather(root, REGISTRY)), "utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run in which all went well."""
    root = tmp_path_factory.mktemp("whole")
    colours = {"C1": "red", "Q1": "green", "Q2": "blue"}
    for cell in committed():
        control = cell.identity.encoder == "oracle"
        drawn = b"" if control and cell.identity.experiment == "Q1" else png(colours[cell.identity.experiment])
        put(root, cell, drawn)
    return page_of(root)


def headings(page: Page) -> list[int]:
    found: list[int] = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(each => +each.tagName[1])")
    return found


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_a_run_can_be_read_by_all(
    width: int, scheme: str, whole: Path, opened: Opened, barriers: Barriers, overflow: Overflow
) -> None:
    page = opened(whole, width, color_scheme=scheme)
    assert overflow(page) == 0
    levels = headings(page)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    pictures = page.query_selector_all("img")
    assert len(pictures) == 5
    assert all(len(each.get_attribute("alt") or "") > 40 for each in pictures)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert overflow(page) == 0
    assert barriers(page) == []


def test_the_first_screen_answers(whole: Path, opened: Opened) -> None:
    page = opened(whole, 1200)
    boxes = [(each.inner_text(), each.bounding_box()) for each in page.query_selector_all("h1, .gate, .card")]
    heads = "\n".join(text for text, box in boxes if box and box["y"] + box["height"] < 800)
    assert "Can dinov2:small drive a video decoder?" in heads
    assert "Gate 1: Reconstruction ✗ BLOCKED 0 of 3 experiments proceed" in heads
    for words in ("linear, ltx-tiny: ✗ PIVOT at block.2", "lpips .333 ✓ PASS", "recall10 .227 ≈ INCONCLUSIVE"):
        assert words in heads.replace("\n", " ")


def test_every_chart_says_what_it_shows_and_has_its_numbers(whole: Path, opened: Opened) -> None:
    page = opened(whole)
    charts = page.query_selector_all("svg.chart")
    assert len(charts) == 3 + (4 + 4) + (4 + 4)
    labels = [each.get_attribute("aria-label") or "" for each in charts]
    assert len(set(labels)) == len(labels)
    assert any("box_iou (higher is better) over taps, read from tokens: .000 at patch_embed" in text for text in labels)
    tables = page.eval_on_selector_all(
        "figure:has(svg.chart)", "all => all.map(each => each.querySelector('details table tbody').innerText)"
    )
    assert len(tables) == len(charts)
    text = page.text_content("body") or ""
    for wanted in (
        ".474 [.441, .508]",
        ".497 [",
        "about 1189 clips would decide",
        "45.8 [39.7, 53.6]",
        "196,736",
    ):
        assert wanted in text
    for name in (
        "tokens",
        "pooled",
        "tap that gates",
        "threshold > .700",
        "floor .045 shuffled",
        "ceiling .997 oracle",
    ):
        assert page.locator("svg.chart text", has_text=name).count() >= 1


def test_pictures_are_those_of_their_cells(whole: Path, opened: Opened) -> None:
    page = opened(whole)
    found = page.evaluate(
        """async () => Promise.all([...document.images].map(async (image) => {
            await image.decode();
            const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
            const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0, 1, 1);
            const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
            return [red > 200 ? 'C1' : blue > 200 ? 'Q2' : green > 90 ? 'Q1' : '', image.alt, image.naturalWidth];
        }))"""
    )
    kinds = {"C1": "originals", "Q1": "Scatter", "Q2": "true boxes"}
    assert [kind for kind, _, _ in found] == ["C1", "Q1", "Q2", "C1", "Q2"]
    assert all(kinds[kind] in alt and wide == 1000 for kind, alt, wide in found)


def test_it_prints_without_buttons(whole: Path, opened: Opened) -> None:
    page = opened(whole, 794)
    page.emulate_media(media="print")
    assert not page.is_visible("#theme")
    wide = page.eval_on_selector_all("img", "all => Math.max(...all.map(each => each.getBoundingClientRect().right))")
    assert wide <= 794


def test_cells_without_a_score_are_named_with_their_sentence(
    tmp_path: Path, opened: Opened, barriers: Barriers, overflow: Overflow
) -> None:
    c1, q1, _ = mine()
    empty = {"metrics": (), "decision": None, "tap": "", "cost": None}
    put(tmp_path, changed(c1, {**empty, "status": "oom", "reason": "7 GB were asked for."}))
    put(tmp_path, changed(c1, {**empty, "status": "skipped", "reason": "fusion is for hybrids."}, adapter="fusion"))
    put(tmp_path, changed(q1, {**empty, "status": "killed", "reason": "The worker was killed."}))
    page = opened(page_of(tmp_path), 360)
    assert overflow(page) == 0
    assert barriers(page) == []
    text = page.inner_text("body")
    for words in (
        "7 GB were asked for.",
        "fusion is for hybrids.",
        "The worker was killed.",
        "1 × oom",
        "1 × skipped",
        "Not run",
    ):
        assert words in text
    assert "INCONCLUSIVE without a score" in text.replace("\n", " ")
    assert "No cell finished" in text


def test_one_tap_has_bars_and_no_curve(tmp_path: Path, opened: Opened) -> None:
    q2 = mine()[2]
    metrics = tuple(result for result in q2.metrics if result.tap == q2.tap)
    put(tmp_path, changed(q2, {"metrics": metrics}, taps=(q2.tap,)))
    page = opened(page_of(tmp_path))
    assert page.locator("svg.chart").count() == 4
    assert "One tap was read, block.5, so there is no curve" in page.inner_text("main")
    assert "No picture of fixed heads: an older version drew none." in page.inner_text("main")


def test_names_and_reasons_from_a_hostile_hand_are_text(
    tmp_path: Path, opened: Opened, barriers: Barriers, overflow: Overflow
) -> None:
    c1, q1, q2 = mine()
    put(tmp_path, changed(c1, {"tap": LONG}, encoder=HOSTILE, adapter=TURNED), png("red"))
    taps = (HOSTILE, TURNED, LONG)
    places = dict(zip(q2.identity.taps, taps, strict=False))
    monstrous = Estimate(value=1e308, low=-1e308, high=1e308, n=9)
    metrics = tuple(
        result.model_copy(
            update={
                "tap": places[result.tap],
                "metric": f"{result.metric}{TURNED}",
                "verdict": LONG,
                "estimate": monstrous if result.metric == "map50" else result.estimate,
                "best_floor": HOSTILE,
                "floors": {HOSTILE: monstrous},
                "ceiling": result.estimate.model_copy(update={"low": None}),
                "reason": HOSTILE,
            }
        )
        for result in q2.metrics
        if result.tap in places
    )
    put(tmp_path, changed(q2, {"metrics": metrics, "tap": LONG}, encoder=HOSTILE, taps=taps))
    failed = {"metrics": (), "decision": None, "tap": "", "status": "error", "reason": f"{HOSTILE} {TURNED} {LONG}"}
    failed["warnings"] = (HOSTILE, TURNED)
    put(tmp_path, changed(q1, failed, encoder=HOSTILE, parameters={"encoder": {LONG: TURNED}}))
    undecided = changed(c1, {"decision": LONG}, encoder=HOSTILE, adapter="odd")
    put(tmp_path, undecided)
    (tmp_path / "quick-1-cb81eef6" / "<img src=x onerror=alert(3)>.json").write_bytes(b"")
    path = page_of(tmp_path)
    assert "<img src=x" not in path.read_text("utf-8")
    for width in (360, 1200):
        page = opened(path, width)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert overflow(page) == 0
        assert page.locator("script").count() == 1
        assert HOSTILE in page.inner_text("h1")
        assert "onerror=alert(3)" in page.inner_text("main")
        assert f"{undecided.id}.json" in page.inner_text("main")
    assert barriers(page) == []


def test_a_cohort_beside_and_broken_files_are_named(tmp_path: Path, opened: Opened) -> None:
    q2 = mine()[2]
    put(tmp_path, q2)
    older = q2.provenance.model_copy(update={"finished": "2001"})
    put(tmp_path, changed(q2, {"provenance": older}, cohort="quick-1-00000000"))
    altered = put(tmp_path, changed(q2, {}, seed=4))
    altered.write_text(altered.read_text().replace("PIVOT", "PROCEED"))
    page = opened(page_of(tmp_path))
    rows = page.locator("h2:has-text('Left out') + div tbody tr").all_inner_texts()
    assert [re.sub(r"\s+", " ", row) for row in rows] == [
        f"quick-1-cb81eef6/cpu-x86_64/dinov2_small/{altered.name} its seal is broken",
        "quick-1-00000000/cpu-x86_64 1 cell of another cohort or machine, never shown beside these",
    ]
    assert page.locator("h2:has-text('seed 4')").count() == 0


def test_a_picture_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    cell = committed()[0]

    def shown(data: bytes) -> tuple[str, str]:
        path = put(tmp_path, cell.model_copy(update={"identity": cell.identity}), data)
        new = Store(tmp_path).read(path)
        taken = gather(tmp_path, REGISTRY)[1]
        found = picture(new, taken)
        if data == b"left out":
            path.with_suffix(".png").unlink()
            found = picture(new, taken)
        if data == b"swapped":
            path.with_suffix(".png").write_bytes(png("red"))
            found = picture(new, taken)
        path.unlink()
        return found.address[:22], found.absent

    assert shown(png("red")) == ("data:image/webp;base64", "")
    assert shown(b"") == ("", "an older version drew none.")
    assert shown(b"left out") == ("", "it was left out when the results were brought here.")
    assert shown(b"swapped") == ("", "the file is not the one its cell vouches for.")
    gif = io.BytesIO()
    Image.new("RGB", (9, 9)).save(gif, "GIF")
    for data in (b"no picture", gif.getvalue(), png("red")[:200], png("red", (8000, 8000))):
        assert shown(data) == ("", "the file is no PNG that can be shown.")


def test_many_rows_have_a_table_and_a_section_each(tmp_path: Path, opened: Opened, overflow: Overflow) -> None:
    c1, _, q2 = mine()
    put(tmp_path, c1)
    put(tmp_path, changed(c1, {}, adapter="mlp"))
    put(tmp_path, q2)
    put(tmp_path, changed(q2, {}, encoder="dinov2:small~random", seed=2))
    page = opened(page_of(tmp_path), 360)
    assert overflow(page) == 0
    rows = page.locator("h2:has-text('Gate') + div tbody tr").all_inner_texts()
    assert len(rows) == 3
    page.click("text=dinov2:small~random, seed 2")
    assert page.locator("h2:has-text('random, seed 2')").bounding_box()["y"] < 100  # type: ignore[index]
    assert "Can these representations" in page.inner_text("h1")
    labels = page.locator("svg.chart").first.get_attribute("aria-label") or ""
    assert "linear .333" in labels
    assert "mlp .333" in labels
