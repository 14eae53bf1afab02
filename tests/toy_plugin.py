"""A third-party plugin: a suite of tiny scenes, an encoder that works, and encoders that break in known ways."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from foresight_bench import hookimpl
from foresight_bench.errors import DataError, Unsupported
from foresight_bench.specs import Criterion, DecoderSpec, EncoderSpec, ExperimentSpec, GateSpec, SuiteSpec, Variant

FAULTS = ("sound", "nan", "crash", "short", "forgets", "raises", "slow", "refuses")
FLOORS = ("blank", "mean-rgb", "shuffled")


def _experiment(name: str, target: str, axes: tuple[str, ...], gated: dict[str, tuple[float, str]]) -> ExperimentSpec:
    criteria = tuple(Criterion(metric, limit, ceiling, FLOORS) for metric, (limit, ceiling) in gated.items())
    return ExperimentSpec(name, target, f"{name}?", axes, criteria)  # type: ignore[arg-type]


EXPERIMENTS = (
    _experiment("C1", "foresight_gates.c1:LatentSufficiency", ("adapter", "decoder"), {"psnr": (20.0, "oracle")}),
    _experiment("Q1", "foresight_gates.q1:LatentAlignment", ("decoder",), {"ridge_r2": (0.25, "oracle")}),
    _experiment(
        "Q2",
        "foresight_gates.q2:InformationPreservation",
        (),
        {"box_iou": (0.7, "oracle"), "map50": (0.4, "oracle"), "psnr": (20.0, "pixels")},
    ),
)


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
    return [_spec(name) for name in FAULTS]


@hookimpl
def foresight_decoders() -> list[DecoderSpec]:
    return [DecoderSpec("picky", "toy_plugin:Picky", "takes no clip")]


class Picky:
    """A decoder whose frame rule no clip of the suite meets."""

    def __init__(self, *, weights: object, device: object) -> None: ...

    def fit(self, clips: object) -> None: ...

    def encode(self, clips: object) -> object:
        raise Unsupported("picky takes clips of 8 k + 2 frames, not of 1.")


class Faulty:
    """Patch means at two taps; ``fault`` says how it breaks."""

    def __init__(self, setup: object, fault: str, shift: float) -> None:
        self.fault, self.shift = fault, shift
        self.calls = 0

    def encode(self, clips, taps):  # type: ignore[no-untyped-def]
        import torch

        from foresight_bench.grids import Grid

        self.calls += 1
        n, t, h, w = clips.shape
        frames = torch.from_numpy(clips.frames).float() / 255
        cells = frames.reshape(n, t, h // 14, 14, w // 14, 14, 3)
        mean, std = cells.mean((3, 5)), cells.std((3, 5))
        values = torch.cat([mean, std], -1) + self.shift
        if self.fault == "nan" and self.calls == 2:
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
        grids = {tap: Grid(values if tap == "late" else values[..., :3]) for tap in taps}
        if self.fault == "forgets":
            del grids["late"]
        return grids
