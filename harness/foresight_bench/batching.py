"""How many frames go through an encoder at once: found on the device, halved when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch

from foresight_bench.clips import ClipBatch
from foresight_bench.devices import Device
from foresight_bench.memory import free_bytes

CPU_FRAMES = 16
"""Frames at once on a CPU, where larger batches gain nothing (DINOv2: 92 ms an image at 8, 95 at 32)."""
FIRST_FRAMES = 8
"""Frames of the first batch on a GPU, whose peak memory says how large the next ones may be."""
MOST_FRAMES = 64
"""Frames at once on a GPU at most, a power of two. On an H200, from 8 to 32 images an image gets up to
15 % faster (SAM not at all), from 32 to 64 at most 1.3 % (benchmarks/speed/results/h200.json)."""
MEMORY_SHARE = 0.5
"""Part of the memory that a batch may take of what is free beside the features that are kept. The rest is for what one
small batch cannot show: workspaces, fragmentation, clips whose frames cost more."""
FEATURES_SHARE = 0.5
"""Part of a device's free memory that features may take. The rest is for the experiments: with 24 GB of DINOv2-S's
features, `gate1` took up to 110 GB of an H200: truth, reference features, latents, a tap's tokens in float32."""

_SYMPTOMS = (
    "DefaultCPUAllocator",  # torch has no type for the host's memory
    "CUDA out of memory",  # the same as OutOfMemoryError, once torch.compile has wrapped it
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

Result = TypeVar("Result")


class Memory(Protocol):
    """The memory of one device, as far as the size of a batch depends on it."""

    def watch(self) -> None:
        """Start to watch the peak."""
        ...

    def peak(self) -> int:
        """Return the bytes at the highest point since :meth:`watch`, above those that were taken then."""
        ...

    def free(self) -> int:
        """Return the bytes that can be had."""
        ...

    def release(self) -> None:
        """Give back what is held for reuse, so that it can be had in other sizes."""
        ...


class CudaMemory:
    """The memory of a CUDA device. Watching starts torch's own peak anew, which then leaves out what came before."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()  # before the first tensor stands there, torch calls the device invalid
        self._device = device
        self._taken = 0

    def watch(self) -> None:
        """Start to watch the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._taken = torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        """Return the bytes at the highest point since :meth:`watch`, above those that were taken then."""
        return torch.cuda.max_memory_allocated(self._device) - self._taken

    def free(self) -> int:
        """Return the bytes that can be had, from the device and from what torch keeps for reuse."""
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + cached

    def release(self) -> None:
        """Give back what torch keeps for reuse."""
        torch.cuda.empty_cache()


def device_memory(device: torch.device | str) -> Memory | None:
    """Return the memory that limits a batch on ``device``; None where a fixed number of frames is best."""
    device = torch.device(device)
    return CudaMemory(device) if device.type == "cuda" else None


def free_memory(memory: Memory | None) -> int | None:
    """Return the bytes that can be had: of ``memory``, or of the host's where it is None; None if unknown."""
    return memory.free() if memory else free_bytes(Device("cpu", ""))


def device_room(memory: Memory | None) -> int | None:
    """Return the bytes that features may take of ``memory``; None for any number, where it is the host's anyway."""
    return int(FEATURES_SHARE * memory.free()) if memory else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(symptom in str(error) for symptom in _SYMPTOMS)


class Batching:
    """Cuts blocks of clips into batches; clips are never split.

    With ``memory``, :meth:`settle` finds the size. A short last batch is filled up with copies of its last clip: for
    another size torch.compile may compile anew, which costs far more than a few wasted clips, and kernels are chosen
    that round differently. Without ``memory`` a short batch is just short.

    Args:
        memory: of the device; None for ``CPU_FRAMES`` a batch.
        frames: a given number of frames a batch instead, at least one clip.
    """

    def __init__(self, memory: Memory | None, frames: int | None = None) -> None:
        self.frames = 0
        """Frames of the largest batch of a block that went through."""
        self._memory = memory
        self._settled = memory is None or frames is not None
        self._limit = frames or (CPU_FRAMES if memory is None else FIRST_FRAMES)

    def settle(self, block: ClipBatch, encode: Callable[[ClipBatch], Result], kept: Callable[[Result], int]) -> bool:
        """Find the size of all further batches, with two batches whose results are thrown away.

        The first is small and watched. The size is the largest power of two of frames that should leave half of the
        memory alone that is free beside what is kept. The second batch has that size, and shows that it fits.
        Does nothing without memory to watch, or with a size given; returns whether it did something.

        Args:
            block: of the largest frames.
            encode: as of :meth:`run`.
            kept: called with the first result; returns the bytes that will be kept of all of them.

        Raises:
            Exception: as :meth:`run`, and whatever ``kept`` raises.
        """
        if self._memory is None or self._settled:
            return False
        first = self._limit
        self._memory.watch()
        _, result = self._through(block, 0, encode)
        peak, reserved = self._memory.peak(), kept(result)
        del result
        if self._limit == first:  # otherwise memory ran out, and the size is what was left of the first
            frames = self._size(block) * block.shape[1]
            self._limit = _largest(peak / frames, self._memory.free() - reserved)
            self._through(block, 0, encode)
        self._settled = True
        return True

    def run(self, block: ClipBatch, encode: Callable[[ClipBatch], Result]) -> Iterator[tuple[slice, Result]]:
        """Yield consecutive parts of ``block`` with what ``encode`` returned for them (and for copies behind them).

        When memory runs out, the batch is halved and the same clips are tried again.

        Raises:
            Exception: whatever ``encode`` raises; that memory ran out only if one clip alone is too much.
        """
        start = 0
        while start < len(block):
            part, result = self._through(block, start, encode)
            clips = self._size(block) if self._memory else part.stop - part.start
            self.frames = max(self.frames, clips * block.shape[1])
            yield part, result
            del result  # before the next batch runs
            start = part.stop

    def _size(self, block: ClipBatch) -> int:
        """Return the clips of a batch of ``block``."""
        return max(1, self._limit // block.shape[1])

    def _through(self, block: ClipBatch, start: int, encode: Callable[[ClipBatch], Result]) -> tuple[slice, Result]:
        """Return the part of ``block`` from ``start`` on that went through, and its result."""
        n, t, _, _ = block.shape
        while True:
            size = self._size(block)
            part = slice(start, min(start + size, n))
            batch = block[part]
            if self._memory and len(batch) < size:
                batch = block[np.minimum(np.arange(start, start + size), n - 1)]
            result = _unless_out_of_memory(encode, batch)
            if result is not None:
                return part, result
            self._limit = len(batch) // 2 * t
            gc.collect()
            if self._memory:
                self._memory.release()


def _unless_out_of_memory(encode: Callable[[ClipBatch], Result], batch: ClipBatch) -> Result | None:
    """Return the result, or None if memory ran out on more than one clip.

    A function of its own, so that on its return the exception no longer holds the tensors of what it went through.
    """
    try:
        return encode(batch)
    except Exception as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        return None


def _largest(frame: float, free: int) -> int:
    """Return the largest power of two of frames, of ``frame`` bytes each, that may be run with ``free`` bytes."""
    frames = MOST_FRAMES
    while frames > 1 and frames * frame > MEMORY_SHARE * free:
        frames //= 2
    return frames
