"""Commands that say what there is: list, show."""

from __future__ import annotations

import json
from typing import Any

import click

from foresight_bench.commands.options import guarded, json_option
from foresight_bench.errors import UsageError


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(["encoders", "adapters", "decoders", "metrics", "suites"]))
@json_option
@guarded
def list_command(kind: str | None, as_json: bool) -> None:
    """List what the installed plugins provide."""
    from foresight_bench.registry import Registry

    registry = Registry.installed()
    shelves = {
        "encoders": registry.encoders,
        "adapters": registry.adapters,
        "decoders": registry.decoders,
        "metrics": registry.metrics,
        "suites": registry.suites,
    }
    chosen: dict[str, Any] = {name: shelf for name, shelf in shelves.items() if kind in (None, name)}
    if as_json:
        records = {
            name: [{"name": e.spec.name, "plugin": e.plugin.name, "description": e.spec.description} for e in shelf]
            for name, shelf in chosen.items()
        }
        click.echo(json.dumps(records, indent=1))
        return
    for name, shelf in chosen.items():
        click.echo(f"{name}:")
        for entry in shelf:
            variants = [v.name for v in getattr(entry.spec, "variants", ())]
            suffix = f" [{', '.join(variants)}]" if len(variants) > 1 else ""
            click.echo(f"  {entry.spec.name}{suffix}: {entry.spec.description}")


@click.command()
@click.argument("encoder", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a result cell's file instead.")
@json_option
@guarded
def show(encoder: str | None, schema: bool, as_json: bool) -> None:
    """Show an encoder's variants, taps, options and weights, or one variant's (dinov2:large)."""
    from foresight_bench import cells, names, showing
    from foresight_bench.registry import Registry

    if schema == (encoder is not None):
        raise UsageError("Name an encoder, or ask for the --schema.", "See `foresight-bench list encoders`.")
    if encoder is None:
        click.echo(json.dumps(cells.schema(), indent=1))
        return

    registry = Registry.installed()
    stream = names.parse(encoder)[0]
    spec = registry.encoders[stream.name].spec
    variants = [registry.variant(stream)] if stream.variant else spec.variants
    if as_json:
        click.echo(json.dumps(showing.encoder_record(spec, variants), indent=1))
    else:
        click.echo(showing.encoder_text(spec, variants))
