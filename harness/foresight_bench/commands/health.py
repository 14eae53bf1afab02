"""Commands that say whether what there is can be used: plugins, doctor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foresight_bench.commands.options import device_option, guarded, json_option, note, results_option
from foresight_bench.errors import EnvironmentFault

if TYPE_CHECKING:
    from foresight_bench.doctor import Section
    from foresight_bench.plugins import Plugin


@click.command()
@json_option
@guarded
def plugins(as_json: bool) -> None:
    """List the plugins, the quarantined ones with their reason."""
    from foresight_bench.plugins import load

    found = load()
    click.echo(json.dumps(_records(found), indent=1) if as_json else _text(found, traces=True))


@click.command()
@device_option
@results_option
@json_option
@guarded
def doctor(device: str | None, results: Path, as_json: bool) -> None:
    """Say what a run here would find: plugins, device, libraries, cache, results, weights. Fetches nothing.

    Exit 4 if something cannot be used. A quarantined plugin and missing weights are remarks: the rest works.
    """
    from foresight_bench.doctor import examine
    from foresight_bench.plugins import load

    found = load()
    sections = examine(found, device, results)
    problems = [problem for section in sections for problem in section.problems]
    if as_json:
        record: dict[str, Any] = {section.title: asdict(section) for section in sections}
        click.echo(json.dumps({"plugins": _records(found), **record}, indent=1))
    else:
        click.echo("\n".join(["plugins", _indented(_text(found, traces=False)), *map(_section, sections)]))
    if problems:
        more = f" ({len(problems) - 1} more above)" if len(problems) > 1 else ""
        raise EnvironmentFault(f"{problems[0]}{more}")
    note("Nothing stands in the way of a run.")


def _records(found: Sequence[Plugin]) -> list[dict[str, Any]]:
    from foresight_bench.plugins import shadows

    shared = shadows(found)
    return [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "origin": plugin.origin,
            "hooks": list(plugin.hooks),
            "status": "quarantined" if plugin.quarantine else "ok",
            "shadowed": [asdict(shadow) for shadow in shared.get(plugin.name, ())],
            "reason": plugin.quarantine,
            "traceback": plugin.traceback,
        }
        for plugin in found
    ]


def _text(found: Sequence[Plugin], *, traces: bool) -> str:
    from foresight_bench.plugins import shadows

    shared, lines = shadows(found), []
    for plugin in found:
        about = f"{plugin.name} ({plugin.distribution} {plugin.version}, {plugin.origin})"
        lines.append(f"{about}: {', '.join(plugin.hooks) or 'no hooks'}" if not plugin.quarantine else f"{about}")
        if plugin.quarantine:
            lines.append(f"  quarantined: {plugin.quarantine}")
            lines += [_indented(plugin.traceback.rstrip())] if traces and plugin.traceback else []
        lines += [f"  shadowed: {shadow}" for shadow in shared.get(plugin.name, ())]
    return "\n".join(lines) or "none"


def _section(section: Section) -> str:
    lines = [section.title]
    for name, value in section.facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
        lines.append(f"  {name}: {value}")
    lines += [f"  remark: {remark}" for remark in section.remarks]
    lines += [f"  PROBLEM: {problem}" for problem in section.problems]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
