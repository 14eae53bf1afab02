"""Measure the feature work of Gate 1 as the study ran it, beside ours, on a GPU.

    python benchmarks/speed/gate1_work.py [--share .25] [--output FILE.json]
    python benchmarks/speed/gate1_work.py --table FILE.json

The work is the protocol of the study that the project grew from: 6,721 passes of Qwen2.5-VL-7B for 1,980 distinct
images, one image and one tap at a time. Ours is one pass over the images for all taps. The steps in between are
measured too, so that the whole ratio is a product of factors: one pass for all taps, batches, our encoder, compiling.

Models are built once and before the clock starts; the study loaded the 7B model 23 times, which would add to its side
alone. The same images, architecture and kind of random weights in bfloat16 throughout. transformers' model starts from
patches that stand ready on the device; ours from uint8 frames on the host, and ends with grids on the device. First,
in any case, a narrow model of the same depth must give the same features both ways, or there is no number.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import gate1_stock
import numpy as np
import torch
from encoders import environment, release
from gate1_stock import Inputs, Stock
from tabulate import tabulate
from torch import Tensor

from foresight_bench.batching import MOST_FRAMES, Batching, device_memory
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.specs import Precision
from foresight_plugins.encoders.qwen2_5_vl import Qwen2_5VL, configuration

TAPS = ("pre_merge", "post_merge", *(f"llm.{i}" for i in (0, 3, 6, 7, 11, 13, 15, 19, 20, 23)), "final")
"""Every one that some experiment of the study read; it counts hidden states from the embeddings, so its k is k - 1."""
WARM_UP = 3
"""Forwards before the clock starts."""
LEAST = 5
"""Forwards that are timed of each kind, however small the share."""


@dataclass(frozen=True)
class Part:
    """What some of the study's experiments sent through the model, one image a pass."""

    experiment: str
    side: int
    """Of the images, in pixels."""
    images: int
    """Distinct ones, that no part before has."""
    whole: int
    """Passes through the vision tower and the language model."""
    tower: int
    """Passes through the vision tower alone."""


PROTOCOL = (
    Part("C1", 224, 768, 1641, 0),
    Part("Q1, clusters", 224, 212, 270, 0),
    Part("Q1, alignment", 256, 422, 2160, 0),
    Part("Q2, boxes", 448, 200, 150, 400),
    Part("Q2, detection", 448, 200, 400, 200),
    Part("Q2, textures", 448, 150, 150, 150),
    Part("Q2, motion", 224, 28, 600, 600),
)


@dataclass(frozen=True)
class Scale:
    """What is run, and where."""

    name: str
    config: Callable[[], Any]
    protocol: tuple[Part, ...]
    device: str
    precision: Precision
    batches: tuple[int, ...]
    """Images a batch, of which transformers' model gets the fastest."""
    ours: int
    """Images a batch of our encoder."""


FULL = Scale("7b", partial(configuration, "7b"), PROTOCOL, "cuda", "bfloat16", (8, 16, 32, 64), MOST_FRAMES)
TINY = Scale(
    "tiny",
    gate1_stock.tiny,
    tuple(
        replace(part, images=ceil(part.images / 200), whole=ceil(part.whole / 200), tower=ceil(part.tower / 200))
        for part in PROTOCOL
    ),
    "cpu",
    "float32",
    (1, 2),
    2,
)


@dataclass(frozen=True)
class Passes:
    """The passes of one kind, in one step, for images of one size; times are milliseconds of an image."""

    side: int
    kind: str
    """``whole`` or ``tower``."""
    batch: int
    needed: int
    """Images that go through, each as often as it does."""
    timed: int
    """How many of these were really timed."""
    low: float
    """Lower quartile over the timed batches."""
    ms: float
    """Median."""
    high: float
    """Upper quartile."""
    seconds: float
    """For all that are needed: those of the timed ones, times ``needed / timed``."""


@dataclass(frozen=True)
class Step:
    """One way to do all of the work."""

    name: str
    passes: tuple[Passes, ...]

    @property
    def seconds(self) -> float:
        """Of the device for the work, synchronised; nothing is built or compiled in them."""
        return sum(passes.seconds for passes in self.passes)


