"""Plugin loading: what works contributes, what does not is quarantined."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

from foresight_bench.errors import PluginError
from foresight_bench.plugins import Plugin, load, load_one
from foresight_bench.registry import Registry

GOOD = """
from foresight_bench import hookimpl
from foresight_bench.specs import AdapterSpec

@hookimpl
def foresight_adapters():
    return [AdapterSpec(name="mine", target="mine:Mine", description="")]
"""
SPEC = '[AdapterSpec(name="mine", target="mine:Mine", description="")]'
BAD = {
    "import error": "import a_module_that_is_nowhere",
    "sys.exit at import": "raise SystemExit(3)",
    "syntax error": "def",
    "misspelt hook": GOOD.replace("foresight_adapters", "foresight_adaptors"),
    "misspelt argument": GOOD.replace("foresight_adapters()", "foresight_adapters(nothing)"),
    "wrong return type": GOOD.replace(SPEC, "['mine']"),
    "returns nothing iterable": GOOD.replace(SPEC, "7"),
    "raises": GOOD.replace("return", "raise RuntimeError #"),
}


def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str) -> metadata.EntryPoint:
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    return metadata.EntryPoint(name, name, "foresight_bench")


def test_the_built_in_plugins_come_in_through_entry_points() -> None:
    found = {plugin.name: plugin for plugin in load()}
    assert {"foresight_plugins", "foresight_gates"} <= set(found)
    assert not any(plugin.quarantine for plugin in found.values())
    assert found["foresight_plugins"].distribution == "foresight-bench"


def test_a_good_plugin_contributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = load_one(point(tmp_path, monkeypatch, GOOD, "good_plugin"))
    assert not plugin.quarantine
    assert Registry([plugin]).adapters["mine"].plugin is plugin


@pytest.mark.parametrize("fault", BAD)
def test_a_broken_plugin_is_quarantined_whole(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "bad_" + fault.replace(" ", "_").replace(".", "_")
    plugin = load_one(point(tmp_path, monkeypatch, BAD[fault], name))
    assert plugin.quarantine
    assert "Traceback" in plugin.traceback
    assert plugin.contributions == ()


def test_collisions_name_both_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_one(point(tmp_path, monkeypatch, GOOD, "first_provider"))
    two = load_one(point(tmp_path, monkeypatch, GOOD, "second_provider"))
    registry = Registry([one, two])
    with pytest.raises(PluginError, match=r"first_provider, second_provider"):
        registry.adapters["mine"]


def test_unknown_names_come_with_the_nearest() -> None:
    registry = Registry.installed()
    with pytest.raises(PluginError) as caught:
        registry.encoders["dinov"]
    assert "dinov2" in caught.value.hint
    with pytest.raises(PluginError) as caught:
        registry.resolve("dinov2:smal")
    assert "small" in caught.value.hint
    with pytest.raises(PluginError) as caught:
        registry.resolve("dinov2@block.99")
    assert "block." in caught.value.hint


def test_random_weights_need_weights() -> None:
    with pytest.raises(PluginError, match="no weights"):
        Registry.installed().resolve("pixels~random")


def test_the_environment_limits_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESIGHT_BENCH_PLUGINS", "foresight_gates")
    assert [plugin.name for plugin in load()] == ["foresight_gates"]
    monkeypatch.setenv("FORESIGHT_BENCH_PLUGINS", "")
    assert load() == ()


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(PluginError) as caught:
        Registry([Plugin("x", "x", "0", "x")]).encoders["dinov2"]
    assert "No plugin provides any encoder" in caught.value.hint


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["plugins"], ["run", "--help"]])
def test_light_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom foresight_bench.cli import main\n"
        f"sys.argv = ['foresight-bench', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'timm', 'transformers', 'scipy', 'skimage', 'lpips'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
