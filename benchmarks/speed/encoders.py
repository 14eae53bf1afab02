"""Measure the encoders on a GPU beside the libraries' own models, and print a table.

    python benchmarks/speed/encoders.py [--only NAME ...] [--batch 1 8 32 64] [--output FILE.json]
    python benchmarks/speed/encoders.py --table FILE.json

"Ours" is ``encode`` from end to end: uint8 frames on the host in, grids on the device out. A reference is the
forward pass alone, on tensors that stand ready. Everything runs in bfloat16, with random weights on random images.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import references
import torch
from references import Call, Prepare, Reference
from tabulate import tabulate

from foresight_bench import names
from foresight_bench.batching import is_out_of_memory
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder, EncoderSetup
from foresight_bench.registry import target
from foresight_plugins import foresight_encoders

REPEATS, MOST_REPEATS = 10, 100
SECONDS = 1.0
"""Of repeats that are wanted beyond the least number."""
REFERENCE_BATCHES = (8, 16, 32)
MODES = ("eager", "compiled")


Build = Callable[[str, bool], Callable[[int], Mapping[str, Call]]]
"""From device, and whether to compile, to a model; from it and a number of images to what is timed, by subject."""


@dataclass(frozen=True)
class Row:
    """One encoder up to one tap, and what it is measured against."""

    name: str
    gflop: float
    """That an image needs, by torch's FlopCounter on the reference on the ``meta`` device: 2 a multiply-add."""
    ours: Build
    reference: Reference


@dataclass(frozen=True)
class Point:
    """One measurement; times are milliseconds per image."""

    subject: str
    """``eager`` and ``compiled`` are ours; ``preparation`` is the part of them before the first block: upload,
    resizing, normalising, patch convolution. Then ``reference``."""
    images: int
    """In the batch."""
    low: float = 0.0
    """Lower quartile over the repeats."""
    ms: float = 0.0
    """Median."""
    high: float = 0.0
    """Upper quartile."""
    first_seconds: float = 0.0
    """Of the first call, which compiles."""
    peak_gb: float = 0.0
    """Device memory at the highest point, weights included, in 10^9 bytes."""
    error: str = ""
    """Why there is nothing above."""


def encoder(name: str, side: int) -> Build:
    """Return the build of ``name:variant@tap`` on frames of ``side`` pixels."""

    def build(device: str, compiled: bool) -> Callable[[int], Mapping[str, Call]]:
        (stream,) = names.parse(name)
        spec = {spec.name: spec for spec in foresight_encoders()}[stream.name]
        variant = {variant.name: variant for variant in spec.variants}[stream.variant]
        tap, stem = stream.taps, variant.stem[0]
        setup = EncoderSetup(taps=(stem, tap), device=device, precision="bfloat16", compiled=compiled)
        model: Encoder = target(spec.target)(setup, **{**spec.options, **variant.params})

        def prepare(images: int) -> Mapping[str, Call]:
            frames = np.random.default_rng(0).integers(0, 256, (images, 1, side, side, 3), dtype=np.uint8)
            encode = partial(model.encode, ClipBatch(frames, tuple(map(str, range(images)))))
            if compiled:
                return {"compiled": partial(encode, (tap,))}
            return {"eager": partial(encode, (tap,)), "preparation": partial(encode, (stem,))}

        return prepare

    return build


def language(device: str, compiled: bool) -> Callable[[int], Mapping[str, Call]]:
    """Build the layers of Qwen2.5-VL's language model, for the embeddings of image tokens."""
    from foresight_plugins.encoders.llm import LanguageModel
    from foresight_plugins.encoders.qwen2_5_vl import configuration

    config: Any = configuration("7b").text_config
    depth, dtype = config.num_hidden_layers, references.PRECISION
    model = LanguageModel(config, depth, final=True, tensors=None, device=device, dtype=dtype, compiled=compiled)
    subject = "compiled" if compiled else "eager"
    return lambda images: {subject: partial(model.run, *references.language_inputs(images, device), [depth - 1])}


def _row(name: str, side: int, gflop: float, reference: str, build: Callable[[str], Prepare]) -> Row:
    return Row(name, gflop, encoder(name, side), Reference(reference, build))


