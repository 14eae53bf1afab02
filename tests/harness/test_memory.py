"""How much room a device has, read from what drivers and kernels print, and what is said when it is too little."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foresight_bench import memory
from foresight_bench.devices import Device
from foresight_bench.errors import ENVIRONMENT, EnvironmentFault
from foresight_bench.memory import check_room, free_bytes

CPU, GPU, SECOND = Device("cpu", "some cpu"), Device("cuda:0", "some gpu"), Device("cuda:1", "some gpu")
A, B = "GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-bbbb2222-0000-0000-0000-000000000000"
GIB = 2**30


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let nvidia-smi print something."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def use(text: str) -> None:
        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            assert command == ["nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
            return subprocess.CompletedProcess(command, 0, text, "")

        monkeypatch.setattr(subprocess, "run", run)

    return use


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Build /proc and /sys/fs/cgroup."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")

    def build(available: int | None, membership: str = "", **groups: tuple[str, str, str]) -> None:
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        if available is not None:
            text = f"MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable:   {available // 1024} kB\n"
            (tmp_path / "proc" / "meminfo").write_text(text)
        (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
        for name, contents in groups.items():
            group = tmp_path / "cgroup" / name.replace("__", "/").removeprefix("root")
            group.mkdir(parents=True, exist_ok=True)
            v1 = "memory" in group.parts
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
            for file, text in zip((*names, "memory.stat"), contents, strict=True):
                (group / file).write_text(text.rstrip() + "\n")

    return build


def test_imports_no_torch() -> None:
    code = "import sys, foresight_bench.memory; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_gpu(smi: Callable[[str], None]) -> None:
    smi(f"{A}, 1024\n{B}, 81000\n")
    assert free_bytes(GPU) == GIB
    assert free_bytes(SECOND) == 81000 * 2**20
    assert free_bytes(Device("cuda:2", "")) is None


@pytest.mark.parametrize(
    ("visible", "free"),
    [("1,0", 81000), ("1", 81000), (B, 81000), ("GPU-bbbb", 81000), ("GPU-", None), ("MIG-bbbb", None), ("", None),
     ("-1", None), ("5", None)],
)  # fmt: skip
def test_gpu_behind_cuda_visible_devices(
    visible: str, free: int | None, smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(f"{A}, 1024\n{B}, 81000\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free_bytes(GPU) == (None if free is None else free * 2**20)


def test_gpus_in_another_order(smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    smi(f"{A}, 1024\n{B}, 81000\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert free_bytes(SECOND) == GIB
    smi(f"{A}, 1024\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert free_bytes(GPU) is None


@pytest.mark.parametrize("text", ["", f"{A}, [N/A]\n", f"{A}, [Insufficient Permissions]\n", "No devices were found\n"])
def test_gpu_that_does_not_say(text: str, smi: Callable[[str], None]) -> None:
    smi(text)
    assert free_bytes(GPU) is None
    check_room("The weights of x", 10**15, GPU)


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 30)])
def test_no_driver(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert free_bytes(GPU) is None


def test_cpu_without_a_group(host: Callable[..., None]) -> None:
    host(8 * GIB)
    assert free_bytes(CPU) == 8 * GIB


def test_cpu_where_nothing_is_known(host: Callable[..., None]) -> None:
    host(None, "nonsense\n0::/x\n")
    assert free_bytes(CPU) is None
    check_room("The weights of x", 10**15, CPU)


STAT = "anon 5\nactive_file 100\ninactive_file 20\n"


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({"job__step": (f"{4 * GIB}", f"{GIB}", STAT)}, 3 * GIB + 120),
        ({"job": (f"{2 * GIB}", f"{GIB}", STAT), "job__step": ("max", f"{GIB}", STAT)}, GIB + 120),
        ({"job": (f"{6 * GIB}", "0", STAT), "job__step": (f"{GIB}", "0", STAT)}, GIB + 120),
        ({"root": (f"{3 * GIB}", f"{GIB}", STAT)}, 2 * GIB + 120),  # a container's own view
        ({"job__step": ("max", f"{GIB}", STAT)}, 8 * GIB),
        ({"job__step": (f"{99 * GIB}", f"{GIB}", STAT)}, 8 * GIB),
        ({"job__step": (f"{GIB}", f"{2 * GIB}", STAT)}, 0),
        ({"other": (f"{GIB}", "0", STAT)}, 8 * GIB),
    ],
)
def test_cpu_in_a_group_of_version_2(groups: dict[str, Any], free: int, host: Callable[..., None]) -> None:
    host(8 * GIB, "0::/job/step\n", **groups)
    assert free_bytes(CPU) == free


def test_cpu_in_a_group_of_version_1(host: Callable[..., None]) -> None:
    stat = "active_file 1\ninactive_file 1\ntotal_active_file 100\ntotal_inactive_file 20\n"
    tight, none = (f"{2 * GIB}", f"{GIB}", stat), ("9223372036854771712", f"{GIB}", stat)
    host(8 * GIB, "3:cpu,cpuacct:/job\n4:memory:/job\n0::/job\n", memory__job=tight, memory=none)
    assert free_bytes(CPU) == GIB + 120


def test_this_machine_says_something() -> None:
    if sys.platform == "linux":
        free = free_bytes(CPU)
        total = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) * 1024
        assert free is not None
        assert 0 < free <= total


def test_room_counts_the_weights_and_the_reserve(smi: Callable[[str], None]) -> None:
    smi(f"{A}, 8000\n")
    limit = 8000 * 2**20 - memory.RESERVE
    check_room("The weights of x", limit, GPU)
    with pytest.raises(EnvironmentFault) as caught:
        check_room("The weights of x", limit + 1, GPU)
    assert caught.value.exit_code == ENVIRONMENT


def test_what_is_said(smi: Callable[[str], None]) -> None:
    smi(f"{A}, 8000\n")
    with pytest.raises(EnvironmentFault) as caught:
        check_room("The weights of qwen2.5-vl", 16_584_333_312, GPU)
    assert caught.value.message == (
        "The weights of qwen2.5-vl need 16.6 GB, beside 0.500 GB that any model takes, and cuda:0 has 8.39 GB free."
    )
    assert all(way in caught.value.hint for way in ("--precision", "taps", "--device"))


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0.00"), (8 * 10**9, "8.00"), (9_999_000_000, "10.0"), (99_960_000_000, "100"), (123_456_000_000, "123"),
     (1_234_000_000_000, "1230"), (41_230_000, "0.0412")],
)  # fmt: skip
def test_three_digits(amount: int, text: str) -> None:
    assert memory._gigabytes(amount) == text


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    free = free_bytes(GPU)
    assert free is not None
    before = torch.cuda.mem_get_info(0)[0]
    assert abs(free - before) < 2 * GIB  # this process's own context lies between the two
