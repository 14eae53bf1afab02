"""One shard of cached features: a safetensors file that says what it holds and carries its own digest.

It is written and read here, and not by the library, so that bytes are hashed on their way, each once and without a
copy. There is one way to write a given header, and no other is read. Imports no torch.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

from foresight_bench.cells import load_json

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a value by the format's name of its type."""
TENSORS = {"coarse": 2, "values": 5}
"""Axes of what a shard may hold, in the file's order: with float32 first, each stands where its type may."""
MOST_HEADER = 4096
"""Bytes of a header that are read at most; one with both tensors takes about 400."""
CHUNK = 2**20
"""Bytes read and hashed at a time. They are still in the core's own cache when they are hashed."""

_BLANK = "0" * 64


class Corrupt(ValueError):
    """A shard is missing, or not what was written under its name."""


@dataclass(frozen=True)
class Place:
    """Which clips of which features a shard holds."""

    key: str
    """Of the entry."""
    split: str
    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class Array:
    """A tensor of a shard."""

    dtype: str
    """As the format names it, a key of ``ITEM_BYTES``."""
    shape: tuple[int, ...]
    """Clips first."""
    data: memoryview
    """Its bytes in C order."""

    @property
    def nbytes(self) -> int:
        """Bytes that type and shape stand for."""
        return ITEM_BYTES[self.dtype] * prod(self.shape)


def write(path: Path, place: Place, arrays: Mapping[str, Array]) -> str:
    """Write a shard, whole or not at all, and return its digest.

    That is the SHA-256 of the file with zeros where the digest stands. The file is not synced: of what a power cut
    leaves of it the digest tells, at the cost of computing it again.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    blank = _header(place, arrays, _BLANK)
    digest = sha256(blank)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(blank)
            for name in arrays_in_order(arrays):
                data = arrays[name].data
                for start in range(0, len(data), CHUNK):
                    chunk = data[start : start + CHUNK]
                    digest.update(chunk)
                    file.write(chunk)
            file.seek(0)
            file.write(_header(place, arrays, digest.hexdigest()))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def read(path: Path, place: Place, buffer: Callable[[int], memoryview]) -> tuple[str, dict[str, Array]]:
    """Return digest and arrays of a shard, having compared every byte with the digest.

    Args:
        path: of the shard.
        place: what it must hold.
        buffer: called once with a number of bytes, returns where to put them; the arrays are views of it.

    Raises:
        Corrupt: it is missing, or not a shard as :func:`write` leaves it, or of another place.
    """
    try:
        with FileIO(path) as file:
            size = os.fstat(file.fileno()).st_size
            if hasattr(os, "posix_fadvise"):  # so that the disk goes on while a chunk is hashed
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            length = int.from_bytes(_exactly(file, 8), "little")
            if not 0 < length <= MOST_HEADER:
                raise Corrupt(f"a header of {length} bytes")
            text = _exactly(file, length)
            found, shapes = _parsed(text)
            view = buffer(size - 8 - length)
            arrays, at = {}, 0
            for name, (dtype, shape) in shapes.items():
                end = at + Array(dtype, shape, view).nbytes
                arrays[name] = Array(dtype, shape, view[at:end])
                at = end
            if at != len(view) or _header(place, arrays, found) != length.to_bytes(8, "little") + text:
                raise Corrupt("the header is not what belongs here")
            digest = sha256(_header(place, arrays, _BLANK))
            _hashed_into(file, view, digest)
    except OSError as error:
        raise Corrupt(error.strerror or "cannot be read") from error
    if digest.hexdigest() != found:
        raise Corrupt("its bytes are not those that were written")
    return found, arrays


def arrays_in_order(arrays: Mapping[str, Array]) -> list[str]:
    """Return the names of ``arrays`` in the file's order."""
    return [name for name in TENSORS if name in arrays]


def _hashed_into(file: FileIO, view: memoryview, digest: Any) -> None:
    at = 0
    while at < len(view):
        got = file.readinto(view[at : at + CHUNK])
        if not got:
            raise Corrupt("it ends too early")
        digest.update(view[at : at + got])
        at += got


def _exactly(file: FileIO, length: int) -> bytes:
    data = file.read(length)
    if data is None or len(data) < length:
        raise Corrupt("it ends too early")
    return data


def _parsed(text: bytes) -> tuple[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Return digest, and type and shape of each tensor, as far as a header has them; offsets are not looked at."""
    try:
        header: Any = load_json(text)
        digest = str(header["__metadata__"]["sha256"])
        shapes = {
            name: (str(header[name]["dtype"]), tuple(header[name]["shape"])) for name in TENSORS if name in header
        }
    except (ValueError, LookupError, TypeError) as error:
        raise Corrupt("the header is not readable") from error
    for name, (dtype, shape) in shapes.items():
        whole = all(type(axis) is int and axis > 0 for axis in shape)  # true would be an int
        if dtype not in ITEM_BYTES or len(shape) != TENSORS[name] or not whole:
            raise Corrupt(f"the header describes no {name}")
    return digest, shapes


def _header(place: Place, arrays: Mapping[str, Array], digest: str) -> bytes:
    """Return the first bytes of the file: length, JSON, and blanks up to a multiple of 8."""
    facts = {"key": place.key, "split": place.split, "block": str(place.block)}
    clips = {"start": str(place.start), "stop": str(place.stop)}
    record: dict[str, object] = {"__metadata__": {**facts, **clips, "sha256": digest}}
    at = 0
    for name in arrays_in_order(arrays):
        array = arrays[name]
        shape = [place.stop - place.start, *array.shape[1:]]
        record[name] = {"dtype": array.dtype, "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(record, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
