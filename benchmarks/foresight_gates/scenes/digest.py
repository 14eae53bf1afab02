"""Digests of clips, and the proof that no two splits share a frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foresight_bench.clips import ClipBatch
from foresight_bench.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def _arrays(batch: ClipBatch) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield "frames", batch.frames
    if batch.truth is not None:
        for name in ("boxes", "classes", "labels", "plates"):
            yield name, getattr(batch.truth, name)


def _tagged(name: str, array: NDArray[np.generic]) -> bytes:
    """Return SHA-256 of ``array`` with its name, type and shape; the bytes are little-endian everywhere."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{name} {little.dtype.kind}{little.dtype.itemsize} {little.shape}\n".encode())
    digest.update(little.data)
    return digest.digest()


def clip_digests(batch: ClipBatch) -> list[bytes]:
    """Return one SHA-256 per clip, over its frames and all of its truth (ids aside)."""
    arrays = list(_arrays(batch))

    def one(index: int) -> bytes:
        return hashlib.sha256(b"".join(_tagged(name, array[index]) for name, array in arrays)).digest()

    return _each(one, range(len(batch)))


def digest(blocks: Iterable[ClipBatch]) -> str:
    """Return the SHA-256, in hex, of clips in their order; how they are cut into blocks does not matter."""
    return hashlib.sha256(b"".join(d for block in blocks for d in clip_digests(block))).hexdigest()


def frame_hashes(batch: ClipBatch) -> list[list[bytes]]:
    """Return the SHA-256 of the content of each frame, [N][T]."""
    return _each(lambda clip: [_tagged("frame", frame) for frame in clip], batch.frames)


def _each(function: Callable[[Item], Result], clips: Iterable[Item]) -> list[Result]:
    """Return what ``function`` makes of each clip: hashing runs without the interpreter's lock."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(function, clips))


def assert_disjoint(splits: Mapping[str, Iterable[ClipBatch]]) -> None:
    """Raise DataError if any frame of one split occurs in another."""
    seen: dict[bytes, tuple[str, str]] = {}
    for name, blocks in splits.items():
        for block in blocks:
            for clip, hashes in zip(block.ids, frame_hashes(block), strict=True):
                for t, content in enumerate(hashes):
                    other, other_clip = seen.setdefault(content, (name, clip))
                    if other != name:
                        raise DataError(
                            f"Frame {t} of clip '{clip}' in split '{name}' also occurs "
                            f"in clip '{other_clip}' in split '{other}'.",
                            "Give each split clips of its own: scores on training clips say nothing.",
                        )
