"""Measure a decoder's round trip on a suite's test split, beside what less than a decoder would give back.

    python benchmarks/ltx_tiny/measure.py --suite quick

prints a table: each metric's mean with its 95 % interval over clips, for the round trip (weights in float32), for each
clip's mean colour, and for frames that went through a thumbnail of 16 x 16.
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from foresight_bench import weights
from foresight_bench.bench import Bench, Workbench
from foresight_bench.features import FeatureSet
from foresight_bench.judging import estimate
from foresight_bench.registry import Registry, target

METRICS = ("psnr", "ssim", "lpips", "spatial_iou")
THUMBNAIL = 16


def thumbnail(frames: Tensor) -> Tensor:
    """Return ``frames`` [F, 3, H, W] as a thumbnail would show them, enlarged bilinearly."""
    small = F.interpolate(frames, (THUMBNAIL, THUMBNAIL), mode="area")
    return F.interpolate(small, frames.shape[-2:], mode="bilinear")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--decoder", default="ltx-tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    registry = Registry.installed()
    spec = registry.suites[args.suite].spec
    needed = [registry.decoders[args.decoder].spec.weights, *(registry.metrics[name].spec.weights for name in METRICS)]
    found = {each.name: weights.resolve(each) for each in needed if each is not None}
    shared = Workbench(registry, target(spec.target)(**spec.params), args.device, found)
    bench = Bench(shared, FeatureSet((), {}, {}), seed=0, decoder_name=args.decoder)
    frames = shared.frame_truth("test").frames
    clip = torch.from_numpy(shared.clip_index("test")).to(frames.device)
    sums = torch.zeros(int(clip[-1]) + 1, 3, device=frames.device).index_add(0, clip, frames.mean((2, 3)))
    colours = sums / clip.bincount()[:, None]
    ways = {
        "round trip": lambda: torch.cat([bench.decoded(latents) for latents in bench.latents("test")]),
        "mean colour": lambda: colours[clip][:, :, None, None].expand_as(frames),
        f"{THUMBNAIL} x {THUMBNAIL} thumbnail": lambda: torch.cat([thumbnail(part) for part in frames.split(64)]),
    }
    rows = []
    for name, way in ways.items():
        shown = way()
        scores = [estimate(bench.score_frames(metric, "test", shown)) for metric in METRICS]
        rows.append([name, *(f"{each.value:.3f} [{each.low:.3f}, {each.high:.3f}]" for each in scores)])
    print(f"{args.decoder} on the test split of {args.suite}, {len(colours)} clips")
    print(tabulate(rows, ["frames", *METRICS]))


if __name__ == "__main__":
    main()
