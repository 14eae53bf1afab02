"""Which device a run uses, and what kind of machine that is. Imports no torch."""

from __future__ import annotations

import platform
import subprocess
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


def find_device(wanted: str | None) -> Device:
    """Return the device called ``wanted``; without a name, the first GPU, or else the CPU.

    Raises:
        UsageError: the name is not ``cpu``, ``cuda`` or ``cuda:N``.
        EnvironmentFault: the device is not there. There is no silent fall back to the CPU.
    """
    if wanted == "cpu":
        return Device("cpu", _processor())
    gpus = _gpus()
    if wanted is None:
        return Device("cuda:0", gpus[0]) if gpus else Device("cpu", _processor())
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise UsageError(f"'{wanted}' is not a device.", "Write cpu, cuda or cuda:N.")
    number = int(index or 0)
    if number >= len(gpus):
        found = f"this machine has {len(gpus)}" if gpus else "this machine has no CUDA device"
        raise EnvironmentFault(f"Device {wanted} is not available: {found}.", "Choose another with --device.")
    return Device(f"cuda:{number}", gpus[number])


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.machine()
