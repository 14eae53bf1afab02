"""The feature cache: what comes out of it is what went in, whatever happens to its files and whoever is killed."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from foresight_bench import cache, caching, extraction, keys, pruning, shards
from foresight_bench.caching import FeatureCache
from foresight_bench.cells import seal
from foresight_bench.clips import ClipBatch
from foresight_bench.commands.caching import cache_group, human
from foresight_bench.contracts import ResolvedWeights, Split
from foresight_bench.errors import UsageError
from foresight_bench.features import FeatureSet
from foresight_bench.grids import Grid
from foresight_bench.holding import Held
from foresight_bench.keys import FeatureIdentity, feature_identities
from foresight_bench.registry import Registry
from foresight_bench.shards import Array, Corrupt, Place

TAPS = ("early", "late")
PLACE = Place("0" * 32, "train", 0, 4, 7)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own, with shards of about two batches."""
    monkeypatch.setenv("FORESIGHT_BENCH_CACHE", str(tmp_path))
    monkeypatch.delenv(pruning.LIMIT_VARIABLE, raising=False)
    monkeypatch.setattr(caching, "SHARD_BYTES", 30_000)
    return tmp_path / "features"


# Shards


def array(dtype: str, *shape: int) -> Array:
    count = shards.ITEM_BYTES[dtype] * int(np.prod(shape))
    return Array(dtype, shape, memoryview(bytes(i % 251 for i in range(count))))


ARRAYS = {"values": array("BF16", 3, 1, 2, 2, 5), "coarse": array("F32", 3, 16)}


def read(path: Path, place: Place = PLACE) -> tuple[str, dict[str, Array]]:
    return shards.read(path, place, lambda size: memoryview(bytearray(size)))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.safetensors"
    shards.write(path, PLACE, ARRAYS)
    return path


def test_what_is_written_is_read_and_the_library_reads_it_too(shard: Path) -> None:
    digest, found = read(shard)
    data = shard.read_bytes()
    assert digest == sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest()
    assert {name: (each.dtype, each.shape, bytes(each.data)) for name, each in found.items()} == {
        name: (each.dtype, each.shape, bytes(each.data)) for name, each in ARRAYS.items()
    }
    with safe_open(shard, framework="pt") as library:
        assert library.metadata()["start"] == "4"
        for name, each in ARRAYS.items():
            tensor = library.get_tensor(name)
            assert tensor.dtype == caching.TYPES[each.dtype]
            assert tensor.shape == each.shape
            assert tensor.view(torch.uint8).flatten().numpy().tobytes() == bytes(each.data)


def test_every_flipped_byte_and_every_other_length_is_seen(shard: Path) -> None:
    data = shard.read_bytes()
    damaged = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))]
    damaged += [data[:i] for i in range(len(data))] + [data + b"\0"]
    for each in damaged:
        shard.write_bytes(each)
        with pytest.raises(Corrupt):
            read(shard)
    shard.write_bytes(data)
    read(shard)


@pytest.mark.parametrize(
    "place",
    [
        replace(PLACE, key="1" * 32),
        replace(PLACE, split="test"),
        replace(PLACE, block=1),
        Place("0" * 32, "train", 0, 3, 6),
    ],
)
def test_a_shard_of_another_place_is_refused(shard: Path, place: Place) -> None:
    with pytest.raises(Corrupt, match="belongs"):
        read(shard, place)


def hostile(change: Callable[[dict[str, object]], object], text: Callable[[str], str] = lambda text: text) -> bytes:
    """Return a shard whose header was changed and whose digest is right."""
    blank = "0" * 64
    facts = {"key": PLACE.key, "split": "train", "block": "0", "start": "4", "stop": "7", "sha256": blank}
    header: dict[str, object] = {
        "__metadata__": facts,
        "coarse": {"dtype": "F32", "shape": [3, 16], "data_offsets": [0, 192]},
        "values": {"dtype": "BF16", "shape": [3, 1, 2, 2, 5], "data_offsets": [192, 312]},
    }
    change(header)
    encoded = text(json.dumps(header, separators=(",", ":"))).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = struct.pack("<Q", len(encoded)) + encoded + bytes(312)
    return data.replace(blank.encode(), sha256(data).hexdigest().encode())


def test_a_header_is_read_only_as_it_is_written(shard: Path) -> None:
    shard.write_bytes(hostile(lambda header: None))
    read(shard)  # so that what follows fails for its own reason


