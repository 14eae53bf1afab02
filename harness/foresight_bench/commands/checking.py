"""Commands for authors of plugins: new, check."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from foresight_bench.commands.options import guarded, json_option, note
from foresight_bench.errors import CheckFailed

if TYPE_CHECKING:
    from foresight_bench.testing.kit import Finding


@click.command()
@click.argument("kind", type=click.Choice(["encoder", "adapter", "decoder", "metric"]))
@click.argument("name")
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to.")
@guarded
def new(kind: str, name: str, output: Path) -> None:
    """Write the package of a new plugin, complete and installable, with a small real model inside."""
    from foresight_bench.creating import create

    folder = create(kind, name, output)
    click.echo(str(folder))
    note(f"Now: cd {folder} && pip install -e '.[test]' && pytest")


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(["encoder", "adapter", "decoder", "metric"]), help="If the name is shared.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@json_option
@guarded
def check(name: str, kind: str | None, device: str, as_json: bool) -> None:
    """Check an encoder, adapter, decoder or metric against every MUST of its contract; exit 6 if one is broken."""
    from foresight_bench.devices import find_devices
    from foresight_bench.testing.kit import Status, run_check
    from foresight_bench.testing.selecting import checks_of, kind_of, subject_of

    kind = kind or kind_of(name)
    subject = subject_of(kind, name, find_devices(device)[0].name)
    findings = []
    with tqdm(list(checks_of(kind)), disable=None, leave=False) as bar:
        for each in bar:
            bar.set_description_str(each.name)
            findings.append(run_check(each, subject))
    click.echo(json.dumps([asdict(found) for found in findings], indent=1) if as_json else _text(findings))
    failed = [found.check for found in findings if found.status is Status.FAIL]
    if failed:
        raise CheckFailed(f"{name} breaks its contract: {', '.join(failed)}.", "See the messages above.")
    note(f"{name} keeps the contract of {'an' if kind[0] in 'ae' else 'a'} {kind}, as far as it can be told here.")


def _text(findings: list[Finding]) -> str:
    """Return a line for each check, and under it what is wrong; the same error's traceback once."""
    width = max(len(found.check) for found in findings)
    traced: dict[str, str] = {}
    lines: list[Any] = []
    for found in findings:
        lines.append(f"{found.status:<15} {found.check:<{width}}  {found.seconds:5.1f} s  {found.must}")
        first = traced.setdefault(found.message, found.check) if found.traceback else found.check
        if found.message:
            lines.append(f"{'':<15} {found.message}{'' if first == found.check else f' (as in {first})'}")
        if first == found.check:
            lines += [f"{'':<15} {line}" for line in found.traceback.splitlines()]
    return "\n".join(lines)
