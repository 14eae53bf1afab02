"""A third-party plugin: a suite of tiny scenes, an encoder that works, and parts that break in known ways.

``TOY_STRIKES`` names phases of a run in which the worker or its parent is killed, each once: ``training:worker`` or
``replace:parent``, joined by commas. ``TOY_MARKS`` is a folder in which a phase that struck, and an encoder that has
something to tell, leaves a file: the former with the ids of the worker and of a process that it started just before.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from foresight_bench import hookimpl
from foresight_bench.errors import DataError, Unsupported
from foresight_bench.specs import (
    AdapterSpec,
    Criterion,
    DecoderSpec,
    EncoderSpec,
    ExperimentSpec,
    GateSpec,
    MetricSpec,
    Recipe,
    SuiteSpec,
    Variant,
)

FAULTS = ("sound", "nan", "crash", "short", "forgets", "scrambled", "raises", "slow", "refuses")
MISCHIEF = ("chatty", "meddles", "segfault", "waits")
"""What these encoders return, if anything, is right."""
FLOORS = ("blank", "mean-rgb", "shuffled")
AMIDST = 4
"""The call of an encoder in which something happens: the second batch of its pass, before which two show its layout."""


def _experiment(
    name: str,
    target: str,
    axes: tuple[str, ...],
    gated: dict[str, tuple[float, str]],
    reported: tuple[str, ...] = (),
) -> ExperimentSpec:
    criteria = tuple(Criterion(metric, limit, ceiling, FLOORS) for metric, (limit, ceiling) in gated.items())
    criteria += tuple(map(Criterion, reported))
    return ExperimentSpec(name, target, f"{name}?", axes, criteria)  # type: ignore[arg-type]


EXPERIMENTS = (
    _experiment("C1", "foresight_gates.c1:LatentSufficiency", ("adapter", "decoder"), {"psnr": (20.0, "oracle")}),
    _experiment("Q1", "foresight_gates.q1:LatentAlignment", ("decoder",), {"ridge_r2": (0.25, "oracle")}),
    _experiment(
        "Q2",
        "foresight_gates.q2:InformationPreservation",
        (),
        {"box_iou": (0.7, "oracle"), "map50": (0.4, "oracle"), "psnr": (20.0, "pixels")},
        ("toy-error",),
    ),
)


def _mark(name: str, text: object) -> bool:
    """Leave a file, whole, in the folder of marks; return False if it is there already."""
    path = Path(os.environ["TOY_MARKS"], name)
    if path.exists():
        return False
    whole = path.with_suffix(".part")
    whole.write_text(str(text))
    whole.rename(path)
    return True


def _strike(phase: str) -> None:
    """Kill whom ``TOY_STRIKES`` names for ``phase``, the first time."""
    victims = dict(item.split(":") for item in filter(None, os.environ.get("TOY_STRIKES", "").split(",")))
    if phase in victims and _mark(phase, f"{os.getpid()} {subprocess.Popen(['sleep', '300']).pid}"):
        os.kill(os.getpid() if victims[phase] == "worker" else os.getppid(), signal.SIGKILL)
        time.sleep(60)


def _guard_replace() -> None:
    """Let the phase ``replace`` be the one between a cell's temporary file and its name, in a worker."""
    real = os.replace

    def guarded(source: str, path: Path) -> None:
        if str(path).endswith(".json"):
            _strike("replace")
        real(source, path)

    os.replace = guarded  # type: ignore[assignment]


if "replace:" in os.environ.get("TOY_STRIKES", "") and "foresight_bench.worker" in sys.orig_argv:
    _guard_replace()


@hookimpl
def foresight_suites() -> list[SuiteSpec]:
    digests = _digests()
    suite = SuiteSpec(
        name="toy",
        version="1",
        target="toy_plugin:ToyData",
        description="tiny scenes",
        experiments=EXPERIMENTS,
        gates=(GateSpec("gate1", "Gate 1", ("C1", "Q1", "Q2")),),
        digests=digests,
        default_adapter="linear",
        default_decoder="patch-pca",
        controls=("oracle", "pixels", "blank", "mean-rgb"),
    )
    leaky = replace(suite, name="leaky", target="toy_plugin:LeakyData", digests={**digests, "val": _leak_digest()})
    altered = replace(suite, name="altered", digests={**digests, "test": "0" * 64})
    q1 = _experiment("Q1", EXPERIMENTS[1].target, ("decoder",), {"ridge_r2": (0.9, "oracle")})
    hard = replace(suite, name="hard", experiments=(EXPERIMENTS[0], q1, EXPERIMENTS[2]))
    return [suite, leaky, altered, hard]


def _recipe() -> object:
    from foresight_gates.data import Recipe
    from foresight_gates.scenes import SceneParameters

    splits = {"train": ((24, 1),), "val": ((8, 1),), "test": ((10, 1), (2, 3)), "align": ((12, 1),)}
    return Recipe(SceneParameters(side=112), splits)


def ToyData() -> object:  # a target may be any callable
    from foresight_gates.data import SceneData

    return SceneData(_recipe())


def LeakyData() -> object:
    """`val` is one of `train`'s clips and seven of its own."""
    from foresight_bench.contracts import Split
    from foresight_gates.data import SceneData

    data = SceneData(_recipe())
    train, val = data.split("train"), data.split("val")
    data._splits["val"] = Split((val.blocks[0][1:], train.blocks[0][:1]))
    return data


