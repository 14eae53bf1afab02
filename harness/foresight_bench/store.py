"""The results folder: ``<cohort>/<machine>/<encoder>/<cell-id>.json`` with the per-clip scores beside it, and
a picture where the experiment draws one.

A file appears whole or not at all, and is never changed once it says ``ok``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from foresight_bench.cells import Cell
from foresight_bench.contracts import Measurement
from foresight_bench.errors import DataError, EnvironmentFault
from foresight_bench.scores import Scores


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
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
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
        folder = cell.identity.encoder.replace(":", "_").replace("+", "__")
        return self.root / cell.identity.cohort / cell.provenance.machine / folder / f"{cell.id}.json"

    def check_writable(self) -> None:
        """Raise :class:`EnvironmentFault` now rather than after an hour of work."""
        probe = self.root / ".write-test"
        write_atomically(probe, b"")
        probe.unlink()

    def write(self, cell: Cell, scores: bytes = b"", picture: bytes = b"") -> None:
        """Write the scores and the picture (PNG), then the cell that vouches for them."""
        path = self.path(cell)
        for suffix, data in ((".safetensors", scores), (".png", picture)):
            if data:
                write_atomically(path.with_suffix(suffix), data)
        text = cell.model_dump_json(indent=1) + "\n"
        write_atomically(path, text.encode())

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
            DataError: it is not a cell of this schema.
        """
        try:
            return Cell.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise DataError(f"{path} is not a readable cell file.", "Delete it to recompute the cell.") from error

    def cells(self, cohort: str = "*", machine: str = "*") -> Iterator[Cell]:
        """Yield the cells, in order of path."""
        for path in sorted(self.root.glob(f"{cohort}/{machine}/*/*.json")):
            yield self.read(path)

    def finished(self, cohort: str, machine: str) -> dict[str, Cell]:
        """Return the ok and skipped cells of one cohort and machine by id; an unreadable file counts as absent."""
        found = {}
        for path in sorted(self.root.glob(f"{cohort}/{machine}/*/*.json")):
            try:
                cell = self.read(path)
            except DataError:
                continue
            if cell.status in ("ok", "skipped") and cell.id == cell.identity.cell_id():
                found[cell.id] = cell
        return found
