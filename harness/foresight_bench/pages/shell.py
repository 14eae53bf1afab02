"""One HTML file that needs nothing else: template, style and script inside it, and a policy that forbids requests."""

from __future__ import annotations

import base64
from functools import lru_cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from foresight_bench.tables import interval, number, threshold, with_interval

GLYPHS = {
    "PASS": "✓",
    "PROCEED": "✓",
    "PASSED": "✓",
    "FAIL": "✗",
    "PIVOT": "✗",
    "BLOCKED": "✗",
    "INCONCLUSIVE": "≈",
    "VACUOUS": "∅",
    "UNREACHABLE": "⊘",
    "NOT RUN": "–",
}
"""A sign beside each verdict's word, so that colour says nothing by itself."""
TONES = {"✓": "yes", "✗": "no"}
"""Classes of the style sheet by sign; every other verdict is neither."""


def rendered(template: str, **values: object) -> str:
    """Return the page that ``parts/<template>`` makes of ``values``; every text is escaped.

    A template extends ``base.html.j2`` and fills its blocks ``title``, ``lead``, ``main`` and ``script``. It has the
    filters ``number``, ``interval``, ``with_interval``, ``threshold``, ``verdict`` (word and sign) and ``png`` (an
    image's bytes as its address).
    """
    return _environment().get_template(template).render(**values)


def verdict(word: str | None) -> Markup:
    """Return a verdict's word with its sign, as HTML; empty for none."""
    if not word:
        return Markup("")
    glyph = GLYPHS.get(word, "")
    tone = TONES.get(glyph, "open")
    return Markup('<span class="verdict {}"><span aria-hidden="true">{}</span> {}</span>').format(tone, glyph, word)


def png(data: bytes) -> str:
    """Return the bytes of a PNG as an address that holds them."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("foresight_bench.pages", "parts"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "with_interval": with_interval,
        "threshold": threshold,
        "verdict": verdict,
        "png": png,
    }
    environment.globals |= {"part": _part}
    return environment


def _part(name: str) -> Markup:
    """Return a file of ``parts`` as it stands: our own style or script, never anything from outside."""
    return Markup(resources.files("foresight_bench.pages").joinpath("parts", name).read_text("utf-8"))