HEADERS: dict[str, bytes] = {
    "further tensor": hostile(lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [312, 312]})),
    "unknown type": hostile(lambda h: h["values"].update(dtype="F99")),  # type: ignore[attr-defined]
    "type that is no text": hostile(lambda h: h["values"].update(dtype=["BF16"])),  # type: ignore[attr-defined]
    "negative shape": hostile(lambda h: h["values"].update(shape=[-3, -1, 2, 2, 5])),  # type: ignore[attr-defined]
    "shape of fractions": hostile(lambda h: h["values"].update(shape=[3.0, 1, 2, 2, 5])),  # type: ignore[attr-defined]
    "shape of booleans": hostile(lambda h: h["values"].update(shape=[3, True, 2, 2, 5])),  # type: ignore[attr-defined]
    "no shape": hostile(lambda h: h["values"].update(shape=None)),  # type: ignore[attr-defined]
    "fewer axes": hostile(lambda h: h["values"].update(shape=[3, 20])),  # type: ignore[attr-defined]
    "overlap": hostile(lambda h: h["values"].update(data_offsets=[0, 312])),  # type: ignore[attr-defined]
    "hole": hostile(lambda h: h["coarse"].update(shape=[3, 8], data_offsets=[0, 96])),  # type: ignore[attr-defined]
    "larger than the file": hostile(lambda h: h["values"].update(shape=[3, 1, 2, 2, 10**12])),  # type: ignore[attr-defined]
    "other clips": hostile(lambda h: h["coarse"].update(shape=[4, 12])),  # type: ignore[attr-defined]
    "no metadata": hostile(lambda h: h.pop("__metadata__")),
    "metadata that is a list": hostile(lambda h: h.update(__metadata__=[])),
    "further metadata": hostile(lambda h: h["__metadata__"].update(more="")),  # type: ignore[attr-defined]
    "list": hostile(lambda h: None, lambda text: f"[{text}]"),
    "key twice": hostile(lambda h: None, lambda text: text[:-1] + ',"coarse":' + text.split('"coarse":')[1]),
    "blanks": hostile(lambda h: None, lambda text: text.replace(",", ", ", 1)),
    "deep": hostile(lambda h: None, lambda text: "[" * 4000),
    "no JSON": hostile(lambda h: None, lambda text: "\x80" + text),
    "NaN": hostile(lambda h: h["values"].update(shape=float("nan"))),  # type: ignore[attr-defined]
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of none": struct.pack("<Q", 0),
    "long header": struct.pack("<Q", 2**20) + b" " * 2**20,
    "empty file": b"",
    "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.",
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_hostile_headers_are_refused_before_memory_is_taken_for_them(shard: Path, data: bytes) -> None:
    shard.write_bytes(data)

    def buffer(size: int) -> memoryview:
        assert size <= len(data)
        return memoryview(bytearray(size))

    with pytest.raises(Corrupt):
        shards.read(shard, PLACE, buffer)


def test_no_pickle_is_read() -> None:
    for module in (shards, cache, caching, keys, pruning, extraction):
        text = Path(module.__file__ or "").read_text("utf-8")
        assert not [word for word in ("pickle", ".load(", "marshal", "shelve", "eval(", "exec(") if word in text]


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        shards.write(tmp_path / "x.safetensors", PLACE, ARRAYS)
    assert not list(tmp_path.iterdir())


# Passes


def clips(n: int, t: int, seed: int) -> ClipBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (n, t, 28, 28, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(f"{seed}-{i}" for i in range(n)))


class FakeData:
    """A dense split, one of two blocks whose name would lead out of a folder, and a sparse one."""

    names = ("train", "../test.x", "align")
    dense = ("train", "../test.x")
    scored = ("../test.x", "align")
    class_names = ()
    blocks: Mapping[str, Sequence[ClipBatch]] = {
        "train": (clips(100, 1, 1),),
        "../test.x": (clips(5, 1, 2), clips(7, 3, 3)),
        "align": (clips(19, 1, 4),),
    }
    total = 100 + 5 + 7 * 3 + 19

    def split(self, name: str) -> Split:
        return Split(tuple(self.blocks[name]))


