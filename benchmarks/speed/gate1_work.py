"""Measure the feature work of Gate 1 as the study ran it, beside ours, on a GPU.

    python benchmarks/speed/gate1_work.py [--share .5] [--output FILE.json]
    python benchmarks/speed/gate1_work.py --table FILE.json

The work is the protocol of the study that the project grew from: 6,721 passes of Qwen2.5-VL-7B for 1,980 distinct
images, one image at a time, anew for each experiment and often for each tap. Ours is one pass over the images for all
taps. The steps in between are measured too, so that the whole ratio is a product of factors: one pass for all taps,
batches, our encoder, compiling.

Models are built once and before the clock starts; the study loaded the 7B model 23 times, which would add to its side
alone. Images, architecture and precision (bfloat16) are the same throughout, weights random. transformers' model
starts from patches that stand ready on the device; ours from uint8 frames on the host, and ends with grids on the
device. First a narrow model of the same depth must give the same features both ways, or there is no number.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import gate1_stock
import torch
from encoders import environment, release
from gate1_steps import Passes, Step, fastest, our_passes, stock_passes
from gate1_stock import Stock
from tabulate import tabulate

from foresight_bench.batching import MOST_FRAMES
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.specs import Precision
from foresight_plugins.encoders.qwen2_5_vl import Qwen2_5VL, configuration

TAPS = ("pre_merge", "post_merge", *(f"llm.{i}" for i in (0, 3, 6, 7, 11, 13, 15, 19, 20, 23)), "final")
"""All that the study's experiments read. Their hidden state k is ``llm.<k - 1>``, and the 28th is ``final``."""


@dataclass(frozen=True)
class Part:
    """What some of the study's experiments sent through the model, one image a pass."""

    experiment: str
    side: int
    """Of the images, in pixels."""
    images: int
    """Distinct ones."""
    whole: int
    """Passes through the vision tower and the language model."""
    tower: int
    """Passes through the vision tower alone."""


PROTOCOL = (
    Part("C1", 224, 768, 1641, 0),
    Part("Q1, the first of seven", 224, 212, 270, 0),
    Part("Q1, the others", 256, 422, 2160, 0),
    Part("Q2, boxes", 448, 200, 150, 400),
    Part("Q2, detection", 448, 200, 400, 200),
    Part("Q2, textures", 448, 150, 150, 150),
    Part("Q2, motion", 224, 28, 600, 600),
)


@dataclass(frozen=True)
class Scale:
    """What is run, and where."""

    narrow: bool
    """Whether the narrow model stands in for the 7B."""
    protocol: tuple[Part, ...]
    device: str
    precision: Precision
    batches: tuple[int, ...]
    """Images a batch, of which transformers' model gets the fastest."""
    frames: int
    """A batch of our encoder."""


def _reduced(part: Part, times: int = 400) -> Part:
    images, whole, tower = (ceil(count / times) for count in (part.images, part.whole, part.tower))
    return replace(part, images=images, whole=whole, tower=tower)


FULL = Scale(False, PROTOCOL, "cuda", "bfloat16", (8, 16, 32, 64), MOST_FRAMES)
TINY = Scale(True, tuple(map(_reduced, PROTOCOL)), "cpu", "bfloat16", (1, 2), 2)


def measure(scale: Scale, share: float) -> dict[str, Any]:
    """Return how well the two narrow models agree, and all steps; ``share`` is of transformers' passes.

    Raises:
        RuntimeError: they do not.
    """
    sides = sorted({part.side for part in scale.protocol})
    with tempfile.TemporaryDirectory() as folder:
        stock = Stock(gate1_stock.narrow(), scale.device, torch.float32)
        stock.save(Path(folder))
        setup = EncoderSetup(ResolvedWeights(Path(folder), "", "file"), TAPS, scale.device)
        same = Qwen2_5VL(setup, size="7b")
        cosines = [gate1_stock.agreement(stock, same, gate1_stock.frames(side, 2), TAPS) for side in sides]
        agreed = {tap: min(found[tap] for found in cosines) for tap in TAPS}
        _say(f"features agree: least cosine {min(agreed.values()):.6f}")
        setup = replace(setup, weights=setup.weights if scale.narrow else None, precision=scale.precision)
        steps = ladder(scale, share, setup)
    return {"agreement": agreed, "steps": [{**asdict(step), "seconds": step.seconds} for step in steps]}