def as_written(stock: Stock, images: Mapping[int, Tensor], scale: Scale, share: float) -> Step:
    """Time one pass for each (image, tap) that the study read, at batch 1, through as much as it ran."""
    found = []
    for side, given in images.items():
        parts = [part for part in scale.protocol if part.side == side]
        kinds = (("whole", stock.whole, [p.whole for p in parts]), ("tower", stock.tower, [p.tower for p in parts]))
        for kind, forward, counts in kinds:
            if needed := sum(counts):
                again = (given[index % len(given)][None] for index in range(_sample(needed, share)))
                found.append(_timed(stock, side, kind, 1, forward, again, needed))
    return Step("as written: one tap a pass, one image a batch", tuple(found))


def one_pass(stock: Stock, images: Mapping[int, Tensor], batches: Mapping[int, int], share: float, name: str) -> Step:
    """Time one pass of each distinct image that keeps all taps, in ``batches`` by side."""
    found = []
    forward = partial(stock.states, taps=TAPS)
    for side, given in images.items():
        batch, needed = batches[side], len(given)
        chosen = given[: min(needed, batch * ceil(_sample(needed, share) / batch))]
        found.append(_timed(stock, side, "whole", batch, forward, chosen.split(batch), needed))
    return Step(name, tuple(found))


def fastest(stock: Stock, given: Tensor, batches: Sequence[int]) -> int:
    """Return which of ``batches`` takes the least time an image, by one forward of each after another of its size."""
    forward = partial(stock.states, taps=TAPS)
    each = {}
    for batch in batches:
        inputs = stock.inputs(given[:batch])
        each[batch] = _seconds(forward, [inputs, inputs], given.device)[1] / len(given[:batch])
    return min(each, key=lambda batch: each[batch])


def ours(setup: EncoderSetup, images: Mapping[int, ClipBatch], frames: int) -> Step:
    """Time our encoder on each distinct image, ``frames`` a batch, from the host's frames to all taps' grids."""
    encoder = Qwen2_5VL(setup, size="7b")
    device = torch.device(setup.device)
    encode = partial(encoder.encode, taps=TAPS)
    for clips in images.values():  # all of them first: compiling may begin anew until it has seen every size
        for _ in range(WARM_UP):
            encode(clips[np.arange(frames) % len(clips)])
    found = []
    for side, clips in images.items():
        seconds, sizes = [], []
        _wait(device)
        started = time.perf_counter()
        for part, _ in Batching(device_memory(device), frames).run(clips, encode):
            _wait(device)
            now = time.perf_counter()
            seconds.append(now - started)
            sizes.append(part.stop - part.start)
            started = now
        found.append(_passes(side, "whole", frames, len(clips), seconds, sizes))
    return Step(f"our encoder, {'compiled' if setup.compiled else 'eager'}", tuple(found))


def _sample(needed: int, share: float) -> int:
    return min(needed, max(LEAST, ceil(share * needed)))


def _timed(
    stock: Stock,
    side: int,
    kind: str,
    batch: int,
    forward: Callable[[Inputs], object],
    batches: Iterable[Tensor],
    needed: int,
) -> Passes:
    """Time ``forward`` on each of ``batches``, after the first one has warmed it up."""
    prepared = [stock.inputs(given) for given in batches]
    device = prepared[0]["pixel_values"].device
    _seconds(forward, prepared[:1] * WARM_UP, device)
    sizes = [len(inputs["input_ids"]) for inputs in prepared]
    return _passes(side, kind, batch, needed, _seconds(forward, prepared, device), sizes)


@torch.no_grad()
def _seconds(forward: Callable[[Inputs], object], batches: Sequence[Inputs], device: torch.device) -> list[float]:
    found = []
    for inputs in batches:
        _wait(device)
        started = time.perf_counter()
        forward(inputs)
        _wait(device)
        found.append(time.perf_counter() - started)
    return found


