"""Clips drawn by processes of their own, in memory that they share with the one that waits for them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight_gates.scenes.render import Canvas


def shared(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    """Return an array that processes forked from this one see and fill too."""
    memory = mmap.mmap(-1, prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype).reshape(shape)


class Aside:
    """Canvases in :func:`shared` memory while ``processes`` draw on them, each on its share of the clips.

    Made before the process has threads, which a fork does not survive.
    """

    def __init__(self, canvases: Sequence[Canvas], processes: int) -> None:
        self._canvases, self._count = canvases, processes
        self._pids: list[int] = []
        with suppress(OSError):  # there can be no more processes
            for part in range(processes):
                self._pids.append(self._begun(part))

    def wait(self) -> None:
        """Return once all is drawn; what a process left undone, this one draws."""
        done = [os.waitpid(pid, 0)[1] == 0 for pid in self._pids]
        for part in range(self._count):
            if part >= len(done) or not done[part]:
                self._draw(part)

    def _begun(self, part: int) -> int:
        """Return the id of a process that draws a part."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._draw(part)
                code = 0
            finally:
                os._exit(code)
        return pid

    def _draw(self, part: int) -> None:
        for canvas in self._canvases:
            canvas.draw(range(part, len(canvas), self._count))
