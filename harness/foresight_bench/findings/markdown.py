"""Markdown from text that anybody may have written: names, sentences and tables that stay what they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from foresight_bench.cells import Estimate
from foresight_bench.intake import plain
from foresight_bench.tables import System, with_interval

_IN_A_NAME = re.compile(r"[`|<>&]")
"""What ends code, ends a table's cell, or is HTML to whoever knows no code; the grammar of names has none of it."""
_IN_PROSE = re.compile(r"[\\`*_\[\]|~#!@]|:(?=//)|(?<=www)\.")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def name(text: str) -> str:
    """Return ``text`` as code; what could lead out of it stands as its escape, as ``\\x60``."""
    return f"`{_IN_A_NAME.sub(_escape, plain(text)) or ' '}`"


def _escape(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def names(texts: Iterable[str]) -> str:
    """Return names in one clause, the last after *and*; ``none`` of none."""
    *others, last = [name(text) for text in texts] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def prose(text: str) -> str:
    """Return ``text`` so that it reads as it stands: no markup, no link, no HTML, one line."""
    escaped = _IN_PROSE.sub(lambda found: f"\\{found[0]}", plain(text))
    return "".join(_ENTITIES.get(each, each) for each in escaped)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; whatever stands in it comes from :func:`name`, :func:`prose` or the harness itself."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def bullets(lines: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {line}" for line in lines)


def system(of: System) -> str:
    """Return a system's name: encoder, what it goes through, and a seed that is not 0."""
    encoder, adapter, decoder, seed = of
    through = [name(part) for part in (adapter, decoder) if part]
    return ", ".join([name(encoder), *through, *([f"seed {seed}"] if seed else [])])


def signed(difference: Estimate | None) -> str:
    """Return a difference with its sign and interval: ``+.012 [.004, .020]``."""
    if difference is None or difference.value is None:
        return "-"
    return f"{'+' if difference.value >= 0 else ''}{with_interval(difference)}"