_SAM = "segment_anything ImageEncoderViT"
_TIMM = "timm VisionTransformer"
# SAM's windows are counted without their padding, and causal attention by half: no encoder has to compute these.
ROWS = (
    _row(
        "qwen2.5-vl:7b@pre_merge",
        448,
        1324.1,
        "transformers Qwen2_5_VisionTransformerPretrainedModel",
        references.qwen_vision,
    ),
    Row(
        "qwen2.5-vl:7b language model",
        3354.1,
        language,
        Reference("transformers Qwen2_5_VLTextModel", references.qwen_language),
    ),
    _row("qwen2.5-vl:7b@final", 448, 4898.4, "transformers Qwen2_5_VLModel", references.qwen_whole),
    _row("sam:vit_b@neck", 1024, 937.9, _SAM, references.sam(768, 12, 12, (2, 5, 8, 11))),
    _row("sam:vit_l@neck", 1024, 2837.9, _SAM, references.sam(1024, 24, 16, (5, 11, 17, 23))),
    _row("sam:vit_h@neck", 1024, 5643.4, _SAM, references.sam(1280, 32, 16, (7, 15, 23, 31))),
    _row("dinov2:large@final", 448, 723.6, _TIMM, references.dinov2("vit_large_patch14_dinov2")),
    _row("dinov2:giant@final", 448, 2581.6, _TIMM, references.dinov2("vit_giant_patch14_dinov2")),
    _row("internvl2:8b@block.23", 448, 723.6, "transformers InternVLVisionModel", references.internvl_vision),
    _row("llava-next:mistral-7b@block.22", 336, 366.0, "transformers CLIPVisionModel", references.clip_vision),
)


def sampled(call: Call, device: str, repeats: int) -> list[float]:
    """Return milliseconds of each of ``repeats`` calls in a row; none waits for the one before."""
    if torch.device(device).type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(repeats):
            call()
            marks.append(time.perf_counter())
        return [1000 * (b - a) for a, b in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(events)]


def measured(subject: str, images: int, call: Call, device: str) -> Point:
    """Return the time and memory of ``call`` on ``images`` images, after two calls to warm up."""
    cuda = torch.device(device).type == "cuda"
    started = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    first = time.perf_counter() - started
    (warm,) = sampled(call, device, 1)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    repeats = min(MOST_REPEATS, max(REPEATS, ceil(1000 * SECONDS / warm)))
    low, middle, high = (ms / images for ms in quantiles(sampled(call, device, repeats), n=4, method="inclusive"))
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return Point(subject, images, low, middle, high, first, peak)


def measure(row: Row, batches: Sequence[int], device: str, deadline: float, modes: Sequence[str]) -> list[Point]:
    """Return the points of ``row``, with an error in place of what fails or would end after ``deadline``."""
    points = _points("reference", partial(_reference, row, device), REFERENCE_BATCHES, device, deadline)
    for mode in modes:  # last, because compiling takes longest
        points += _points(mode, partial(row.ours, device, mode == "compiled"), batches, device, deadline)
    return points


def _reference(row: Row, device: str) -> Callable[[int], Mapping[str, Call]]:
    prepare = row.reference.build(device)
    return lambda images: {"reference": prepare(images)}


def _points(
    subject: str,
    build: Callable[[], Callable[[int], Mapping[str, Call]]],
    batches: Sequence[int],
    device: str,
    deadline: float,
) -> list[Point]:
    points: list[Point] = []
    prepare = None
    for images in sorted(batches):
        # The largest batch so far says how long the next one takes.
        each = max((point.ms / 1000 for point in points if point.images == points[-1].images), default=0.0)
        if time.monotonic() + each * images * (REPEATS + 2) > deadline:
            points.append(Point(subject, images, error="out of time"))
            break
        try:
            prepare = prepare or build()
            with torch.no_grad():
                points += [measured(name, images, call, device) for name, call in prepare(images).items()]
        except Exception as error:
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            points.append(Point(subject, images, error=reason.splitlines()[0][:200]))
            break
    del prepare
    release()
    return points


def release() -> None:
    """Forget compiled code, which is kept by function and not by model, and free what no model holds any more."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ceilings(device: str, side: int = 8192, copied: int = 4 * 10**9) -> dict[str, float]:
    """Return what the device reaches on random data: TFLOP/s of a bfloat16 product, TB/s read and written by a copy."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(copied // 4, device=device)
    sink = torch.empty_like(source)
    found = {}
    for name, call, work in (
        ("bf16_tflops", lambda: a @ b, 2 * side**3),
        ("copy_tbps", lambda: sink.copy_(source), 2 * copied),
    ):
        sampled(call, device, 3)
        _, ms, _ = quantiles(sampled(call, device, 20), n=4)
        found[name] = work / ms / 1e9
    return found


