"""Encoders that another environment serves: its libraries stand in their identity, and its interpreter runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from foresight_bench.cli import main
from foresight_bench.errors import EnvironmentFault
from foresight_bench.identities import library_versions
from foresight_bench.interpreters import libraries_of
from foresight_bench.store import Store

Interpreter = Callable[[str], Path]


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    """Return a function that makes an interpreter with a transformers of another version, and a line of shell."""

    def make(line: str = "") -> Path:
        site = tmp_path / "other"
        info = site / "transformers-9.9.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.1\n")
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\n{line}\nPYTHONPATH="{site}:$PYTHONPATH" exec {sys.executable} "$@"\n')
        script.chmod(0o755)
        return script

    return make


def test_an_encoder_runs_in_its_own_environment_and_its_controls_in_ours(
    controlled: Path, interpreter: Interpreter
) -> None:
    python = interpreter('echo "$@" >> "$0.calls"')
    arguments = ["--suite", "toy", "--device", "cpu", "--results", str(controlled), "-x", "Q2"]
    done = CliRunner().invoke(main, ["run", *arguments, "-e", "sound", "--python", f"sound={python}"])
    assert done.exit_code == 0, done.output
    assert "5 cells, 4 reused" in done.stderr
    found = {cell.identity.encoder: cell for cell in Store(controlled).cells() if cell.identity.experiment == "Q2"}
    assert found["sound"].identity.libraries["transformers"] == "9.9"
    assert found["oracle"].identity.libraries == library_versions(minor=True)
    assert found["sound"].decision is not None, "it was judged beside them"
    assert "-m foresight_bench.worker" in python.with_suffix(".calls").read_text()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("exit 3", "has no foresight-bench: it said nothing"),
        ("echo no module >&2; exit 1", "has no foresight-bench: no module"),
        ("""echo '[{}, "0123"]'; exit 0""", "is another release"),
    ],
)
def test_an_environment_that_does_not_serve_is_said_so(interpreter: Interpreter, line: str, sentence: str) -> None:
    with pytest.raises(EnvironmentFault, match=sentence):
        libraries_of(str(interpreter(line)))


def test_an_interpreter_that_is_not_there_is_said_so(toy: Path) -> None:
    arguments = ["run", "--suite", "toy", "--results", str(toy), "-e", "sound", "--python"]
    for given, code, sentence in (("sound=/nowhere", 4, "cannot be run"), ("sound", 2, "ENCODER=PATH"), ("x=/", 3, "")):
        done = CliRunner().invoke(main, [*arguments, given])
        assert (done.exit_code, sentence in done.stderr) == (code, True), done.output
