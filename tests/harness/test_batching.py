"""How many frames go through an encoder at once: sizes tried, memory read, and what does not depend on either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from foresight_bench import batching, extraction, features, holding
from foresight_bench.batching import Batching, is_out_of_memory
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Split
from foresight_bench.engine import classify
from foresight_bench.errors import ContractError, OutOfMemory
from foresight_bench.features import FeatureSet
from foresight_bench.grids import Grid

GIGA = 10**9


def clips(n: int, t: int = 1, side: int = 28, seed: int = 0) -> ClipBatch:
    frames = np.random.default_rng(seed).integers(0, 256, (n, t, side, side, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(f"{seed}-{t}-{i}" for i in range(n)))


@dataclass
class FakeMemory:
    """A device with ``room`` bytes where a batch takes ``frame`` bytes a frame; it keeps a diary."""

    frame: int
    room: int
    frames: int = 0
    diary: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.diary.append("watch")

    def peak(self) -> int:
        return self.frames * self.frame

    def free(self) -> int:
        self.diary.append("free")
        return self.room

    def release(self) -> None:
        self.diary.append("release")


class Recorder:
    """Encodes clips to their ids, writes down the sizes it was given, and runs out of memory above ``most`` clips."""

    def __init__(self, most: int = 10**6, error: Callable[[], Exception] = MemoryError) -> None:
        self.most, self.error = most, error
        self.tried: list[int] = []
        self.memory: FakeMemory | None = None

    def __call__(self, batch: ClipBatch) -> tuple[str, ...]:
        self.tried.append(len(batch))
        if self.memory is not None:
            self.memory.frames = len(batch) * batch.shape[1]
        if len(batch) > self.most:
            raise self.error()
        return batch.ids


def ran(sizes: Batching, block: ClipBatch, encode: Recorder) -> list[str]:
    found: list[str] = []
    for part, ids in sizes.run(block, encode):
        found += ids[: part.stop - part.start]
    return found


def settled(
    memory: FakeMemory, block: ClipBatch, encode: Recorder, kept: int = 0, frames: int | None = None
) -> Batching:
    """Return batches whose size was found on ``block``; ``kept`` bytes of results will pile up."""
    encode.memory = memory
    sizes = Batching(memory, frames)
    assert sizes.settle(block, encode, lambda ids: kept) is (frames is None)
    assert sizes.frames == 0  # what is thrown away is no batch of the pass
    return sizes


def out_of_host_memory() -> Exception:
    """What torch really raises."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15, dtype=torch.uint8)
    return caught.value


OUT_OF_MEMORY: dict[str, Callable[[], Exception]] = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "host, by torch": out_of_host_memory,
    "host, by numpy": MemoryError,
    "wrapped by the compiler": lambda: RuntimeError("backend='inductor' raised: CUDA out of memory. Tried"),
    "in a product": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize(("t", "sizes"), [(1, [16, 16, 3]), (3, [5] * 7), (20, [1] * 35)])
def test_on_a_cpu_batches_hold_sixteen_frames_or_one_clip(t: int, sizes: list[int]) -> None:
    block, encode, batches = clips(35, t), Recorder(), Batching(None)
    assert ran(batches, block, encode) == list(block.ids)
    assert encode.tried == sizes
    assert batches.frames == max(sizes) * t
    short = Batching(None)
    ran(short, clips(1, t), Recorder())
    assert short.frames == t


@pytest.mark.parametrize(
    ("room", "size"),
    [
        (10**6 * GIGA, 64),  # whatever the room, no more than the cap
        (128 * GIGA, 64),  # 64 frames of a gigabyte take exactly half
        (128 * GIGA - 1, 32),
        (17 * GIGA, 8),
        (7 * GIGA, 2),  # below the first batch's own size
        (GIGA, 1),  # not half of it, but a clip is never split
    ],
)
def test_on_a_gpu_two_batches_beforehand_say_how_large_all_may_be(room: int, size: int) -> None:
    memory, encode, block = FakeMemory(GIGA, room), Recorder(), clips(2 * size)
    batches = settled(memory, block, encode)
    assert encode.tried == [8, size]
    assert memory.diary == ["watch", "free"]
    assert ran(batches, block, encode) == list(block.ids)
    assert encode.tried == [8, size, size, size]
    assert memory.diary == ["watch", "free"]
    assert batches.frames == size


