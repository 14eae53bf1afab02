"""What commands share: options, and how errors are shown."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from foresight_bench.errors import INTERRUPTED, ForesightError

F = TypeVar("F", bound=Callable[..., Any])


def guarded(command: F) -> F:
    """Turn expected errors into one sentence and a hint, and an interrupt into its exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ForesightError as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(error.hint, err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted; finished cells are kept, the same command resumes.", err=True)
            sys.exit(INTERRUPTED)

    return wrapper  # type: ignore[return-value]


def note(text: str) -> None:
    """Say what is going on, on standard error."""
    click.echo(text, err=True)


suite_option = click.option("--suite", default="quick", show_default=True, help="Gate suite.")
results_option = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder of result cells.",
)
device_option = click.option("--device", help="cpu, cuda or cuda:N.  [default: the first GPU, else the CPU]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
