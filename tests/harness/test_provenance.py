"""Every plugin that a cell uses stands in its identity by distribution, version and content."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from foresight_bench.cells import CellIdentity
from foresight_bench.plan import Selection, plan
from foresight_bench.registry import Registry, code_digest

SPECS = {
    "encoder": """
    from foresight_bench.specs import EncoderSpec, Variant
    variant = Variant("only", ("one", "two"), ("one", "two"))
    return [EncoderSpec("my-encoder", "encoder_parts.deep.part:Part", "", (variant,))]
""",
    "adapter": """
    from foresight_bench.specs import AdapterSpec
    return [AdapterSpec("my-adapter", "adapter_parts.deep.part:Part", "")]
""",
    "decoder": """
    from foresight_bench.specs import DecoderSpec
    return [DecoderSpec("my-decoder", "decoder_parts.deep.part:Part", "")]
""",
    "metric": """
    from foresight_bench.specs import MetricSpec
    return [MetricSpec("my-metric", "metric_parts.deep.part:Part", "", "frames", "lower", "1")]
""",
}
COMPILED = f"fast{EXTENSION_SUFFIXES[0]}"


@pytest.fixture
def editable(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a plugin of each kind, its sources elsewhere as of an editable install; return their folder.

    Its hooks are in one package, and the code that its target names in another.
    """
    sources = toy.parent / "sources"
    for number, (kind, body) in enumerate(SPECS.items()):
        info = toy.parent / "site" / f"dist_{kind}-{number}.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{kind}\nVersion: {number}.5\n")
        (info / "entry_points.txt").write_text(f"[foresight_bench]\n{kind} = {kind}_specs\n")
        (info / "direct_url.json").write_text('{"url": "file:///somewhere", "dir_info": {"editable": true}}')
        hook = f"from foresight_bench import hookimpl\n\n@hookimpl\ndef foresight_{kind}s():{body}"
        for path, text in (
            (f"{kind}_specs/__init__.py", hook),
            (f"{kind}_parts/__init__.py", ""),
            (f"{kind}_parts/deep/__init__.py", ""),
            (f"{kind}_parts/deep/part.py", "class Part: ..."),
            (f"{kind}_parts/{COMPILED}", "\0"),
            (f"{kind}_parts/notes.txt", "read by nobody"),
        ):
            (sources / path).parent.mkdir(parents=True, exist_ok=True)
            (sources / path).write_text(text)
    monkeypatch.syspath_prepend(str(sources))
    return sources


def identities() -> dict[str, CellIdentity]:
    """Return the identities that a process which starts now would give, by experiment."""
    for name in [name for name in sys.modules if name.partition(".")[0].endswith(("_specs", "_parts"))]:
        del sys.modules[name]
    importlib.invalidate_caches()
    code_digest.cache_clear()
    chosen = Selection(
        "toy",
        ("my-encoder",),
        adapters=("my-adapter",),
        decoders=("my-decoder",),
        metrics=("my-metric",),
        controls=False,
    )
    return {cell.identity.experiment: cell.identity for cell in plan(Registry.installed(), chosen).cells}


USES = {
    "C1": {"encoder", "adapter", "decoder", "metric"},
    "Q1": {"encoder", "decoder"},
    "Q2": {"encoder", "metric"},
}


def test_all_that_a_cell_uses_and_nothing_else_is_named(editable: Path) -> None:
    origins = {each.name: each.origin for each in Registry.installed().plugins}
    assert {origins[kind] for kind in SPECS} == {"editable"}
    for experiment, identity in identities().items():
        mine = {name for name in identity.code if name.endswith(("_specs", "_parts"))}
        assert mine == {f"{kind}_{part}" for kind in USES[experiment] for part in ("specs", "parts")}
        for name in mine:
            kind, code = name.partition("_")[0], identity.code[name]
            assert (code.distribution, code.version) == (f"dist-{kind}", f"{list(SPECS).index(kind)}.5")
            expected = sha256()
            files = [*(editable / name).rglob("*.py"), *(editable / name).rglob("*.so")]
            for path in sorted(files):
                expected.update(path.relative_to(editable / name).as_posix().encode() + b"\0")
                expected.update(path.read_bytes() + b"\0")
            assert code.digest == expected.hexdigest()


def edited(path: Path) -> None:
    """Change the last byte, as a comment may; the size stays."""
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def retargeted(path: Path) -> None:
    path.write_text(path.read_text().replace(":Part", ":Else"))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(
    ("file", "change"),
    [("parts/deep/part.py", edited), (f"parts/{COMPILED}", edited), ("specs/__init__.py", retargeted)],
)
def test_a_changed_plugin_is_another_cell_wherever_it_is_used(
    kind: str, file: str, change: Callable[[Path], None], editable: Path
) -> None:
    before = {name: identity.cell_id() for name, identity in identities().items()}
    change(editable / f"{kind}_{file}")
    after = {name: identity.cell_id() for name, identity in identities().items()}
    assert {name for name in before if before[name] != after[name]} == {n for n in USES if kind in USES[n]}


def test_what_is_no_code_is_no_part_of_it(editable: Path) -> None:
    before = identities()
    (editable / "encoder_parts" / "notes.txt").write_text("changed")
    (editable / "encoder_parts" / "__pycache__").mkdir()
    (editable / "encoder_parts" / "__pycache__" / "part.cpython-311.pyc").write_bytes(b"x")
    assert identities() == before
