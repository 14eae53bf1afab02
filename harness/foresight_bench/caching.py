"""The feature cache as a pass sees it: what is there is recalled before, what is computed is written behind it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from foresight_bench import cache, pruning, shards
from foresight_bench.cache import Entry, Manifest, Pass, ShardRecord
from foresight_bench.errors import ContractError
from foresight_bench.holding import Block, Held
from foresight_bench.keys import FeatureIdentity
from foresight_bench.shards import Array, Corrupt

SHARD_BYTES = 2**26
"""Bytes of a shard at most, unless one batch takes more: what a flipped byte or a killed run costs again."""
READERS = 4
"""Threads that read at a time; each hashes about 1.8 GB/s on a core of its own."""

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in TYPES.items()}


class FeatureCache:
    """The entries of one row's taps, one a tap.

    Shards are cut where batches end, so that a resumed pass runs the batches that an undisturbed one would. They are
    written by one thread from the features that the pass keeps anyway, which takes no further memory, and never
    makes the pass wait. A cache that cannot be written costs time, nothing else.

    Args:
        identities: of each tap.
        device: model of the device, which manifests record.
        compiled: whether the encoder is compiled, which they record too.
        note: called with a sentence if caching ends early, by the thread that calls the methods.
    """

    def __init__(
        self, identities: Mapping[str, FeatureIdentity], device: str, compiled: bool, note: Callable[[str], None]
    ) -> None:
        self._identities = dict(identities)
        self._entries = {tap: cache.entry(identity.key()) for tap, identity in identities.items()}
        self._records: dict[str, list[ShardRecord]] = {tap: [] for tap in identities}
        self._made: dict[str, Pass] = {}
        self._stale: set[str] = set()  # taps without a manifest, or with new shards
        self._open: dict[tuple[str, Block], tuple[int, int]] = {}
        self._device, self._compiled, self._note = device, compiled, note
        self._writer = ThreadPoolExecutor(1, "feature-cache")
        self._ended = ""
        """Why nothing more is written; empty while all is well."""
        self._told = False

    def recall(self, held: Held, device: torch.device) -> None:
        """Put every clip that is intact in the cache into ``held``, on ``device``; delete shards that are not."""
        blocks = {block: shape[0] for block, shape in held.shapes.items()}
        wanted: list[tuple[str, Entry, ShardRecord]] = []
        for tap, entry in self._entries.items():
            manifest = entry.manifest()
            if manifest is None:
                self._stale.add(tap)
            else:
                self._made[tap] = manifest.made
                entry.touch()
            wanted += [(tap, entry, record) for record in cache.covering(entry.shards(), blocks)]
        staging = Staging(device)

        def one(tap: str, entry: Entry, record: ShardRecord) -> ShardRecord | None:
            try:
                return _recalled(held, tap, entry, record, staging)
            except (Corrupt, ContractError):
                with suppress(OSError):
                    entry.path(record).unlink()
                return None

        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as readers:
            found = list(readers.map(lambda each: one(*each), wanted))
        for (tap, _, _), record in zip(wanted, found, strict=True):
            if record is not None:
                self._records[tap].append(record)

    def begin(self, needed: int) -> None:
        """Get ready to write ``needed`` bytes: make room for them, or write nothing."""
        if not pruning.make_room(needed, {entry.key for entry in self._entries.values()}):
            self._ended = "there is no room for them"
        self._submit(self._write_identities)

    def add(self, held: Held, tap: str, block: Block, clips: slice) -> None:
        """Take note that ``held`` has ``clips``, one batch."""
        start, stop = self._open.get((tap, block), (clips.start, clips.start))
        clip = held.coarse[tap, block][0].nbytes
        if (tap, block) in held.values:
            clip += held.values[tap, block][0].nbytes
        if stop > start and (clips.stop - start) * clip > SHARD_BYTES:
            self._cut(held, tap, block)
            start = clips.start
        self._open[tap, block] = start, clips.stop

    def cut(self, held: Held) -> None:
        """End all shards that are begun, at the end of a gap."""
        for tap, block in list(self._open):
            self._cut(held, tap, block)

    def finish(self, computed: Pass | None) -> Pass:
        """Have manifests written behind the shards; return the pass that computed most of the row's frames.

        Its parameters are those of an encoder that serves all taps of the row.

        Args:
            computed: what was computed just now, None for nothing; device, compiled and such are filled in.
        """
        passes = dict(self._made)
        if computed is not None:
            latest = computed.model_copy(update={"device": self._device, "compiled": self._compiled})
            for tap in self._stale:
                passes[tap] = max(passes.get(tap, latest), latest, key=lambda each: each.frames)
        self._submit(self._write_identities)
        for tap in self._stale:
            self._submit(partial(self._write_manifest, tap, passes.get(tap, Pass())))
        self._tell()
        most = max(passes.values(), default=Pass(), key=lambda each: each.frames)
        return most.model_copy(update={"parameters": self._parameters(computed)})

    def close(self) -> None:
        """Wait until all is written. Until then the features stay in memory, whoever else has dropped them."""
        self._writer.shutdown()
        self._tell()

    def _parameters(self, computed: Pass | None) -> int:
        """Return how many the encoder has when it is built for all taps of the row; 0 if unknown."""
        if computed is not None:
            return computed.parameters
        each = [self._made[tap].parameters if tap in self._made else 0 for tap in self._entries]
        return max(each) if all(each) else 0  # a pass for shallower taps alone may have built less

    def _cut(self, held: Held, tap: str, block: Block) -> None:
        start, stop = self._open.pop((tap, block))
        self._stale.add(tap)
        parts = {"coarse": held.coarse[tap, block][start:stop]}
        if (tap, block) in held.values:
            parts["values"] = held.values[tap, block][start:stop]
        self._submit(partial(self._write_shard, tap, block, start, stop, parts))
        self._tell()

    def _submit(self, job: Callable[[], None]) -> None:
        def guarded() -> None:
            if self._ended:
                return
            try:
                job()
            except OSError as error:
                self._ended = error.strerror or "it cannot be written"
            except Exception as error:  # the features are there: what only caches them must not end the run
                self._ended = f"{type(error).__name__}: {error}"

        self._writer.submit(guarded)

    def _tell(self) -> None:
        if self._ended and not self._told:
            self._told = True
            self._note(f"These features are not cached: {self._ended}.")

    def _write_identities(self) -> None:
        for tap, entry in self._entries.items():
            if entry.identity() is None:
                entry.save(self._identities[tap])

    def _write_shard(self, tap: str, block: Block, start: int, stop: int, parts: Mapping[str, Tensor]) -> None:
        entry = self._entries[tap]
        arrays = {name: _array(part) for name, part in parts.items()}
        record = ShardRecord(split=block[0], block=block[1], start=start, stop=stop, bytes=0, sha256="")
        digest = shards.write(entry.path(record), entry.place(record), arrays)
        size = entry.path(record).stat().st_size
        self._records[tap].append(record.model_copy(update={"bytes": size, "sha256": digest}))

    def _write_manifest(self, tap: str, made: Pass) -> None:
        records = sorted(self._records[tap], key=lambda each: (each.split, each.block, each.start))
        self._entries[tap].save(Manifest(made=made, shards=tuple(records)))


class Staging(threading.local):
    """Memory that a thread reads one shard after the other into; pinned where a GPU is to fetch it from there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> memoryview:
        """Return ``size`` bytes, the same as before where they suffice."""
        if len(self.bytes) < size:
            self.bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return self.bytes[:size].numpy().data

    def tensor(self, array: Array, at: int) -> Tensor:
        """Return the tensor whose bytes stand behind the first ``at``, on the device."""
        part = self.bytes[at : at + array.nbytes].view(TYPES[array.dtype])
        return part.reshape(array.shape).to(self.device)


def _recalled(held: Held, tap: str, entry: Entry, record: ShardRecord, staging: Staging) -> ShardRecord:
    """Put one shard into ``held`` and return its record with its digest."""
    digest, arrays = shards.read(entry.path(record), entry.place(record), staging.take)
    if record.sha256 not in ("", digest):
        raise Corrupt("it is not the one that the manifest lists")
    dense = record.split in held.dense
    if "coarse" not in arrays or (dense and "values" not in arrays) or arrays["coarse"].dtype != "F32":
        raise Corrupt("a tensor is missing")
    coarse = staging.tensor(arrays["coarse"], 0)
    values = staging.tensor(arrays["values"], arrays["coarse"].nbytes) if dense else None
    held.put(tap, (record.split, record.block), slice(record.start, record.stop), values, coarse)
    return record.model_copy(update={"sha256": digest})


def _array(tensor: Tensor) -> Array:
    """Return ``tensor`` as a shard holds it."""
    there = tensor.cpu().contiguous()
    return Array(_NAMES[there.dtype], tuple(there.shape), there.view(torch.uint8).flatten().numpy().data)
