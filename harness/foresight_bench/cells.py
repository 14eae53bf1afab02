"""The result schema: one immutable file per cell. Every persisted field says what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

Parameter = str | int | float | bool
Status = Literal[
    "ok",
    "skipped",
    "oom",
    "timeout",
    "weights_missing",
    "data_missing",
    "contract",
    "nonfinite",
    "killed",
    "error",
]
FINISHED: tuple[Status, ...] = ("ok", "skipped")
"""What is not tried again."""


class Record(BaseModel):
    """Base of all persisted models: unknown fields and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CodeIdentity(Record):
    """The code that produced a cell."""

    distribution: str
    """Distribution that ships the plugin."""
    version: str
    """Its version."""
    digest: str
    """SHA-256 over the sources of its package."""


class CellIdentity(Record):
    """Everything that can change a cell's scores; the cell id is the digest of this record."""

    suite: str
    """Suite name."""
    suite_version: str
    """Suite version."""
    cohort: str
    """Suite, data digest and metric implementations in one key; only equal cohorts may be compared."""
    experiment: str
    """Experiment, e.g. C1."""
    encoder: str
    """Encoder name with variant, taps and transforms."""
    taps: tuple[str, ...]
    """Taps that were read, in order of depth; for a hybrid ``stream@tap``."""
    adapter: str | None
    """Adapter; null where the experiment uses none."""
    decoder: str | None
    """Decoder; null where the experiment uses none."""
    seed: int
    """Seed of everything random in the cell."""
    parameters: dict[str, dict[str, Parameter]]
    """Resolved parameters by part (encoder, adapter, decoder, experiment); of further metrics their versions."""
    weights: dict[str, str]
    """SHA-256 of every weights file used, by weights name."""
    precision: str
    """Floating-point type of the encoder's forward pass."""
    code: dict[str, CodeIdentity]
    """Code by import package: the harness, the suite and every plugin used."""
    libraries: dict[str, str]
    """Minor versions of the libraries that compute features and scores."""

    def cell_id(self) -> str:
        """Return the id: the first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()[:16]


class Estimate(Record):
    """A statistic with its 95 % interval."""

    value: FiniteFloat | None
    """The value; null if it was not finite."""
    low: FiniteFloat | None
    """Lower end of the 95 % interval."""
    high: FiniteFloat | None
    """Upper end of the 95 % interval."""
    n: int
    """Number of clips."""


class MetricResult(Record):
    """One metric at one tap and readout."""

    metric: str
    """Metric name."""
    tap: str
    """Tap of the encoder."""
    readout: str
    """How the tap was read: tokens, pooled, grid4, ..."""
    direction: Literal["higher", "lower", "none"]
    """Which way is better."""
    implementation: str
    """Version of the metric's implementation."""
    estimate: Estimate
    """Value and interval."""
    details: dict[str, FiniteFloat | None]
    """Chance level, p-values, uncorrected values."""
    gates: bool
    """Whether the experiment's verdict rests on it."""
    threshold: FiniteFloat | None = None
    """The gate's threshold."""
    ceiling: Estimate | None = None
    """The ceiling row's value."""
    ceiling_name: str = ""
    """Control that served as the ceiling."""
    floors: dict[str, Estimate] = {}
    """The floor rows' values."""
    best_floor: str = ""
    """The floor that came closest."""
    skill: FiniteFloat | None = None
    """(score - floor) / (ceiling - floor)."""
    verdict: str | None = None
    """PASS, FAIL, INCONCLUSIVE, VACUOUS, UNREACHABLE or NOT RUN; null where no threshold is."""
    reason: str = ""
    """Why, in one clause."""
    clips_needed: int | None = None
    """For INCONCLUSIVE: about how many clips would decide it."""


class Cost(Record):
    """What the cell took."""

    wall_seconds: FiniteFloat
    """Wall time of the experiment on this row, features excluded; adapters that train together share theirs evenly."""
    feature_seconds: FiniteFloat
    """Wall time of the encoder's feature pass, shared by the cells of one row."""
    frames_per_second: FiniteFloat
    """Frames per second of that pass."""
    batch_frames: int
    """Frames per forward pass of the encoder."""
    peak_memory_bytes: int
    """Peak device memory; on the CPU the process's peak resident size."""
    trainable_parameters: int
    """Trained values of the adapter or the heads."""
    compiled: bool = False
    """Whether the encoder was compiled."""
    encoder_parameters: int = 0
    """Parameters of the encoder as it was built for its feature pass, which serves every tap that a run reads of it; of
    a hybrid those of its encoders together. 0 where unknown (older cells, no torch module holds them), or a control."""


