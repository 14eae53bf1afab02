"""The speed benchmark of Gate 1's work: that it does the study's work, compares equals, and counts what it says."""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_plugins.encoders import qwen2_5_vl
from foresight_plugins.encoders.qwen2_5_vl_spec import QWEN2_5_VL

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"
RESULTS = SPEED / "results" / "gate1-work-h200.json"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The script and its two helpers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPEED))
        yield {name: import_module(f"gate1_{name}") for name in ("work", "steps", "stock")}


@pytest.fixture
def work(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["work"]


@pytest.fixture
def steps(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["steps"]


@pytest.fixture
def gate1_stock(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["stock"]


@pytest.fixture(scope="module")
def stock(modules: dict[str, ModuleType]) -> Any:
    return modules["stock"].Stock(modules["stock"].narrow(), "cpu", torch.float32)


@pytest.fixture(scope="module")
def folder(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    stock.save(folder)
    return folder


def test_the_work_is_the_studys(work: ModuleType) -> None:
    assert sum(part.whole for part in work.PROTOCOL) == 5371
    assert sum(part.tower for part in work.PROTOCOL) == 1350
    assert sum(part.whole + part.tower for part in work.PROTOCOL) == 6721
    images: Counter[int] = Counter()
    for part in work.PROTOCOL:
        images[part.side] += part.images
    assert images == {224: 768 + 212 + 28, 256: 422, 448: 550}
    assert images.total() == 1980
    whole = {name: sum(part.whole for part in work.PROTOCOL if part.experiment[:2] == name) for name in ("C1", "Q1")}
    assert whole == {"C1": 1641, "Q1": 2430}
    assert work.FULL.protocol == work.PROTOCOL
    states = [int(tap.removeprefix("llm.")) + 1 for tap in work.TAPS[2:-1]]
    assert states == sorted({1, 7, 14, 21} | {4, 8, 12, 16, 20, 24})
    assert tuple(tap for tap in QWEN2_5_VL.variants[0].taps if tap in work.TAPS) == work.TAPS


def test_the_whole_script_runs_on_a_narrow_model(
    work: ModuleType,
    steps: ModuleType,
    gate1_stock: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiled: list[object] = []

    def compile_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(work, "release", gc.collect)  # without the compiler, which takes seconds to import
    built: list[tuple[bool, int, int]] = []
    sides: list[set[tuple[int, ...]]] = []
    encoder = work.Qwen2_5VL

    encoders, stocks = WeakSet[Any](), WeakSet[Any]()

    class Watched(encoder):  # type: ignore[misc, valid-type]
        def __init__(self, setup: EncoderSetup, size: str) -> None:
            built.append((setup.compiled, len(stocks), len(encoders)))
            encoders.add(self)
            sides.append(set())
            super().__init__(setup, size)

        def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Any:
            sides[-1].add(clips.shape)
            assert tuple(taps) == work.TAPS
            return super().encode(clips, taps)

    def stock(*given: Any) -> Any:
        found = gate1_stock.Stock(*given)
        stocks.add(found)
        return found

    monkeypatch.setattr(work, "Qwen2_5VL", Watched)
    monkeypatch.setattr(work, "Stock", stock)
    tower, towers = gate1_stock.Stock.tower, list[Any]()

    def watched_tower(self: Any, inputs: Any) -> Tensor:
        towers.append(inputs)
        found: Tensor = tower(self, inputs)
        return found

    monkeypatch.setattr(gate1_stock.Stock, "tower", watched_tower)
    monkeypatch.setattr(work, "fastest", lambda stock, forward, patches, batches: max(batches))
    file = tmp_path / "new" / "work.json"
    assert work.main(["--tiny", "--output", str(file)]) == 0
    printed, progress = capsys.readouterr()
    # Of the large models one is there at a time; the narrow ones of the agreement stay.
    assert built == [(False, 1, 0), (False, 1, 1), (True, 1, 1)]
    assert len(towers) == sum(part.tower for part in work.TINY.protocol) + 2 * steps.WARM_UP
    assert {shape[2] for shape in sides[1]} == {shape[2] for shape in sides[2]} == {224, 256, 448}
    assert len(compiled) == 3  # two halves of a block, and a layer
    assert len(progress.splitlines()) == 6

    results = json.loads(file.read_text("utf-8"))
    assert set(results) == {"environment", "command", "model", "protocol", "agreement", "steps"}
    assert results["command"].startswith("python benchmarks/speed/gate1_work.py --tiny --output ")
    assert "/" not in results["command"].partition("--output")[2], "no folder of this machine"
    assert {"date", "torch", "transformers"} <= set(results["environment"])
    assert min(results["agreement"].values()) > 0.99999
    assert tuple(results["agreement"]) == work.TAPS
    as_written, *others = results["steps"]
    counted = Counter({(p["side"], p["kind"]): p["needed"] for p in as_written["passes"]})
    expected: Counter[tuple[int, str]] = Counter()
    for part in work.TINY.protocol:
        expected.update({(part.side, "whole"): part.whole, (part.side, "tower"): part.tower})
    assert counted == +expected
    assert {p["batch"] for p in as_written["passes"] + others[0]["passes"]} == {1}
    assert {p["batch"] for step in others[1:] for p in step["passes"]} == {2}
    for step in others:
        assert {p["side"]: p["needed"] for p in step["passes"]} == {224: 4, 256: 2, 448: 3}
        assert {p["kind"] for p in step["passes"]} == {"whole"}
    assert [step["name"] for step in others[2:]] == ["our encoder", "our encoder, compiled"]
    for step in results["steps"]:
        assert step["seconds"] == pytest.approx(sum(p["seconds"] for p in step["passes"]))
        assert all(p["timed"] == p["needed"] and 0 < p["low"] <= p["ms"] <= p["high"] for p in step["passes"])

    assert work.main(["--table", str(file)]) == 0
    assert capsys.readouterr().out == printed


def test_the_factors_of_the_table_multiply_to_the_whole(work: ModuleType) -> None:
    def step(name: str, seconds: float, batch: int, needed: int) -> dict[str, Any]:
        each = {"side": 224, "kind": "whole", "batch": batch, "needed": needed, "timed": 7, "seconds": seconds}
        return {"name": name, "seconds": seconds, "passes": [{**each, "low": 1.0, "ms": 2.0, "high": 3.0}]}

    results = {
        "environment": {"device": "a chip"},
        "model": "a model",
        "protocol": [{"images": 10}, {"images": 30}],
        "agreement": {"final": 0.9999, "llm.0": 0.99995},
        "steps": [step("as written", 60.0, 1, 90), step("one pass", 20.0, 1, 40), step("ours", 4.0, 64, 40)],
    }
    lines = work.table(results).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows[1] == ["as written", "1", "90", "7", "60.00", "0.7", "1.00", "1.00"]
    assert rows[2] == ["one pass", "1", "40", "7", "20.00", "2.0", "3.00", "3.00"]
    assert rows[3] == ["ours", "64", "40", "7", "4.00", "10.0", "5.00", "15.00"]
    assert rows[-1] == ["ours", "224", "whole", "64", "40", "7", "2.00 (1.00 to 3.00)"]
    assert "40 distinct images, 2 taps" in lines[0]
    assert lines[0].endswith("was 0.999900.")


class Clock:
    """Stands in for ``time`` where passes are timed; it goes on when told so."""

    def __init__(self, steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.mark.parametrize(
    ("needed", "batch", "share", "timed"),
    [(100, 1, 0.1, 10), (100, 1, 0.001, 5), (3, 1, 0.1, 3), (7, 3, 1.0, 7), (100, 8, 0.1, 16)],
)
def test_what_is_not_timed_is_taken_from_what_is(
    needed: int, batch: int, share: float, timed: int, steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = Clock(steps, monkeypatch), list[Any]()

    def inputs(patches: Tensor) -> Any:
        clock.now += 1000  # to make them ready is no part of a pass
        return patches

    def forward(patches: Tensor) -> None:
        clock.now += 0.5 * len(patches) if len(seen) >= steps.WARM_UP else 1000
        seen.append(patches.flatten().tolist())

    patches = torch.arange(4.0).view(4, 1, 1)
    given = SimpleNamespace(inputs=inputs)
    found = steps.stock_passes(given, "tower", forward, patches, 224, batch, needed, share)
    assert (found.side, found.kind, found.batch, found.needed, found.timed) == (224, "tower", batch, needed, timed)
    assert found.seconds == 0.5 * needed
    assert (found.low, found.ms, found.high) == (500, 500, 500)
    turns = [index % 4 for index in range(timed)]
    assert seen[steps.WARM_UP :] == [turns[i : i + batch] for i in range(0, timed, batch)]


def test_times_are_summed_up(steps: ModuleType) -> None:
    found = steps.summary(448, "whole", 2, 20, (0.2, 0.4, 0.6, 0.8, 0.5), (2, 2, 2, 2, 1))
    assert found.seconds == pytest.approx(2.5 * 20 / 9)
    assert (found.low, found.ms, found.high) == pytest.approx((200.0, 300.0, 400.0))
    assert steps.Step("", (found, found)).seconds == pytest.approx(2 * 2.5 * 20 / 9)


def test_the_fastest_batch_is_the_one_with_the_least_time_an_image(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = Clock(steps, monkeypatch), Counter[int]()

    def forward(images: int) -> None:
        seen[images] += 1
        clock.now += {1: 5.0, 2: 4.0, 4: 9.0, 5: 7.0}[images] if seen[images] > steps.WARM_UP else 1000 / images

    given = SimpleNamespace(inputs=len)
    assert steps.fastest(given, forward, torch.zeros(5, 1, 1), (1, 2, 4)) == 2
    seen.clear()
    assert steps.fastest(given, forward, torch.zeros(5, 1, 1), (1, 2, 64)) == 64  # of which there are five


def test_ours_is_timed_after_every_size_is_known(steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen, known = Clock(steps, monkeypatch), list[Any](), set[Any]()

    class Encoder:
        def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Any]:
            assert taps == ("final",)
            clock.now += 1.0 if clips.shape in known else 1000
            known.add(clips.shape)
            seen.append((clips.shape[2], [int(i) for i in clips.frames[:, 0, 0, 0, 0]]))
            return {}

    def clips(side: int, images: int) -> ClipBatch:
        frames = np.broadcast_to(np.arange(images, dtype=np.uint8).reshape(-1, 1, 1, 1, 1), (images, 1, side, side, 3))
        return ClipBatch(np.array(frames), tuple(map(str, range(images))))

    small, large = steps.our_passes(Encoder(), {28: clips(28, 7), 56: clips(56, 6)}, ("final",), 3, torch.device("cpu"))
    expected = [(28, [0, 1, 2]), (28, [3, 4, 5]), (28, [6]), (56, [0, 1, 2]), (56, [3, 4, 5])]
    assert seen[-5:] == expected
    assert (small.seconds, large.seconds) == (3.0, 2.0)
    assert (small.needed, small.timed, large.needed, large.timed) == (7, 7, 6, 6)
    assert (small.side, large.side, small.batch, small.kind) == (28, 56, 3, "whole")
    assert small.high == pytest.approx(1000 / 3 + (1000 - 1000 / 3) / 2)


def test_the_clock_waits_for_the_device(steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def logged(event: str, value: Any = None) -> Callable[..., Any]:
        def call(*given: object, **named: object) -> Any:
            log.append(event)
            return value

        return call

    monkeypatch.setattr(torch.cuda, "synchronize", logged("wait"))
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=logged("clock", 0.0)))
    monkeypatch.setattr(steps, "device_memory", lambda device: None)
    steps.seconds_of(logged("run"), [{}], torch.device("cuda"))
    assert log == ["wait", "clock", "run", "wait", "clock"]
    log.clear()
    clips = ClipBatch(np.zeros((2, 1, 4, 4, 3), np.uint8), ("a", "b"))
    encoder = SimpleNamespace(encode=logged("run", {}))
    steps.our_passes(encoder, {4: clips}, ("final",), 1, torch.device("cuda"))
    assert log[-8:] == ["wait", "clock", "run", "wait", "clock", "run", "wait", "clock"]


def test_the_tower_runs_alone_and_the_whole_in_one(stock: Any, gate1_stock: ModuleType) -> None:
    ran: Counter[str] = Counter()
    watched = {"vision": stock.model.visual, "language": stock.model.language_model}
    handles = [m.register_forward_hook(lambda *_, name=name: ran.update([name])) for name, m in watched.items()]
    inputs = stock.inputs(gate1_stock.patches(gate1_stock.frames(56, 2), "cpu", torch.float32))
    with torch.no_grad():
        assert stock.tower(inputs).shape == (2 * 4, 32)
        assert ran == {"vision": 1}
        assert stock.whole(inputs).shape == (2, 15 + 4, 32)
        assert ran == {"vision": 2, "language": 1}
        found = stock.states(inputs, ("pre_merge", "llm.3", "final"))
        assert ran == {"vision": 3, "language": 2}
        stock.whole(inputs)  # and hooks are gone
    assert {tap: values.shape for tap, values in found.items()} == {
        "pre_merge": (32, 32),
        "llm.3": (2, 19, 32),
        "final": (2, 19, 32),
    }
    assert not stock.model.language_model.layers[3]._forward_hooks
    assert len(stock.model.visual._forward_hooks) == 1
    for handle in handles:
        handle.remove()


def test_random_weights_have_the_precision_that_is_asked_for(gate1_stock: ModuleType) -> None:
    model = gate1_stock.Stock(gate1_stock.narrow(), "cpu", torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert all(parameter.float().std() > 0.01 for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == model.visual.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("side", [224, 256])
def test_patches_are_those_of_the_official_processor(side: int, gate1_stock: ModuleType) -> None:
    from transformers import Qwen2VLImageProcessor

    smooth = np.linspace(0, 255, side).astype(np.uint8)
    frames = np.stack(np.broadcast_arrays(smooth[:, None], smooth[None], smooth[::-1, None]), -1)[None, None]
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 10**9})
    images = [torch.tensor(frames[0, 0]).permute(2, 0, 1)]
    official = processor(images, return_tensors="pt")["pixel_values"]
    ours = gate1_stock.patches(ClipBatch(frames, ("smooth",)), "cpu", torch.float32)[0]
    levels = (official - ours).abs().max() * 255 * 0.27
    assert levels < (0.01 if side == 224 else 2.01)


def encoder(folder: Path, taps: tuple[str, ...]) -> Any:
    setup = EncoderSetup(ResolvedWeights(folder, "", "file"), taps)
    return qwen2_5_vl.Qwen2_5VL(setup, size="7b")


def off_by_one(encode: Callable[..., Any]) -> Callable[..., Any]:
    def shifted(clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Any]:
        grids = encode(clips, taps)
        return {**grids, "llm.6": grids["llm.7"]}

    return shifted


FAULTS = ("windows", "images", "positions", "layer", "norm", "nan")


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_features_that_differ_are_an_error(
    fault: str, work: ModuleType, gate1_stock: ModuleType, stock: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, clips = encoder(folder, work.TAPS), gate1_stock.frames(224, 2)
    expect = {"windows": "pre_merge", "images": "pre_merge", "positions": r"llm\.", "layer": r"llm\.6", "norm": "final"}
    if not fault:
        found = gate1_stock.agreement(stock, ours, clips, work.TAPS)
        assert all(math.isclose(cosine, 1.0, abs_tol=1e-4) for cosine in found.values())
        return
    if fault == "windows":
        ours.encode(clips, ["final"])
        (key,) = ours._vision._layouts
        layout = ours._vision._layouts[key]
        object.__setattr__(layout, "raster", torch.arange(len(layout.raster)))
    elif fault == "images":
        patches = gate1_stock.patches(clips[[1, 0]], "cpu", torch.float32)
        monkeypatch.setattr(gate1_stock, "patches", lambda *given: patches)
    elif fault == "positions":
        given = qwen2_5_vl.positions
        monkeypatch.setattr(qwen2_5_vl, "positions", lambda *shape: given(*shape)[[0, 2, 1]])
    elif fault == "layer":
        monkeypatch.setattr(ours, "encode", off_by_one(ours.encode))
    elif fault == "norm":
        monkeypatch.setattr(ours._language.model, "norm", torch.nn.Identity())
    else:
        ours._language.model.norm.weight.data = torch.full((32,), torch.nan)
    with pytest.raises(RuntimeError, match=f"differs from transformers at {expect.get(fault, 'final')}"):
        gate1_stock.agreement(stock, ours, clips, work.TAPS)


def test_nothing_is_measured_of_models_that_differ(
    work: ModuleType, gate1_stock: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = gate1_stock.patches
    monkeypatch.setattr(gate1_stock, "patches", lambda *given: patches(*given).flip(0))
    monkeypatch.setattr(work, "ladder", lambda *given: pytest.fail("measured"))
    with pytest.raises(RuntimeError, match="differs from transformers"):
        work.measure(work.TINY, 1.0)


def test_the_share_is_the_one_given(work: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(scale: Any, share: float) -> Any:
        raise RuntimeError(f"{scale.device} {share}")

    monkeypatch.setattr(work, "measure", measure)
    with pytest.raises(RuntimeError, match=r"^cpu 0\.25$"):
        work.main(["--tiny", "--share", ".25"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(work, "environment", lambda device: {})
    with pytest.raises(RuntimeError, match=r"^cuda 1\.0$"):
        work.main([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no CUDA device"), (["--tiny", "--share", "0"], "above 0"), (["--tiny", "--share", "1.5"], "at most 1")],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], message: str, work: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        work.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_the_page_shows_the_committed_results(work: ModuleType) -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    assert results["protocol"] == [work.asdict(part) for part in work.PROTOCOL]
    assert work.table(results) in (SPEED / "README.md").read_text("utf-8")
