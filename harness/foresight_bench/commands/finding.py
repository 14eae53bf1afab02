"""The command that writes the decision document."""

from __future__ import annotations

from pathlib import Path

import click

from foresight_bench.commands.options import guarded, note


@click.command()
@click.argument(
    "results", metavar="[RUN]", required=False, default="results", type=click.Path(path_type=Path, file_okay=False)
)
@click.option("--encoder", "-e", "encoders", multiple=True, help="Encoder in focus; of several, the best-standing.")
@click.option("--suite", help="Cells of this suite only.")
@click.option("--cohort", help="Cells of this cohort only.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="File to write.  [default: stdout]"
)
@guarded
def findings(
    results: Path, encoders: tuple[str, ...], suite: str | None, cohort: str | None, output: Path | None
) -> None:
    """Write the decision document of a results folder (RUN, else `results`) as Markdown.

    It says where one system stands at the gate and what holds it there, where information is lost, what training adds,
    and which of the pivots that were run helps: from the numbers of finished cells and nothing else.
    """
    from foresight_bench.findings.document import document
    from foresight_bench.registry import Registry
    from foresight_bench.store import write_atomically

    text = document(results, Registry.installed(), encoders, suite, cohort)
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomically(output, text.encode())
    note(f"Wrote {output}.")
