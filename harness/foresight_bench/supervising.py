"""A worker and the process that watches over it: started, listened to, killed when it is silent for too long."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO

from foresight_bench.jobs import Event, Job

ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=134217728:glibc.malloc.trim_threshold=536870912"
"""Lets the worker keep and reuse its memory, in huge pages. By default every tensor over 32 MB is mapped and
unmapped anew: one control row of `quick` took 11.2 s in the kernel and 36.9 s in all, against 5.1 s and 31.0 s."""
LOG_HEAD, LOG_TAIL = 1_000_000, 64_000
"""Bytes that are kept of what a worker prints: the first and the last."""
LONGEST_LINE = 1_000_000
"""Bytes of a line of events; whatever is longer did not come from us."""
GLANCE = 0.5
"""Seconds between two looks at a worker that says nothing."""
LEAVE = 30.0
"""Seconds that a worker is given to end once it has said its last word."""


class Supervisor:
    """One worker process.

    Args:
        job: what it computes.
        python: interpreter to run it with.
        timeout: seconds of silence after which it is killed.
        log: file that what it prints is kept in, the first and the last of it.
    """

    def __init__(self, job: Job, python: str, timeout: float, log: Path) -> None:
        self._timeout, self._log = timeout, log
        threads = {f"{library}_NUM_THREADS": str(job.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        self._worker = subprocess.Popen(
            [python, "-m", "foresight_bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ, **threads},
            start_new_session=True,  # so that whatever it starts can be killed with it
        )
        self._job = job

    def events(self) -> Iterator[Event]:
        """Yield what the worker says, and in the end, if it died, that it did; no process of it is left then."""
        worker = self._worker
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        printed = _Printed(worker.stderr, self._log)
        printed.start()
        try:
            with suppress(BrokenPipeError):
                # The pipe stays open: when it closes, the worker knows that nobody watches over it any more.
                worker.stdin.write(self._job.model_dump_json().encode() + b"\n")
                worker.stdin.flush()
            last: Event | None = None
            for last in self._said(worker.stdout):
                yield last
            hung = worker.poll() is None
            self.kill()
            worker.wait()
            if not (last is not None and last.fatal) and (hung or worker.returncode != 0):
                yield self._death(hung, worker.returncode)
        finally:
            self.kill()
            worker.wait()
            worker.stdout.close()
            with suppress(OSError):
                worker.stdin.close()
            printed.join(LEAVE)

    def kill(self) -> None:
        """Kill the worker and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._worker.pid, signal.SIGKILL)

    def _said(self, pipe: IO[bytes]) -> Iterator[Event]:
        """Yield events until the worker ends or has been silent for too long."""
        rest, heard = b"", time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while time.monotonic() - heard < self._timeout:
                if not selector.select(GLANCE):
                    if self._worker.poll() is not None:  # a child of it may hold the pipe open
                        return
                    continue
                chunk = os.read(pipe.fileno(), 1 << 16)
                if not chunk:
                    with suppress(subprocess.TimeoutExpired):
                        self._worker.wait(LEAVE)
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-LONGEST_LINE:]
                for event in filter(None, map(Event.read, lines)):
                    heard = time.monotonic()
                    yield event

    def _death(self, hung: bool, code: int) -> Event:
        if hung:
            return Event(died="timeout", text=f"The worker said nothing for {self._timeout:.0f} s and was killed.")
        if code < 0:
            known = {each.value: each.name for each in signal.Signals}
            name = known.get(-code, f"signal {-code}")  # real-time signals have no names
            likely = " The system does that when the host's memory runs out." if -code == signal.SIGKILL else ""
            return Event(died="killed", text=f"The worker was killed by {name}.{likely}")
        return Event(died="error", text=f"The worker ended with exit code {code} before the cell did.")


class _Printed(Thread):
    """Reads what a worker prints, so that it never waits for a reader, and keeps the first and the last of it."""

    def __init__(self, pipe: IO[bytes], log: Path) -> None:
        super().__init__(daemon=True)
        self._pipe, self._path = pipe, log

    def run(self) -> None:
        """Read to the end."""
        tail: deque[bytes] = deque()
        kept = skipped = 0
        try:
            file = self._path.open("wb")
        except OSError:
            file = open(os.devnull, "wb")  # noqa: SIM115 - closed below, whichever it is
        with suppress(OSError), self._pipe, file as log:
            while chunk := os.read(self._pipe.fileno(), 1 << 16):
                head = chunk[: max(0, LOG_HEAD - kept)]
                with suppress(OSError):  # a full disk: what matters is that the worker can go on
                    log.write(head)
                    log.flush()
                kept += len(head)
                if head != chunk:
                    tail.append(chunk[len(head) :])
                    while sum(map(len, tail)) - len(tail[0]) >= LOG_TAIL:
                        skipped += len(tail.popleft())
            if skipped:
                log.write(f"\n... {skipped} bytes left out ...\n".encode())
            log.writelines(tail)


def last_words(log: Path) -> str:
    """Return the end of what a worker printed."""
    try:
        data = log.read_bytes()[-LOG_TAIL:]
    except OSError:
        return ""
    return data.decode(errors="replace")