@pytest.mark.parametrize(("kept", "size"), [(0, 32), (32 * GIGA, 16), (32 * GIGA + 1, 8), (64 * GIGA, 1)])
def test_what_is_kept_of_all_results_is_not_free(kept: int, size: int) -> None:
    memory, encode = FakeMemory(GIGA, 64 * GIGA), Recorder()
    settled(memory, clips(3), encode, kept)
    assert encode.tried == [8, size]


def test_what_does_not_fit_ends_the_pass_after_one_small_batch() -> None:
    def refuse(ids: object) -> int:
        raise OutOfMemory("too much")

    encode = Recorder()
    encode.memory = memory = FakeMemory(GIGA, 64 * GIGA)
    with pytest.raises(OutOfMemory):
        Batching(memory).settle(clips(30), encode, refuse)
    assert encode.tried == [8]


def test_frames_count_and_not_clips() -> None:
    memory, encode, block = FakeMemory(GIGA, 64 * GIGA), Recorder(), clips(18, t=5)
    assert len(ran(settled(memory, block, encode), block, encode)) == 18
    assert encode.tried == [1, 6, 6, 6, 6]  # 8 frames hold one clip of 5, 32 frames hold 6


def test_the_size_is_one_for_all_blocks_and_found_once() -> None:
    memory, encode = FakeMemory(GIGA, 64 * GIGA), Recorder()
    batches = settled(memory, clips(8, side=56), encode)
    assert not batches.settle(clips(8), encode, lambda ids: 0)
    for block in (clips(8), clips(32), clips(32, side=56), clips(4, t=9)):
        ran(batches, block, encode)
    assert encode.tried == [8, 32, 32, 32, 32, 3, 3]


def test_on_a_gpu_a_short_batch_is_filled_up_and_the_filling_left_out() -> None:
    memory, encode, block = FakeMemory(GIGA, 32 * GIGA), Recorder(), clips(16 + 3)
    parts = list(settled(memory, block[:2], encode).run(block, encode))
    assert encode.tried == [8, 16, 16, 16]
    part, ids = parts[-1]
    assert (part.start, part.stop) == (16, 19)
    assert ids == (*block.ids[16:19], *[block.ids[18]] * 13)


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_and_tries_the_same_clips_again(error: Callable[[], Exception]) -> None:
    block, encode, batches = clips(40), Recorder(most=5, error=error), Batching(None)
    assert ran(batches, block, encode) == list(block.ids)
    assert encode.tried == [16, 8, *[4] * 10]
    assert batches.frames == 4


def test_halving_is_of_clips_and_the_size_stays_one_of_frames() -> None:
    encode, batches = Recorder(most=2), Batching(None)
    assert len(ran(batches, clips(7, t=3), encode)) == 7
    assert encode.tried == [5, 2, 2, 2, 1]
    assert batches.frames == 6
    ran(batches, clips(4, t=2), encode := Recorder())
    assert encode.tried == [3, 1]  # 6 frames


def test_a_gpu_gives_back_what_it_holds_before_it_tries_again() -> None:
    memory, encode, block = FakeMemory(1, 10 * GIGA), Recorder(most=20), clips(32)
    assert ran(settled(memory, block, encode), block, encode) == list(block.ids)
    assert encode.tried == [8, 64, 32, 16, 16, 16]
    assert memory.diary == ["watch", "free", "release", "release"]


def test_a_first_batch_that_is_too_large_settles_the_size() -> None:
    memory, encode, block = FakeMemory(1, 10 * GIGA), Recorder(most=3), clips(6)
    assert len(ran(settled(memory, block, encode), block, encode)) == 6
    assert encode.tried == [8, 4, 2, 2, 2, 2]


