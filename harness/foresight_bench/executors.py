"""Where workers run: an executor takes one job at a time in each of its slots, and says what becomes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from foresight_bench.devices import Device
from foresight_bench.jobs import Event, Job
from foresight_bench.supervising import Supervisor, last_words


class Executor(Protocol):
    """Runs jobs. Cells that a job finished are in its results folder when the event that they ended comes."""

    slots: int
    """How many jobs run at once."""

    def run(self, job: Job, slot: int) -> Iterator[Event]:
        """Run ``job`` and yield what its worker says; called from one thread for each slot."""
        ...

    def last_words(self, slot: int) -> str:
        """Return the end of what the last worker of a slot printed."""
        ...

    def stop(self) -> None:
        """End everything that runs, now."""
        ...


class LocalExecutor:
    """Workers on this machine, one for each device.

    Args:
        devices: of one kind.
        logs: folder for what workers print.
        timeout: seconds of silence after which a worker is killed.
        pythons: interpreter by encoder name, for encoders that another environment serves.
    """

    def __init__(
        self, devices: Sequence[Device], logs: Path, timeout: float, pythons: Mapping[str, str] | None = None
    ) -> None:
        self.slots = len(devices)
        self._devices, self._logs, self._timeout, self._pythons = devices, logs, timeout, dict(pythons or {})
        self._running: set[Supervisor] = set()
        self._lock = Lock()
        self._stopped = False

    def run(self, job: Job, slot: int) -> Iterator[Event]:
        """Run ``job`` in a worker process on the slot's device."""
        job = job.model_copy(update={"device": self._devices[slot].name})
        with self._lock:
            if self._stopped:
                return
            supervisor = Supervisor(job, self._python(job), self._timeout, self._log(slot))
            self._running.add(supervisor)
        try:
            yield from supervisor.events()
        finally:
            with self._lock:
                self._running.discard(supervisor)

    def last_words(self, slot: int) -> str:
        """Return the end of what the last worker of a slot printed."""
        return last_words(self._log(slot))

    def _log(self, slot: int) -> Path:
        return self._logs / ("worker.log" if self.slots == 1 else f"worker-{slot}.log")

    def stop(self) -> None:
        """Kill all workers and start no more."""
        with self._lock:
            self._stopped = True
            for supervisor in self._running:
                supervisor.kill()

    def _python(self, job: Job) -> str:
        named = [self._pythons[name] for row in job.rows for name in row.encoders if name in self._pythons]
        return named[0] if named else sys.executable