def environment(device: str) -> dict[str, str]:
    """Return the hardware and the versions that the numbers belong to."""
    found = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    if torch.device(device).type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        drivers = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        found |= {"device": torch.cuda.get_device_name(), "driver": drivers[0], "cuda": str(torch.version.cuda)}
    for library in ("torch", "transformers", "timm", "segment-anything", "triton"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown: what each row reaches at its best, then every batch size."""
    best: list[list[str]] = []
    sweep: list[list[str]] = []
    sizes = sorted({point["images"] for row in results["rows"] for point in row["points"]})
    for row in results["rows"]:
        for subject in (*MODES, "preparation", "reference"):
            cells = {point["images"]: _cell(point) for point in row["points"] if point["subject"] == subject}
            if cells:
                label = row["reference"] if subject == "reference" else subject
                sweep.append([row["name"], label, *(cells.get(size, "") for size in sizes)])
        best += [_best(row, point, results) for mode in MODES if (point := _fastest(row, mode))]
    reached = results["ceilings"]
    later = f"{results['ceilings_after']['bf16_tflops']:.0f}" if "ceilings_after" in results else "not measured"
    about = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    return "\n\n".join(
        (
            f"{about}. Ceilings measured in the same run: {reached['bf16_tflops']:.0f} TFLOP/s (bf16 product; "
            f"{later} at its end), {reached['copy_tbps']:.2f} TB/s (copy). "
            "The floor is an image's arithmetic at the first of these rates.",
            tabulate(best, BEST, "github", disable_numparse=True),
            "Milliseconds an image at each batch size (half the distance of the quartiles; peak memory; seconds of "
            "the first call if over one):",
            tabulate(sweep, ["encoder", "what", *map(str, sizes)], "github", disable_numparse=True),
        )
    )


BEST = (
    "encoder",
    "ours",
    "floor, ms",
    "ms/image",
    "at batch",
    "images/s",
    "TFLOP/s",
    "x floor",
    "before the blocks, ms",
    "peak GB",
    "reference, ms at batch",
    "speed-up",
)


def _best(row: dict[str, Any], point: dict[str, Any], results: dict[str, Any]) -> list[str]:
    floor, ms = row["gflop"] / results["ceilings"]["bf16_tflops"], point["ms"]
    reference, preparation = _fastest(row, "reference"), _fastest(row, "preparation")
    return [
        row["name"],
        point["subject"],
        f"{floor:.2f}",
        f"{ms:.2f}",
        f"{point['images']}",
        f"{1000 / ms:.0f}",
        f"{row['gflop'] / ms:.0f}",
        f"{ms / floor:.2f}",
        f"{preparation['ms']:.2f}" if preparation else "",
        f"{point['peak_gb']:.1f}",
        f"{reference['ms']:.2f} at {reference['images']}" if reference else "failed",
        f"{reference['ms'] / ms:.2f}" if reference else "",
    ]


def _fastest(row: dict[str, Any], subject: str) -> dict[str, Any] | None:
    points = [point for point in row["points"] if point["subject"] == subject and not point["error"]]
    return min(points, key=lambda point: point["ms"], default=None)


def _cell(point: dict[str, Any]) -> str:
    if point["error"]:
        return str(point["error"])
    first = f"; {point['first_seconds']:.0f} s" if point["first_seconds"] > 1 else ""
    return f"{point['ms']:.2f} (±{(point['high'] - point['low']) / 2:.2f}; {point['peak_gb']:.1f} GB{first})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all rows, or those whose name holds one of ``--only``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose name holds one of these")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 64], metavar="N", help="images a batch")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="how to run ours")
    parser.add_argument("--minutes", type=float, default=8.0, help="for the whole run; what does not fit is left out")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where to write all numbers")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the table of an earlier run and stop")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text("utf-8"))))
        return 0
    rows = [row for row in ROWS if not options.only or any(part in row.name for part in options.only)]
    if not rows:
        parser.error(f"no row is called so; there are {', '.join(row.name for row in ROWS)}")
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    run(rows, options.batch, options.modes, 60 * options.minutes, options.output, "cuda")
    return 0


def run(
    rows: Sequence[Row], batches: Sequence[int], modes: Sequence[str], seconds: float, output: Path | None, device: str
) -> None:
    """Measure ``rows`` in turn and print the table; the file is written after each row."""
    deadline = time.monotonic() + seconds
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"environment": environment(device), "ceilings": ceilings(device), "rows": []}
    for index, row in enumerate(rows):
        now = time.monotonic()
        # An equal share of the time that is left, so that what one row does not need serves the next ones.
        points = measure(row, batches, device, now + (deadline - now) / (len(rows) - index), modes)
        results["rows"].append(
            {
                "name": row.name,
                "gflop": row.gflop,
                "reference": row.reference.name,
                "points": [asdict(point) for point in points],
            }
        )
        print(f"{row.name}: {time.monotonic() - now:.0f} s", file=sys.stderr, flush=True)
        if output:
            output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")
    results["ceilings_after"] = ceilings(device)  # lower if the device has slowed down meanwhile
    if output:
        output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