def ladder(scale: Scale, share: float, setup: EncoderSetup) -> list[Step]:
    """Return the steps from the work as written to ours, each once; one model is there at a time."""
    images: Counter[int] = Counter()
    counts: Counter[tuple[int, str]] = Counter()
    for part in scale.protocol:
        images[part.side] += part.images
        counts[part.side, "whole"] += part.whole
        counts[part.side, "tower"] += part.tower
    clips = {side: gate1_stock.frames(side, images[side]) for side in sorted(images)}
    precision = getattr(torch, scale.precision)
    patches = {side: gate1_stock.patches(given, scale.device, precision) for side, given in clips.items()}
    steps: list[Step] = []

    def done(name: str, passes: Sequence[Passes]) -> None:
        steps.append(Step(name, tuple(passes)))
        _say(f"{name}: {steps[-1].seconds:.2f} s")

    stock = Stock(gate1_stock.narrow() if scale.narrow else configuration("7b"), scale.device, precision)
    every = partial(stock.states, taps=TAPS)
    forwards = {"whole": stock.whole, "tower": stock.tower}
    done(
        "as written",
        [
            stock_passes(stock, kind, forwards[kind], patches[side], side, 1, needed, share)
            for (side, kind), needed in sorted(counts.items())
            if needed
        ],
    )
    for name, batches in (("one pass for all taps", (1,)), ("in batches", scale.batches)):
        best = {side: fastest(stock, every, given, batches) for side, given in patches.items()}
        done(
            name,
            [
                stock_passes(stock, "whole", every, given, side, best[side], images[side], share)
                for side, given in patches.items()
            ],
        )
    del stock, every, forwards, patches
    for compiled in (False, True):
        release()
        encoder = Qwen2_5VL(replace(setup, compiled=compiled), size="7b")
        name = "our encoder, compiled" if compiled else "our encoder"
        done(name, our_passes(encoder, clips, TAPS, scale.frames, torch.device(scale.device)))
        del encoder
    return steps


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


LADDER = ("step", "at batch", "passes", "of these timed", "seconds", "images/s", "x the step before", "x as written")
KINDS = ("step", "pixels", "pass", "at batch", "passes", "of these timed", "ms/image")


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown: the ladder, then every kind of pass."""
    images = sum(part["images"] for part in results["protocol"])
    rows, kinds = [], []
    first = before = results["steps"][0]
    for step in results["steps"]:
        seconds, passes = step["seconds"], step["passes"]
        rows.append(
            [
                step["name"],
                "/".join(dict.fromkeys(str(each["batch"]) for each in passes)),
                *(str(sum(each[key] for each in passes)) for key in ("needed", "timed")),
                f"{seconds:.2f}",
                f"{images / seconds:.1f}",
                f"{before['seconds'] / seconds:.2f}",
                f"{first['seconds'] / seconds:.2f}",
            ]
        )
        for each in passes:
            about = [str(each[key]) for key in ("side", "kind", "batch", "needed", "timed")]
            kinds.append([step["name"], *about, f"{each['ms']:.2f} ({each['low']:.2f} to {each['high']:.2f})"])
        before = step
    about_all = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    agreed = results["agreement"]
    return "\n\n".join(
        (
            f"{about_all}. {results['model']}, {images} distinct images, {len(agreed)} taps. On a narrow model with "
            f"the same weights both ways, the least cosine between a token's features was {min(agreed.values()):.6f}.",
            tabulate(rows, LADDER, "github", disable_numparse=True),
            "Milliseconds an image in each kind of pass (median, and quartiles over the timed batches):",
            tabulate(kinds, KINDS, "github", disable_numparse=True),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of transformers' passes that is really timed")
    parser.add_argument("--tiny", action="store_true", help="a narrow model and a few images, on the CPU")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where to write all numbers")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the table of an earlier run and stop")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text("utf-8"))))
        return 0
    if not 0 < options.share <= 1:
        parser.error("the share is above 0 and at most 1")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    scale = TINY if options.tiny else FULL
    given = sys.argv[1:] if arguments is None else arguments
    results = {
        "environment": environment(scale.device),
        # Of a path only the name: which folders this machine has is nobody's business.
        "command": shlex.join(["python", "benchmarks/speed/gate1_work.py", *(Path(each).name for each in given)]),
        "model": "A narrow Qwen2.5-VL" if scale.narrow else "Qwen2.5-VL 7b",
        "protocol": [asdict(part) for part in scale.protocol],
        **measure(scale, options.share),
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