class FakeEncoder:
    """Patch means that depend on the batch a clip came in; writes down what it was asked and stops after ``most``."""

    def __init__(self, most: int = 10**6, dtype: torch.dtype = torch.float32, width: int = 4) -> None:
        self.most, self.dtype = most, dtype
        self.model = torch.nn.LayerNorm(width)  # 2 * width parameters
        self.asked: list[tuple[str, int, tuple[str, ...]]] = []

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> dict[str, Grid]:
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        self.asked.append((clips.ids[0], len(clips), tuple(taps)))
        n, t, h, w = clips.shape
        cells = torch.from_numpy(clips.frames).reshape(n, t, h // 7, 7, w // 7, 7, 3).double().mean((3, 5)) / 255
        values = (cells + 1e-3 * cells.mean()).repeat(1, 1, 1, 1, 4)
        return {tap: Grid((values * (1 + TAPS.index(tap))).to(self.dtype)) for tap in taps}


def identity(tap: str, /, **facts: object) -> FeatureIdentity:
    known: dict[str, object] = {
        "encoder": "fake:default",
        "parameters": {"size": 3},
        "weights": "a" * 64,
        "seed": None,
        "deepest": None,
        "machine": None,
        "tap": tap,
        "precision": "float32",
        "plugin": "b" * 64,
        "harness": "c" * 64,
        "libraries": {"torch": "2.6"},
        "data": {"train": "d" * 64},
        "limit": None,
    }
    return FeatureIdentity.model_validate({**known, **facts})


def run(encoder: FakeEncoder, taps: Sequence[str] = TAPS, notes: list[str] | None = None) -> FeatureSet:
    told = [] if notes is None else notes
    cached = FeatureCache({tap: identity(tap) for tap in taps}, "a device", True, told.append)

    def load() -> FakeEncoder:
        encoder.asked.append(("loaded", 0, ()))
        return encoder

    try:
        return extraction.extract(load, taps, FakeData(), cache=cached)  # type: ignore[arg-type]
    finally:
        cached.close()
        assert notes is not None or not told


def plain(encoder: FakeEncoder, taps: Sequence[str] = TAPS) -> FeatureSet:
    return extraction.extract(lambda: encoder, taps, FakeData())  # type: ignore[arg-type,return-value]


def equal(a: FeatureSet, b: FeatureSet) -> bool:
    def tensors(row: FeatureSet) -> dict[object, torch.Tensor]:
        blocks = {(*key, index): grid.values for key, grids in row.tokens.items() for index, grid in enumerate(grids)}
        return {**blocks, **row.coarse}

    ours, theirs = tensors(a), tensors(b)
    assert all(value.dtype == torch.float32 for value in ours.values())
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def entry(tap: str) -> cache.Entry:
    return cache.entry(identity(tap).key())


def no_faults() -> bool:
    return all(not each.faults() and each.is_whole() for each in cache.entries())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_cached_row_is_the_fresh_one_and_loads_no_model(dtype: torch.dtype) -> None:
    alone, first, second = plain(FakeEncoder(dtype=dtype)), run(FakeEncoder(dtype=dtype)), FakeEncoder(dtype=dtype)
    again = run(second)
    assert equal(first, alone)
    assert equal(again, alone)
    assert second.asked == []
    assert (first.cached, again.cached) == (False, True)
    assert (again.seconds, again.frames, again.batch_frames) == (first.seconds, FakeData.total, 16)
    assert again.seconds > 0
    assert no_faults()
    made = entry("early").manifest()
    assert made is not None
    assert (made.made.device, made.made.compiled) == ("a device", True)


def older(tap: str) -> None:
    """Rewrite a manifest as it was before parameters were counted."""
    path = entry(tap).folder / cache.MANIFEST
    record = json.loads(path.read_bytes())
    del record["made"]["parameters"], record["seal"]
    path.write_text(json.dumps({**record, "seal": seal(record)}))


def test_the_parameters_come_from_the_cache_with_the_features() -> None:
    assert plain(FakeEncoder()).parameters == run(FakeEncoder()).parameters == 8
    again = run(FakeEncoder())
    assert (again.cached, again.parameters) == (True, 8)
    older("late")
    again = run(FakeEncoder())
    assert (again.cached, again.parameters) == (True, 0)  # what one tap needs is not known
    assert run(FakeEncoder(), ("early",)).parameters == 8


def test_the_parameters_are_of_an_encoder_for_all_taps_of_a_row() -> None:
    assert run(FakeEncoder(width=4), ("early",)).parameters == 8
    both = run(FakeEncoder(width=50))  # built for both, of which one is computed
    assert (both.cached, both.parameters) == (False, 100)
    assert run(FakeEncoder()).parameters == 100
    assert run(FakeEncoder(), ("early",)).parameters == 8
    flip(entry("late").folder / cache.MANIFEST)
    assert run(FakeEncoder()).parameters == 0


def test_values_keep_the_encoders_own_type_on_disk() -> None:
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        run(FakeEncoder(dtype=dtype))
        sizes[dtype] = sum(each.size() for each in cache.entries())
        pruning.prune(0)
    tokens = 2 * 4 * 4 * 12 * (100 + 5 + 21)
    assert sizes[torch.float32] - sizes[torch.bfloat16] == pytest.approx(2 * tokens, rel=0.03)


def test_shards_end_where_batches_do_and_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    run(FakeEncoder())
    clip = 4 * (4 * 4 * 12 + 16 * 12)
    found = entry("early").shards()
    train = [(each.start, each.stop) for each in found if each.split == "train"]
    assert train == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 80), (80, 96), (96, 100)]  # two batches are 49 kB
    assert all(16 * clip < each.bytes < 30_000 for each in found if each.split == "train" and each.stop != 100)
    pruning.prune(0)
    monkeypatch.setattr(caching, "SHARD_BYTES", 50_000)
    run(FakeEncoder())
    train = [(each.start, each.stop) for each in entry("early").shards() if each.split == "train"]
    assert train == [(0, 32), (32, 64), (64, 96), (96, 100)]
    pruning.prune(0)
    monkeypatch.setattr(caching, "SHARD_BYTES", 1)
    run(FakeEncoder())
    assert len([each for each in entry("early").shards() if each.split == "train"]) == 7  # a batch is never split


