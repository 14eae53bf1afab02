"""Commands that read results: merge, validate, compare, rescore."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from foresight_bench.commands.options import guarded, json_option, note, results_option
from foresight_bench.errors import CheckFailed

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=_FOLDER)
@click.option("--output", "-o", required=True, type=_FOLDER, help="Folder to join them in; may hold results already.")
@guarded
def merge(folders: tuple[Path, ...], output: Path) -> None:
    """Join results folders: cells, their scores and pictures.

    Refuses, before anything is written, cells of different cohorts, cells that contradict each other, altered files,
    and the shards of a plan of which one is missing.
    """
    from foresight_bench.merging import merge as join

    merged = join(folders, output)
    note(f"{merged.cells} cells, {merged.added} of them new, in {output}")


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@json_option
@guarded
def validate(folder: Path, as_json: bool) -> None:
    """Check a results folder; exit 6 with a line for each problem.

    Every file is checked against its seal, digests and place, every number against the scores beside it, and every
    cell against the installed suite.
    """
    from foresight_bench.registry import Registry
    from foresight_bench.validating import validate as problems_of

    problems = problems_of(folder, Registry.installed())
    if as_json:
        click.echo(json.dumps([asdict(problem) for problem in problems], indent=1))
    else:
        for problem in problems:
            click.echo(str(problem))
    if problems:
        raise CheckFailed(f"{folder} has {len(problems)} problem{'s' if len(problems) > 1 else ''}.")
    note(f"{folder} has no problems.")


@click.command()
@click.argument("a")
@click.argument("b")
@results_option
@click.option("--results-b", type=_FOLDER, help="Folder of B's cells.  [default: that of A]")
@click.option("--experiment", "-x", help="This experiment only.  [default: all that both have]")
@json_option
@guarded
def compare(a: str, b: str, results: Path, results_b: Path | None, experiment: str | None, as_json: bool) -> None:
    """Compare two systems over the same clips, metric by metric, with a paired bootstrap.

    A and B are each an encoder as in results (dinov2:small), the start of a cell's id, or a cell's file. Of two
    encoders, every experiment is compared that both have with the same adapter, decoder and seed.
    """
    from foresight_bench import comparing

    matched = comparing.pairs(
        comparing.find(a, results, experiment), comparing.find(b, results_b or results, experiment)
    )
    differences = [found for one, other in matched for found in comparing.compare(one, other)]
    count = f"{len(differences)} comparison{'s' if len(differences) != 1 else ''}"
    if as_json:
        click.echo(json.dumps(comparing.record(a, b, differences), indent=1, allow_nan=False))
    else:
        click.echo(f"A: {a}\nB: {b}\n\n{comparing.text(differences)}")
    note(f"{count}, not corrected for their number: of equal systems, 1 interval in 20 leaves 0 out.")


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--output", "-o", required=True, type=_FOLDER, help="New folder for the rescored cells.")
@guarded
def rescore(folder: Path, output: Path) -> None:
    """Judge finished cells anew, from the scores beside them and the thresholds of the installed suite.

    Nothing is run: for metrics computed anew from cached features, `run` the same selection again.
    """
    from foresight_bench.registry import Registry
    from foresight_bench.rescoring import rescore as judge_anew

    done = judge_anew(folder, output, Registry.installed())
    note(f"{done.cells} cells in {output}, {len(done.changed)} of them changed")
    for cell_id in done.changed:
        click.echo(cell_id)