def test_a_given_size_is_kept_to_and_still_halved() -> None:
    memory, encode, block = FakeMemory(GIGA, 1000 * GIGA), Recorder(most=5), clips(9)
    assert len(ran(settled(memory, block, encode, frames=12), block, encode)) == 9
    assert encode.tried == [12, 6, 3, 3, 3]
    assert memory.diary == ["release", "release"]


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_one_clip_that_is_too_large_ends_the_pass(error: Callable[[], Exception]) -> None:
    encode = Recorder(most=0, error=error)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the parameter
        ran(Batching(None), clips(20), encode)
    assert is_out_of_memory(caught.value)
    assert encode.tried == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes differ"), KeyError("CUDA out of memory")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    encode = Recorder(most=0, error=lambda: error)
    with pytest.raises(type(error)):
        ran(Batching(None), clips(20), encode)
    assert encode.tried == [16]


def test_tensors_of_a_failed_batch_are_gone_before_it_is_tried_again() -> None:
    alive = []

    class Big:
        def __del__(self) -> None:
            alive.remove(self.size)

        def __init__(self, size: int) -> None:
            self.size = size
            alive.append(size)

    def encode(batch: ClipBatch) -> str:
        assert not alive
        held = Big(len(batch))
        if held.size > 4:
            raise torch.OutOfMemoryError
        return "through"

    assert len(list(Batching(None).run(clips(8), encode))) == 2


# The feature pass


class FakeData:
    """Two dense splits and a sparse one, in blocks of several lengths."""

    names = ("train", "test", "align")
    dense = ("train", "test")
    scored = ("test", "align")
    class_names = ()
    blocks: Mapping[str, Sequence[ClipBatch]] = {
        "train": (clips(21, 1, seed=1),),
        "test": (clips(5, 1, seed=2), clips(7, 3, seed=3)),
        "align": (clips(19, 1, seed=4),),
    }
    total = 21 + 5 + 7 * 3 + 19

    def split(self, name: str) -> Split:
        return Split(tuple(self.blocks[name]))

    def digest(self, name: str) -> str:
        return ""

    def check_disjoint(self) -> None:
        return None


class FakeEncoder:
    """Patch means, at half precision if asked, with faults: no memory above ``most`` clips, or what ``fault`` says."""

    def __init__(self, most: int = 10**6, dtype: torch.dtype = torch.float32, fault: str = "") -> None:
        self.most, self.dtype, self.fault = most, dtype, fault
        self.tried: list[int] = []

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> dict[str, Grid]:
        self.tried.append(len(clips))
        if len(clips) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        n, t, h, w = clips.shape
        cells = torch.from_numpy(clips.frames).reshape(n, t, h // 7, 7, w // 7, 7, 3).double().mean((3, 5)) / 255
        values = cells.to(self.dtype)
        if self.fault == "batch":
            values = values - values.mean(0)
        if self.fault == "shape" and len(self.tried) == 2:
            values = values[:, :, :2]
        if self.fault == "type" and len(self.tried) == 2:
            values = values.bfloat16()
        if self.fault == "short":
            values = values[:-1]
        if self.fault == "nan":
            values[-1, -1, -1, -1, -1] = torch.nan
        return {tap: Grid(values * (1 + index)) for index, tap in enumerate(taps)}


def pass_of(encoder: FakeEncoder, **options: object) -> FeatureSet:
    return extraction.extract(lambda: encoder, ("early", "late"), FakeData(), **options)  # type: ignore[arg-type]


def equal(a: FeatureSet, b: FeatureSet) -> bool:
    def tensors(row: FeatureSet) -> dict[object, torch.Tensor]:
        blocks = {(*key, index): grid.values for key, grids in row.tokens.items() for index, grid in enumerate(grids)}
        return {**blocks, **row.coarse}

    ours, theirs = tensors(a), tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_features_do_not_depend_on_the_batch_size() -> None:
    one = pass_of(FakeEncoder(), batch_frames=1)
    assert one.batch_frames == 3  # a clip of 3 frames is never split
    assert one.tokens["early", "test"][1].shape == (7, 3, 4, 4, 3)
    assert one.coarse["late", "align"].shape == (19, features.COARSE_SIDE**2 * 3)
    assert set(one.tokens) == {(tap, split) for tap in ("early", "late") for split in ("train", "test")}
    for frames in (2, 7, 16, 64):
        assert equal(pass_of(FakeEncoder(), batch_frames=frames), one)


def test_a_result_that_depends_on_the_batch_is_told_apart() -> None:
    one = pass_of(FakeEncoder(fault="batch"), batch_frames=1)
    assert not equal(pass_of(FakeEncoder(fault="batch"), batch_frames=7), one)


def test_out_of_memory_changes_nothing_but_the_batch_size() -> None:
    seen: list[int] = []
    whole, small = FakeEncoder(), FakeEncoder(most=4)
    done = pass_of(small, progress=seen.append)
    assert equal(done, pass_of(whole))
    assert sum(seen) == done.frames == FakeData.total  # frames tried twice count once
    assert small.tried[:5] == [5, 2, 2, 2, 1]  # the longest clips come first: 7 of 3 frames
    assert max(seen) == done.batch_frames == 6
    assert pass_of(whole).batch_frames == 16


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, memory: FakeMemory) -> None:
    monkeypatch.setattr(extraction, "device_memory", lambda device: memory)


