"""An earlier study beside the suite: what is found, how it is shown, and that the committed page is its numbers'."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from foresight_bench import studies
from foresight_bench.calibration import Calibration, Check
from foresight_bench.cells import Estimate
from foresight_bench.cli import main
from foresight_bench.errors import DataError, UsageError
from foresight_bench.registry import Registry
from foresight_bench.store import Store
from foresight_bench.studies import Chapter, Figure, Protocol, Row, Section, Study, Trap, compared, controls, protocols
from foresight_bench.study_page import page, picture, scaled

ROOT = Path(__file__).parents[2]
SUITE = Registry.installed().suites["quick"].spec


def figure(perfect: float | None, blank: float | None, trap: Trap | None = None, metric: str = "ssim") -> Figure:
    return Figure(experiment="C1", metric=metric, title="title", reported=0.5, perfect=perfect, blank=blank, trap=trap)


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=40)


def row(made: Figure, direction: str = "higher", threshold: float = 0.75) -> Row:
    ends = (0.9, 0.1) if direction == "higher" else (0.1, 0.9)
    return Row(
        **made.model_dump(),
        direction=direction,
        threshold=threshold,
        ceiling="oracle",
        suite_perfect=estimate(ends[0]),
        suite_blank=estimate(ends[1]),
    )


def trap(value: float, must: str) -> Trap:
    return Trap(shown="noise", value=value, must=must)


@pytest.mark.parametrize(
    ("made", "direction", "finding"),
    [
        (figure(0.9, 0.1), "higher", ""),
        (figure(0.1, 0.9), "lower", ""),
        (figure(0.75, 0.1), "higher", "perfect features fail"),
        (figure(None, None), "higher", "perfect features fail"),
        (figure(0.9, None), "higher", ""),
        (figure(0.9, 0.8), "higher", "blank features pass"),
        (figure(0.1, 0.7), "lower", "blank features pass"),
        (figure(0.7, 0.8), "higher", "perfect features fail, blank features pass"),
        (figure(0.9, 0.1, trap(0.8, "fail")), "higher", "noise passes"),
        (figure(0.9, 0.1, trap(0.7, "pass")), "higher", "noise fails"),
        (figure(0.9, 0.1, trap(0.8, "pass")), "higher", ""),
        (figure(0.9, 0.8, trap(0.8, "fail")), "higher", "blank features pass"),
    ],
)
def test_what_no_sound_protocol_does_is_found(made: Figure, direction: str, finding: str) -> None:
    assert row(made, direction).finding == finding


@pytest.mark.parametrize(
    ("direction", "value", "place"),
    [
        ("higher", 0.75, 0),
        ("higher", 1, 1),
        ("higher", 0, -1),
        ("higher", -3, -1),
        ("higher", 0.375, -0.5),
        ("lower", 0, 1),
        ("lower", 1, -1),
        ("lower", 1.2, -1),
        ("lower", 0.875, -0.5),
        ("lower", 0.375, 0.5),
    ],
)
def test_better_stands_to_the_right(direction: str, value: float, place: float) -> None:
    assert scaled(row(figure(1, 0), direction), value) == pytest.approx(place)


def check(control: str, must: str, value: Estimate | None, metric: str = "ssim") -> Check:
    return Check("C1", "", metric, "higher", 0.75, control, must, value)


def test_each_figure_stands_beside_the_suite_s_ceiling_and_blank_floor() -> None:
    other = estimate(0.5)
    checks = (
        check("mean-rgb", "fail", other),
        check("oracle", "pass", estimate(0.9)),
        check("blank", "fail", estimate(0.2)),
        check("pixels", "pass", other, "lpips"),
        check("blank", "fail", other, "lpips"),
    )
    (made,) = compared([Chapter((figure(1, 0),), ())], SUITE, Calibration(checks)).rows
    assert (made.ceiling, made.suite_perfect.value, made.suite_blank.value) == ("oracle", 0.9, 0.2)
    assert (made.threshold, made.direction) == (0.75, "higher")
    for lacking in (checks[:2], (checks[0], checks[2]), (checks[2], check("oracle", "pass", None))):
        with pytest.raises(DataError, match="ssim a control is missing"):
            compared([Chapter((figure(1, 0),), ())], SUITE, Calibration(lacking))


def test_controls_that_are_missing_or_mixed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no controls of suite quick") as refused:
        controls(SUITE, Store(tmp_path))
    assert "foresight-bench calibrate --suite quick" in refused.value.hint
    with pytest.raises(DataError, match="no controls"):
        controls(replace(SUITE, version="2"), Store(ROOT / "benchmarks/results"))
    with pytest.raises(UsageError, match="reruns no study"):
        protocols(replace(SUITE, study=""))


SECTION = Section(
    title="A <b>title</b>",
    protocol="What `was` done.",
    headers=("what", "value | unit"),
    rows=(("a | b\nc", 0.5), ("<script>", None), ("whole", 3), ("text", "x")),
    meaning="So it is.",
    instead="That.",
)


def study() -> Study:
    rows = (row(figure(0.9, 0.8)), row(figure(0.9, 0.1, trap(0.1, "fail"))))
    return Study(suite="quick", rows=rows, sections=(SECTION,))


def test_text_is_shown_as_text() -> None:
    text = page(study(), "there.svg")
    assert "<script>" not in text
    assert "<b>" not in text
    assert "| a &#124; b c" in text
    assert "`was`" not in text
    assert "![" in text.split("## ")[0]
    assert "![" not in page(study())
    assert "| &#60;script&#62; | -" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "!"))) <= 120


def test_the_summary_counts_what_was_found() -> None:
    text = " ".join(page(study()).split())
    assert "Of 2 thresholds, 1 let" in text
    assert "nothing against C1 title;" in text
    assert "at 2 of 2, by the whole interval" in text
    rows = study().rows
    wide = rows[0].model_copy(update={"suite_blank": estimate(0.7, 0.06)})
    assert "at 1 of 2, by" in " ".join(page(study().model_copy(update={"rows": (wide, rows[1])})).split())


def test_the_picture_is_one_image_of_equal_bytes() -> None:
    drawn = picture(study())
    assert drawn == picture(study())
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = "".join(root.itertext())
    assert "C1 title" in texts
    assert "perfect features" in texts


def test_the_command_writes_page_numbers_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (Protocol("one", lambda registry: Chapter((figure(0.9, 0.8),), (SECTION,))),)
    monkeypatch.setattr(studies, "protocols", lambda suite: steps)
    target = tmp_path / "new" / "page.md"
    results = str(ROOT / "benchmarks/results")
    done = CliRunner().invoke(main, ["study", "--results", results, "-o", str(target), "--json"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in target.parent.iterdir()) == ["page.json", "page.md", "page.svg"]
    found = Study.model_validate_json(target.with_suffix(".json").read_text("utf-8"))
    assert found.sections == (SECTION,)
    assert json.loads(done.stdout) == json.loads(target.with_suffix(".json").read_text("utf-8"))
    assert target.read_text("utf-8") == page(found, "page.svg")
    assert target.with_suffix(".svg").read_text("utf-8") == picture(found)
    printed = CliRunner().invoke(main, ["study", "--results", results])
    assert printed.stdout == page(found)


def test_nothing_is_computed_before_the_controls_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        studies, "protocols", lambda suite: (Protocol("one", lambda registry: pytest.fail("computed")),)
    )
    done = CliRunner().invoke(main, ["study", "--results", str(tmp_path)])
    assert done.exit_code == 4
    assert "holds no controls of suite quick" in done.output
    assert "calibrate" in done.output


@pytest.fixture(scope="module")
def committed() -> Study:
    return Study.model_validate_json((ROOT / "docs/study.json").read_text("utf-8"))


def test_the_committed_page_is_what_the_committed_numbers_give(committed: Study) -> None:
    assert (ROOT / "docs/study.md").read_text("utf-8") == page(committed, "study.svg")
    assert (ROOT / "docs/study.svg").read_text("utf-8") == picture(committed)


def test_the_committed_page_has_the_suite_s_own_figures(committed: Study) -> None:
    known = controls(SUITE, Store(ROOT / "benchmarks/results"))
    figures = tuple(Figure(**each.model_dump(include=set(Figure.model_fields))) for each in committed.rows)
    assert compared([Chapter(figures, committed.sections)], SUITE, known) == committed


def test_the_committed_page_has_the_eleven_figures_of_the_study(committed: Study) -> None:
    assert [each.reported for each in committed.rows] == [
        *(0.264, 0.943, 0.559),
        *(0.510, 0.684, 0.258, 0.687),
        *(0.104, 0.089, 0.351, 0.001),
    ]
    asked = [(e.name, c.metric, c.threshold) for e in SUITE.experiments for c in e.criteria if c.threshold is not None]
    assert [(each.experiment, each.metric, each.threshold) for each in committed.rows] == asked
