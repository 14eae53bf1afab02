"""Plugin loading: what works contributes, what does not is quarantined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from foresight_bench.cli import main
from foresight_bench.errors import PluginError
from foresight_bench.plugins import ENVIRONMENT, STRICT, Plugin, load, load_one
from foresight_bench.registry import Registry

PROGRAM = [sys.executable, "-m", "foresight_bench"]
GOOD = """
from foresight_bench import hookimpl
from foresight_bench.specs import AdapterSpec

@hookimpl
def foresight_adapters():
    return [AdapterSpec(name="mine", target="mine:Mine", description="")]
"""
SPEC = '[AdapterSpec(name="mine", target="mine:Mine", description="")]'
TRAP = """
class Trap(AdapterSpec):
    __init__ = lambda self: None
    name = property(lambda self: 1 / 0)

"""
ENCODER = GOOD.replace("AdapterSpec", "EncoderSpec").replace("foresight_adapters", "foresight_encoders")
BAD = {
    "import error": ("import a_module_that_is_nowhere", "No module named 'a_module_that_is_nowhere'); install"),
    "sys.exit at import": ("raise SystemExit(3)", "could not be imported (SystemExit: 3)"),
    "interrupt at import": ("raise KeyboardInterrupt", "could not be imported (KeyboardInterrupt"),
    "syntax error": ("def", "SyntaxError"),
    "unspeakable error": (
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\nraise Mute",
        "could not be imported",
    ),
    "misspelt hook": (GOOD.replace("foresight_adapters", "foresight_adaptors"), "did you mean foresight_adapters?"),
    "misspelt and unmarked": (
        GOOD.replace("@hookimpl", "").replace("foresight_adapters", "foresight_adapter"),
        "did you mean foresight_adapters?",
    ),
    "unmarked hook": (GOOD.replace("@hookimpl", ""), "put @hookimpl of foresight_bench above it"),
    "misspelt argument": (GOOD.replace("foresight_adapters()", "foresight_adapters(nothing)"), "there is none"),
    "misspelt argument of an observer": (
        GOOD + "@hookimpl\ndef foresight_cell_finished(cel): pass",
        "takes an argument 'cel' that the hook does not have; did you mean cell?",
    ),
    "wrong return type": (GOOD.replace(SPEC, "['mine']"), "returned a str in a list of AdapterSpec"),
    "returns one spec": (GOOD.replace(SPEC, SPEC[1:-1]), "returned a AdapterSpec; return a list of AdapterSpec"),
    "returns nothing iterable": (GOOD.replace(SPEC, "7"), "returned a int; return a list"),
    "forgets to return": (GOOD.replace("return", ""), "returned a NoneType; return a list"),
    "raises": (GOOD.replace("return", "raise RuntimeError('no') #"), "foresight_adapters failed (RuntimeError: no)"),
    "exits in a hook": (GOOD.replace("return", "raise SystemExit #"), "foresight_adapters failed (SystemExit"),
    "twice the same name": (GOOD.replace(SPEC, f"{SPEC} * 2"), "returned 'mine' twice; rename one"),
    "name that is no text": (GOOD.replace('name="mine"', "name=None"), "AdapterSpec.name is of type NoneType, not str"),
    "empty name": (GOOD.replace('name="mine"', 'name=""'), "without a name"),
    "number for a text parameter": (
        GOOD.replace('description=""', 'description="", params={"a": [1]}'),
        "AdapterSpec.params['a'] is of type list",
    ),
    "raises on access": (
        GOOD.replace("@hookimpl", f"{TRAP}@hookimpl").replace(SPEC, "[Trap()]"),
        "returned a Trap in a list of AdapterSpec",
    ),
    "no variants": (
        ENCODER.replace('description=""', 'description="", variants=()'),
        "without a variant",
    ),
    "no taps": (
        ENCODER.replace("EncoderSpec\n", "EncoderSpec, Variant\n").replace(
            'description=""', 'description="", variants=(Variant("only", (), ()),)'
        ),
        "without a variant, or one",
    ),
    "variants in a list": (
        ENCODER.replace('description=""', 'description="", variants=[]'),
        "EncoderSpec.variants is of type list, not tuple",
    ),
    "another version": (
        f"FORESIGHT_API = 2\n{GOOD}",
        "version 2 of the plugin interface and this release has version 1",
    ),
}
"""A plugin's source, and what its reason must say."""


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
    source, reason = BAD[fault]
    plugin = load_one(point(tmp_path, monkeypatch, source, name))
    assert reason in plugin.quarantine
    assert plugin.quarantine.endswith((".", "?"))
    assert "\n" not in plugin.quarantine
    assert "Traceback" in plugin.traceback
    assert plugin.hooks == ()


