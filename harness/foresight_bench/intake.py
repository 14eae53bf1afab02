"""Somebody's results folder, taken in with suspicion: what is a sound cell in its place, and what is not.

Nothing in a file is believed before its seal, its digests and its place agree; no link is followed, and nothing but
JSON and safetensors is ever read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from foresight_bench.cells import FINISHED, Cell
from foresight_bench.errors import DataError
from foresight_bench.sharding import NAME, ShardRecord, read_shard
from foresight_bench.store import FAILURE, Store, read_scores, vouched

BESIDE = {".safetensors": "scores_sha256", ".png": "picture_sha256"}
"""The files beside a cell, by suffix, and the field by which it vouches for each."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file."""

    path: str
    """The file, seen from the results folder, in printable characters."""
    text: str
    """One clause, in printable characters."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass
class Intake:
    """What a results folder holds."""

    root: Path
    cells: list[Cell] = field(default_factory=list)
    """The sound ones: sealed, in their place, and with the files they vouch for."""
    shards: dict[str, ShardRecord] = field(default_factory=dict)
    """By path, seen from the folder."""
    faults: list[Problem] = field(default_factory=list)
    """Files that should be cells or belong to one, and are altered, cut short, misplaced, or links."""
    strays: list[Problem] = field(default_factory=list)
    """Files that are no results."""

    def path(self, cell: Cell) -> Path:
        """Return where a cell lies."""
        return Store(self.root).path(cell)

    def beside(self, cell: Cell, suffix: str) -> bytes:
        """Return the file beside a cell, empty if it vouches for none, or if it is a picture that was left out.

        Raises:
            DataError: it is no longer the file that was taken in.
        """
        path, digest = self.path(cell).with_suffix(suffix), getattr(cell, BESIDE[suffix])
        if not digest or (suffix == ".png" and not path.exists()):
            return b""
        return vouched(path, digest)


def take(root: Path) -> Intake:
    """Read everything in ``root``.

    Raises:
        DataError: there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", "Name a results folder, as `run --results` writes it.")
    taken = Intake(root)
    others: list[Path] = []
    faulty: set[Path] = set()
    for path, fault in _walk(root):
        place = path.relative_to(root).parts
        try:
            if fault:
                raise DataError(fault)
            if len(place) == 4 and path.suffix == ".json":
                taken.cells.append(_cell(root, path))
            elif len(place) == 3 and NAME.fullmatch(path.name):
                taken.shards["/".join(place)] = read_shard(path)
            else:
                others.append(path)
        except DataError as error:
            taken.faults.append(problem(root, path, _reason(error, root)))
            faulty.add(path.with_suffix(""))
    _sort_out(taken, others, faulty)
    return taken


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below ``root``, in order, with what forbids to open it; no link is followed."""
    errors: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=errors.append):
        folders.sort()
        for name in sorted(files + [name for name in folders if (Path(folder) / name).is_symlink()]):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            yield (
                path,
                ""
                if stat.S_ISREG(mode)
                else "a link, which is not followed"
                if stat.S_ISLNK(mode)
                else "no plain file",
            )
    for error in errors:
        yield Path(error.filename), "a folder that cannot be read"


def _cell(root: Path, path: Path) -> Cell:
    """Return the cell at ``path``; raise :class:`DataError` unless it is sound, in its place and complete."""
    cell = Store(root).read(path)
    identity = cell.identity
    for name in (identity.cohort, cell.provenance.machine, identity.encoder):
        if name.startswith(".") or not name.isprintable() or any(character in name for character in "/\\"):
            raise DataError(f"{name!a} is no name of an encoder, a cohort or a machine")
    belongs = Store(root).path(cell)
    if belongs != path:
        raise DataError(f"it belongs at {belongs.relative_to(root)}")
    if cell.scores_sha256:
        read_scores(path.with_suffix(".safetensors"), cell)
    if cell.picture_sha256 and path.with_suffix(".png").exists():
        vouched(path.with_suffix(".png"), cell.picture_sha256)
    return cell


def _sort_out(taken: Intake, others: list[Path], faulty: set[Path]) -> None:
    """Tell strays from what belongs to a cell, and from the logs and locks that runs leave."""
    cells: Mapping[Path, Cell] = {taken.path(cell).with_suffix(""): cell for cell in taken.cells}
    for path in others:
        name, dot, rest = path.name.partition(".")
        stem, suffix = path.parent / (name or "."), dot + rest
        cell = cells.get(stem)
        if path.name == ".lock" or (len(path.relative_to(taken.root).parts) == 3 and suffix == ".log"):
            continue
        if suffix in BESIDE and (stem in faulty or (cell is not None and getattr(cell, BESIDE[suffix]))):
            continue
        if suffix == FAILURE and cell is not None and cell.status not in FINISHED:
            continue
        taken.strays.append(problem(taken.root, path, "no cell vouches for it"))


def problem(root: Path, path: Path, text: str) -> Problem:
    """Return a problem of the file at ``path`` below ``root``, in one printable line."""
    return Problem(plain(str(path.relative_to(root))), plain(text))


def plain(text: str) -> str:
    """Return ``text`` with an escape for whatever a terminal might not print as it stands."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _reason(error: DataError, root: Path) -> str:
    """Return why a file was not read, in a clause to stand behind its path."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        first = cause.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if cause is None or isinstance(cause, OSError):
        return error.message.replace(f"{root}/", "").removesuffix(".")
    return str(cause)