def test_filling_and_preflight_leave_no_trace_in_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, filled = pass_of(FakeEncoder()), FakeEncoder()
    on_a_gpu(monkeypatch, FakeMemory(1, GIGA))
    seen: list[int] = []
    done = pass_of(filled, device="cuda", progress=seen.append)
    assert equal(done, plain)
    assert sum(seen) == done.frames == FakeData.total
    # 8 and 64 frames in clips of 3 beforehand; then all blocks, the longest clips first.
    assert filled.tried == [2, 21, 21, 64, 64, 64]
    assert done.batch_frames == 64


CELLS, AVERAGES = 4 * 4 * 3 * (21 + 5 + 7 * 3), 4 * 16 * 3 * (21 + 5 + 7 + 19)
"""Of one tap: numbers in the tokens of the dense splits, and bytes of the averages of all."""


def on_a_gpu_beside_a_host(monkeypatch: pytest.MonkeyPatch, device: int, room: int, host: int) -> None:
    """Let the device have ``device`` bytes, of which features may take ``room``, and the host ``host``."""
    on_a_gpu(monkeypatch, FakeMemory(1, device))
    monkeypatch.setattr(extraction, "device_room", lambda memory: room)
    monkeypatch.setattr(extraction, "free_memory", lambda memory: memory.free() if memory else host)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 4)])
def test_what_all_features_take_is_known_after_one_batch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int
) -> None:
    needed = 2 * (size * CELLS + AVERAGES)
    monkeypatch.setattr(extraction, "free_memory", lambda memory: needed)
    whole = pass_of(FakeEncoder(dtype=dtype))
    monkeypatch.setattr(extraction, "free_memory", lambda memory: needed - 1)
    lacking = FakeEncoder(dtype=dtype)
    with pytest.raises(OutOfMemory, match=r"features of 2 taps need .*e-05 GB of cpu's memory, .* select fewer taps"):
        pass_of(lacking)
    assert lacking.tried == [5]
    monkeypatch.setattr(extraction, "free_memory", lambda memory: None)
    assert equal(pass_of(FakeEncoder(dtype=dtype)), whole)


