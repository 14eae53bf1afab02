"""The checks of adapters, decoders and metrics: each catches the fault that is planted for it, and sound parts pass."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import FrameBoxes, FrameTruth, Pairing
from foresight_bench.errors import Unsupported
from foresight_bench.grids import Grid, Layout
from foresight_bench.plugins import Plugin
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores, mean_scores
from foresight_bench.specs import AdapterSpec, DecoderSpec, MetricSpec, Recipe, Weights
from foresight_bench.testing.adapters import ADAPTER_CHECKS
from foresight_bench.testing.decoders import DECODER_CHECKS
from foresight_bench.testing.kit import Checks, Finding, Status, run_checks
from foresight_bench.testing.metrics import METRIC_CHECKS
from foresight_bench.testing.subjects import PartSubject

MARK = "FORESIGHT_TOY_PART"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv(MARK, raising=False)
    yield
    torch.set_num_threads(threads)
    os.environ.pop(MARK, None)


class Module(nn.Module):
    """One linear map, trained by the harness."""

    shared: ClassVar[Tensor]
    mean: Tensor

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, fault: str = "") -> None:
        super().__init__()
        self.fault, self.trained_on = fault, pairing.blocks[0][1]
        source = torch.Generator().manual_seed(0) if fault == "own seed" else generator
        drawn = torch.randn(pairing.channels, pairing.latent_channels, generator=None if fault == "global" else source)
        self.weight = nn.Parameter(0.1 * drawn)
        self.bias = nn.Parameter(torch.zeros(pairing.latent_channels))
        self.register_buffer("mean", pairing.mean)
        if fault == "idle":
            self.idle = nn.Parameter(torch.ones(3))
        if fault == "list":
            self.layers = [nn.Linear(2, 2)]
        if fault == "shared":
            Module.shared = pairing.std
        if fault == "setting":
            os.environ[MARK] = "1"

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        if self.fault == "writes":
            features.values.mul_(1 + 1e-6)
        size = self.trained_on.size if self.fault == "one grid" else onto.size
        return (features.resampled(*size).values - self.mean,)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.fault == "shared":
            tokens = tokens / Module.shared
        return (tokens @ self.weight + self.bias) * (1e-3 if self.fault == "still" else 1)


class Solved:
    """One linear map, in closed form."""

    def __init__(self, *, seed: int, device: torch.device, fault: str = "") -> None:
        self._fault, self._seed = fault, seed
        self._weight = torch.zeros(0)

    @property
    def trainable_parameters(self) -> int:
        return self._weight.numel() // (4 if self._fault == "count" else 1)

    def fit(self, train: Sequence[tuple[Grid, Grid]], val: Sequence[tuple[Grid, Grid]]) -> None:
        rows = torch.cat([x.resampled(*y.layout.size).values.flatten(0, 3) for x, y in train]).double()
        wanted = torch.cat([y.values.flatten(0, 3) for _, y in train]).double()
        gram = rows.T @ rows + 1e-6 * torch.eye(rows.shape[1])
        self._weight = torch.linalg.solve(gram, rows.T @ wanted).float()
        if self._fault == "writes":
            val[0][1].values.zero_()

    def predict(self, features: Grid, onto: Layout) -> Grid:
        values = features.resampled(*onto.size).values @ self._weight
        if self._fault == "own seed":
            values = values + 1e-3 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
        if self._fault == "global":
            values = values + 1e-3 * torch.randn(values.shape)
        return Grid(values, () if self._fault == "spans" else onto.spans)


class Codec:
    """Mean colours of blocks of 8 x 8 pixels."""

    def __init__(self, *, weights: Any, device: torch.device, fault: str = "") -> None:
        self._fault = fault
        if fault == "setting":
            os.environ[MARK] = "1"

    def fit(self, clips: Sequence[ClipBatch]) -> None:
        if self._fault == "writes":
            clips[0].frames[0, 0, 0, 0] ^= 1

    def encode(self, clips: ClipBatch) -> Grid:
        n, t, height, width = clips.shape
        if (height % 8 or width % 8) and self._fault != "crops":
            raise Unsupported("Sides must be multiples of 8.")
        pixels = torch.from_numpy(clips.frames).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        values = 4 * F.avg_pool2d(pixels, 8).unflatten(0, (n, t)).permute(0, 1, 3, 4, 2) - 2
        if self._fault == "folds":
            values = values.abs()
        if self._fault == "samples":
            values = values + 1e-5 * torch.randn(values.shape)
        if self._fault == "batch":
            values = values - 0.05 * values.mean((0, 1, 2, 3))
        return Grid(values)

    def decode(self, latents: Grid) -> Tensor:
        n, t = latents.shape[:2]
        values = latents.values.flip(3) if self._fault == "mirrored" else latents.values
        values = values.flip(1) if self._fault == "backwards" else values
        gain = 0.4 if self._fault == "one way" else 0.25
        pixels = F.interpolate((gain * values + 0.5).flatten(0, 1).permute(0, 3, 1, 2), scale_factor=8)
        return (pixels if self._fault == "unclamped" else pixels.clamp(0, 1)).unflatten(0, (n, t))


class Similarity:
    """exp(-10 MSE) of frames."""

    def __init__(self, *, weights: Any, device: torch.device, fault: str = "") -> None:
        self._fault = fault
        if fault == "setting":
            os.environ[MARK] = "1"

    def prepare(self, truth: FrameTruth) -> Tensor:
        if self._fault == "writes":
            truth.plates.zero_()
        return truth.frames

    def score(self, reconstruction: Tensor, prepared: Tensor) -> Tensor:
        given = reconstruction
        if self._fault == "extremes":
            low, high = given.amin((1, 2, 3), keepdim=True), given.amax((1, 2, 3), keepdim=True)
            least, most = prepared.amin((1, 2, 3), keepdim=True), prepared.amax((1, 2, 3), keepdim=True)
            given = (given - low) / (high - low).clamp(min=1e-6) * (most - least) + least
        mse = (given.clamp(0, 1) - prepared).double().square().mean((1, 2, 3))
        score = torch.exp(-10 * mse)
        if self._fault == "short":
            score = 0.9 * score
        if self._fault == "relative":
            score = torch.exp(-mse / prepared.double().square().mean((1, 2, 3)))
        if self._fault == "dips":
            score = torch.where((mse > 0.02) & (mse < 0.05), 0.01, score)
        if self._fault == "negative":
            score = 1 - 12 * mse
        if self._fault == "batch":
            score = score * (0.997 if len(score) > 1 else 1)
        if self._fault == "random":
            score = score * (1 - 1e-9 * torch.rand(len(score)).double())
        return score


class Crossed(Similarity):
    """The same, of frames as they stand and in another order."""

    def crossed(self, reconstruction: Tensor, prepared: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        order = order.argsort() if self._fault == "inverse" else order
        return self.score(reconstruction, prepared), self.score(reconstruction[order], prepared)


class Distance:
    """Mean distance of boxes in the order in which they stand, over 100 pixels."""

    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def score(self, predicted: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], clip: Any) -> Scores:
        pairs = zip(predicted, truth, strict=True)
        frames = [np.abs(p.boxes - t.boxes).mean() / 100 if len(p.boxes) else 1.0 for p, t in pairs]
        scores = mean_scores(np.bincount(clip, frames) / np.bincount(clip))
        spread = 0.2 if self._fault == "narrow" else 5 if self._fault == "wide" else 1
        return replace(scores, replicates=scores.value + spread * (scores.replicates - scores.value))


def adapter(name: str, fault: str = "") -> PartSubject:
    recipe = Recipe((1e-2,), epochs=6) if name == "Module" else None
    return subject(AdapterSpec("toy", f"{__name__}:{name}", "", {"fault": fault}, recipe))


def decoder(fault: str = "") -> PartSubject:
    return subject(DecoderSpec("toy", f"{__name__}:Codec", "", {"fault": fault}))


def metric(name: str = "Similarity", fault: str = "", **changes: Any) -> PartSubject:
    kind, direction = ("boxes", "lower") if name == "Distance" else ("frames", "higher")
    stated: dict[str, Any] = {"kind": kind, "direction": direction, "version": "1", "range": (0, 1), **changes}
    return subject(MetricSpec("toy", f"{__name__}:{name}", "", params={"fault": fault}, **stated))


def subject(spec: Any, module: str = "foresight_bench.specs") -> PartSubject:
    hooks = {AdapterSpec: "adapters", DecoderSpec: "decoders", MetricSpec: "metrics"}
    contributions = ((f"foresight_{hooks[type(spec)]}", (spec,)),)
    return PartSubject(Registry([Plugin("toy", "toy", "1", module, contributions=contributions)]), spec)


def failures(checks: Checks[PartSubject], part: PartSubject) -> dict[str, str]:
    return {each.check: each.message for each in run_checks(checks, part) if each.status is Status.FAIL}


def some(checks: Checks[PartSubject], *names: str) -> Checks[PartSubject]:
    chosen: Checks[PartSubject] = Checks()
    for check in checks:
        if check.name in names:
            chosen.must(check.must)(check.run)
    return chosen


SOUND = [
    (ADAPTER_CHECKS, adapter("Module"), set()),
    (ADAPTER_CHECKS, adapter("Solved"), {"stack-alone"}),
    (DECODER_CHECKS, decoder(), {"licence"}),
    (METRIC_CHECKS, metric(symmetric=True), {"crossed"}),
    (METRIC_CHECKS, metric("Crossed", symmetric=True), set()),
    (METRIC_CHECKS, metric("Distance"), {"data-range", "symmetric", "crossed"}),
    (
        METRIC_CHECKS,
        metric(direction="none", range=None),
        {"identity", "monotone", "direction", "symmetric", "crossed", "in-range", "interval-covers", "data-range"},
    ),
]


@pytest.mark.parametrize(("checks", "part", "idle"), SOUND, ids=range(len(SOUND)))
def test_a_sound_part_passes(checks: Checks[PartSubject], part: PartSubject, idle: set[str]) -> None:
    found: list[Finding] = list(run_checks(checks, part))
    assert {
        each.check: each.message for each in found if each.status is not Status.PASS and each.check not in idle
    } == {}
    assert {each.check for each in found if each.status is Status.NOT_APPLICABLE} == idle


PLANTED = [
    (ADAPTER_CHECKS, adapter("Module", "one grid"), {"any-grid"}, "the grid seen in training"),
    (ADAPTER_CHECKS, adapter("Solved", "spans"), {"any-grid"}, "`onto.spans` is not passed on"),
    (ADAPTER_CHECKS, adapter("Module", "still"), {"trains"}, "learning rate"),
    (ADAPTER_CHECKS, adapter("Module", "own seed"), {"seeds-respected"}, "written into the code"),
    (ADAPTER_CHECKS, adapter("Module", "global"), {"seeds-respected", "stack-alone"}, "torch's own initialisation"),
    (ADAPTER_CHECKS, adapter("Solved", "own seed"), {"seeds-respected"}, "written into the code"),
    (ADAPTER_CHECKS, adapter("Solved", "global"), {"seeds-respected"}, "global random generators"),
    (ADAPTER_CHECKS, adapter("Module", "idle"), {"parameter-count"}, "idle counted as trained"),
    (ADAPTER_CHECKS, adapter("Module", "list"), {"parameter-count"}, "use nn.ModuleList"),
    (ADAPTER_CHECKS, adapter("Solved", "count"), {"parameter-count"}, "is 15, but 6"),
    (ADAPTER_CHECKS, adapter("Module", "shared"), {"stack-alone"}, "kept on the class"),
    (ADAPTER_CHECKS, adapter("Module", "setting"), {"no-global-state"}, MARK),
    (ADAPTER_CHECKS, adapter("Module", "writes"), {"input-untouched"}, "the features of train and the features of val"),
    (ADAPTER_CHECKS, adapter("Solved", "writes"), {"input-untouched", "trains"}, "the latents of val changed"),
    (DECODER_CHECKS, decoder("crops"), {"frame-rule"}, "drops frames or rows"),
    (DECODER_CHECKS, decoder("unclamped"), {"in-range"}, "the clamp is missing"),
    (DECODER_CHECKS, decoder("folds"), {"round-trip"}, "dB"),
    (
        DECODER_CHECKS,
        decoder("mirrored"),
        {"orientation", "round-trip", "normalisation-invertible"},
        "mirrored left to right",
    ),
    (DECODER_CHECKS, decoder("backwards"), {"orientation"}, "time runs backwards"),
    (DECODER_CHECKS, decoder("one way"), {"normalisation-invertible"}, "in one direction only"),
    (DECODER_CHECKS, decoder("samples"), {"deterministic"}, "latent_dist.sample()"),
    (DECODER_CHECKS, decoder("batch"), {"batch-invariant"}, "statistics of the batch"),
    (DECODER_CHECKS, decoder("writes"), {"input-untouched"}, "the clips changed in place"),
    (DECODER_CHECKS, decoder("setting"), {"no-global-state"}, MARK),
    (METRIC_CHECKS, metric(version=" "), {"version-stated"}, "begin with '1'"),
    (METRIC_CHECKS, metric(fault="short"), {"identity"}, "scores 0.9,"),
    (METRIC_CHECKS, metric(fault="dips"), {"monotone"}, "no steady change"),
    (METRIC_CHECKS, metric(direction="lower"), {"direction"}, "correct MetricSpec.direction"),
    (METRIC_CHECKS, metric(fault="negative"), {"in-range"}, "outside [0, 1]"),
    (METRIC_CHECKS, metric(fault="relative", symmetric=True), {"symmetric"}, "both sides exchanged"),
    (METRIC_CHECKS, metric("Crossed", "inverse"), {"crossed"}, "taken for its inverse"),
    (METRIC_CHECKS, metric(fault="batch"), {"per-clip"}, "over the whole batch"),
    (METRIC_CHECKS, metric("Distance", "narrow"), {"interval-covers"}, "where the clip is the sample"),
    (METRIC_CHECKS, metric("Distance", "wide"), {"interval-covers"}, "in 100% of the samples"),
    (METRIC_CHECKS, metric(fault="extremes"), {"data-range"}, "its own extremes"),
    (METRIC_CHECKS, metric(fault="random"), {"deterministic"}, "global generator"),
    (METRIC_CHECKS, metric(fault="writes"), {"input-untouched"}, "the plates changed in place"),
    (METRIC_CHECKS, metric(fault="setting"), {"no-global-state"}, MARK),
]


@pytest.mark.parametrize(
    ("checks", "part", "names", "text"),
    PLANTED,
    ids=[f"{p[1].spec.target[-6:]}-{p[1].spec.params['fault']}" for p in PLANTED],
)
def test_a_planted_fault_is_caught(checks: Checks[PartSubject], part: PartSubject, names: set[str], text: str) -> None:
    # One process less for each: only the test below needs it.
    found = failures(some(checks, *set(checks.names()) - {"import-light"}), part)
    assert set(found) == names
    assert any(text in message for message in found.values()), found


@pytest.mark.parametrize(
    ("checks", "part"), [(ADAPTER_CHECKS, adapter("Solved")), (DECODER_CHECKS, decoder()), (METRIC_CHECKS, metric())]
)
def test_an_entry_point_that_imports_torch_is_caught(
    checks: Checks[PartSubject], part: PartSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy_part.py").write_text("import torch\n")
    (tmp_path / "torch.py").write_text("")  # as good as the real one, and faster
    monkeypatch.syspath_prepend(tmp_path)
    found = failures(some(checks, "import-light"), subject(part.spec, "heavy_part"))
    assert "Importing heavy_part imports torch" in found["import-light"]


def test_without_weights_a_decoder_is_unverified_and_its_licence_is_still_asked_for() -> None:
    part = subject(replace(decoder().spec, weights=Weights("toy-weights"), licence="MIT"))  # type: ignore[arg-type]
    found = {finding.check: finding for finding in run_checks(DECODER_CHECKS, part)}
    assert "Weights names no licence" in found["licence"].message
    told = {name for name, finding in found.items() if finding.status is Status.UNVERIFIED}
    assert told == set(DECODER_CHECKS.names()) - {"import-light", "licence"}
    assert "toy-weights" in found["round-trip"].message
