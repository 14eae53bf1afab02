"""SHA-256 of weights files; a large one is read once, not on every run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from pathlib import Path

import platformdirs

from foresight_bench.errors import WeightsError

LARGE = 64_000_000
"""Bytes from which on a digest is remembered; smaller files hash in less than a tenth of a second."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_root() -> Path:
    """Return the folder of everything that can be had again; ``FORESIGHT_BENCH_CACHE`` moves it."""
    return Path(os.environ.get("FORESIGHT_BENCH_CACHE") or platformdirs.user_cache_dir("foresight-bench"))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal, by reading them.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"The file {path} cannot be read: {error.strerror}.", "Check it and its folder.") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal, where possible without reading them.

    A blob of the Hugging Face cache named by 64 digits is named after its SHA-256, which was compared when it was
    fetched. Of any other large file the digest is remembered for as long as its size, inode, and times of change
    stay: not only the time of modification, which copying tools set back.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = path.resolve()
    if _SHA256.fullmatch(path.name) and path.parent.name == "blobs" and path.parent.parent.name.startswith("models--"):
        return path.name
    stamp = _stamp(path)
    if stamp is None or stamp[0] < LARGE:
        return hash_file(path)
    memo = cache_root() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    remembered = _recall(memo, stamp)
    if remembered is not None:
        return remembered
    digest = hash_file(path)
    # The stamp is from before: if somebody wrote to the file meanwhile, it is no longer the file's.
    facts = {"sha256": digest, "seal": _seal(stamp, digest)}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memo, json.dumps(facts).encode())
    return digest


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` never holds a part of it.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(path: Path) -> list[int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return [facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns]


def _recall(memo: Path, stamp: list[int]) -> str | None:
    try:
        facts = json.loads(memo.read_bytes())
        digest = facts["sha256"]
        intact = facts["seal"] == _seal(stamp, digest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(digest) if intact else None


def _seal(stamp: list[int], digest: str) -> str:
    """Return what ties a digest to the stamp it was made for; it guards against accidents, not against forgery."""
    return hashlib.sha256(f"{stamp} {digest}".encode()).hexdigest()[:16]
