"""How gate1_work.py times passes: each batch by itself, until the device is done with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

import numpy as np
import torch
from gate1_stock import Inputs, Stock
from torch import Tensor

from foresight_bench.batching import Batching, device_memory
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder

WARM_UP = 2
"""Batches of each kind before the clock starts: the first one loads kernels, and compiles."""
LEAST = 5
"""Passes of each kind that are timed, however small the share."""

Forward = Callable[[Inputs], object]


@dataclass(frozen=True)
class Passes:
    """The passes of one kind for images of one size, in one step. One pass takes one image through."""

    side: int
    """Of the images, in pixels."""
    kind: str
    """``whole``, or ``tower`` for the vision tower alone."""
    batch: int
    needed: int
    timed: int
    """How many of the needed ones were really timed."""
    low: float
    """Lower quartile over the timed batches, in milliseconds an image."""
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
        """Of the work alone: nothing is built or compiled in them."""
        return sum(passes.seconds for passes in self.passes)


def stock_passes(
    stock: Stock, kind: str, forward: Forward, patches: Tensor, side: int, batch: int, needed: int, share: float
) -> Passes:
    """Time ``share`` of the ``needed`` passes of ``forward``, going round and round through ``patches`` [N, S, C]."""
    timed = min(needed, batch * ceil(max(LEAST, share * needed) / batch))
    turns = (torch.arange(timed, device=patches.device) % len(patches)).split(batch)
    seconds_of(forward, [stock.inputs(patches[turns[0]])] * WARM_UP, patches.device)
    seconds = []
    for turn in turns:
        seconds += seconds_of(forward, [stock.inputs(patches[turn])], patches.device)
    return summary(side, kind, batch, needed, seconds, [len(turn) for turn in turns])


def fastest(stock: Stock, forward: Forward, patches: Tensor, batches: Sequence[int]) -> int:
    """Return which of ``batches`` takes the least time an image, by one batch after ``WARM_UP`` of its size."""
    each = {}
    for batch in batches:
        inputs = stock.inputs(patches[:batch])
        each[batch] = seconds_of(forward, [inputs] * (WARM_UP + 1), patches.device)[-1] / len(patches[:batch])
    return min(each, key=lambda batch: each[batch])


def our_passes(
    encoder: Encoder, clips: Mapping[int, ClipBatch], taps: Sequence[str], frames: int, device: torch.device
) -> list[Passes]:
    """Time one pass of each of ``clips``, by side, from the host's frames to the grids of all ``taps``."""
    encode = partial(encoder.encode, taps=taps)
    for _ in range(WARM_UP):
        for given in clips.values():  # a full batch and the short last one; compiling begins anew until it knows all
            _batched(encode, given[: frames + len(given) % frames], frames, device)
    found = []
    for side, given in clips.items():
        seconds, sizes = _batched(encode, given, frames, device)
        found.append(summary(side, "whole", frames, len(given), seconds, sizes))
    return found


def _batched(
    encode: Callable[[ClipBatch], object], clips: ClipBatch, frames: int, device: torch.device
) -> tuple[list[float], list[int]]:
    """Return the seconds and the clips of each batch."""
    seconds, sizes = [], []
    _wait(device)
    started = time.perf_counter()
    for part, _ in Batching(device_memory(device), frames).run(clips, encode):
        _wait(device)
        now = time.perf_counter()
        seconds.append(now - started)
        sizes.append(part.stop - part.start)
        started = now
    return seconds, sizes


@torch.no_grad()
def seconds_of(forward: Forward, batches: Sequence[Inputs], device: torch.device) -> list[float]:
    """Return the seconds of ``forward`` on each batch."""
    found = []
    for inputs in batches:
        _wait(device)
        started = time.perf_counter()
        forward(inputs)
        _wait(device)
        found.append(time.perf_counter() - started)
    return found


def summary(side: int, kind: str, batch: int, needed: int, seconds: Sequence[float], sizes: Sequence[int]) -> Passes:
    """Return what batches of ``sizes`` images, which took ``seconds``, say about ``needed`` passes."""
    each = [1000 * one / size for one, size in zip(seconds, sizes, strict=True)]
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    timed = sum(sizes)
    return Passes(side, kind, batch, needed, timed, low, middle, high, sum(seconds) * needed / timed)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
