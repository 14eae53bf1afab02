"""The speed benchmark itself: that it runs, reports failures, and counts what it says. No time is asserted."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foresight_bench.names import parse
from foresight_plugins import foresight_encoders

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import benchmarks/speed/encoders.py as the script it is."""
    monkeypatch.syspath_prepend(str(SPEED))
    spec = importlib.util.spec_from_file_location("speed_encoders", SPEED / "encoders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "speed_encoders", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    return module


def fake(speed: ModuleType, fault: str = "") -> Any:
    """Return a row whose model takes a millisecond, and breaks on the batch or in the way that ``fault`` says."""

    def build(device: str) -> Any:
        if fault == "build":
            raise ValueError("no such model")

        def prepare(images: int) -> Any:
            def run() -> None:
                if fault == "memory" and images > 2:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                time.sleep(0.001)

            return run

        return prepare

    def ours(device: str, compiled: bool) -> Any:
        prepare = build(device)
        subjects = ("compiled",) if compiled else ("eager", "preparation")
        return lambda images: {subject: prepare(images) for subject in subjects}

    return speed.Row(f"fake {fault}", 1.0, ours, speed.Reference("library Model", build))


def test_a_run_measures_reports_failures_and_prints_its_file_again(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "ceilings", lambda device: {"bf16_tflops": 800.0, "copy_tbps": 4.3})
    rows = [fake(speed), fake(speed, "memory"), fake(speed, "build")]
    file = tmp_path / "new" / "speed.json"
    speed.run(rows, (1, 4), speed.MODES, 60.0, file, "cpu")
    printed = capsys.readouterr().out
    assert speed.main(["--table", str(file)]) == 0
    assert capsys.readouterr().out == printed
    lines = printed.splitlines()
    assert sum(line.startswith("| fake") for line in lines) == 2 * 2 + 2 * 4 + 3
    assert "800 TFLOP/s (bf16 product; 800 at its end)" in printed
    assert sum("out of memory" in line for line in lines) == 3  # eager, compiled, reference
    assert sum("ValueError: no such model" in line for line in lines) == 3
    assert "library Model" in printed


def test_points_are_per_image(speed: ModuleType) -> None:
    point = speed.measured("eager", 4, lambda: time.sleep(0.02), "cpu")
    assert point.low <= point.ms <= point.high
    assert 5.0 <= point.ms < 20.0
    assert point.first_seconds >= 0.02


def test_what_does_not_fit_into_the_time_is_said_so(speed: ModuleType) -> None:
    points = speed.measure(fake(speed), (1, 10**6), "cpu", time.monotonic() + 5, ("eager",))
    eager = [point for point in points if point.subject == "eager"]
    assert [(point.images, point.error) for point in eager] == [(1, ""), (10**6, "out of time")]
    late = speed.measure(fake(speed), (1,), "cpu", time.monotonic() - 1, ("eager",))
    assert {point.error for point in late} == {"out of time"}


def test_ceilings_are_rates(speed: ModuleType) -> None:
    found = speed.ceilings("cpu", side=64, copied=4000)
    assert set(found) == {"bf16_tflops", "copy_tbps"}
    assert all(0 < value < 10 for value in found.values())


def test_an_encoder_runs_from_frames_to_its_tap(speed: ModuleType) -> None:
    calls = speed.encoder("dinov2:small@block.0", 28)("cpu", False)(2)
    grids = calls["eager"]()
    assert {tap: grid.shape for tap, grid in grids.items()} == {"block.0": (2, 1, 2, 2, 384)}
    assert set(calls["preparation"]()) == {"patch_embed"}


def test_rows_name_what_there_is(speed: ModuleType) -> None:
    specs = {spec.name: spec for spec in foresight_encoders()}
    for row in speed.ROWS:
        if "@" in row.name:
            (stream,) = parse(row.name)
            (variant,) = [v for v in specs[stream.name].variants if v.name == stream.variant]
            assert stream.taps in variant.taps
            assert variant.stem


COUNTED = {
    "dinov2:large@final": 1.0,
    "internvl2:8b@block.23": 1.0,
    "llava-next:mistral-7b@block.22": 1.0,
    "qwen2.5-vl:7b language model": 1.004,  # the counter takes causal attention for full
    "sam:vit_b@neck": 1.037,  # and the reference multiplies the padding of its windows
    "sam:vit_l@neck": 1.052,
    "sam:vit_h@neck": 1.056,
}


@pytest.mark.parametrize("name", COUNTED)
def test_operations_are_those_that_torch_counts_on_the_reference(speed: ModuleType, name: str) -> None:
    (row,) = [row for row in speed.ROWS if row.name == name]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call = row.reference.build("meta")(1)
        with FlopCounterMode(display=False) as counter:
            call()
    assert counter.get_total_flops() / 1e9 == pytest.approx(row.gflop * COUNTED[name], rel=1e-3)


@pytest.fixture
def tiny_qwen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Qwen2.5-VL small: what is run is the same."""
    from foresight_plugins.encoders import qwen2_5_vl

    config: Any = qwen2_5_vl.configuration("7b")
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
    for key, value in {**sizes, "num_heads": 4, "out_hidden_size": 64, "depth": 2}.items():
        setattr(config.vision_config, key, value)
    text = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 16}
    for key, value in text.items():
        setattr(config.text_config, key, value)
    config.text_config.layer_types = config.text_config.layer_types[:2]
    config.text_config.rope_parameters["mrope_section"] = [2, 3, 3]
    monkeypatch.setattr(qwen2_5_vl, "configuration", lambda size: config)


@pytest.mark.usefixtures("tiny_qwen")
def test_references_of_qwen_run(speed: ModuleType) -> None:
    with torch.no_grad():
        assert speed.references.qwen_vision("cpu")(2)().pooler_output[0].shape[-1] == 64
        assert speed.references.qwen_language("cpu")(2)().last_hidden_state.shape == (2, 256, 64)
        assert speed.references.qwen_whole("cpu")(2)().last_hidden_state.shape == (2, 271, 64)
        kept, final = speed.language("cpu", False)(2)["eager"]()
    assert final.shape == (2, 256, 64)
    assert set(kept) == {1}


def test_the_page_shows_the_committed_numbers(speed: ModuleType) -> None:
    results = json.loads((SPEED / "results" / "h200.json").read_text("utf-8"))
    assert speed.table(results) in (SPEED / "README.md").read_text("utf-8")