def _passes(side: int, kind: str, batch: int, needed: int, seconds: Sequence[float], sizes: Sequence[int]) -> Passes:
    each = [1000 * one / size for one, size in zip(seconds, sizes, strict=True)]
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    timed = sum(sizes)
    return Passes(side, kind, batch, needed, timed, low, middle, high, sum(seconds) * needed / timed)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(scale: Scale, share: float) -> dict[str, Any]:
    """Return how well a narrow model of both kinds agrees, and all steps."""
    say = partial(print, file=sys.stderr, flush=True)
    sides = sorted({part.side for part in scale.protocol})
    with tempfile.TemporaryDirectory() as folder:
        narrow = Stock(gate1_stock.tiny(), scale.device, torch.float32)
        narrow.save(Path(folder))
        weights = ResolvedWeights(Path(folder), "", "file")
        setup = EncoderSetup(weights=weights, taps=TAPS, device=scale.device)
        same = Qwen2_5VL(setup, size="7b")
        cosines = [
            gate1_stock.agreement(narrow, same, gate1_stock.frames(side, 2), TAPS, scale.device) for side in sides
        ]
        agreed = {tap: min(found[tap] for found in cosines) for tap in TAPS}
        say(f"features agree: least cosine {min(agreed.values()):.6f}")
        setup = replace(setup, weights=weights if scale is TINY else None, precision=scale.precision)
        steps = _steps(scale, share, setup, say)
    return {"agreement": agreed, "steps": [{**asdict(step), "seconds": step.seconds} for step in steps]}


def _steps(scale: Scale, share: float, setup: EncoderSetup, say: Callable[[str], None]) -> list[Step]:
    counts: dict[int, int] = {}
    for part in scale.protocol:
        counts[part.side] = counts.get(part.side, 0) + part.images
    clips = {side: gate1_stock.frames(side, counts[side]) for side in sorted(counts)}
    precision = getattr(torch, scale.precision)
    ready = {side: gate1_stock.patches(given, scale.device, precision) for side, given in clips.items()}
    steps: list[Step] = []

    def done(step: Step) -> None:
        steps.append(step)
        say(f"{step.name}: {step.seconds:.1f} s")

    stock = Stock(scale.config(), scale.device, precision)
    done(as_written(stock, ready, scale, share))
    done(one_pass(stock, ready, dict.fromkeys(ready, 1), share, "one pass for all taps"))
    best = {side: fastest(stock, given, scale.batches) for side, given in ready.items()}
    done(one_pass(stock, ready, best, share, "in batches"))
    del stock, ready
    for compiled in (False, True):
        release()
        done(ours(replace(setup, compiled=compiled), clips, scale.ours))
    return steps


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown: the ladder, then every kind of pass."""
    images = sum(part["images"] for part in results["protocol"])
    steps = results["steps"]
    ladder, kinds = [], []
    for before, step in zip([steps[0], *steps], steps, strict=False):
        needed, timed = (sum(passes[key] for passes in step["passes"]) for key in ("needed", "timed"))
        seconds = step["seconds"]
        factor = "" if step is steps[0] else f"{before['seconds'] / seconds:.2f}"
        whole = f"{steps[0]['seconds'] / seconds:.1f}"
        ladder.append(
            [step["name"], f"{needed}", f"{timed}", f"{seconds:.2f}", f"{images / seconds:.1f}", factor, whole]
        )
        for passes in step["passes"]:
            time_of_one = f"{passes['ms']:.2f} ({passes['low']:.2f} to {passes['high']:.2f})"
            cells = (f"{passes[key]}" for key in ("batch", "needed", "timed"))
            kinds.append([step["name"], f"{passes['side']}", passes["kind"], *cells, time_of_one])
    about = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    agreed = min(results["agreement"].values())
    return "\n\n".join(
        (
            f"{about}. Qwen2.5-VL {results['configuration']}, {images} distinct images, {len(results['agreement'])} "
            f"taps. Before it, a narrow model with the same weights both ways: least cosine of a token {agreed:.6f}.",
            tabulate(ladder, LADDER, "github", disable_numparse=True),
            "Milliseconds of one image in each kind of pass (median and quartiles over the timed batches):",
            tabulate(kinds, KINDS, "github", disable_numparse=True),
        )
    )


LADDER = ("step", "passes", "of these timed", "seconds", "images/s", "x the step before", "x as written")
KINDS = ("step", "pixels", "pass", "at batch", "passes", "of these timed", "ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of transformers' passes that are really timed")
    parser.add_argument("--tiny", action="store_true", help="a narrow model and a few images on the CPU")
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
        "command": shlex.join(["python", "benchmarks/speed/gate1_work.py", *given]),
        "configuration": scale.name,
        "share": options.share,
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