def test_the_version_of_this_release_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_one(point(tmp_path, monkeypatch, f"FORESIGHT_API = 1\n{GOOD}", "versioned")).quarantine


def test_a_function_imported_from_elsewhere_is_no_misspelt_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere_1.py").write_text("def foresight_helper(): pass\n")
    source = f"from elsewhere_1 import foresight_helper\n{GOOD}"
    assert not load_one(point(tmp_path, monkeypatch, source, "helped")).quarantine


def test_a_slow_import_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foresight_bench.plugins.SECONDS", 0.3)
    start = time.monotonic()
    plugin = load_one(point(tmp_path, monkeypatch, "import time\ntime.sleep(30)", "sleeper"))
    assert time.monotonic() - start < 10
    assert "was not imported within 0.3 s" in plugin.quarantine
    assert "time.sleep(30)" in plugin.traceback


def test_what_a_plugin_prints_is_not_the_commands_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_one(point(tmp_path, monkeypatch, f"print('hello')\n{GOOD}", "printer"))
    assert capsys.readouterr() == ("", "hello\n")


def install(site: Path, name: str, source: str, module: str = "", distribution: str = "") -> None:
    """Install a plugin into a folder."""
    module = module or name
    info = site / f"{(distribution or name)}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[foresight_bench]\n{name} = {module}\n")
    (site / f"{module}.py").write_text(textwrap.dedent(source))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which plugins are found, by this process and those it starts."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    return tmp_path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_two_plugins_of_one_name_are_quarantined_and_the_built_in_is_not(site: Path) -> None:
    install(site, "same", GOOD, "same_1", "first-dist")
    install(site, "same", GOOD, "same_2", "second-dist")
    install(site, "foresight_plugins", "raise SystemExit", "usurper", "usurper-dist")
    found = {(plugin.name, plugin.distribution): plugin for plugin in load()}
    for key in (("same", "first-dist"), ("same", "second-dist"), ("foresight_plugins", "usurper-dist")):
        assert "plugin of the same name; uninstall one" in found[key].quarantine
    assert not found["foresight_plugins", "foresight-bench"].quarantine
    assert not {"same_1", "same_2", "usurper"} & set(sys.modules)


def test_a_broken_installation_breaks_nothing_else(site: Path) -> None:
    for name, text in {"garbled": b"\xff\xfe", "lineless": b"[foresight_bench]\nno equals sign\n"}.items():
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_bytes(text)
    (site / "nameless-1.0.dist-info").mkdir()
    (site / "nameless-1.0.dist-info/entry_points.txt").write_text("[foresight_bench]\nnameless = nowhere_1\n")
    found = {plugin.name: plugin for plugin in load()}
    assert "entry_points.txt cannot be read; install it again." in found["lineless"].quarantine
    assert (found["nameless"].distribution, found["nameless"].version) == ("unknown", "unknown")
    assert not found["foresight_plugins"].quarantine


def test_shared_names_are_shown_and_the_rest_works(site: Path) -> None:
    install(site, "rival", GOOD.replace(SPEC, SPEC.replace("mine", "linear")[:-1] + ", " + SPEC[1:]))
    (rival, ours) = [p for p in json.loads(invoke("plugins", "--json").output) if p["shadowed"]][::-1]
    assert rival["shadowed"] == [{"kind": "adapter", "name": "linear", "others": ["foresight_plugins"]}]
    assert ours["shadowed"] == [{"kind": "adapter", "name": "linear", "others": ["rival"]}]
    assert rival["status"] == "ok"
    assert "shadowed: adapter linear, which rival also provides" in invoke("plugins").output
    listed = [each["name"] for each in json.loads(invoke("list", "adapters", "--json").output)["adapters"]]
    assert "mine" in listed
    assert "linear" not in listed


