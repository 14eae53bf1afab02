"""The command that shows what everybody's results say: leaderboard."""

from __future__ import annotations

from pathlib import Path

import click

from foresight_bench.commands.options import guarded, note
from foresight_bench.errors import CheckFailed

COMMITTED = Path("benchmarks/results")
"""The results that come with the source tree; their board is BENCHMARKS.md at its root."""
_FILE, _FOLDER = click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 6 if a file differs from what the results give.")
@click.option("--results", type=_FOLDER, default=COMMITTED, show_default=True, help="Folder of result cells.")
@click.option("--output", type=_FILE, help="Markdown.  [default: BENCHMARKS.md; of other results, in the site]")
@click.option(
    "--site",
    type=_FOLDER,
    help="Folder for index.html, verdicts.svg, leaderboard.json and leaderboard.csv.  [default: "
    "benchmarks/leaderboard; of other results, leaderboard]",
)
@guarded
def leaderboard(check: bool, results: Path, output: Path | None, site: Path | None) -> None:
    """Write the leaderboard: Markdown, one page of HTML, a picture of the verdicts, JSON and CSV.

    Files that are altered, of another cohort than the installed suite's or of a later schema are left out, and named.
    """
    from foresight_bench.board_files import as_csv, as_json
    from foresight_bench.building import build
    from foresight_bench.leaderboard import page
    from foresight_bench.registry import Registry
    from foresight_bench.store import write_atomically

    site = site or Path("benchmarks/leaderboard" if results == COMMITTED else "leaderboard")
    output = output or (Path() if results == COMMITTED else site) / "BENCHMARKS.md"
    board = build(results, Registry.installed())
    for problem in board.left_out:
        note(f"Left out: {problem}")
    files = {output: page(board), site / "leaderboard.json": as_json(board), site / "leaderboard.csv": as_csv(board)}
    if check:
        differing = [str(path) for path, text in files.items() if not _holds(path, text)]
        if differing:
            raise CheckFailed(
                f"{', '.join(differing)}: not what {results} gives.", "Run `foresight-bench leaderboard`."
            )
        note(f"{', '.join(map(str, files))}: what {results} gives.")
        return
    # They draw charts: a second that a check need not take.
    from foresight_bench.pages.leaderboard import rendered
    from foresight_bench.pages.verdicts import picture

    files |= {site / "index.html": rendered(board), site / "verdicts.svg": picture(board)}
    for path, text in files.items():
        write_atomically(path, text.encode())
    note(f"Wrote {', '.join(map(str, files))}.")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