@pytest.mark.parametrize("most", range(1, 12))
def test_a_killed_pass_is_resumed_with_the_batches_that_were_left(most: int) -> None:
    whole, killed, resumed = FakeEncoder(), FakeEncoder(most + 1), FakeEncoder()
    alone = plain(whole)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert not any(each.is_whole() for each in cache.entries())
    assert equal(run(resumed), alone)
    done, left = killed.asked[1:], resumed.asked[1:]
    written = len(whole.asked) - len(left)
    assert left == whole.asked[written:]
    assert most - written in (0, 1)  # the shard that was being filled is lost with its batch
    assert len(done) == most
    assert no_faults()
    third = FakeEncoder()
    run(third)
    assert third.asked == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replaced(path: Path) -> None:
    """Put an intact shard of the same place there, of other features: only the manifest can tell."""
    place = entry("late").place(next(each for each in entry("late").shards() if entry("late").path(each) == path))
    n = place.stop - place.start
    shards.write(path, place, {"coarse": array("F32", n, 192), "values": array("F32", n, 1, 4, 4, 12)})


def reshaped(path: Path) -> None:
    place = entry("late").place(next(each for each in entry("late").shards() if entry("late").path(each) == path))
    (entry("late").folder / cache.MANIFEST).unlink()
    n = place.stop - place.start
    shards.write(path, place, {"coarse": array("F32", n, 32), "values": array("F32", n, 1, 4, 4, 2)})


def without_tokens(path: Path) -> None:
    place = entry("late").place(next(each for each in entry("late").shards() if entry("late").path(each) == path))
    (entry("late").folder / cache.MANIFEST).unlink()
    shards.write(path, place, {"coarse": array("F32", place.stop - place.start, 192)})


@pytest.mark.parametrize("fault", [flip, truncate, Path.unlink, replaced, reshaped, without_tokens])
def test_of_a_corrupt_shard_only_its_clips_and_its_tap_are_computed_again(fault: Callable[[Path], None]) -> None:
    alone = run(FakeEncoder())
    before, manifest = entry("late").shards(), entry("late").manifest()
    (bad,) = [each for each in before if (each.split, each.start) == ("train", 32)]
    fault(entry("late").path(bad))
    assert [name for name, _ in entry("late").faults()] == ([] if fault in (reshaped, without_tokens) else [bad.name])
    healing = FakeEncoder()
    healed = run(healing)
    assert equal(healed, alone)
    assert healing.asked == [("loaded", 0, ()), ("1-32", 16, ("late",))]
    assert entry("late").shards() == before
    assert no_faults()
    # What the row cost is still the cost of the pass that computed most of it.
    if fault in (flip, truncate, Path.unlink, replaced):
        assert (healed.seconds, healed.frames, healed.cached) == (alone.seconds, alone.frames, False)
        assert entry("late").manifest() == manifest


def test_a_corrupt_shard_goes_even_where_nothing_can_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, notes = run(FakeEncoder()), list[str]()
    bad = entry("late").shards()[0]
    flip(entry("late").path(bad))
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, "0")
    assert equal(run(FakeEncoder(), notes=notes), alone)
    assert len(notes) == 1
    assert not entry("late").path(bad).exists()


def test_no_clip_is_read_twice() -> None:
    def shard_of(split: str, block: int, start: int, stop: int) -> cache.ShardRecord:
        return cache.ShardRecord(split=split, block=block, start=start, stop=stop, bytes=0, sha256="")

    wanted = [shard_of("test", 1, 0, 8), shard_of("train", 0, 0, 16), shard_of("train", 0, 16, 24)]
    others = [
        shard_of("train", 0, 0, 8),  # of another run's smaller batches
        shard_of("train", 0, 8, 20),
        shard_of("train", 0, 24, 33),  # beyond the block
        shard_of("train", 0, 24, 24),
        shard_of("train", 1, 0, 8),  # no such block
        shard_of("other", 0, 0, 8),
    ]
    assert cache.covering([*others, *wanted], {("train", 0): 32, ("test", 1): 8}) == wanted


def test_a_record_of_another_key_is_none() -> None:
    run(FakeEncoder())
    shutil.copy(entry("early").folder / cache.IDENTITY, entry("late").folder)
    assert entry("late").identity() is None
    assert [name for name, _ in entry("late").faults()] == [cache.IDENTITY]


def test_two_faults_in_two_taps_cost_their_clips_each() -> None:
    alone = run(FakeEncoder())
    for tap, start in (("early", 16), ("late", 16), ("late", 32)):
        (bad,) = [each for each in entry(tap).shards() if (each.split, each.start) == ("train", start)]
        flip(entry(tap).path(bad))
    healing = FakeEncoder()
    assert equal(run(healing), alone)
    assert healing.asked[1:] == [("1-16", 16, TAPS), ("1-32", 16, ("late",))]


