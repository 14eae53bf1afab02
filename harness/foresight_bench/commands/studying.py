"""The command for the study that a suite grew from: study."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from foresight_bench.commands.options import guarded, json_option, note, suite_option


@click.command()
@suite_option
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder with the suite's calibration.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the page here, its numbers (.json) and its picture (.svg) beside it.  [default: print it]",
)
@json_option
@guarded
def study(suite: str, results: Path, output: Path | None, as_json: bool) -> None:
    """Rerun the protocols of an earlier study on features whose worth is known: perfect ones and blank ones.

    Beside what each protocol gives stands what the suite's own gives on the same, from its calibration. Takes some
    minutes on a CPU.
    """
    from tqdm import tqdm

    from foresight_bench.registry import Registry
    from foresight_bench.store import Store, write_atomically
    from foresight_bench.studies import compared, controls, protocols
    from foresight_bench.study_page import page, picture

    registry = Registry.installed()
    spec = registry.suites[suite].spec
    steps = protocols(spec)
    known = controls(spec, Store(results))
    chapters = []
    with tqdm(
        steps, file=sys.stderr, disable=None, leave=False, bar_format="{n}/{total} {bar:30} {elapsed} {desc}"
    ) as bar:
        for step in bar:
            bar.set_description_str(step.title)
            chapters.append(step.run(registry))
    found = compared(chapters, spec, known)
    if output is not None:
        drawing = output.with_suffix(".svg")
        write_atomically(drawing, picture(found).encode())
        write_atomically(output.with_suffix(".json"), found.model_dump_json(indent=1).encode() + b"\n")
        write_atomically(output, page(found, drawing.name).encode())
        note(f"Wrote {output}, its numbers and its picture.")
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    elif output is None:
        click.echo(page(found), nl=False)