def _digests() -> dict[str, str]:
    data = ToyData()
    return {name: data.digest(name) for name in data.names}  # type: ignore[attr-defined]


def _leak_digest() -> str:
    return LeakyData().digest("val")  # type: ignore[attr-defined]


def _spec(name: str) -> EncoderSpec:
    variant = Variant("default", ("early", "late"), ("early", "late"), {"fault": name})
    return EncoderSpec(name, "toy_plugin:Faulty", f"breaks: {name}", (variant,), options={"shift": 0.0})


@hookimpl
def foresight_encoders() -> list[EncoderSpec]:
    return [_spec(name) for name in (*FAULTS, *MISCHIEF)]


@hookimpl
def foresight_adapters() -> list[AdapterSpec]:
    return [AdapterSpec("tiny", "toy_plugin:Tiny", "trained by the harness in a second", {}, Recipe(epochs=2))]


@hookimpl
def foresight_metrics() -> list[MetricSpec]:
    return [MetricSpec("toy-error", "toy_plugin:ToyError", "mean absolute error", "frames", "lower", "1")]


@hookimpl
def foresight_decoders() -> list[DecoderSpec]:
    return [DecoderSpec("picky", "toy_plugin:Picky", "takes no clip")]


def Tiny(pairing: object, generator: object) -> object:
    """A perceptron during whose training the phase ``training`` strikes, in the third step of the deeper tap."""
    from foresight_plugins.adapters.mlp import MLPAdapter

    class Struck(MLPAdapter):
        steps = 0

        def forward(self, *inputs):  # type: ignore[no-untyped-def]
            Struck.steps += 1
            if Struck.steps == 3:
                _strike("training")
            return super().forward(*inputs)

    return Struck(pairing, generator, hidden=8)  # type: ignore[arg-type]


class ToyError:
    """A metric in which the phase ``metric`` strikes."""

    def __init__(self, *, weights: object, device: object) -> None: ...

    def prepare(self, truth):  # type: ignore[no-untyped-def]
        return truth.frames

    def score(self, reconstruction, frames):  # type: ignore[no-untyped-def]
        _strike("metric")
        return (reconstruction - frames).abs().mean((1, 2, 3)).double()


class Picky:
    """A decoder whose frame rule no clip of the suite meets."""

    def __init__(self, *, weights: object, device: object) -> None: ...

    def fit(self, clips: object) -> None: ...

    def encode(self, clips: object) -> object:
        raise Unsupported("picky takes clips of 8 k + 2 frames, not of 1.")


class Faulty:
    """Patch means at two taps; ``fault`` says how it breaks."""

    def __init__(self, setup: object, fault: str, shift: float) -> None:
        import torch

        self.fault, self.shift = fault, shift
        self.calls = 0
        self.norm = torch.nn.LayerNorm(6)  # never called: 12 parameters to be counted

    def encode(self, clips, taps):  # type: ignore[no-untyped-def]
        import torch

        from foresight_bench.grids import Grid

        self.calls += 1
        if self.fault == "sound" and self.calls == AMIDST:
            _strike("features")
        if self.fault in MISCHIEF and self.calls == AMIDST:
            getattr(self, f"_{self.fault}")()
        n, t, h, w = clips.shape
        frames = torch.from_numpy(clips.frames).float() / 255
        cells = frames.reshape(n, t, h // 14, 14, w // 14, 14, 3)
        mean, std = cells.mean((3, 5)), cells.std((3, 5))
        values = torch.cat([mean, std], -1) + self.shift
        if self.fault == "nan" and self.calls == AMIDST:
            values[0, 0, 0, 0, 0] = torch.nan
        if self.fault == "crash":
            os._exit(7)
        if self.fault == "raises":
            raise RuntimeError("out of luck")
        if self.fault == "refuses":
            raise DataError("Frames of 112 x 112 cannot be taken by refuses.", "Choose another suite.")
        if self.fault == "slow":
            time.sleep(60)
        if self.fault == "short":
            values = values[:-1]
        if self.fault == "scrambled":
            windows = values.reshape(n, t, h // 28, 2, w // 28, 2, 6).transpose(3, 4)
            values = windows.reshape(values.shape)
        grids = {tap: Grid(values if tap == "late" else values[..., :3]) for tap in taps}
        if self.fault == "forgets":
            del grids["late"]
        return grids

    def _chatty(self) -> None:
        """Print 50 MB to each of standard output and standard error."""
        for _ in range(50):
            os.write(1, b"x" * 1_000_000)
            os.write(2, b"y" * 1_000_000)

    def _meddles(self) -> None:
        """Change settings that are not an encoder's to change."""
        import numpy as np
        import torch

        torch.set_default_dtype(torch.float64)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002
        random.seed(99)
        os.environ["TOY_MEDDLED"] = "1"
        os.chdir("/")

    def _segfault(self) -> None:
        """Die, and leave a process behind that holds the worker's pipes."""
        _mark("spawned", subprocess.Popen(["sleep", "300"]).pid)
        os.kill(os.getpid(), signal.SIGSEGV)

    def _waits(self) -> None:
        """Say where this is, and wait for the file ``go``."""
        _mark(f"waits-{os.getpid()}", os.getpid())
        deadline = time.monotonic() + 120
        while not Path(os.environ["TOY_MARKS"], "go").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
