"""The speed benchmark of the cache: that it reads what it says it reads, and that its figures are rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from foresight_bench.shards import Corrupt


@pytest.fixture
def speed(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import benchmarks/speed/cache.py, with small shards."""
    module = script("cache")
    monkeypatch.setattr(module, "SHARD_BYTES", 500_000)
    return module


def test_everything_is_measured_over_the_same_bytes(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cache.json"
    arguments = ["--gb", "0.002", "--threads", "1", "2", "--device", "cpu", "--folder", str(tmp_path)]
    assert speed.main([*arguments, "--json", str(path)]) == 0
    results = json.loads(path.read_text("utf-8"))
    assert (results["files"], results["bytes"]) == (4, pytest.approx(2e6, rel=0.1))
    assert set(results["read"]) == {"verified, cold", "verified, warm", "plain, cold", "plain, warm", "hash"}
    assert all(rate > 0 for rates in results["read"].values() for rate in rates.values())
    assert results["written"] >= results["written and synced"] > 0
    printed = capsys.readouterr().out
    assert speed.table(results) in printed
    assert f"{results['read']['verified, warm']['2']:.2f}" in printed
    assert [file.name for file in tmp_path.iterdir()] == ["cache.json"]


def test_a_file_that_is_not_read_right_is_no_figure(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.shards, "read", lambda *given: (_ for _ in ()).throw(Corrupt("planted")))
    with pytest.raises(Corrupt, match="planted"):
        speed.main(["--gb", "0.001", "--threads", "1", "--device", "cpu"])
