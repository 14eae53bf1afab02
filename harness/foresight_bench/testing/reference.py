"""Every MUST of every contract, as a page: docs/contracts.md.

python -m foresight_bench.testing.reference > docs/contracts.md
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from itertools import zip_longest

from tabulate import tabulate

from foresight_bench import checkpoints, clips, contracts, grids, specs
from foresight_bench.testing.selecting import KINDS, checks_of

CONTRACTS = {
    "encoder": (specs.EncoderSpec, specs.Variant, specs.Part, contracts.EncoderSetup, contracts.Encoder),
    "adapter": (specs.AdapterSpec, specs.Recipe, contracts.Pairing, contracts.AdapterModule, contracts.Adapter),
    "decoder": (specs.DecoderSpec, contracts.Decoder),
    "metric": (
        *(specs.MetricSpec, contracts.FrameTruth, contracts.FrameMetric, contracts.CrossedMetric),
        *(contracts.FrameBoxes, contracts.BoxMetric, contracts.Spaces, contracts.SpaceMetric),
    ),
}
"""What each kind of plugin implements, says or is given."""
COMMON = (
    *(clips.ClipBatch, grids.Grid, grids.Layout),
    *(specs.Weights, specs.HubFile, specs.HubFolder, specs.RegistryArchive),
    *(contracts.ResolvedWeights, checkpoints.Checkpoint, checkpoints.fill),
)
"""What several kinds are given, return or use."""


def page() -> str:
    """Return the page as Markdown."""
    parts = [
        "# Contracts\n\n"
        "Generated from the docstrings and the checks by `python -m foresight_bench.testing.reference`; do not edit.\n"
        "`foresight-bench check NAME` asks for every MUST by the name given here."
    ]
    for kind in KINDS:
        parts.append(f"## {kind.capitalize()}")
        parts += [_contract(contract) for contract in CONTRACTS[kind]]
        rows = [[f"`{check.name}`", check.must] for check in checks_of(kind)]
        parts.append(tabulate(rows, ["check", "MUST"], "github", disable_numparse=True))
    parts.append("## In common")
    parts += [_contract(contract) for contract in COMMON]
    return "\n\n".join(parts)


def _contract(contract: Callable[..., object]) -> str:
    """Return a function's docstring, or a class's and those of its methods."""
    name = f"{contract.__module__}.{contract.__name__}"
    if inspect.isfunction(contract):
        return f"### `{name}{inspect.signature(contract)}`\n\n{inspect.getdoc(contract)}"
    text = [f"### `{name}`", inspect.getdoc(contract) or ""]
    text += _fields(contract)
    for name, member in vars(contract).items():
        if inspect.isfunction(member) and not name.startswith("_") and inspect.getdoc(member):
            text.append(f"`{name}{inspect.signature(member)}`\n\n{inspect.getdoc(member)}")
    return "\n\n".join(text)


def _fields(contract: Callable[..., object]) -> list[str]:
    """Return a list of a dataclass's fields with the text below each; empty for what is none."""
    if not is_dataclass(contract):
        return []
    (body,) = ast.parse(inspect.getsource(contract)).body
    assert isinstance(body, ast.ClassDef)
    lines = []
    for field, text in zip_longest(body.body, body.body[1:]):
        if isinstance(field, ast.AnnAssign):
            said = ""
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                said = f": {' '.join(str(text.value.value).split())}"
            lines.append(f"- `{ast.unparse(field).replace('field(default_factory=dict)', '{}')}`{said}")
    return ["\n".join(lines)]


if __name__ == "__main__":
    print(page())
