"""The command line. Results go to standard output, progress to standard error. No torch is imported here."""

from __future__ import annotations

import click

from foresight_bench.commands.caching import cache_group
from foresight_bench.commands.looking import list_command, plugins, show
from foresight_bench.commands.results import compare, leaderboard, merge, rescore, validate
from foresight_bench.commands.running import calibrate, plan, run
from foresight_bench.commands.scenes import scenes


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="foresight-bench")
def main() -> None:
    """Decide whether a frozen visual representation can drive a video decoder, and where in the encoder spatial
    information gets lost."""


COMMANDS = (
    *(run, plan, calibrate),
    *(compare, leaderboard, merge, rescore, validate),
    *(list_command, plugins, show, scenes, cache_group),
)
for command in COMMANDS:
    main.add_command(command)
