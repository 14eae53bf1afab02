"""Training clips for ltx-tiny: pools on the device, from which random crops are drawn."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from torch import Tensor

from foresight_gates.scenes import SceneParameters, render_block

RENDERED = 32
"""Clips that a process renders at a time."""


def scenes(split: str, side: int, frames: int, clips: int, start: int = 0) -> NDArray[np.uint8]:
    """Return clips ``start`` on of a split's stream, [clips, frames, side, side, 3], rendered by all cores.

    Every split has a stream of its own, so no clip drawn from ``train`` is in any other split of any suite.
    """
    params = SceneParameters(side=side, frames=frames)
    shape = (clips, frames, side, side, 3)
    # Anonymous shared memory: forked children write into it, and nothing is pickled.
    pool: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)

    def work(first: int) -> None:
        for i in range(first * RENDERED, clips, workers * RENDERED):
            count = min(RENDERED, clips - i)
            pool[i : i + count] = render_block(params, split, start + i, count).frames

    workers = os.cpu_count() or 1
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(first,)) for first in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError("A process that renders scenes failed.")
    return pool


def footage(folder: Path) -> list[NDArray[np.uint8]]:
    """Return the clips and photographs in ``folder``, each [F, H, W, 3]; a photograph has one frame."""
    return [
        np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))])
        for path in sorted(folder.glob("*.webp"))
    ]


@dataclass(frozen=True)
class Pools:
    """Where crops come from. All pixels are uint8 on the device."""

    scenes: tuple[Tensor, ...]
    """[P, T, H, W, 3] each; a batch takes equal shares of all."""
    footage: tuple[Tensor, ...]
    """[F, H, W, 3] each."""
    footage_share: float

    def batch(self, clips: int, frames: int, size: int, generator: torch.Generator) -> Tensor:
        """Return random crops [clips, 3, frames, size, size], float32 in [-1, 1], flipped at random."""
        filmed = round(clips * self.footage_share)
        share, rest = divmod(clips - filmed, len(self.scenes))
        parts = [
            _cropped(pool, share + (number < rest), frames, size, generator) for number, pool in enumerate(self.scenes)
        ]
        if filmed:
            parts.append(self._filmed(filmed, frames, size, generator))
        return torch.cat(parts).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)

    def _filmed(self, clips: int, frames: int, size: int, generator: torch.Generator) -> Tensor:
        """Return crops [clips, frames, size, size, 3] of one clip; over a photograph the window travels instead."""
        pool = self.footage[int(_drawn(len(self.footage), 1, generator))]
        if len(pool) >= frames:
            return _cropped(pool[None], clips, frames, size, generator)
        _, height, width, _ = pool.shape
        time = torch.linspace(0, 1, frames)
        across = torch.arange(size)
        rows, columns = (
            torch.lerp(*_drawn(side - size + 1, 2 * clips, generator).float().view(2, clips, 1), time).long()[..., None]
            + across
            for side in (height, width)
        )
        index = (rows[..., :, None].to(pool.device), columns[..., None, :].to(pool.device))
        travelled: Tensor = pool[0][index]
        return travelled


def _drawn(limit: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(limit, (count,), generator=generator)


def _cropped(pool: Tensor, clips: int, frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Return crops [clips, frames, size, size, 3] of ``pool`` [P, T, H, W, 3], some of them flipped."""
    _, t, height, width, _ = pool.shape
    clip = _drawn(len(pool), clips, generator)[:, None, None, None]
    first = _drawn(t - frames + 1, clips, generator)[:, None]
    frame = (first + torch.arange(frames))[:, :, None, None]
    across = torch.arange(size)
    rows, columns = (
        _drawn(side - size + 1, clips, generator)[:, None]
        + torch.where(_drawn(2, clips, generator)[:, None] > 0, across, size - 1 - across)
        for side in (height, width)
    )
    index = (clip, frame, rows[:, None, :, None], columns[:, None, None, :])
    cropped: Tensor = pool[tuple(part.to(pool.device, non_blocking=True) for part in index)]
    return cropped
