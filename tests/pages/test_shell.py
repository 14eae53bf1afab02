"""The shell of every page: text is text, the theme can be had, charts take the page's colours, nothing is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from playwright.sync_api import Page

from foresight_bench.pages import shell
from foresight_bench.pages.charts import chart

HOSTILE = """<script>alert(1)</script>"' onload=x \u202egnihtemos"""


def page(body: str, **values: object) -> str:
    """Return a page whose main part is the template ``body``."""
    template = shell._environment().from_string(
        '{% extends "base.html.j2" %}{% block title %}A page{% endblock %}{% block main %}<h1>A page</h1>'
        + body
        + "{% endblock %}"
    )
    return template.render(**values)


def drawn(label: str = "a line", text: str = "name") -> str:
    with chart(4, 2, label) as drawing:
        axes = drawing.figure.add_subplot()
        axes.plot([1, 2, 3], marker="o")
        axes.set_title(text)
    return drawing.svg


def test_what_comes_from_outside_is_text() -> None:
    assert "<script>alert" not in page("<p title='{{ name }}'>{{ name }}</p>", name=HOSTILE)
    assert "<script>alert" not in shell.verdict(HOSTILE)
    assert "<script>alert" not in drawn(HOSTILE, HOSTILE)
    with pytest.raises(UndefinedError):
        page("{{ missing }}")


def test_a_verdict_says_its_word_beside_its_sign() -> None:
    assert shell.verdict("PASS") == '<span class="verdict yes"><span aria-hidden="true">✓</span> PASS</span>'
    assert 'class="verdict no"' in shell.verdict("PIVOT")
    assert 'class="verdict open"' in shell.verdict("VACUOUS")
    assert shell.verdict(None) == ""


def test_a_chart_is_the_same_bytes_again_and_shares_no_id_with_another() -> None:
    one, other = drawn(), drawn("another line")
    assert one == drawn()
    ids, others = (set(re.findall(r' id="([^"]+)"', text)) for text in (one, other))
    assert ids
    assert not ids & others
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', one)) == ids
    assert "currentColor" in one
    assert "#010203" not in one


def test_a_name_in_a_chart_may_hold_anything(recwarn: pytest.WarningsRecorder) -> None:
    assert "模型 $\\frac{x" in drawn(text="模型 $\\frac{x $")
    assert not recwarn.list


def test_a_browser_shows_it(
    tmp_path: Path,
    opened: Callable[..., Page],
    barriers: Callable[[Page], list[str]],
    overflow: Callable[[Page], int],
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page("{{ one }}{{ two }}<p>{{ name }}</p>", one=drawn(), two=drawn("two"), name=HOSTILE), "utf-8")
    for width in (360, 1200):
        shown = opened(path, width)
        assert overflow(shown) == 0
        assert barriers(shown) == []
    ink = "getComputedStyle(document.querySelector('svg.chart text')).fill"
    assert shown.evaluate(ink) == "rgb(27, 31, 36)"
    shown.click("#theme")
    shown.click("#theme")
    assert shown.get_attribute("html", "data-theme") == "dark"
    assert shown.evaluate(ink) == "rgb(230, 233, 238)"
    assert barriers(shown) == []
    shown.reload()
    assert shown.inner_text("#theme") == "● dark"
    assert opened(path, color_scheme="dark").evaluate(ink) == "rgb(230, 233, 238)"