def test_taps_that_find_no_room_on_a_gpu_go_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tap = pass_of(FakeEncoder()), 4 * CELLS
    for room, device, host in ((2 * tap, 2, 0), (2 * tap - 1, 1, 1), (tap - 1, 0, 2)):
        taken = device * tap + 2 * AVERAGES, host * tap
        on_a_gpu_beside_a_host(monkeypatch, taken[0], room, taken[1])
        assert equal(pass_of(FakeEncoder(), device="cuda"), plain)
        for less, where in (((1, 0), "cuda"), ((0, 1), "the host")):
            if less[1] <= taken[1]:
                on_a_gpu_beside_a_host(monkeypatch, taken[0] - less[0], room, taken[1] - less[1])
                lacking = FakeEncoder()
                with pytest.raises(OutOfMemory, match=f"of {where}'s memory"):
                    pass_of(lacking, device="cuda")
                assert lacking.tried == [2]


def test_features_leave_half_of_a_gpu_to_the_experiments() -> None:
    assert batching.device_room(FakeMemory(1, 17)) == 8
    assert batching.device_room(None) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_stands_on_the_host_is_float32_on_the_gpu_when_it_is_asked_for() -> None:
    held = holding.Held(("early", "late"), FakeData())  # type: ignore[arg-type]
    values = torch.randn(21, 1, 4, 4, 3, dtype=torch.bfloat16, device="cuda")
    held.room = 2 * CELLS
    for tap in held.taps:
        for block, (n, t, _, _) in held.shapes.items():
            part = values[:1].expand(n, t, -1, -1, -1) if block != ("train", 0) else values
            held.put(tap, block, slice(0, n), part, torch.zeros(n, 48, device="cuda"))
    places = {tap: held.values[tap, ("train", 0)].device.type for tap in held.taps}
    assert places == {"early": "cuda", "late": "cpu"}
    assert held.room == 0
    for tap in held.taps:
        (grid,) = held.tokens()[tap, "train"]
        assert (grid.values.device.type, grid.values.dtype) == ("cuda", torch.float32)
        assert torch.equal(grid.values, values.float())


def test_the_hosts_memory_is_what_a_cpu_has() -> None:
    free = batching.free_memory(None)
    assert free is not None
    assert GIGA // 10 < free < 10**14
    assert batching.free_memory(FakeMemory(1, 17)) == 17


def test_one_clip_too_large_is_typed() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        pass_of(FakeEncoder(most=0))
    assert classify(caught.value).status == "oom"


def test_half_precision_features_are_read_in_float32() -> None:
    done = pass_of(FakeEncoder(dtype=torch.bfloat16))
    assert {grid.values.dtype for grids in done.tokens.values() for grid in grids} == {torch.float32}
    assert {vectors.dtype for vectors in done.coarse.values()} == {torch.float32}
    tokens = done.tokens["early", "train"][0]
    # Averaged in float32 too: sums in half precision would be off by 0.4 %.
    assert torch.equal(done.coarse["early", "train"], tokens.coarse(features.COARSE_SIDE))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("shape", "changed shape from"),
        ("type", "changed type from torch.float32 to"),
        ("short", "returned 4 clips for a batch of 5"),
        ("nan", "holds NaN"),
    ],
)
def test_a_broken_grid_is_a_contract_error(fault: str, sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        pass_of(FakeEncoder(fault=fault))


def test_a_cpu_has_no_memory_to_watch() -> None:
    assert batching.device_memory("cpu") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_of_a_cuda_device_is_the_batch_and_not_what_stood_there_before() -> None:
    memory = batching.device_memory("cuda")
    assert memory is not None
    standing = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    before = memory.free()
    memory.watch()
    passing = torch.empty(2**26, dtype=torch.uint8, device="cuda")
    del passing
    assert memory.peak() == 2**26
    assert abs(memory.free() - before) < 2**24  # what torch keeps for reuse can be had
    memory.release()
    assert len(standing) == 2**28


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_can_be_watched_before_anything_stands_on_the_device() -> None:
    code = (
        "from foresight_bench.batching import device_memory\n"
        "memory = device_memory('cuda')\n"
        "memory.watch()\n"
        "assert memory.peak() == 0 < memory.free()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
