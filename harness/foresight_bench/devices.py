"""Which device a run uses, and what kind of machine that is. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foresight_bench.errors import EnvironmentFault, UsageError


@dataclass(frozen=True)
class Device:
    """A device to run on."""

    name: str
    """What torch calls it: ``cpu``, ``cuda:0``."""
    model: str
    """What its maker calls it."""

    @property
    def machine(self) -> str:
        """Folder name of this kind of machine: ``cpu-x86_64``, ``nvidia-h200``."""
        kind = f"cpu-{platform.machine()}" if self.name == "cpu" else self.model
        return "".join(c if c.isalnum() or c == "_" else "-" for c in kind.lower().strip())


def find_devices(wanted: str | None) -> tuple[Device, ...]:
    """Return the devices called ``wanted``; without a name, all GPUs of the first one's model, or else the CPU.

    Args:
        wanted: ``cpu``, ``cuda`` for all GPUs of one model, or ``cuda:N``, numbered as this process sees them.

    Raises:
        UsageError: the name is none of these.
        EnvironmentFault: the device is not there. There is no silent fall back to the CPU.
    """
    if wanted == "cpu":
        return (Device("cpu", _processor()),)
    found = [Device(f"cuda:{number}", model) for number, model in enumerate(_gpus())]
    alike = tuple(device for device in found if device.model == found[0].model)
    if wanted is None:
        return alike or (Device("cpu", _processor()),)
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise UsageError(f"'{wanted}' is not a device.", "Write cpu, cuda or cuda:N.")
    chosen = tuple(found[int(index) : int(index) + 1]) if index else alike
    if not chosen:
        there = f"this machine has {len(found)}" if found else "this machine has no CUDA device"
        raise EnvironmentFault(f"Device {wanted} is not available: {there}.", "Choose another with --device.")
    return chosen


def _gpus() -> list[str]:
    """Return the models of the GPUs that this process sees, in the order in which it numbers them."""
    command = ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",", 1)] for line in output.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [name for _, name in rows]
    models = []
    for chosen in visible.split(","):
        try:
            models.append(rows[position(chosen.strip(), [uuid for uuid, _ in rows])][1])
        except (LookupError, ValueError):
            break  # as CUDA does: what comes after an unknown one is not there either
    return models


def position(chosen: str, uuids: Sequence[str]) -> int:
    """Return which of nvidia-smi's GPUs an item of CUDA_VISIBLE_DEVICES means: a number, or the start of a UUID.

    Raises:
        LookupError, ValueError: none of them, or a part of one (MIG), whose memory is not the GPU's.
    """
    if chosen.isdigit():
        return range(len(uuids))[int(chosen)]
    (found,) = [index for index, uuid in enumerate(uuids) if chosen.startswith("GPU-") and uuid.startswith(chosen)]
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.machine()
