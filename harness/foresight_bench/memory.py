"""Whether a model's weights fit into a device, asked before minutes are spent on loading them. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath

from foresight_bench.devices import Device, position
from foresight_bench.errors import EnvironmentFault

RESERVE = 500_000_000
"""Bytes that a process takes on a device before its first tensor: the CUDA context and the libraries' kernels, or
torch itself on a CPU."""

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def check_room(what: str, needed: int, device: Device) -> None:
    """Raise unless ``needed`` bytes of weights and :data:`RESERVE` are free on ``device``, or nobody can tell.

    Refuses only what cannot work at any batch size: a wrong no is a wall, a wrong yes costs the time to load and
    ends in the status ``oom``. So nothing else is counted: no activations, no features, no copy in the checkpoint's
    own precision on the way, no fragmentation. A share of ``needed`` would count the wrong thing, since none of
    these grows with the weights, and would refuse a 72 GB model on an 80 GB device, where it runs.

    Args:
        what: in the plural, to start the sentence with: ``The weights of dinov2``.
        needed: bytes, in the precision to run in.
        device: where to.

    Raises:
        EnvironmentFault: there is less room.
    """
    free = free_bytes(device)
    if free is not None and needed + RESERVE > free:
        raise EnvironmentFault(
            f"{what} need {_gigabytes(needed)} GB, beside {_gigabytes(RESERVE)} GB that any model takes, "
            f"and {device.name} has {_gigabytes(free)} GB free.",
            "Choose a lower --precision, taps that need less of the model, or another --device.",
        )


def free_bytes(device: Device) -> int | None:
    """Return how many bytes a new process could take on ``device``, None if unknown.

    On a CPU that is the memory available to the machine, or to the control group (container, batch job) where that
    is less. Both count file pages as free, which they are as soon as they are needed.
    """
    if device.name != "cpu":
        return _free_on_gpu(int(device.name.partition(":")[2] or 0))
    amounts = [amount for amount in (_available(), _free_in_group()) if amount is not None]
    return max(0, min(amounts)) if amounts else None


def _free_on_gpu(number: int) -> int | None:
    command = ["nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        rows = [[field.strip() for field in line.split(",")] for line in output.splitlines() if line.strip()]
        return int(rows[_position(number, [row[0] for row in rows])][1]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return None  # no driver, or one that does not say: "[N/A]" where the memory is the machine's own


def _position(number: int, uuids: list[str]) -> int:
    """Return which of nvidia-smi's GPUs is ``cuda:number``: it shows all, a process sees CUDA_VISIBLE_DEVICES.

    Raises:
        LookupError, ValueError: none of them, or a part of one (MIG), whose memory is not the GPU's.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return number
    return position(visible.split(",")[number].strip(), uuids)


def _available() -> int | None:
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, LookupError, StopIteration):
        return None


def _free_in_group() -> int | None:
    """Return what the tightest of this process's control groups has left, None where none limits it."""
    try:
        entries = [line.split(":", 2) for line in (_PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return None
    found = []
    for entry in entries:
        if len(entry) != 3:
            continue
        if entry[:2] == ["0", ""]:
            root, limit, usage, prefix = _CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in entry[1].split(","):
            root, limit, usage, prefix = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        # Any group on the way up may hold the limit. In a container, the path is the host's and is not mounted:
        # then only the root is there, and it is the container's own group.
        path = PurePosixPath(entry[2].lstrip("/"))
        for group in (path, *path.parents):
            found.append(_left(root / group, limit, usage, prefix))
    return min((amount for amount in found if amount is not None), default=None)


def _left(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())  # "max" is no number
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - used + sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    except (OSError, ValueError):
        return None


def _gigabytes(amount: int) -> str:
    """Return 10**9 bytes with three significant digits."""
    value = float(f"{amount / 1e9:.3g}")
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
