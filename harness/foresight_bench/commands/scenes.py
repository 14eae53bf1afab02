"""Commands for a suite's clips: scenes render, preview, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from foresight_bench.commands.options import guarded, json_option, note, suite_option
from foresight_bench.errors import CheckFailed


@click.group()
def scenes() -> None:
    """Render, preview and verify a suite's clips."""


def _data(suite: str) -> tuple[Any, Any]:
    from foresight_bench.registry import Registry, target

    spec = Registry.installed().suites[suite].spec
    return spec, target(spec.target)(**spec.params)


@scenes.command()
@suite_option
@json_option
@guarded
def verify(suite: str, as_json: bool) -> None:
    """Render every split and compare its bytes with the suite's digests."""
    spec, data = _data(suite)
    found = {}
    for name in data.names:
        note(f"rendering {name}")
        found[name] = data.digest(name)
    data.check_disjoint()
    wrong = [name for name in data.names if spec.digests.get(name) != found[name]]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for name, digest in found.items():
            click.echo(f'{name} = "{digest}"' + ("  # differs" if name in wrong else ""))
    if wrong:
        raise CheckFailed(
            f"Split {', '.join(wrong)} of suite {suite} is not what its digest names.",
            "A changed generator needs a new suite version.",
        )


@scenes.command()
@suite_option
@click.option("--split", default="test", show_default=True)
@click.option("--clips", default=10, show_default=True, help="Clips to show of each length.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), default=Path("scenes.png"))
@guarded
def preview(suite: str, split: str, clips: int, output: Path) -> None:
    """Write a contact sheet with boxes, classes and mask outlines drawn."""
    from foresight_bench.pictures import contact_sheet

    _, data = _data(suite)
    contact_sheet(data.split(split).blocks, data.class_names, clips).save(output)
    note(f"Wrote {output}.")


@scenes.command()
@suite_option
@click.option("--split", default="test", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), required=True)
@guarded
def render(suite: str, split: str, output: Path) -> None:
    """Write a split's frames as PNG files, and its truth as one NPZ file a block."""
    from foresight_bench.pictures import export

    _, data = _data(suite)
    count = export(data.split(split).blocks, output)
    note(f"Wrote {count} frames to {output}.")