def test_gaps_that_meet_are_one_and_those_of_most_taps_come_first() -> None:
    held = Held(TAPS, FakeData())  # type: ignore[arg-type]
    for start in (0, 16, 64):  # of the first tap
        held.put("early", ("train", 0), slice(start, start + 16), torch.zeros(16, 1, 4, 4, 12), torch.zeros(16, 192))
    found = held.gaps()
    assert [(gap.start, gap.stop) for gap in found if gap.taps == ("late",)] == [(0, 32), (64, 80)]
    assert [(gap.start, gap.stop) for gap in found if gap.block[0] == "train"] == [
        (32, 64),
        (80, 100),
        (0, 32),
        (64, 80),
    ]
    assert found[0].block == ("../test.x", 1)  # the longest clips


def test_another_tap_costs_only_itself() -> None:
    run(FakeEncoder(), ("early",))
    more = FakeEncoder()
    both = run(more)
    assert equal(both, plain(FakeEncoder()))
    assert {taps for _, _, taps in more.asked[1:]} == {("late",)}
    assert len(more.asked) == 1 + 7 + 1 + 2 + 2


@pytest.mark.parametrize("name", [cache.MANIFEST, cache.IDENTITY])
@pytest.mark.parametrize(
    "damage", [flip, lambda path: os.truncate(path, 300), Path.unlink, lambda path: path.write_text("[" * 10**5)]
)
def test_a_damaged_record_costs_no_computing_and_is_written_anew(name: str, damage: Callable[[Path], None]) -> None:
    alone = run(FakeEncoder())
    damage(entry("late").folder / name)
    assert (entry("late").identity() is None) or (entry("late").manifest() is None)
    again = FakeEncoder()
    assert equal(run(again), alone)
    assert again.asked == []
    assert no_faults()
    assert entry("late").identity() == identity("late")


def test_a_manifest_cannot_lead_out_of_its_folder(folder: Path) -> None:
    run(FakeEncoder())
    assert all(path.parent == entry("early").folder for path in map(entry("early").path, entry("early").shards()))
    (inside,) = [each for each in entry("early").shards() if (each.split, each.block) == ("../test.x", 0)]
    assert entry("early").path(inside).name == "%2E%2E%2Ftest%2Ex-0-0-5.safetensors"
    assert {path.name for path in folder.parent.iterdir()} == {"features"}


def test_a_full_disk_ends_caching_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    written, write, notes = [], shards.write, list[str]()

    def full(path: Path, place: Place, arrays: Mapping[str, Array]) -> str:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return write(path, place, arrays)

    monkeypatch.setattr(shards, "write", full)
    assert equal(run(FakeEncoder(), notes=notes), plain(FakeEncoder()))
    assert notes == ["These features are not cached: No space left on device."]
    assert len(written) == 3
    assert not any(each.is_whole() for each in cache.entries())
    monkeypatch.undo()


def test_other_trouble_with_writing_ends_caching_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(caching, "_array", lambda tensor: 1 / 0)
    assert equal(run(FakeEncoder(), notes=notes), plain(FakeEncoder()))
    assert notes == ["These features are not cached: ZeroDivisionError: division by zero."]


def test_a_pass_does_not_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Event(), shards.write

    def slow(path: Path, place: Place, arrays: Mapping[str, Array]) -> str:
        assert go.wait(10)
        return write(path, place, arrays)

    monkeypatch.setattr(shards, "write", slow)
    cached = FeatureCache({tap: identity(tap) for tap in TAPS}, "", False, lambda note: None)
    done = extraction.extract(FakeEncoder, TAPS, FakeData(), cache=cached)  # type: ignore[arg-type]
    assert not cache.entries() or not entry("early").shards()
    go.set()
    cached.close()
    assert no_faults()
    assert equal(run(FakeEncoder(most=0)), done)


def test_two_runs_at_once_do_each_other_no_harm() -> None:
    alone = plain(FakeEncoder())
    with ThreadPoolExecutor(4) as pool:
        assert all(equal(each, alone) for each in pool.map(lambda _: run(FakeEncoder()), range(4)))
    assert no_faults()
    assert not list(cache.root().rglob(".*"))
    last = FakeEncoder()
    assert equal(run(last), alone)
    assert last.asked == []


def test_progress_counts_what_came_from_the_cache() -> None:
    seen: list[int] = []
    run(FakeEncoder())
    (bad,) = [each for each in entry("late").shards() if (each.split, each.start) == ("train", 32)]
    entry("late").path(bad).unlink()
    cached = FeatureCache({tap: identity(tap) for tap in TAPS}, "", False, lambda note: None)
    extraction.extract(FakeEncoder, TAPS, FakeData(), cache=cached, progress=seen.append)  # type: ignore[arg-type]
    cached.close()
    assert seen == [FakeData.total - 16, 16]


