"""Charts as SVG that stands inside a page: its colour of text, its fonts, readable without colour and in print."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
"""Okabe and Ito's, which the colour-blind can tell apart; yellow and black, which vanish on a ground, left out."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One a series, beside its colour."""
_INK = "#010203"  # stands for the page's own colour of text until the SVG is written
_STYLE: dict[Any, object] = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # whose measures are used; where it is missing, the reader's own
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: it can be searched, read out and printed sharply
    "text.color": _INK,
    "text.parse_math": False,  # a name from outside may hold a dollar sign
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass
class Chart:
    """A figure to draw on, and the SVG of it once the drawing is done."""

    figure: Figure
    svg: Markup = field(default_factory=Markup)
    """Inline SVG, the same bytes for the same drawing; empty until the block is left."""


@contextmanager
def chart(width: float, height: float, label: str) -> Iterator[Chart]:
    """Give a figure of ``width`` x ``height`` inches to draw on; when the block ends its SVG is there.

    Args:
        label: what the chart shows, for those who do not see it.
    """
    # A salt of its own keeps the ids of several charts on one page apart.
    salt = sha256(label.encode()).hexdigest()[:8]
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's own fonts have it
        drawing = Chart(Figure(figsize=(width, height), layout="constrained"))
        yield drawing
        buffer = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.figure.savefig(buffer, format="svg", metadata=empty)
    drawing.svg = _inline(buffer.getvalue(), label, salt)


def _inline(text: str, label: str, salt: str) -> Markup:
    """Return an SVG file as an element of a page: no prologue, ids that nothing else has, the page's colour of text."""
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for name in sorted(used):
        text = re.sub(rf'(?<=[#"]){re.escape(name)}(?=[)"])', f"{name}-{salt}", text)
    # Its style would hold for the whole page, and its line breaks are a tenth of its bytes.
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
    opening = Markup('<svg role="img" aria-label="{}" class="chart"').format(label)
    return opening + Markup(text.removeprefix("<svg"))
