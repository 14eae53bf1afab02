"""The worker process: reads a job from standard input, writes events to standard output, one JSON object a line.

Run as ``python -m foresight_bench.worker``. Whatever libraries print goes to standard error. It ends when the process
that started it does.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from threading import Thread

from foresight_bench.contracts import AheadData, Data, ResolvedWeights
from foresight_bench.errors import CELL_FAILED, OK, EnvironmentFault, ForesightError, WeightsError
from foresight_bench.identities import library_versions
from foresight_bench.jobs import Event, Job
from foresight_bench.registry import Registry, code_digest, suite_data
from foresight_bench.weights import resolve


def main() -> int:
    """Run one job."""
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    _die_with_parent(sys.stdin.fileno())
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(event: Event) -> None:
        events.write(event.line())

    def fault(error: ForesightError, *, fatal: bool) -> None:
        emit(Event(error=error.message, hint=error.hint, exit_code=error.exit_code, fatal=fatal))

    gc.disable()  # what is imported stays: to look for rubbish among it took .3 s
    try:
        emit(Event("importing torch, rendering"))
        registry = Registry.installed()
        data = suite_data(registry.suites[job.suite].spec, job.limit)
        if isinstance(data, AheadData):
            data.render_ahead(max(1, job.threads - 1))
        rendering = Thread(target=_render, args=(data,), daemon=True)
        rendering.start()  # beside the import, which takes about as long
        _check_code(job)
        from foresight_bench.engine import Engine

        rendering.join()
        gc.enable()
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
    """End this process, and all that it starts, when the one that started it ends, whatever either is doing then.

    A process of its own waits for the lifeline to break, since a thread would wait for its turn, and a signal from
    the kernel would reach this process alone. It is forked before there are threads or anything large, and ends with
    the group, which the supervisor kills whatever becomes of the worker.
    """
    if os.fork():
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for pipe in (1, 2):  # which are to break when the worker ends
        os.dup2(nowhere, pipe)
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # all is on disk: to take torch apart in good order takes another second
