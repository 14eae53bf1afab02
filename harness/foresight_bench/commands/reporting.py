"""The command that shows a run to people: report."""

from __future__ import annotations

from pathlib import Path

import click

from foresight_bench.commands.options import guarded, note


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False), default=Path("results"))
@click.option("--encoder", "-e", "encoders", multiple=True, help="Show this encoder only.  [default: all but controls]")
@click.option("--suite", help="Show results of this suite.  [default: the one that was run last]")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
)
@guarded
def report(run: Path, encoders: tuple[str, ...], suite: str | None, output: Path) -> None:
    """Write a run as one HTML page, which needs no other file and no network.

    RUN is a results folder, or the folder of a cohort or of a machine in it.  [default: results]
    """
    from foresight_bench.pages.report import page
    from foresight_bench.registry import Registry
    from foresight_bench.reporting import gather
    from foresight_bench.store import write_atomically

    found, taken = gather(run, Registry.installed(), encoders, suite)
    data = page(found, taken).encode("utf-8", "backslashreplace")
    write_atomically(output, data)
    for each in found.left_out:
        note(f"left out {each}")
    count = f"{len(found.cells)} cells of {found.cohort} on {found.machine}"
    note(f"Wrote {output}: {count}, {len(data) / 1e6:.1f} MB.")
