"""The worker process: reads a job from standard input, writes events to standard output, one JSON a line.

Run as ``python -m foresight_bench.worker``. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pydantic import BaseModel

from foresight_bench.cells import Provenance
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import CELL_FAILED, OK, EnvironmentFault, ForesightError
from foresight_bench.plan import Selection, plan
from foresight_bench.registry import Registry
from foresight_bench.store import Store


class WeightsRecord(BaseModel):
    """A weights file that the parent resolved."""

    path: str
    sha256: str
    source: str
    files: dict[str, str]


class Job(BaseModel):
    """What the parent asks for."""

    selection: Selection
    weights: dict[str, WeightsRecord]
    missing: list[str]
    """Ids of the cells to compute."""
    results: str
    provenance: Provenance

    @classmethod
    def of(
        cls,
        selection: Selection,
        weights: dict[str, ResolvedWeights],
        missing: list[str],
        results: Path,
        provenance: Provenance,
    ) -> Job:
        """Return a job from the parent's objects."""
        records = {
            name: WeightsRecord(path=str(w.path), sha256=w.sha256, source=w.source, files=dict(w.files))
            for name, w in weights.items()
        }
        return cls(
            selection=selection,
            weights=records,
            missing=missing,
            results=str(results),
            provenance=provenance,
        )


def main() -> int:
    """Run one job."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(**event: object) -> None:
        events.write(json.dumps(event) + "\n")

    job = Job.model_validate_json(sys.stdin.read())
    try:
        emit(text="importing torch", units=0, total=None)
        from foresight_bench.engine import Engine

        registry = Registry.installed()
        known = {n: ResolvedWeights(Path(w.path), w.sha256, w.source, w.files) for n, w in job.weights.items()}
        planned = plan(registry, job.selection, lambda weights, needed: known[weights.name])
        if not set(job.missing) <= {cell.id for cell in planned.cells}:
            raise EnvironmentFault(
                "The code, a library or the weights changed while the run was starting.", "Run the same command again."
            )
        engine = Engine(
            registry,
            planned,
            Store(Path(job.results)),
            job.provenance,
            lambda text, units=0, total=None: emit(text=text, units=units, total=total),
            job.selection.compiled,
        )
        for error in engine.run(frozenset(job.missing)):
            emit(error=error.message, hint=error.hint, exit_code=error.exit_code, fatal=False)
    except ForesightError as error:
        emit(error=error.message, hint=error.hint, exit_code=error.exit_code, fatal=True)
        return CELL_FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main())
