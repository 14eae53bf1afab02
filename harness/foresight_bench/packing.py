"""Scores as bytes: the safetensors file beside a cell. What comes in may be anybody's: it is scores, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from foresight_bench.cells import load_json
from foresight_bench.contracts import Measurement
from foresight_bench.scores import Scores

MOST_CLIPS = 100_000
"""Clips that scores are over at most: a bootstrap over them takes 800 MB."""
ROWS = ("score", "shuffled")
"""Whose score it is: the row's own, or that of its own floor."""


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
    """Read what :func:`pack` wrote; details are in the cell, not here.

    Raises:
        ValueError: it wrote something else.
    """
    try:
        arrays = load_arrays(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy lacks
        raise ValueError(f"no safetensors of scores ({error})") from error
    load_json(data[8 : 8 + int.from_bytes(data[:8], "little")])  # safetensors itself takes a name that stands twice
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        text, _, part = name.rpartition("#")
        parts.setdefault(text, {})[part] = array
    return {_key(text): _scores(text, found) for text, found in parts.items()}


def _key(text: str) -> Key:
    if text.count("/") != 3 or text.partition("/")[0] not in ROWS:
        raise ValueError(f"{text!a} names no score")
    row, metric, tap, readout = text.split("/")
    return Key(metric, tap, readout, row)


def _scores(text: str, parts: Mapping[str, np.ndarray]) -> Scores:
    """Return one measurement; raise ``ValueError`` unless its ``parts`` are those that :func:`pack` writes."""
    types = {"replicates": np.float32, "value": np.float64, "clips": np.float32}
    if parts.keys() | {"clips"} != types.keys() or any(parts[part].dtype != types[part] for part in parts):
        raise ValueError(f"{text!a} is not in three parts of the right types")
    clips, replicates = parts.get("clips"), parts["replicates"]
    n = float(parts["value"][1]) if parts["value"].shape == (2,) else -1.0
    if not (n.is_integer() and 0 <= n <= MOST_CLIPS) or replicates.ndim != 1 or not replicates.size:
        raise ValueError(f"{text!a} is no value with replicates")
    if clips is not None and (clips.ndim not in (1, 2) or len(clips) != n):
        raise ValueError(f"{text!a} does not hold a score for each of its clips")
    return Scores(
        float(parts["value"][0]),
        replicates.astype(np.float64),
        int(n),
        None if clips is None else clips.astype(np.float64),
    )


def keyed(measurements: tuple[Measurement, ...], row: str) -> dict[Key, Scores]:
    """Return measurements by key."""
    return {Key(m.metric, m.tap, m.readout, row): m.scores for m in measurements}