def test_plugins_tells_origins_and_hooks_apart(site: Path) -> None:
    install(site, "bought", GOOD + "@hookimpl\ndef foresight_run_started(): pass")
    install(site, "edited", GOOD.replace('"mine"', '"other"'))
    (site / "edited-1.0.dist-info/direct_url.json").write_text('{"url": "file:///x", "dir_info": {"editable": true}}')
    found = {record["name"]: record for record in json.loads(invoke("plugins", "--json").output)}
    assert {name: record["origin"] for name, record in found.items()} == {
        "foresight_gates": "built-in",
        "foresight_plugins": "built-in",
        "bought": "installed",
        "edited": "editable",
    }
    assert found["bought"]["hooks"] == ["foresight_adapters", "foresight_run_started"]
    assert (found["bought"]["distribution"], found["bought"]["version"]) == ("bought", "1.0")


def test_no_plugins_loads_the_built_in_ones_only(site: Path) -> None:
    install(site, "absent", "raise SystemExit")
    assert "absent" in invoke("plugins").output
    done = invoke("--no-plugins", "plugins")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == ["foresight_gates", "foresight_plugins"]
    assert ENVIRONMENT not in os.environ


def test_strict_plugins_ends_with_the_sentence(site: Path) -> None:
    assert invoke("--strict-plugins", "list").exit_code == 0
    install(site, "shaky", "import a_module_that_is_nowhere")
    assert invoke("list").exit_code == 0
    done = invoke("--strict-plugins", "list")
    assert done.exit_code == 3
    assert "Plugin shaky is quarantined: its module shaky could not be imported" in done.output
    assert invoke("list").exit_code == 0


def test_workers_inherit_what_is_loaded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setitem(main.commands, "plugins", click.Command("plugins", callback=lambda: seen.update(os.environ)))
    invoke("--no-plugins", "--strict-plugins", "plugins")
    assert set(seen[ENVIRONMENT].split(",")) == {"foresight_gates", "foresight_plugins"}
    assert seen[STRICT]


def test_everything_works_beside_every_kind_of_broken_plugin(site: Path) -> None:
    for number, (source, _) in enumerate(BAD.values()):
        install(site, f"broken_{number}", source)
    install(site, "asleep", "import time\ntime.sleep(30)")
    install(site, "fine", GOOD)
    start = time.monotonic()
    done = subprocess.run([*PROGRAM, "plugins", "--json"], check=True, capture_output=True, text=True)
    assert time.monotonic() - start < 25  # neither waits for the import, nor the process for its thread
    found = {record["name"]: record["status"] for record in json.loads(done.stdout)}
    good = {name for name, status in found.items() if status == "ok"}
    assert good == {"foresight_gates", "foresight_plugins", "fine"}
    assert len(found) == len(BAD) + 4


def test_fifty_plugins_cost_little(site: Path) -> None:
    for number in range(50):
        install(site, f"many_{number}", GOOD.replace("mine", f"mine-{number}"))
    start = time.perf_counter()
    done = subprocess.run([*PROGRAM, "list", "adapters"], check=True, capture_output=True, text=True)
    assert time.perf_counter() - start < 2  # it takes .3 s; torch alone would take longer
    assert all(f"  mine-{number}:" in done.stdout for number in range(50))


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


def test_an_unknown_name_names_the_plugins_that_could_not_be_loaded() -> None:
    broken = Plugin("mine", "mine", "0.1", "mine", quarantine="It cannot be imported.")
    with pytest.raises(PluginError) as error:
        Registry([broken]).encoders["vit"]
    assert "Quarantined: mine; `foresight-bench plugins` says why." in error.value.hint
    with pytest.raises(PluginError) as error:
        Registry([]).encoders["vit"]
    assert "Quarantined" not in error.value.hint


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


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["plugins"], ["doctor"], ["run", "--help"]])
def test_light_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom foresight_bench.cli import main\n"
        f"sys.argv = ['foresight-bench', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'timm', 'transformers', 'scipy', 'skimage', 'lpips'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
