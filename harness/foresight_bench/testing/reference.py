"""Every MUST of every contract, as a page: docs/contracts.md.

python -m foresight_bench.testing.reference > docs/contracts.md
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import is_dataclass
from itertools import pairwise

from tabulate import tabulate

from foresight_bench import contracts
from foresight_bench.testing.selecting import KINDS, checks_of

CONTRACTS = {
    "encoder": (contracts.EncoderSetup, contracts.Encoder),
    "adapter": (contracts.Pairing, contracts.AdapterModule, contracts.Adapter),
    "decoder": (contracts.Decoder,),
    "metric": (contracts.FrameMetric, contracts.BoxMetric, contracts.SpaceMetric),
}
"""What each kind of plugin implements or is given."""


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
    return "\n\n".join(parts)


def _contract(contract: type) -> str:
    """Return a class's docstring and those of its methods."""
    text = [f"### `{contract.__name__}`", inspect.getdoc(contract) or ""]
    text += _fields(contract)
    for name, member in vars(contract).items():
        if inspect.isfunction(member) and not name.startswith("_") and inspect.getdoc(member):
            text.append(f"`{name}{inspect.signature(member)}`\n\n{inspect.getdoc(member)}")
    return "\n\n".join(text)


def _fields(contract: type) -> list[str]:
    """Return a list of a dataclass's fields with the text below each; empty for what is none."""
    if not is_dataclass(contract):
        return []
    (body,) = ast.parse(inspect.getsource(contract)).body
    assert isinstance(body, ast.ClassDef)
    lines = []
    for field, text in pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            said = " ".join(str(text.value.value).split())
            lines.append(f"- `{ast.unparse(field.target)}: {ast.unparse(field.annotation)}`: {said}")
    return ["\n".join(lines)]


if __name__ == "__main__":
    print(page())
