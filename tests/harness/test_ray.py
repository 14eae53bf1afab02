"""A cluster of two nodes, of processes on this host: scores are those of the local executor, though a node is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from foresight_bench.cells import Cell
from foresight_bench.store import FAILURE, Store

pytest.importorskip("ray")

NOTICED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""Lets the head miss a node after some 5 s; it is asked every 3 s by default."""


@dataclass(frozen=True)
class Cluster:
    """Two nodes of one core each."""

    address: str
    nodes: tuple[subprocess.Popen[bytes], ...]
    marks: Path
    """Where the toy plugin leaves its marks on either node."""

    def raylet(self, node: int) -> int:
        """Return the process that runs the tasks of a node."""
        (found,) = (pid for pid in children(self.nodes[node].pid) if "raylet/raylet" in program(pid))
        return found


def program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """Return the process that started another, 0 if that one is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def children(pid: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent(int(path.name)) == pid]


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = parent(pid)
    return pid == ancestor


def until(happens: object, seconds: float = 120) -> None:
    """Wait until ``happens()`` is true."""
    deadline = time.monotonic() + seconds
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def cluster(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Start a cluster on which the toy plugin is installed."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(marks))
    for name, value in {**NOTICED, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address = f"127.0.0.1:{free_port()}"
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--num-cpus=1"]
    ray += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    with TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # sockets lie in it, whose names must be short
        head = ["--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}", "--include-dashboard=false"]
        nodes = []
        try:
            for options in (head, [f"--address={address}"]):
                nodes.append(subprocess.Popen([*ray, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
                until(lambda: any("raylet/raylet" in program(pid) for pid in children(nodes[-1].pid)))
            yield Cluster(address, tuple(nodes), marks)
        finally:
            started = [pid for node in nodes for pid in children(node.pid)]
            for node in reversed(nodes):
                node.terminate()  # it ends the processes of its node
            for node in nodes:
                try:
                    node.wait(20)
                except subprocess.TimeoutExpired:
                    node.kill()
            for pid in started:
                if Path(f"/proc/{pid}").exists() and folder in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)


def start(results: Path, address: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a run of Q2 in a process of its own: Ray keeps a connection for as long as a process lives."""
    command = [sys.executable, "-m", "foresight_bench", "run", "--suite", "toy", "--device", "cpu", "-x", "Q2"]
    command += ["--results", str(results), "--executor", "ray", "--ray-address", address, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def q2(results: Path) -> dict[str, Cell]:
    return {cell.identity.encoder: cell for cell in Store(results).cells() if cell.identity.experiment == "Q2"}


def figures(cell: Cell) -> tuple[object, ...]:
    return cell.status, cell.scores_sha256, cell.metrics, cell.decision, cell.tap, cell.details


@pytest.mark.slow
def test_two_nodes_give_the_scores_of_one_machine_though_one_is_lost(
    cluster: Cluster, beside: Path, undisturbed: Path
) -> None:
    # Crashes, and what it takes with it, are those of the local executor.
    run = start(beside, cluster.address, "-e", "sound", "-e", "sound~pooled", "-e", "crash", "-e", "sound:shift=0.5")
    output, errors = run.communicate(timeout=240)
    assert run.returncode == 1, errors
    assert "Traceback" not in output + errors
    found, local = q2(beside), q2(undisturbed)
    for name in ("sound", "sound~pooled", "sound:shift=0.5"):
        assert (found[name].id, figures(found[name])) == (local[name].id, figures(local[name]))
        assert Store(beside).scores(found[name]).keys() == Store(undisturbed).scores(local[name]).keys()
    assert (found["crash"].status, found["crash"].reason) == (
        "error",
        "The worker ended with exit code 7 before the cell did.",
    )
    assert Store(beside).path(found["crash"]).with_suffix(FAILURE).read_text().startswith(found["crash"].reason)

    # A job on each node; the one that is not the head's is killed while its worker works.
    run = start(beside, cluster.address, "-e", "waits", "-e", "waits:shift=0.5")
    until(lambda: run.poll() is not None or len(list(cluster.marks.glob("waits-*[0-9]"))) == 2)
    workers = [int(path.read_text()) for path in cluster.marks.glob("waits-*[0-9]")]
    raylet = cluster.raylet(1)
    (lost,) = (pid for pid in workers if descends(pid, raylet))
    os.kill(raylet, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{lost}").exists(), 30)  # the worker goes with its node
    (cluster.marks / "go").touch()
    output, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    found = q2(beside)
    assert figures(found["waits"]) == figures(local["sound"])
    assert figures(found["waits:shift=0.5"]) == figures(local["sound:shift=0.5"])
    assert len(list(cluster.marks.glob("waits-*[0-9]"))) == 3  # one was begun anew


def test_an_address_where_no_cluster_is_ends_at_once_in_one_sentence(toy: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    output, errors = start(toy, address, "-e", "sound").communicate(timeout=60)
    assert output == ""
    assert errors.startswith(f"error: No Ray cluster answers at {address}: ")
    assert len(errors.splitlines()) == 2
    assert not list(toy.rglob("*"))
