"""The suites, their experiments, their thresholds and the digests of their data. Imports nothing heavy."""

from __future__ import annotations

import tomllib
from importlib import resources

from foresight_bench.specs import Criterion, ExperimentSpec, GateSpec, SuiteSpec

FLOORS = ("blank", "mean-rgb", "shuffled")
CONTROLS = ("oracle", "pixels", "blank", "mean-rgb")
DIMENSIONS = (
    *(f"dim_{estimator}_{space}" for estimator in ("two_nn", "mle") for space in ("encoder", "decoder", "ratio")),
    "dim_pca95_encoder",
    "dim_pca95_decoder",
)

_package = resources.files("foresight_gates")
THRESHOLDS: dict[str, dict[str, float]] = tomllib.loads((_package / "thresholds.toml").read_text("utf-8"))
DIGESTS: dict[str, dict[str, str]] = tomllib.loads((_package / "digests.toml").read_text("utf-8"))


def _criteria(experiment: str, ceilings: dict[str, str], reported: tuple[str, ...]) -> tuple[Criterion, ...]:
    thresholds = THRESHOLDS[experiment]
    gating = tuple(Criterion(name, thresholds[name], ceilings[name], FLOORS) for name in thresholds)
    return gating + tuple(Criterion(name) for name in reported)


EXPERIMENTS = (
    ExperimentSpec(
        name="C1",
        target="foresight_gates.c1:LatentSufficiency",
        question="Can the features be decoded back into video?",
        axes=("adapter", "decoder"),
        criteria=_criteria("C1", dict.fromkeys(THRESHOLDS["C1"], "oracle"), ("psnr",)),
    ),
    ExperimentSpec(
        name="Q1",
        target="foresight_gates.q1:LatentAlignment",
        question="Do encoder and decoder latent spaces share structure?",
        axes=("decoder",),
        criteria=_criteria("Q1", dict.fromkeys(THRESHOLDS["Q1"], "oracle"), ("ridge_r2_reverse", *DIMENSIONS)),
    ),
    ExperimentSpec(
        name="Q2",
        target="foresight_gates.q2:InformationPreservation",
        question="Where in the encoder is spatial information lost?",
        axes=(),
        criteria=_criteria(
            "Q2",
            {"box_iou": "oracle", "map50": "oracle", "lpips": "pixels", "edge_f1": "pixels"},
            ("map", "ssim", "psnr"),
        ),
    ),
)

GATES = (GateSpec("gate1", "Gate 1: Reconstruction", ("C1", "Q1", "Q2")),)


def _suite(name: str, description: str) -> SuiteSpec:
    return SuiteSpec(
        name=name,
        version="1",
        target="foresight_gates.data:SceneData",
        description=description,
        experiments=EXPERIMENTS,
        gates=GATES,
        digests=DIGESTS[name],
        default_adapter="linear",
        default_decoder="ltx-tiny",
        controls=CONTROLS,
        params={"recipe": name},
        study="foresight_gates.study:PROTOCOLS",
    )


SUITES = (
    _suite("quick", "224x224, single frames and a few clips of 9; minutes on two CPU cores"),
    _suite("gate1", "448x448, clips of 9 frames; for a GPU"),
)
