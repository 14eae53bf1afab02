"""The command line. Results go to standard output, progress to standard error. No torch is imported here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from foresight_bench.commands.boarding import leaderboard
from foresight_bench.commands.caching import cache_group
from foresight_bench.commands.checking import check, new
from foresight_bench.commands.finding import findings
from foresight_bench.commands.health import doctor, plugins
from foresight_bench.commands.looking import list_command, show
from foresight_bench.commands.reporting import report
from foresight_bench.commands.results import compare, merge, rescore, validate
from foresight_bench.commands.running import calibrate, plan, run
from foresight_bench.commands.scenes import scenes
from foresight_bench.commands.studying import study


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="foresight-bench")
@click.option("--no-plugins", is_flag=True, help="Load only the plugins that come with foresight-bench.")
@click.option("--strict-plugins", is_flag=True, help="Exit 3 if a plugin is quarantined.")
@click.pass_context
def main(context: click.Context, no_plugins: bool, strict_plugins: bool) -> None:
    """Decide whether a frozen visual representation can drive a video decoder, and where in the encoder spatial
    information gets lost."""
    from foresight_bench.plugins import ENVIRONMENT, STRICT, built_in

    if no_plugins:
        context.with_resource(_environment(ENVIRONMENT, ",".join(built_in())))
    if strict_plugins:
        context.with_resource(_environment(STRICT, "1"))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable as long as the command runs: workers inherit it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


COMMANDS = (
    *(run, plan, calibrate),
    *(report, leaderboard, findings, compare, study),
    *(merge, validate, rescore),
    *(new, check),
    *(list_command, plugins, doctor, show, scenes, cache_group),
)
for command in COMMANDS:
    main.add_command(command)
