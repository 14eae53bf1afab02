"""The feature cache on disk: ``features/<ke>/<key>/`` with identity.json, shards, and manifest.json once it is whole.

An entry holds one tap of one encoder over one suite's clips. Files appear whole or not at all, so that several runs
may use the cache at once. Whatever is not as it was written counts as absent. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from pydantic import FiniteFloat

from foresight_bench import shards
from foresight_bench.cells import Record, load_json, seal
from foresight_bench.digests import cache_root, write_whole
from foresight_bench.keys import FeatureIdentity
from foresight_bench.shards import Corrupt, Place

IDENTITY, MANIFEST = "identity.json", "manifest.json"
MOST_RECORD = 16_000_000
"""Bytes of a record that is read at most; a manifest has 200 for each shard of up to 64 MiB."""

_KEY = re.compile(r"[0-9a-f]{32}")
_SHARD = re.compile(r"([^./-][^./]*)-(\d{1,9})-(\d{1,9})-(\d{1,9})\.safetensors", re.ASCII)

AnyRecord = TypeVar("AnyRecord", bound=Record)
Blocks = Mapping[tuple[str, int], int]
"""Clips of each block of each split."""


class Pass(Record):
    """The feature pass that computed an entry, or most of it. None of this is part of the key."""

    device: str = ""
    """Model of the device."""
    compiled: bool = False
    """Whether the encoder was compiled."""
    parameters: int = 0
    """Of the encoder, as it was built for all taps of the pass; 0 if unknown."""
    batch_frames: int = 0
    """Frames of the largest batch."""
    frames: int = 0
    """Frames that went through."""
    seconds: FiniteFloat = 0.0
    """Wall time they took, all taps of the pass together."""
    created: str = ""
    """UTC time of its end, ISO 8601."""


class ShardRecord(Record):
    """One shard."""

    split: str
    """Split that the clips are of."""
    block: int
    """Block of the split."""
    start: int
    """First clip."""
    stop: int
    """Clip behind the last."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Its digest; empty where no manifest says it."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{quote(self.split, safe='').replace('.', '%2E')}-{self.block}-{self.start}-{self.stop}.safetensors"


class Manifest(Record):
    """What makes an entry whole."""

    made: Pass
    """Where the features come from."""
    shards: tuple[ShardRecord, ...]
    """All shards: together they hold every clip."""


@dataclass(frozen=True)
class Entry:
    """The cache's folder of one key; it need not exist."""

    folder: Path

    @property
    def key(self) -> str:
        """The key."""
        return self.folder.name

    def identity(self) -> FeatureIdentity | None:
        """Return what the key stands for; None if no intact record says it."""
        found = _load(self.folder / IDENTITY, FeatureIdentity)
        return found if found is not None and found.key() == self.key else None

    def manifest(self) -> Manifest | None:
        """Return the manifest; None if the entry is not whole, or the file not intact."""
        return _load(self.folder / MANIFEST, Manifest)

    def shards(self) -> list[ShardRecord]:
        """Return what the manifest lists; without one, what lies there, which its digests alone vouch for."""
        manifest = self.manifest()
        if manifest is not None:
            return list(manifest.shards)
        found = []
        for path, facts in self._files():
            if match := _SHARD.fullmatch(path.name):
                split, block, start, stop = unquote(match[1]), int(match[2]), int(match[3]), int(match[4])
                record = ShardRecord(split=split, block=block, start=start, stop=stop, bytes=facts.st_size, sha256="")
                if record.name == path.name:
                    found.append(record)
        return found

    def path(self, shard: ShardRecord) -> Path:
        """Return where ``shard`` lies."""
        return self.folder / shard.name

    def place(self, shard: ShardRecord) -> Place:
        """Return what ``shard`` must hold."""
        return Place(self.key, shard.split, shard.block, shard.start, shard.stop)

    def save(self, record: FeatureIdentity | Manifest) -> None:
        """Write a record of the entry; the manifest comes last.

        Raises:
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = record.model_dump(mode="json")
        name = MANIFEST if isinstance(record, Manifest) else IDENTITY
        write_whole(self.folder / name, _text({**facts, "seal": seal(facts)}))

    def touch(self) -> None:
        """Note that a whole entry is of use now."""
        try:
            os.utime(self.folder / MANIFEST)
        except OSError:  # somebody else's cache may be read, not written
            return

    def used(self) -> float:
        """Return when it was last of use, in seconds since 1970; of one that is not whole, when it was last written."""
        times = {path.name: facts.st_mtime for path, facts in self._files()}
        return times.get(MANIFEST, max(times.values(), default=0.0))

    def size(self) -> int:
        """Return the bytes of all its files."""
        return sum(facts.st_size for _, facts in self._files())

    def is_whole(self) -> bool:
        """Return whether it has a manifest."""
        return (self.folder / MANIFEST).is_file()

    def remove(self) -> None:
        """Delete it, the manifest first, so that what an interruption leaves does not count as whole."""
        for path in sorted((path for path, _ in self._files()), key=lambda path: path.name != MANIFEST):
            _try_to(path.unlink)
        _try_to(self.folder.rmdir)
        _try_to(self.folder.parent.rmdir)  # only if it was the last

    def faults(self) -> list[tuple[str, str]]:
        """Return file and reason of everything that is not as it was written, having read all of it."""
        found = [] if self.identity() else [(IDENTITY, "it is not readable, or of another key")]
        if self.is_whole() and self.manifest() is None:
            found.append((MANIFEST, "it is not readable"))
        for shard in self.shards():
            try:
                digest, _ = shards.read(self.path(shard), self.place(shard), lambda size: memoryview(bytearray(size)))
                if shard.sha256 not in ("", digest):
                    raise Corrupt("it is not the one that the manifest lists")
            except Corrupt as error:
                found.append((shard.name, str(error)))
        return found

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        try:
            with os.scandir(self.folder) as files:
                for file in files:
                    if file.is_file(follow_symlinks=False):
                        found.append((Path(file.path), file.stat(follow_symlinks=False)))
        except OSError:  # another process removes it
            return found
        return found


def root() -> Path:
    """Return the folder of all entries."""
    return cache_root() / "features"


def entry(key: str) -> Entry:
    """Return the entry of ``key``, whether or not it exists."""
    return Entry(root() / key[:2] / key)


def entries() -> list[Entry]:
    """Return all entries, in order of key."""
    found = (Entry(folder) for folder in sorted(root().glob("??/*")))
    return [each for each in found if _KEY.fullmatch(each.key) and each.folder.parent.name == each.key[:2]]


def covering(records: Iterable[ShardRecord], blocks: Blocks) -> list[ShardRecord]:
    """Return those of ``records`` that hold clips of ``blocks``, so that none is there twice."""
    chosen: list[ShardRecord] = []
    ends = dict.fromkeys(blocks, 0)
    for record in sorted(records, key=lambda each: (each.split, each.block, each.start, -each.stop)):
        where = record.split, record.block
        if where in blocks and ends[where] <= record.start < record.stop <= blocks[where]:
            chosen.append(record)
            ends[where] = record.stop
    return chosen


def _load(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    try:
        if path.stat().st_size > MOST_RECORD:
            return None
        found: Any = load_json(path.read_bytes())
        if found.pop("seal") != seal(found):
            return None
        return kind.model_validate_json(_text(found), strict=True)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None


def _text(record: Mapping[str, object]) -> bytes:
    return f"{json.dumps(record, indent=1, allow_nan=False)}\n".encode()


def _try_to(remove: Any) -> None:
    try:
        remove()
    except OSError:  # gone already, not empty, or not ours
        return