# Size


def aged(tap: str, age: float, **facts: object) -> str:
    """Cache an entry of 10 kB that was last used ``age`` seconds ago, and return its key."""
    what = identity(tap, **facts)
    each = cache.entry(what.key())
    each.save(what)
    (each.folder / "train-0-0-1.safetensors").write_bytes(bytes(10_000))
    each.save(cache.Manifest(made=cache.Pass(), shards=()))
    now = each.used()
    for path in each.folder.iterdir():
        os.utime(path, (now - age, now - age))
    return what.key()


def there() -> set[str]:
    return {each.key for each in cache.entries()}


def test_the_least_recently_used_go_first_and_those_in_use_never() -> None:
    old, _, new = aged("a", 200), aged("b", 300), aged("c", 100)
    size = cache.entry(old).size()
    assert pruning.prune(3 * size) == (0, 0)
    assert pruning.prune(int(2.5 * size)) == (1, size)
    assert there() == {old, new}
    cache.entry(old).touch()
    assert pruning.prune(size, keep={new}) == (1, size)
    assert there() == {new}
    assert pruning.prune(0, keep={new}) == (0, 0)
    assert pruning.prune(0) == (1, size)
    assert not list(cache.root().iterdir())


def test_an_entry_ceases_to_be_whole_before_it_loses_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    key, gone, unlink = aged("a", 1), list[str](), Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: (gone.append(path.name), unlink(path)))
    cache.entry(key).remove()
    assert gone[0] == cache.MANIFEST
    assert len(gone) == 3


def test_recalling_an_entry_is_using_it() -> None:
    run(FakeEncoder())
    manifest = entry("early").folder / cache.MANIFEST
    os.utime(manifest, (1, 1))
    run(FakeEncoder())
    assert entry("early").used() > 1_000_000


def test_what_a_killed_run_left_goes_after_a_day_and_before_anything_else() -> None:
    abandoned, young, whole = aged("a", 90_000), aged("b", 3_600), aged("c", 10**6)
    for key in (abandoned, young):
        (cache.entry(key).folder / cache.MANIFEST).unlink()
    assert pruning.prune(sum(cache.entry(key).size() for key in (young, whole)))[0] == 1
    assert there() == {young, whole}
    assert pruning.prune(1)[0] == 1
    assert there() == {young}  # somebody may be writing it
    pruning.prune(0)
    assert there() == set()


@pytest.mark.parametrize(
    ("limit", "total", "free", "needed", "fits", "left"),
    [
        ("100", 10**12, 10**12, 10**6, True, 3),
        ("0.00003", 10**12, 10**12, 5_000, True, 2),
        ("0.00003", 10**12, 10**12, 20_000, True, 1),
        ("0.00003", 10**12, 10**12, 29_000, True, 0),
        ("0.00003", 10**12, 10**12, 31_000, False, 3),  # nothing goes in vain
        ("100", 10**6, 105_000, 5_000, True, 3),  # 100 kB stay free
        ("100", 10**6, 105_000, 9_000, True, 2),
        ("100", 10**6, 0, 9_000, False, 3),
        ("0", 10**12, 10**12, 1, False, 3),
    ],
)
def test_room_is_what_limit_and_disk_leave(
    monkeypatch: pytest.MonkeyPatch, limit: str, total: int, free: int, needed: int, fits: bool, left: int
) -> None:
    used = [aged(tap, age) for tap, age in (("a", 3), ("b", 2), ("c", 1))]
    shrink = cache.entry(used[0]).size() - 9_000  # so that an entry has 9 kB, and three have 27
    for key in used:
        os.truncate(cache.entry(key).folder / "train-0-0-1.safetensors", 10_000 - shrink)
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, limit)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=free))
    assert pruning.make_room(needed, set()) is fits
    assert there() == set(used[3 - left :])


def test_what_is_in_use_is_not_pruned_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    key = aged("a", 3)
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, "0.00002")
    assert not pruning.make_room(15_000, {key})
    assert there() == {key}
    assert pruning.make_room(15_000, set())
    assert there() == set()


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, text)
    with pytest.raises(UsageError, match="no number of GB"):
        pruning.limit_bytes()


def test_without_room_nothing_is_written_and_the_features_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setenv(pruning.LIMIT_VARIABLE, "0.0001")  # 100 kB; they take 500
    assert equal(run(FakeEncoder(), notes=notes), plain(FakeEncoder()))
    assert notes == ["These features are not cached: there is no room for them."]
    assert there() == set()


