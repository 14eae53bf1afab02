"""The documents say what the program does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from committed import QUICK
from foresight_bench.cli import main
from foresight_bench.registry import Registry
from foresight_bench.store import Store
from foresight_bench.tables import system_text, systems
from foresight_bench.testing.reference import page

ROOT = Path(__file__).parents[2]
PAGES = "README.md", "CONTRIBUTING.md", "docs/manual.md", "docs/plugins.md"
DOCUMENTS = {name: (ROOT / name).read_text("utf-8") for name in PAGES}
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for text in DOCUMENTS.values()
        for line in re.findall(r"^\$ foresight-bench (.*)$", text, re.MULTILINE)
    }
    | {found for text in DOCUMENTS.values() for found in re.findall(r"`foresight-bench ([^`\n]*)`", text)}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_commands_parse(line: str) -> None:
    command: click.Command = main
    arguments = shlex.split(line)
    while isinstance(command, click.Group):
        while arguments[0].startswith("-"):
            assert arguments.pop(0) in {option for parameter in command.params for option in parameter.opts}
        command = command.commands[arguments.pop(0)]
    command.make_context("foresight-bench", arguments)


def test_the_contracts_page_is_what_the_checks_give() -> None:
    assert (ROOT / "docs" / "contracts.md").read_text("utf-8") == page() + "\n"


def test_the_manual_shows_the_committed_output_and_the_readme_a_table_of_it() -> None:
    suite = Registry.installed().suites["quick"].spec
    cells = [cell for cell in Store(QUICK).cells() if cell.identity.encoder == "dinov2:small"]
    system = "dinov2:small", suite.default_adapter, suite.default_decoder, 0
    assert (output := system_text(suite, system, systems(cells)[system])) in DOCUMENTS["docs/manual.md"]
    (table,) = re.findall(r"```text\n(.*?)\n```", DOCUMENTS["README.md"], re.DOTALL)
    assert table.startswith("C1 ")
    assert table in output


def test_readme_states_the_thresholds() -> None:
    names = {
        "lpips": "LPIPS",
        "ssim": "SSIM",
        "spatial_iou": "spatial IoU",
        "ridge_r2": "ridge R2",
        "spearman": "Spearman",
        "recall10": "recall@10",
        "cka": "debiased CKA",
        "box_iou": "box IoU",
        "edge_f1": "edge F1",
        "map50": "mAP@.5",
    }
    metrics = Registry.installed().metrics
    for spec in Registry.installed().suites["quick"].spec.experiments:
        (row,) = re.findall(rf"^\| {spec.name} .*$", DOCUMENTS["README.md"], re.MULTILINE)
        for criterion in spec.criteria:
            if criterion.threshold is not None:
                sign = ">" if metrics[criterion.metric].spec.direction == "higher" else "<"
                (stated,) = re.findall(rf"{re.escape(names[criterion.metric])} {sign} (\.\d+)", row)
                assert float(stated) == criterion.threshold
