"""Clips drawn by processes of their own, in memory that they share with the one that waits for them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
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
    """Canvases in :func:`shared` memory while ``processes`` draw on them, each on every so manyth clip.

    Made before the process has threads, which a fork does not survive.

    Raises:
        OSError: there can be no more processes.
    """

    def __init__(self, canvases: Sequence[Canvas], processes: int) -> None:
        self._canvases, self._count = canvases, processes
        self._pids: list[int] = []
        for part in range(processes):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    self._draw(part)
                    code = 0
                finally:
                    os._exit(code)
            self._pids.append(pid)

    def wait(self) -> None:
        """Return once all is drawn; what a process left undone, this one draws."""
        for part, pid in enumerate(self._pids):
            _, status = os.waitpid(pid, 0)
            if status != 0:
                self._draw(part)
        self._pids = []

    def _draw(self, part: int) -> None:
        for canvas in self._canvases:
            canvas.draw(range(part, len(canvas), self._count))