def test_the_room_asked_for_is_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, set[str]]] = []
    monkeypatch.setattr(pruning, "make_room", lambda needed, keep: asked.append((needed, keep)) or True)
    run(FakeEncoder(dtype=torch.bfloat16))
    ((needed, keep),) = asked
    assert keep == there()
    written = sum(path.stat().st_size for path in cache.root().rglob("*.safetensors"))
    headers = 420 * len(list(cache.root().rglob("*.safetensors")))
    assert needed == pytest.approx(written - headers, rel=0.02)


# Keys


def test_every_part_of_an_identity_changes_the_key() -> None:
    base = identity("early")
    other: dict[str, object] = {
        "parameters": {"size": 4},
        "libraries": {"torch": "2.7"},
        "data": {},
        "limit": 8,
        "seed": 1,
    }
    for name in FeatureIdentity.model_fields:
        assert identity("early", **{name: other.get(name, "x")}).key() != base.key(), name
    assert identity("early").key() == base.key()
    assert len(base.key()) == 32


REGISTRY = Registry.installed()
WEIGHTS = ResolvedWeights(Path("x.safetensors"), "e" * 64, "file")


def identities(name: str, **facts: object) -> Mapping[str, FeatureIdentity] | None:
    (stream,) = REGISTRY.resolve(name)
    known: dict[str, object] = {
        "weights": None if stream.random else WEIGHTS,
        "seed": 0,
        "precision": "float32",
        "machine": "cpu-x86_64",
        "libraries": {"torch": "2.6"},
    }
    suite = REGISTRY.suites["quick"].spec
    return feature_identities(REGISTRY, stream, REGISTRY.taps(stream), suite, **{**known, **facts})  # type: ignore[arg-type]


def key_of(name: str, **facts: object) -> str:
    found = identities(name, **facts)
    assert found is not None
    return found["final"].key()


def test_features_are_filed_under_what_changes_them() -> None:
    base = key_of("dinov2:small@final")
    assert key_of("dinov2:small@block.8,final") == base  # which other taps are read does not
    assert key_of("dinov2:small@final", seed=1) == base  # nor the seed of weights that are not random
    assert key_of("dinov2:small@final", machine="nvidia-h200") == base
    assert key_of("dinov2:small@final~pooled") == base  # comes after the cache
    found = [
        key_of("dinov2:base@final"),
        key_of("dinov2:small@final", precision="bfloat16"),
        key_of("dinov2:small@final", weights=replace(WEIGHTS, sha256="f" * 64)),
        key_of("dinov2:small@final", libraries={"torch": "2.7"}),
        key_of("dinov2:small@final", limit=8),
        key_of("dinov2:small@final~random"),
        key_of("dinov2:small@final~random", seed=1),
        key_of("dinov2:small@final~random", machine="nvidia-h200"),
    ]
    assert len({base, *found}) == 1 + len(found)
    assert key_of("dinov2:small@final~random") == key_of("dinov2:small@block.8,final~random")
    shallow, deep = identities("dinov2:small@block.8~random"), identities("dinov2:small@block.8,final~random")
    assert shallow is not None
    assert deep is not None
    assert shallow["block.8"] != deep["block.8"]


def test_weights_that_a_tap_does_not_need_are_not_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    (stream,) = REGISTRY.resolve("qwen2.5-vl")
    variant = REGISTRY.variant(stream)
    shallow, deep = variant.parts[0].tap, variant.taps[-1]
    prefixes = [part.prefix for part in variant.parts]
    monkeypatch.setattr(keys, "digest", lambda weights, keep: ",".join(filter(keep, prefixes)))
    alone, both = identities(f"qwen2.5-vl@{shallow}"), identities(f"qwen2.5-vl@{shallow},{deep}")
    assert alone is not None
    assert both is not None
    assert alone[shallow] == both[shallow]
    assert both[deep].weights == ",".join(prefixes) != both[shallow].weights


def test_what_is_not_known_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identities("pixels") is None  # has no weights
    assert identities("dinov2:small@final", weights=None) is None
    assert identities("dinov2:small@final", weights=replace(WEIGHTS, sha256="")) is None
    spec = REGISTRY.encoders["dinov2"].spec
    lost = replace(spec, target="no_such_package.module:Class")
    entries = REGISTRY.encoders._entries
    monkeypatch.setitem(entries, "dinov2", [replace(entries["dinov2"][0], spec=lost)])
    assert identities("dinov2:small@final") is None


def test_a_suite_without_a_digest_is_not_cached() -> None:
    suite = REGISTRY.suites["quick"].spec
    (stream,) = REGISTRY.resolve("dinov2:small@final")
    for digests in ({}, {**suite.digests, "train": ""}):
        assert (
            feature_identities(
                REGISTRY,
                stream,
                ("final",),
                replace(suite, digests=digests),
                weights=WEIGHTS,
                seed=0,
                precision="float32",
                machine="",
                libraries={},
            )
            is None
        )