class Provenance(Record):
    """Where the cell was computed; recorded, not part of the identity."""

    device: str
    """Device model, e.g. ``NVIDIA H200`` or the processor's name."""
    machine: str
    """Folder name of the kind of machine."""
    commit: str
    """Commit of the source tree the harness was run from; empty for an installed release."""
    dirty: bool
    """Whether that tree had uncommitted changes."""
    python: str
    """Python version."""
    libraries: dict[str, str]
    """Full versions of the libraries."""
    weights_sources: dict[str, str]
    """Where each weights file came from."""
    finished: str
    """UTC time at which the cell was written, ISO 8601."""


class Cell(Record):
    """One encoder x adapter x decoder x experiment."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    id: str
    """Digest of ``identity``."""
    identity: CellIdentity
    """What was measured."""
    status: Status
    """ok; skipped with a reason; or how it failed: memory ran out, the worker was silent for too long, weights or data
    are not there, a plugin broke its contract, values were not finite, the worker was killed, anything else."""
    reason: str = ""
    """One sentence for a status other than ok."""
    warnings: tuple[str, ...] = ()
    """What a plugin did that it should not, and that was put right: global settings that it changed."""
    decision: str | None = None
    """PROCEED, PIVOT or INCONCLUSIVE."""
    tap: str = ""
    """Tap chosen on ``val``; the gating metrics were read there."""
    readout: str = ""
    """Readout that gates."""
    metrics: tuple[MetricResult, ...] = ()
    """All metrics at all taps and readouts."""
    details: dict[str, FiniteFloat | str | None] = {}
    """Further facts the experiment reports."""
    scores_sha256: str = ""
    """Digest of the per-clip scores beside this file."""
    picture_sha256: str = ""
    """Digest of the picture (PNG) beside this file; empty if there is none."""
    cost: Cost | None = None
    """What it took."""
    provenance: Provenance
    """Where it was computed."""

    def sealed(self) -> bytes:
        """Return the bytes of the cell's file: JSON with a ``seal``, the digest of everything else in it."""
        record = self.model_dump(mode="json")
        if self.cost and "encoder_parameters" not in self.cost.model_fields_set:
            del record["cost"]["encoder_parameters"]  # an older cell is merged byte for byte
        text = json.dumps({**record, "seal": seal(record)}, indent=1, allow_nan=False, ensure_ascii=False)
        return f"{text}\n".encode()


def outcome_line(cell: Cell) -> str:
    """Return a line on what became of a cell: ``dinov2 C1 linear ltx-tiny: PROCEED``."""
    identity = cell.identity
    seed = f"seed {identity.seed}" if identity.seed else ""
    parts = (identity.encoder, identity.experiment, identity.adapter, identity.decoder, seed)
    became = (cell.decision or "control") if cell.status == "ok" else f"{cell.status}, {cell.reason}"
    return f"{' '.join(filter(None, parts))}: {became}"


def seal(record: Mapping[str, object]) -> str:
    """Return the SHA-256 of the canonical JSON of a cell's file without its ``seal``."""
    rest = {key: value for key, value in record.items() if key != "seal"}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def schema() -> dict[str, Any]:
    """Return the JSON schema of a cell's file, the docstring of every field as its description."""
    found = Cell.model_json_schema()
    digest = {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
        "description": "SHA-256 of the canonical JSON (sorted keys, no spaces, ASCII) of everything else in the file.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "properties": {**found["properties"], "seal": digest},
        "required": [*found["required"], "seal"],
    }


def parse(data: bytes) -> Cell:
    """Return the cell whose file holds ``data``.

    Raises:
        ValueError: it is no cell of this schema, or its seal is broken: some byte is not what was written.
    """
    record = load_json(data)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    if record.pop("seal", None) != seal(record):
        raise ValueError("its seal is broken")
    cell = Cell.model_validate_json(json.dumps(record), strict=True)
    if cell.id != cell.identity.cell_id():
        raise ValueError("its id is not the digest of its identity")
    return cell


def load_json(data: bytes) -> object:
    """Return what ``data`` says, if it says one thing to every reader.

    Raises:
        ValueError: not JSON in UTF-8, a key stands twice in an object, a number is not finite or nesting is too deep.
    """
    try:
        return json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("a number is too large")
    return number


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found
