"""The worker process: reads a job from standard input, writes events to standard output, one JSON object a line.

Run as ``python -m foresight_bench.worker``. Whatever libraries print goes to standard error. It ends when the process
that started it does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from threading import Thread

from foresight_bench.contracts import Data, ResolvedWeights
from foresight_bench.errors import CELL_FAILED, OK, EnvironmentFault, ForesightError, WeightsError
from foresight_bench.jobs import Event, Job
from foresight_bench.plan import library_versions
from foresight_bench.registry import Registry, code_digest, suite_data
from foresight_bench.weights import resolve

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run one job."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    _die_with_parent(sys.stdin.fileno())

    def emit(event: Event) -> None:
        events.write(event.line())

    def fault(error: ForesightError, *, fatal: bool) -> None:
        emit(Event(error=error.message, hint=error.hint, exit_code=error.exit_code, fatal=fatal))

    try:
        _check_code(job)
        emit(Event("importing torch, rendering"))
        registry = Registry.installed()
        data = suite_data(registry.suites[job.suite].spec, job.limit)
        rendering = Thread(target=_render, args=(data,), daemon=True)
        rendering.start()  # beside the import, which takes about as long and mostly waits for the disk
        from foresight_bench.engine import Engine

        rendering.join()
        for error in Engine(registry, job, _weights(registry, job), data, emit).run():
            fault(error, fatal=False)
    except ForesightError as error:
        fault(error, fatal=True)
        return CELL_FAILED
    return OK


def _render(data: Data) -> None:
    """Render all splits; what goes wrong, the engine will meet again and report."""
    with suppress(Exception):
        for name in data.names:
            data.split(name)


def _check_code(job: Job) -> None:
    """Raise unless the code and the libraries are the ones that the cells' identities name."""
    libraries = library_versions(minor=True)
    for row in job.rows:
        for cell in row.cells:
            digests = {package: code.digest for package, code in cell.identity.code.items()}
            if cell.identity.libraries != libraries or digests != {name: code_digest(name) for name in digests}:
                raise EnvironmentFault(
                    "The code or a library changed while the run was starting, or the worker's differs.",
                    "Run the same command again; other machines and interpreters need the same release.",
                )


def _weights(registry: Registry, job: Job) -> dict[str, ResolvedWeights]:
    """Return the weights where they lie on this machine, which need not be the one that the job comes from."""
    found = {}
    for name, record in job.weights.items():
        weights = record.resolved()
        if not weights.path.exists():
            here = resolve(registry.weights()[name])
            same = here.sha256 == weights.sha256
            if weights.files:
                same = all(here.files.get(file) == digest for file, digest in weights.files.items())
            if not same:
                raise WeightsError(f"The weights {name} that this machine has are not the run's.", "Copy those here.")
            weights = replace(weights, path=here.path)
        found[name] = weights
    return found


def _die_with_parent(lifeline: int) -> None:
    """End this process when the one that started it ends, whatever either is doing then.

    Linux kills it at once. Elsewhere a thread sees the lifeline break, as soon as it gets a turn. It reads the
    descriptor, not Python's file: that would be locked when the interpreter ends, which then aborts.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        while os.read(lifeline, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # all is on disk: to take torch apart in good order takes another second
