"""The list of metrics: importable for nothing, and true of the classes it names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from foresight_bench.specs import MetricSpec
from foresight_plugins.metric_specs import METRICS


def test_listing_metrics_imports_no_numerical_library() -> None:
    code = (
        "import sys, foresight_plugins.metric_specs;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names() -> None:
    assert [m.name for m in METRICS] == [
        "lpips", "ssim", "psnr", "edge_f1", "spatial_iou", "box_iou", "map50", "map",
        "ridge_r2", "ridge_r2_reverse", "spearman", "recall10", "cka",
        "dim_two_nn_encoder", "dim_two_nn_decoder", "dim_two_nn_ratio",
        "dim_mle_encoder", "dim_mle_decoder", "dim_mle_ratio", "dim_pca95_encoder", "dim_pca95_decoder",
    ]  # fmt: skip


@pytest.mark.parametrize("spec", [m for m in METRICS if m.weights is None], ids=lambda m: m.name)
def test_target_is_constructed_from_the_parameters(spec: MetricSpec) -> None:
    module, name = spec.target.split(":")
    made = getattr(importlib.import_module(module), name)(
        **({"weights": None, "device": "cpu"} if spec.kind == "frames" else {}), **spec.params
    )
    assert callable(made.score)
    assert callable(getattr(made, "prepare", None)) == (spec.kind == "frames")
