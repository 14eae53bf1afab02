"""The board as data: JSON for programs, CSV for spreadsheets. The same cells always give the same bytes."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from foresight_bench.board import Board, Candidate, Cohort, Placed, Row, Section
from foresight_bench.cards import Card
from foresight_bench.cells import MetricResult

SCHEMA = 1
"""Version of the JSON; raised when a field changes its meaning or goes."""
DIGITS = 6
"""Of a number: 200 replicates know the end of an interval to a twentieth of its width, 1000 to a fiftieth."""
COLUMNS = (
    *("suite", "suite_version", "cohort", "machine", "experiment", "encoder", "family", "size", "transforms", "tap"),
    *("readout", "adapter", "decoder", "seed", "precision", "kind", "surrogate", "decision", "metric", "gates"),
    *("direction", "threshold", "value", "low", "high", "clips", "rank", "rank_shared", "front", "skill", "verdict"),
    *("feature_seconds", "experiment_seconds", "encoder_parameters", "trained_values", "peak_memory_bytes", "cell"),
)
"""Of the CSV: one line for each metric of each row, at the row's own tap."""


def as_json(board: Board) -> str:
    """Return the whole board as JSON, in ASCII."""
    record = {
        "schema": SCHEMA,
        "cohorts": [cohort_record(cohort) for cohort in board.cohorts],
        "left_out": [{"path": each.path, "why": each.text} for each in board.left_out],
    }
    return json.dumps(rounded(record), indent=1, allow_nan=False) + "\n"


def rounded(value: Any) -> Any:
    """Return plain data with its numbers to ``DIGITS``; the cells hold them in full."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def cohort_record(cohort: Cohort) -> dict[str, Any]:
    """Return a cohort as plain data."""
    return {
        "suite": cohort.suite.name,
        "suite_version": cohort.suite.version,
        "cohort": cohort.name,
        "machine": cohort.machine,
        "devices": list(cohort.devices),
        "libraries": dict(cohort.libraries),
        "systems": [_candidate(each) for each in cohort.candidates],
        "experiments": [_section(each) for each in cohort.sections],
        "calibration": {"separates": cohort.calibration.separates, "checks": cohort.calibration.records()},
        "encoders": [_card(each) for each in cohort.cards],
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    gates = {
        gate.name: {
            "status": str(result.status),
            "decisions": {name: str(result.decisions[name]) for name in gate.experiments if name in result.decisions},
            "taps": dict(result.taps),
        }
        for gate, result in each.gates
    }
    return {
        "encoder": each.encoder,
        "adapter": each.adapter or None,
        "decoder": each.decoder or None,
        "seed": each.seed,
        "kind": each.kind,
        "surrogate": each.surrogate,
        "gates": gates,
        "coverage": [each.present, each.expected],
        "missing": list(each.missing),
    }


def _section(section: Section) -> dict[str, Any]:
    return {
        "name": section.spec.name,
        "question": section.spec.question,
        "thresholds": {each.metric: each.threshold for each in section.spec.criteria if each.threshold is not None},
        "rows": [row_record(row) for row in section.rows],
    }


def row_record(row: Row) -> dict[str, Any]:
    """Return a row as plain data: what was measured, at its own tap and, of the gated metrics, over all taps."""
    cell = row.cell
    identity = cell.identity
    cost = cell.cost.model_dump(mode="json") if cell.cost else None
    if cost:
        cost["encoder_parameters"] = cost["encoder_parameters"] or None
    gated = [each.result.metric for each in row.placed]
    curve = {
        tap: {
            each.metric: _numbers(each)
            for each in cell.metrics
            if (each.tap, each.readout) == (tap, cell.readout) and each.metric in gated
        }
        for tap in identity.taps
    }
    curve = {tap: values for tap, values in curve.items() if values}
    return {
        "cell": cell.id,
        "encoder": identity.encoder,
        "family": row.family,
        "size": row.size,
        "transforms": list(row.transforms),
        "hybrid": row.hybrid,
        "adapter": identity.adapter,
        "decoder": identity.decoder,
        "seed": identity.seed,
        "precision": identity.precision,
        "tap": cell.tap,
        "readout": cell.readout,
        "kind": row.kind,
        "surrogate": row.surrogate,
        "decision": cell.decision,
        "metrics": [_placed(each) for each in row.placed],
        "reported": [{"metric": each.metric, "direction": each.direction, **_numbers(each)} for each in row.reported],
        "taps": curve if len(curve) > 1 else {},
        "cost": cost,
        "commit": cell.provenance.commit,
        "dirty": cell.provenance.dirty,
        "command": row.command,
    }


def _placed(each: Placed) -> dict[str, Any]:
    result = each.result
    return {
        "metric": result.metric,
        "direction": result.direction,
        **_numbers(result),
        "threshold": result.threshold,
        "verdict": result.verdict,
        "reason": result.reason,
        "clips_needed": result.clips_needed,
        "rank": each.rank.place if each.rank else None,
        "rank_shared": each.rank.shared if each.rank else None,
        "front": each.front,
        "skill": result.skill,
        "floor": result.best_floor or None,
        "floor_value": result.floors[result.best_floor].value if result.best_floor in result.floors else None,
        "ceiling": result.ceiling_name or None,
        "ceiling_value": result.ceiling.value if result.ceiling else None,
    }


def _numbers(result: MetricResult) -> dict[str, Any]:
    found = result.estimate
    return {"value": found.value, "low": found.low, "high": found.high, "clips": found.n}


def _card(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "description": card.description,
        "licence": card.licence,
        "weights": [{"name": name, "source": source, "sha256": digest} for name, source, digest in card.weights],
        "parameters": [{"name": name, "value": value} for name, value in card.parameters],
        "precisions": list(card.precisions),
        "encoder_parameters": list(card.encoder_parameters),
        "preprocessing": card.preprocessing,
        "taps": list(card.taps),
        "read": list(card.read),
        "cells": list(card.cells),
    }


def as_csv(board: Board) -> str:
    """Return one line for each metric of each row, gated ones first; an absent value is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for cohort in board.cohorts:
        where = {
            "suite": cohort.suite.name,
            "suite_version": cohort.suite.version,
            "cohort": cohort.name,
            "machine": cohort.machine,
        }
        for section in cohort.sections:
            for row in section.rows:
                record = row_record(row)
                cost = record["cost"] or {}
                same = {
                    **where,
                    **record,
                    "surrogate": bool(row.surrogate),
                    "experiment": section.spec.name,
                    "transforms": " ".join(row.transforms),
                    "feature_seconds": cost.get("feature_seconds"),
                    "experiment_seconds": cost.get("wall_seconds"),
                    "encoder_parameters": cost.get("encoder_parameters"),
                    "trained_values": cost.get("trainable_parameters"),
                    "peak_memory_bytes": cost.get("peak_memory_bytes"),
                }
                for gates, metrics in ((True, record["metrics"]), (False, record["reported"])):
                    for metric in metrics:
                        line = {**same, **metric, "gates": gates}
                        table.writerow({name: _field(value) for name, value in line.items()})
    return text.getvalue()


def _field(value: Any) -> Any:
    """Return a value of a table; a spreadsheet would compute a text that begins like a formula."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return rounded(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
