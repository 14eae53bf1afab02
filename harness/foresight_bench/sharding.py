"""Who ran which part of a plan: one small record a shard, so that a merge can tell that none is missing. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field

from foresight_bench.cells import Record, load_json
from foresight_bench.errors import DataError
from foresight_bench.store import LARGEST_CELL, write_atomically

NAME = re.compile(r"shard-[1-9][0-9]*-of-[1-9][0-9]*\.json")
"""What a record's file is called, in the folder of a cohort and machine."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class ShardRecord(Record):
    """One part of a plan that was run by itself."""

    plan: Digest
    """Digest of the ids of all cells of the whole plan, as :func:`plan_digest` makes it."""
    shard: int = Field(ge=1)
    """Which part, from 1."""
    of: int = Field(ge=1)
    """How many parts the plan was cut into."""
    cells: tuple[Digest, ...]
    """Ids of the part's cells; parts may share some, as the controls that each needs."""

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"shard-{self.shard}-of-{self.of}.json"


def plan_digest(cells: Iterable[str]) -> str:
    """Return 16 hexadecimal digits for the ids of the cells of a plan, whatever their order."""
    return sha256("\n".join(sorted(set(cells))).encode()).hexdigest()[:16]


def write_shard(folder: Path, record: ShardRecord) -> None:
    """Write ``record`` into the folder of its cohort and machine.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    write_atomically(folder / record.name, f"{record.model_dump_json(indent=1)}\n".encode())


def read_shard(path: Path) -> ShardRecord:
    """Read one record.

    Raises:
        DataError: it is none, or not the one that its name says.
    """
    try:
        if path.stat().st_size > LARGEST_CELL:
            raise ValueError(f"it is larger than {LARGEST_CELL} bytes")
        record = ShardRecord.model_validate_json(json.dumps(load_json(path.read_bytes())), strict=True)
        if record.name != path.name or record.shard > record.of:
            raise ValueError("it is of another shard")
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not a readable shard record.", "Run that shard again.") from error
    return record
