"""Workers on a Ray cluster: one task a job, on whichever node has a device for it.

A task supervises a worker process just as the local executor does, in a folder of its own on its node, and sends back
each cell as it ends. So no folder need be shared, and a node that is lost takes with it only the cells in work, which
another node then computes.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from foresight_bench.cells import FINISHED, parse
from foresight_bench.devices import Device, find_devices
from foresight_bench.errors import EnvironmentFault
from foresight_bench.jobs import Event, Job
from foresight_bench.store import FAILURE, Store
from foresight_bench.supervising import Supervisor, last_words

RETRIES = 3
"""Times that a job is given to another node when one is lost, before its cells count as killed."""

ANSWER = 10.0
"""Seconds within which a cluster's head takes a connection."""

Files = tuple[bytes, bytes, bytes, str]
"""A cell as sent from node to node: its file, its scores, its picture, the traceback of what failed."""


class RayExecutor:
    """Workers on a Ray cluster.

    Args:
        address: ``host:port`` of the cluster's head; None for a running one that Ray finds, or else a new one here.
        threads: cores that a worker computes with on a CPU.
        timeout: seconds of silence after which a worker is killed.
        pythons: interpreter by encoder name, at the same place on every node.

    Raises:
        EnvironmentFault: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, address: str | None, threads: int, timeout: float, pythons: Mapping[str, str]) -> None:
        try:
            import ray
        except ImportError as error:
            raise EnvironmentFault("Ray is not installed.", "Run `pip install 'foresight-bench[ray]'`.") from error
        self._ray: Any = ray
        if address is not None:
            _check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=None, logging_level=logging.ERROR)
        except Exception as error:
            raise _no_cluster(address, error) from error
        self.slots = 1
        self._threads, self._timeout, self._pythons = threads, timeout, dict(pythons)
        self._needs: dict[str, float] = {}
        self._running: dict[int, Any] = {}
        self._words: dict[int, str] = {}
        self._lock = Lock()
        self._stopped = False

    def find_devices(self, wanted: str | None) -> tuple[Device, ...]:
        """Return one device for each worker that the cluster has room for; see :func:`devices.find_devices`.

        Raises:
            EnvironmentFault: the cluster has none.
        """
        resources = self._ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        on_gpu = wanted != "cpu" and (gpus > 0 or wanted is not None)
        self._needs = {"num_gpus": 1} if on_gpu else {"num_cpus": self._threads}
        self.slots = gpus if on_gpu else cores // self._threads
        if not self.slots:
            what = "no GPU" if on_gpu else f"{cores} cores, and a worker takes {self._threads}"
            raise EnvironmentFault(f"The Ray cluster has {what}.", "Add nodes, or choose another --device.")
        probe = self._ray.remote(**self._needs)(find_devices)
        (device, *_) = self._ray.get(probe.remote("cuda" if on_gpu else "cpu"))
        return (device,) * self.slots

    def run(self, job: Job, slot: int) -> Iterator[Event]:
        """Run ``job`` on a node; on another one if that is lost."""
        store = Store(Path(job.results))
        work = self._ray.remote(num_returns="streaming", max_retries=0, **self._needs)(_work)
        errors = self._ray.exceptions
        for _ in range(1 + RETRIES):
            done = set()
            with self._lock:
                if self._stopped:
                    return
                stream = work.remote(job.model_dump_json(), _controls(job, store), self._timeout, self._python(job))
                self._running[slot] = stream
            try:
                for item in stream:
                    line, files, self._words[slot] = self._ray.get(item)
                    event = Event.read(line.encode())
                    if files is not None:
                        text, scores, picture, failure = files
                        store.write(parse(text), scores, picture, failure)
                    if event is not None:
                        done.add(event.ended)
                        yield event
                return
            except errors.RayTaskError as error:
                yield Event(error=f"A node cannot run workers: {error.cause!r}.", exit_code=4, fatal=True)
                return
            except (errors.RayError, StopIteration):
                job = job.without(done)
                yield Event("a node was lost; its job goes to another")
        yield Event(died="killed", text=f"The node was lost, {1 + RETRIES} times.")

    def last_words(self, slot: int) -> str:
        """Return the end of what the last worker of a slot printed."""
        return self._words.get(slot, "")

    def stop(self) -> None:
        """Cancel all tasks and start no more."""
        with self._lock:
            self._stopped = True
            for stream in self._running.values():
                self._ray.cancel(stream, force=True)

    def _python(self, job: Job) -> str:
        named = [self._pythons[name] for row in job.rows for name in row.encoders if name in self._pythons]
        return named[0] if named else ""


def _check_answers(address: str) -> None:
    """Raise unless something listens at ``host:port``: Ray itself tries for longer than three minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"No Ray cluster answers{f' at {address}' if address else ''}: {error}".splitlines()[0],
        "Start one with `ray start --head`, and give its address as host:port.",
    )


def _controls(job: Job, store: Store) -> list[Files]:
    """Return the control cells that the job's cells are judged beside."""
    found = {}
    for row in job.rows:
        for cell in row.cells:
            for name, cell_id in cell.controls.items():
                control = store.find(job.cohort, job.provenance.machine, name, cell_id)
                if control is not None and control.status in FINISHED:
                    beside = store.path(control).with_suffix(".safetensors")
                    scores = beside.read_bytes() if control.status == "ok" else b""
                    found[cell_id] = (control.sealed(), scores, b"", "")
    return list(found.values())


def _work(job_text: str, controls: list[Files], timeout: float, python: str) -> Iterator[tuple[str, Files | None, str]]:
    """Run a job on this node; yield each event, the cell that ended with it, and a dead worker's last words."""
    job = Job.model_validate_json(job_text)
    device = find_devices("cpu" if job.device == "cpu" else "cuda:0")[0]
    if device.machine != job.provenance.machine:
        said = f"A node has a {device.model}, and the run is on {job.provenance.device}: scores may differ."
        yield (
            Event(error=said, hint="Let the cluster have one kind of device.", exit_code=4, fatal=True).line(),
            None,
            "",
        )
        return
    with TemporaryDirectory() as folder:
        store, log = Store(Path(folder)), Path(folder, "worker.log")
        for text, scores, _, _ in controls:
            store.write(parse(text), scores)
        job = job.model_copy(update={"results": folder, "device": device.name})
        for event in Supervisor(job, python or sys.executable, timeout, log).events():
            yield event.line(), _files(Path(folder), event.ended), last_words(log) if event.died else ""


def _files(root: Path, cell_id: str) -> Files | None:
    """Return the files of a cell that has ended, None if none has."""
    for path in root.glob(f"*/*/*/{cell_id}.json") if cell_id else ():
        beside = [path.with_suffix(suffix) for suffix in (".safetensors", ".png", FAILURE)]
        scores, picture, failure = (file.read_bytes() if file.exists() else b"" for file in beside)
        return path.read_bytes(), scores, picture, failure.decode()
    return None
