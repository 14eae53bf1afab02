"""The results folder: ``<cohort>/<machine>/<encoder>/<cell-id>.json`` with the per-clip scores beside it, a picture
where the experiment draws one, and the traceback of what failed.

A file appears whole or not at all, and is never changed once it says ``ok``, however many runs write to the folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from foresight_bench.cells import FINISHED, Cell, parse
from foresight_bench.errors import DataError, EnvironmentFault
from foresight_bench.packing import Key, unpack
from foresight_bench.scores import Scores

TEMPORARY = ".tmp-"
"""What the name of a file starts with that is not whole yet."""
FAILURE = ".failure.txt"
"""Suffix of the traceback beside a cell that failed."""
LARGEST_CELL = 16_000_000
"""Bytes of a cell file that is read at most; one of 13 taps and three readouts has 25 thousand."""
LARGEST_BESIDE = 256_000_000
"""Bytes of scores or of a picture that are read at most; those of 13 taps and three readouts have 5 million."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that readers see the old file or the whole new one.

    The temporary file lies in the same folder (a rename across file systems copies) and is fsynced before the
    rename (else a crash may leave an empty file under the final name).

    Raises:
        EnvironmentFault: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise EnvironmentFault(
            f"Cannot write {path}: {error.strerror}.", "Choose another folder with --results, or make room."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def vouched(path: Path, digest: str) -> bytes:
    """Return the bytes of a file beside a cell that vouches for it by ``digest``, its SHA-256.

    Raises:
        DataError: it is missing, or not that file.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_BESIDE:
            raise DataError(f"{path} is no plain file of at most {LARGEST_BESIDE} bytes.", "No run writes such a one.")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.", "Delete the cell's .json to recompute it.") from error
    if sha256(data).hexdigest() != digest:
        raise DataError(f"{path} is not the file its cell vouches for.", "Delete both to recompute the cell.")
    return data


def read_scores(path: Path, cell: Cell) -> dict[Key, Scores]:
    """Return the scores of ``cell`` from the file at ``path``.

    Raises:
        DataError: the file is missing, not the one the cell vouches for, or holds something else.
    """
    data = vouched(path, cell.scores_sha256)
    try:
        return unpack(data)
    except ValueError as error:
        raise DataError(f"{path} holds no scores: {error}.", "Delete it and its cell to recompute the cell.") from error


class Store:
    """A results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cell: Cell) -> Path:
        """Return where ``cell`` is kept."""
        identity = cell.identity
        return self.folder(identity.cohort, cell.provenance.machine) / folder_name(identity.encoder) / f"{cell.id}.json"

    def folder(self, cohort: str, machine: str) -> Path:
        """Return where the cells of one cohort and machine are kept."""
        return self.root / folder_name(cohort) / folder_name(machine)

    def check_writable(self) -> None:
        """Raise :class:`EnvironmentFault` now rather than after an hour of work."""
        probe = self.root / f"{TEMPORARY}probe-{os.getpid()}"
        write_atomically(probe, b"")
        probe.unlink()

    def write(self, cell: Cell, scores: bytes = b"", picture: bytes = b"", failure: str = "") -> None:
        """Write the scores and the picture (PNG), then the cell that vouches for them; ``failure`` is a traceback.

        A cell that another run has finished meanwhile is left as it is: its file vouches for its own scores.
        """
        path = self.path(cell)
        with self._locked(path.parent):
            if self._is_finished(path):
                return
            for suffix, data in ((".safetensors", scores), (".png", picture), (FAILURE, failure.encode())):
                if data:
                    write_atomically(path.with_suffix(suffix), data)
            write_atomically(path, cell.sealed())
            if not failure:
                path.with_suffix(FAILURE).unlink(missing_ok=True)

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the folder against other runs, and rid it of what a killed one left half written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder.parent / ".lock").open("a")
        except OSError as error:
            raise EnvironmentFault(
                f"Cannot write to {folder}: {error.strerror}.", "Choose another folder with --results, or make room."
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for stale in folder.glob(f"{TEMPORARY}*"):
                stale.unlink(missing_ok=True)
            yield

    def _is_finished(self, path: Path) -> bool:
        try:
            return self.read(path).status in FINISHED
        except DataError:
            return False

    def scores(self, cell: Cell) -> dict[Key, Scores]:
        """Return the cell's scores.

        Raises:
            DataError: the file is missing, not the one the cell vouches for, or holds something else.
        """
        return read_scores(self.path(cell).with_suffix(".safetensors"), cell)

    def read(self, path: Path) -> Cell:
        """Read one cell file.

        Raises:
            DataError: it is not a cell of this schema, or not as it was written.
        """
        try:
            if path.stat().st_size > LARGEST_CELL:
                raise ValueError(f"it is larger than {LARGEST_CELL} bytes")
            return parse(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(f"{path} is not a readable cell file.", "Delete it to recompute the cell.") from error

    def cells(self, cohort: str = "*", machine: str = "*") -> Iterator[Cell]:
        """Yield the cells, in order of path."""
        for path in sorted(self.root.glob(f"{cohort}/{machine}/*/*.json")):
            yield self.read(path)

    def finished(self, cohort: str, machine: str) -> dict[str, Cell]:
        """Return the ok and skipped cells of one cohort and machine by id; an unreadable file counts as absent."""
        return {key: cell for key, cell in self.readable(cohort, machine).items() if cell.status in FINISHED}

    def readable(self, cohort: str, machine: str) -> dict[str, Cell]:
        """Return the cells of one cohort and machine by id, whatever became of them, that can be read."""
        found = {}
        for path in sorted(self.folder(cohort, machine).glob("*/*.json")):
            try:
                cell = self.read(path)
            except DataError:
                continue
            found[cell.id] = cell
        return found

    def find(self, cohort: str, machine: str, encoder: str, cell_id: str) -> Cell | None:
        """Return one cell, None if it is not there or cannot be read."""
        try:
            return self.read(self.folder(cohort, machine) / folder_name(encoder) / f"{cell_id}.json")
        except DataError:
            return None


def folder_name(name: str) -> str:
    """Return ``name`` as the name of one folder: whatever else it holds cannot lead out of the results."""
    safe = re.sub(r"[^A-Za-z0-9._@~=-]", "_", name.replace("+", "__"))
    return f"_{safe}" if safe.startswith(".") or not safe else safe
