"""What a plan says it will take: from what was measured, and nothing where nothing was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from foresight_bench import forecast as module
from foresight_bench.cells import Cell, Cost, Provenance
from foresight_bench.cli import main
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.devices import Device, find_devices
from foresight_bench.errors import EnvironmentFault, WeightsError
from foresight_bench.forecast import Forecast, duration, forecast
from foresight_bench.identities import Needed
from foresight_bench.plan import Plan, PlannedCell, Selection, plan
from foresight_bench.registry import Registry
from foresight_bench.specs import Weights
from foresight_bench.store import Store

DEVICE = Device("cpu", "a processor")
FRAMES = 1000
SELECTION = Selection("quick", ("dinov2@final", "dinov2@final~pooled", "dinov2:large@final"), ("Q2",))


@pytest.fixture
def found(tmp_path: Path) -> Plan:
    """Return a plan in which the weights of dinov2:large cannot be had."""
    path = tmp_path / "weights.safetensors"
    save_file({"blocks.0.w": np.zeros(250, np.float32)}, path)

    def find(weights: Weights, needed: Needed) -> ResolvedWeights:
        if weights.name.startswith("dinov2-large"):
            raise WeightsError("dinov2-large is nowhere.")
        return ResolvedWeights(path, weights.name, "file")

    return plan(Registry.installed(), SELECTION, find)


def finished(planned: PlannedCell, wall: float, rate: float, peak: int) -> Cell:
    """Return ``planned`` as it may have ended."""
    cost = Cost(
        wall_seconds=wall,
        feature_seconds=1.0,
        frames_per_second=rate,
        batch_frames=8,
        peak_memory_bytes=peak,
        trainable_parameters=0,
    )
    where = Provenance(
        device="",
        machine=DEVICE.machine,
        commit="",
        dirty=False,
        python="",
        libraries={},
        weights_sources={},
        finished="",
    )
    return Cell(id=planned.id, identity=planned.identity, status="ok", cost=cost, provenance=where)


@pytest.fixture
def forecasts(found: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Forecast]:
    """Return a function that makes the forecast of the plan from what its results folder holds."""
    monkeypatch.setattr(module, "free_bytes", lambda device: 8_000_000_000)
    store = Store(tmp_path / "results")
    return lambda: forecast(Registry.installed(), found, SELECTION, (DEVICE,), store, FRAMES)


def test_what_was_never_run_is_unknown(forecasts: Callable[[], Forecast]) -> None:
    first = forecasts()
    assert first.seconds == 0
    assert first.unknown == 5 + 6, "passes, of which one is shared, and cells"
    assert not any(each.measured for each in first.passes)
    (small,) = (each for each in first.passes if each.encoder == "dinov2:small@final")
    assert small.memory_bytes == 250 * 4 + module.RESERVE, "the weights, in float32"
    assert small.frames == FRAMES
    (pooled,) = (each for each in first.passes if each.encoder == "dinov2:small@final~pooled")
    assert (pooled.frames, pooled.taps) == (0, 0), "it shares the pass"
    assert "Time: ?; of 11 passes and cells nothing alike was run" in first.text()
    assert "1 that cannot be computed" in first.text()
    assert "1 cells of dinov2:large@final: dinov2-large is nowhere." in first.text()


def test_what_was_run_says_what_the_rest_takes(forecasts: Callable[[], Forecast], found: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    rows = {row.label: row for row in found.rows}
    for name in ("oracle", "pixels", "blank", "mean-rgb"):
        store.write(finished(rows[name].cells[0], 3.0, 0.0, 0))
    # Half of what was computed is another tap of the same model, as after a change of code: 20 frames a second.
    other = rows["dinov2:small@final"].cells[0]
    identity = other.identity.model_copy(update={"taps": ("block.2",), "encoder": "dinov2:small@block.2"})
    store.write(finished(replace(other, identity=identity), 7.0, 20.0, 5_000_000_000))
    known = forecasts()
    assert len(known.reused) == 4
    assert [each.encoder for each in known.passes] == ["dinov2:small@final", "dinov2:small@final~pooled"]
    one, two = known.passes
    median = 3.0  # of 3, 3, 3, 3 and 7
    assert one.seconds == pytest.approx(FRAMES / 20 + median)
    assert two.seconds == pytest.approx(median)
    assert known.seconds == pytest.approx(56)
    assert "7 cells: 2 to compute, 4 reused, 1 that cannot be computed" in known.text()
    assert known.unknown == 0
    assert "Time: 56 s." in known.text().replace("; cpu has 8.0 GB free", "")
    record = json.loads(json.dumps(known.record()))
    states = {cell["encoder"]: cell["state"] for cell in record["cells"]}
    assert states["oracle"] == "reused"
    assert states["dinov2:small@final"] == "missing"
    assert states["dinov2:large@final"] == "skipped"


def test_a_plan_as_json_is_what_cells_reads(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: None)

    def command(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, [*arguments, "--device", "cpu", "--results", str(toy)])
        return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr

    chosen = ("--suite", "toy", "-e", "sound", "-e", "nan", "--limit", "8")
    code, text = command("plan", *chosen, "--json")
    assert code == 0, text
    record = json.loads(text)
    assert command("run", *chosen, "--dry-run", "--json") == (0, text)
    record["cells"] = [c for c in record["cells"] if (c["encoder"], c["experiment"]) == ("sound", "Q2")]
    assert len(record["cells"]) == 1
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(record))
    code, text = command("plan", "--cells", str(file), "--json")
    assert code == 0, text
    again = json.loads(text)
    assert {c["encoder"] for c in again["cells"]} == {"sound", "oracle", "pixels", "blank", "mean-rgb"}
    assert again["cohort"] == record["cohort"]
    assert again["cohort"].endswith("-limit8")
    record["cells"][0]["id"] = "0" * 16
    file.write_text(json.dumps(record))
    assert command("run", "--cells", str(file))[0] == 4
    file.write_text("[" * 100_000)
    code, text = command("run", "--cells", str(file))
    assert (code, "is not a plan" in text) == (4, True)
    assert command("run", "--cells", str(file), "-e", "sound")[0] == 2
    assert command("run")[0] == 2
    for shard in ("0/2", "3/2", "x", "1"):
        assert command("run", *chosen, "--shard", shard)[0] == 2
    assert not list(toy.rglob("*.json"))


@pytest.mark.parametrize(
    ("seconds", "unknown", "text"),
    [(0, 2, "?"), (40.4, 0, "40 s"), (180, 1, "over 3 min"), (9000, 0, "2.5 h"), (89.9, 0, "90 s")],
)
def test_durations_are_read_at_a_glance(seconds: float, unknown: int, text: str) -> None:
    assert duration(seconds, unknown) == text


@pytest.mark.parametrize(
    ("visible", "wanted", "names"),
    [
        (None, None, ["cuda:0", "cuda:1"]),  # the third is of another model
        (None, "cuda", ["cuda:0", "cuda:1"]),
        (None, "cuda:2", ["cuda:2"]),
        ("1", None, ["cuda:0"]),
        ("GPU-c,GPU-a", None, ["cuda:0"]),
        ("0,7,1", None, ["cuda:0"]),  # what comes after one that is not there does not count
        ("", None, ["cpu"]),
        ("", "cpu", ["cpu"]),
    ],
)
def test_devices_are_those_that_this_process_sees(
    visible: str | None, wanted: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho GPU-aa, NVIDIA H200\necho GPU-bb, NVIDIA H200\necho GPU-cc, NVIDIA L4\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_devices(wanted)
    assert [device.name for device in found] == names
    if visible == "GPU-c,GPU-a":
        assert found[0].model == "NVIDIA L4"
    if wanted is None and visible == "":
        with pytest.raises(EnvironmentFault, match="no CUDA device"):
            find_devices("cuda")
