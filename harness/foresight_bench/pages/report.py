"""The report of a run as one HTML file."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from foresight_bench.cells import Cell, Cost
from foresight_bench.errors import DataError
from foresight_bench.intake import Intake
from foresight_bench.pages.report_charts import bars_chart, curve_chart
from foresight_bench.pages.shell import rendered
from foresight_bench.reporting import Report, Subject
from foresight_bench.series import Bars, Curve, bars, curves
from foresight_bench.specs import ExperimentSpec
from foresight_bench.tables import SPACES, GateResult, System, gating, spaces, with_interval

QUALITY = 90
"""Of WebP. A strip of 1.0 MB as PNG takes .22 MB and looks the same; the PNG stays beside the cell."""
LARGEST_PICTURE = 40_000_000
"""Pixels of a picture that is decoded at most; those of 12 taps have 5 million."""


@dataclass(frozen=True)
class Shown:
    """A picture on the page, or why there is none."""

    address: str = ""
    width: int = 0
    height: int = 0
    absent: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart, what it says, and its numbers."""

    svg: Markup
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """What a page says of one experiment's cells that went through one decoder."""

    decoder: str
    cells: tuple[Cell, ...]
    bars: tuple[Chart, ...]
    curves: tuple[tuple[Cell, tuple[Chart, ...]], ...]
    pictures: tuple[tuple[Cell, Shown], ...]

    @property
    def absent(self) -> list[tuple[str, list[str]]]:
        """Why there are no pictures, and of which cells."""
        found: dict[str, list[str]] = {}
        for cell, shown in self.pictures:
            if shown.absent:
                found.setdefault(shown.absent, []).append(label(cell))
        return list(found.items())


def page(report: Report, taken: Intake) -> str:
    """Return the page; every byte of it follows from the cells and the files beside them."""
    experiments = report.suite.experiments
    return rendered(
        "report.html.j2",
        report=report,
        experiments=experiments,
        sections=[
            (subject, [(spec, _parts(subject, spec, taken)) for spec in experiments]) for subject in report.subjects
        ],
        ceilings=[(cell, picture(cell, taken)) for cell in report.controls if cell.picture_sha256],
        label=label,
        tally=tally,
        by_system=by_system,
        gating=gating,
        spaces=spaces,
        space_names=SPACES,
        at_tap=at_tap,
        record=record,
        cost_rows=[_cost(cell, cell.cost) for cell in report.cells if cell.cost is not None],
        unfinished_rows=[(*_name(cell), cell.status, cell.reason) for cell in report.unfinished],
        left_out_rows=[(each.path, each.text) for each in report.left_out],
    )


def label(cell: Cell) -> str:
    """Return what tells a cell from others of its encoder and experiment."""
    identity = cell.identity
    return ", ".join(part for part in (identity.adapter, identity.decoder) if part) or "fixed heads"


def tally(cells: Iterable[Cell]) -> list[tuple[str, int]]:
    """Return how often each decision was taken, or each status that allows of none."""
    return sorted(Counter(cell.decision or cell.status for cell in cells).items())


def by_system(subject: Subject) -> list[tuple[System, list[GateResult]]]:
    """Return each system with the status of each gate."""
    found: dict[System, list[GateResult]] = {}
    for system, _, result in subject.gates:
        found.setdefault(system, []).append(result)
    return list(found.items())


def at_tap(cell: Cell) -> list[object]:
    """Return what is reported and does not gate, at the tap and readout that do."""
    both = {f"{metric}_{space}" for metric, values in spaces(cell).items() for space in values}
    return [
        result
        for result in cell.metrics
        if not result.gates and (result.tap, result.readout) == (cell.tap, cell.readout) and result.metric not in both
    ]


def record(cell: Cell) -> str:
    """Return what is known of a cell's origin, as JSON to read."""
    kept = {"id", "identity", "provenance", "cost", "details", "scores_sha256", "picture_sha256", "warnings"}
    return json.dumps(cell.model_dump(mode="json", include=kept), indent=1, ensure_ascii=False)


def _name(cell: Cell) -> tuple[str, str, str]:
    seed = f", seed {cell.identity.seed}" if cell.identity.seed else ""
    return f"{cell.identity.encoder}{seed}", cell.identity.experiment, label(cell)


def _cost(cell: Cell, cost: Cost) -> tuple[str, ...]:
    return (
        *_name(cell),
        f"{cost.feature_seconds:.1f}",
        f"{cost.frames_per_second:.1f}",
        f"{cost.wall_seconds:.1f}",
        f"{cost.trainable_parameters:,}",
        f"{cost.peak_memory_bytes / 2**30:.1f}",
    )


def _parts(subject: Subject, spec: ExperimentSpec, taken: Intake) -> list[Part]:
    mine = [cell for cell in subject.cells if cell.identity.experiment == spec.name and cell.status == "ok"]
    parts = []
    for decoder in dict.fromkeys(cell.identity.decoder or "" for cell in mine):
        cells = tuple(cell for cell in mine if (cell.identity.decoder or "") == decoder)
        name = f"{subject.name}, {spec.name}{f', {decoder}' if decoder else ''}"
        parts.append(
            Part(
                decoder,
                cells,
                tuple(_bars(each, name) for each in bars(cells)),
                tuple((cell, _curves(curves(cell), f"{name}, {label(cell)}")) for cell in cells if curves(cell)),
                tuple((cell, picture(cell, taken)) for cell in cells),
            )
        )
    return parts


def _bars(each: Bars, name: str) -> Chart:
    head = (each.metric, "value [95% interval]", "verdict", "why")
    rows = tuple(
        (row or name, with_interval(result.estimate), result.verdict or "", result.reason) for row, result in each.rows
    )
    first = each.rows[0][1]
    controls = [(who, with_interval(estimate), "floor", "") for who, estimate in first.floors.items()]
    if first.ceiling is not None:
        controls.append((first.ceiling_name, with_interval(first.ceiling), "ceiling", ""))
    return Chart(bars_chart(each, name), each.meaning, head, (*rows, *controls))


def _curves(found: Iterable[Curve], name: str) -> tuple[Chart, ...]:
    charts = []
    for curve in found:
        rows = tuple(
            (tap, *(with_interval(estimates[index]) for estimates in curve.readings.values()))
            for index, tap in enumerate(curve.taps)
        )
        charts.append(Chart(curve_chart(curve, name), curve.finding, ("tap", *curve.readings), rows))
    return tuple(charts)


def picture(cell: Cell, taken: Intake) -> Shown:
    """Return the picture beside a cell, made smaller, or why it cannot be shown.

    It may be anybody's file: it is decoded as PNG alone, and drawn anew.
    """
    if not cell.picture_sha256:
        return Shown(absent="an older version drew none.")
    try:
        data = taken.beside(cell, ".png")
        if not data:
            return Shown(absent="it was left out when the results were brought here.")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > LARGEST_PICTURE:
                raise ValueError("too large")
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
            address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            return Shown(address, image.width, image.height)
    except DataError:
        return Shown(absent="the file is not the one its cell vouches for.")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Shown(absent="the file is no PNG that can be shown.")
