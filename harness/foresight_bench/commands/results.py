"""Commands that read results: leaderboard."""

from __future__ import annotations

from pathlib import Path

import click

from foresight_bench.commands.options import guarded, note
from foresight_bench.errors import CheckFailed


@click.command()
@click.option("--check", is_flag=True, help="Exit 6 if the page differs from what the results give.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder of committed result cells.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("BENCHMARKS.md"),
    show_default=True,
)
@guarded
def leaderboard(check: bool, results: Path, output: Path) -> None:
    """Write the leaderboard from committed results."""
    from foresight_bench.leaderboard import page
    from foresight_bench.registry import Registry
    from foresight_bench.store import Store, write_atomically

    text = page(Registry.installed(), Store(results))
    if check:
        if not output.exists() or output.read_text("utf-8") != text:
            raise CheckFailed(f"{output} is not what {results} gives.", "Run `foresight-bench leaderboard`.")
        note(f"{output} is what {results} gives.")
        return
    write_atomically(output, text.encode())
    note(f"Wrote {output}.")