NO_VALUE = {
    "cells": "records",
    "devices": "names of devices",
    "digests": "of weights, which the key holds",
    "errors": "messages",
    "fitting": "whether a plugin's hooks fit",
    "hookspecs": "which plugins there are",
    "hub": "where weights come from; the key holds their digest",
    "inventory": "what is counted of an encoder",
    "keys": "the key itself",
    "memory": "how much is free",
    "names": "what is selected",
    "plugins": "which plugins there are",
    "pruning": "what is forgotten",
    "registry": "what is selected; the key holds parameters and weights",
    "scores": "imported for type checking",
    "weights": "where weights come from; the key holds their digest",
}
"""Modules that a feature pass imports and that cannot change a feature, and why."""


def imported(path: Path) -> Iterator[str]:
    """Yield the harness's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "foresight_bench":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foresight_bench."):
            yield (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("foresight_bench."))


def test_the_key_holds_all_code_of_the_harness_that_a_feature_goes_through() -> None:
    harness = Path(keys.__file__).parent
    encoders = harness.parents[1] / "plugins" / "foresight_plugins" / "encoders"
    todo = {"extraction", *(name for file in encoders.glob("*.py") for name in imported(file))}
    closure: set[str] = set()
    while todo:
        name = todo.pop()
        if (harness / f"{name}.py").is_file():
            closure.add(name)
            todo |= set(imported(harness / f"{name}.py")) - closure
    assert "extraction" in closure
    assert set(keys.FEATURE_CODE) | set(NO_VALUE) == closure
    assert not set(keys.FEATURE_CODE) & set(NO_VALUE)
    assert list(keys.FEATURE_CODE) == sorted(keys.FEATURE_CODE)


# Commands


def invoke(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(cache_group, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_ls_shows_entries_and_their_use(folder: Path) -> None:
    assert invoke("ls")[1] == "0 entries, 0 B\n"
    assert invoke("path")[0] == f"{folder}\n"
    run(FakeEncoder())
    os.utime(entry("early").folder / cache.MANIFEST, (1, 1))
    (entry("late").folder / cache.MANIFEST).unlink()
    text, summary = invoke("ls")
    late, early = text.splitlines()[2:]
    assert [entry("early").key[:12], "fake:default", "early", "float32", "1970-01-01"] == [
        word
        for word in early.split()
        if word in (entry("early").key[:12], "fake:default", "early", "float32", "1970-01-01")
    ]
    assert "unfinished" in late
    assert "unfinished" not in early
    assert human(sum(each.size() for each in cache.entries())) in summary
    records = json.loads(invoke("ls", "--json")[0])
    assert [(each["key"], each["whole"]) for each in records] == [
        (entry("late").key, False),
        (entry("early").key, True),
    ]
    assert records[1]["made"]["frames"] == FakeData.total


def test_explain_says_which_parts_differ() -> None:
    a, b = identity("early"), identity("late", libraries={"torch": "2.7"}, seed=3)
    for each in (a, b):
        cache.entry(each.key()).save(each)
    assert invoke("explain", a.key()[:8], b.key())[0] == "seed: - | 3\ntap: early | late\nlibraries.torch: 2.6 | 2.7\n"
    assert json.loads(invoke("explain", a.key(), b.key(), "--json")[0])[1] == {"part": "tap", "a": "early", "b": "late"}
    assert invoke("explain", a.key(), a.key()) == ("", "The keys are the same.\n")
    assert "No key starts with 'zz'" in invoke("explain", "zz", a.key(), code=2)[1]
    assert "2 keys start with ''" in invoke("explain", "", a.key(), code=2)[1]


def test_verify_names_what_is_corrupt() -> None:
    run(FakeEncoder())
    assert "2 entries" in invoke("verify")[1]
    assert json.loads(invoke("verify", "--json")[0]) == []
    bad = entry("early").shards()[0]
    flip(entry("early").path(bad))
    text, message = invoke("verify", code=6)
    assert text == f"{entry('early').key[:12]}/{bad.name}: its bytes are not those that were written\n"
    assert "1 file of the feature cache cannot be used." in message
    assert json.loads(invoke("verify", "--json", code=6)[0])[0]["file"] == bad.name


def test_prune_keeps_as_much_as_is_asked() -> None:
    keys_ = [aged(tap, age) for tap, age in (("a", 3), ("b", 2), ("c", 1))]
    assert invoke("prune")[1] == "Removed 0 entries, 0 B.\n"
    assert invoke("prune", "--to", "0.000025")[1].startswith("Removed 1 entries")
    assert there() == set(keys_[1:])
    assert "contradict" in invoke("prune", "--all", "--to", "1", code=2)[1]
    invoke("prune", "--all")
    assert there() == set()


SIZES = {0: "0 B", 999: "999 B", 1000: "1 kB", 999_600: "1 MB", 1_234_567: "1.23 MB", 1_234 * 10**9: "1230 GB"}


@pytest.mark.parametrize(("size", "text"), SIZES.items())
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert human(size) == text
