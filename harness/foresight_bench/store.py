"""The results folder: ``<cohort>/<machine>/<encoder>/<cell-id>.json`` with the per-clip scores beside it, a picture
where the experiment draws one, and the traceback of what failed.

A file appears whole or not at all, and is never changed once it says ``ok``, however many runs write to the folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from foresight_bench.cells import FINISHED, Cell, parse
from foresight_bench.contracts import Measurement
from foresight_bench.errors import DataError, EnvironmentFault
from foresight_bench.scores import Scores

TEMPORARY = ".tmp-"
"""What the name of a file starts with that is not whole yet."""
FAILURE = ".failure.txt"
"""Suffix of the traceback beside a cell that failed."""
LARGEST_CELL = 16_000_000
"""Bytes of a cell file that is read at most; one of 13 taps and three readouts has 25 thousand."""


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


@dataclass(frozen=True)
class Key:
    """Names one measurement inside a cell's score file."""

    metric: str
    tap: str
    readout: str
    row: str = "score"
    """``score``, or ``shuffled`` for the row's own floor."""

    def __str__(self) -> str:
        return f"{self.row}/{self.metric}/{self.tap}/{self.readout}"


def pack(measurements: Mapping[Key, Scores]) -> bytes:
    """Serialise scores: replicates and per-clip values in float32, value and n in float64."""
    arrays: dict[str, np.ndarray] = {}
    for key, scores in measurements.items():
        arrays[f"{key}#replicates"] = scores.replicates.astype(np.float32)
        arrays[f"{key}#value"] = np.array([scores.value, scores.n], dtype=np.float64)
        if scores.per_clip is not None:
            arrays[f"{key}#clips"] = np.ascontiguousarray(scores.per_clip, dtype=np.float32)
    return save_arrays(arrays)


def unpack(data: bytes) -> dict[Key, Scores]:
    """Read what :func:`pack` wrote; details are in the cell, not here."""
    arrays = load_arrays(data)
    result = {}
    for name in arrays:
        text, _, part = name.partition("#")
        if part != "value":
            continue
        row, metric, tap, readout = text.split("/")
        value, n = arrays[name]
        clips = arrays.get(f"{text}#clips")
        result[Key(metric, tap, readout, row)] = Scores(
            float(value),
            arrays[f"{text}#replicates"].astype(np.float64),
            int(n),
            None if clips is None else clips.astype(np.float64),
        )
    return result


def keyed(measurements: tuple[Measurement, ...], row: str) -> dict[Key, Scores]:
    """Return measurements by key."""
    return {Key(m.metric, m.tap, m.readout, row): m.scores for m in measurements}


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
            lock = (folder / ".lock").open("a")
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
            DataError: the file is missing or not the one the cell vouches for.
        """
        path = self.path(cell).with_suffix(".safetensors")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"Cannot read {path}: {error.strerror}.", "Delete the cell's .json to recompute it."
            ) from error
        if sha256(data).hexdigest() != cell.scores_sha256:
            raise DataError(f"{path} is not the file its cell vouches for.", "Delete both to recompute the cell.")
        return unpack(data)

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
        found = {}
        for path in sorted(self.folder(cohort, machine).glob("*/*.json")):
            try:
                cell = self.read(path)
            except DataError:
                continue
            if cell.status in FINISHED:
                found[cell.id] = cell
        return found


def folder_name(name: str) -> str:
    """Return ``name`` as the name of one folder: whatever else it holds cannot lead out of the results."""
    safe = re.sub(r"[^A-Za-z0-9._@~=-]", "_", name.replace("+", "__"))
    return f"_{safe}" if safe.startswith(".") or not safe else safe
