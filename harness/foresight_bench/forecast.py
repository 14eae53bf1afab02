"""What a plan will do and about what it will take, from what the same encoders and experiments took here before.

Nothing is guessed: what nothing like was finished on this kind of machine may take any time, and of memory what the
weights alone take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from tabulate import tabulate

from foresight_bench import names
from foresight_bench.cache import entry
from foresight_bench.cells import FINISHED, Cell, CellIdentity
from foresight_bench.devices import Device
from foresight_bench.errors import UsageError
from foresight_bench.keys import feature_identities
from foresight_bench.memory import RESERVE, free_bytes
from foresight_bench.names import Stream
from foresight_bench.plan import Plan, PlannedCell, Row, Selection
from foresight_bench.registry import Registry
from foresight_bench.store import Store


@dataclass(frozen=True)
class Pass:
    """The features of one encoder, and the cells that need them."""

    encoder: str
    cells: int
    """To be computed."""
    taps: int
    """Whose features are computed."""
    cached: int
    """Taps whose features are in the cache."""
    frames: int
    """That go through the encoder."""
    seconds: float
    """Of the feature pass and the cells, as far as they are known."""
    unknown: int
    """How many of these are not: nothing like them was run on this kind of machine."""
    memory_bytes: int
    """On the device, at the highest point; the weights alone if ``measured`` is false."""
    measured: bool


@dataclass(frozen=True)
class Skip:
    """A cell that cannot be computed."""

    id: str
    encoder: str
    experiment: str
    reason: str


@dataclass(frozen=True)
class Forecast:
    """What a plan comes to."""

    plan: Plan
    selection: Selection
    devices: tuple[Device, ...]
    reused: frozenset[str]
    skips: tuple[Skip, ...]
    passes: tuple[Pass, ...]
    free_bytes: int | None

    @property
    def seconds(self) -> float:
        """Of all passes, one after the other, as far as they are known."""
        return sum(each.seconds for each in self.passes)

    @property
    def unknown(self) -> int:
        """How many feature passes and cells may take any time."""
        return sum(each.unknown for each in self.passes)

    def record(self) -> dict[str, object]:
        """Return everything as plain data; what `run --cells` reads is in it."""
        skipped = {skip.id: skip.reason for skip in self.skips}
        cells = []
        for cell in self.plan.cells:
            i = cell.identity
            state = "reused" if cell.id in self.reused else "skipped" if cell.id in skipped else "missing"
            record = {"id": cell.id, "encoder": i.encoder, "experiment": i.experiment, "adapter": i.adapter}
            record |= {"decoder": i.decoder, "seed": str(i.seed), "state": state, "reason": skipped.get(cell.id, "")}
            cells.append(record)
        return {
            "selection": asdict(self.selection),
            "cohort": self.plan.cohort,
            "devices": [asdict(device) for device in self.devices],
            "precision": self.plan.precision,
            "cells": cells,
            "passes": [asdict(each) for each in self.passes],
            "seconds": self.seconds,
            "unknown": self.unknown,
            "free_bytes": self.free_bytes,
        }

    def text(self) -> str:
        """Return everything as text."""
        device = self.devices[0]
        many = f"{len(self.devices)} x " if len(self.devices) > 1 else ""
        total = len({cell.id for cell in self.plan.cells})
        missing = total - len(self.reused) - len(self.skips)
        parts = [
            f"{self.plan.cohort} on {many}{device.model} ({self.plan.precision})\n"
            f"{total} cells: {missing} to compute, {len(self.reused)} reused, {len(self.skips)} that cannot be computed"
        ]
        if self.passes:
            body = [
                [
                    each.encoder,
                    each.cells,
                    f"{each.taps} of {each.taps + each.cached}",
                    each.frames,
                    duration(each.seconds, each.unknown),
                    f"{'' if each.measured else 'over '}{each.memory_bytes / 1e9:.1f} GB",
                ]
                for each in self.passes
            ]
            headers = ["encoder", "cells", "taps to compute", "frames", "time", "memory"]
            parts.append(tabulate(body, headers, disable_numparse=True, colalign=("left", *["right"] * 5)))
            free = f"; {device.name} has {self.free_bytes / 1e9:.1f} GB free" if self.free_bytes is not None else ""
            spread = f", to be shared by {len(self.devices)} devices" if len(self.devices) > 1 else ""
            rest = f"; of {self.unknown} passes and cells nothing alike was run on this kind of machine"
            time = duration(self.seconds, self.unknown)
            parts.append(f"Time: {time}{spread}{rest if self.unknown else ''}{free}.")
        if self.skips:
            reasons: dict[str, list[str]] = {}
            for skip in self.skips:
                reasons.setdefault(skip.reason.partition(" (")[0], []).append(skip.encoder)
            lines = [
                f"  {len(encoders)} cells of {', '.join(dict.fromkeys(encoders))}: {reason}"
                for reason, encoders in reasons.items()
            ]
            parts.append("Cannot be computed:\n" + "\n".join(lines))
        return "\n\n".join(parts)


def duration(seconds: float, unknown: int = 0) -> str:
    """Return ``40 s``, ``3 min``, ``2.5 h``; ``over 3 min`` if not all of it is known, ``?`` if nothing is."""
    if unknown:
        return f"over {duration(seconds)}" if seconds else "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(
    registry: Registry, plan: Plan, selection: Selection, devices: tuple[Device, ...], store: Store, frames: int
) -> Forecast:
    """Return what ``plan`` will do.

    Args:
        frames: in the suite.
    """
    known = store.readable(plan.cohort, devices[0].machine)
    reused = frozenset(cell.id for cell in plan.cells if cell.id in known and known[cell.id].status in FINISHED)
    skips = {
        cell.id: Skip(cell.id, cell.identity.encoder, cell.identity.experiment, cell.lacking.message)
        for cell in plan.cells
        if cell.lacking is not None and cell.id not in reused
    }
    context = _Context(registry, plan, devices[0].machine, frames, _Costs(list(known.values())))
    passes = []
    for row in plan.rows:
        cells = [cell for cell in row.cells if cell.id not in reused and cell.id not in skips]
        if cells:
            passes.append(context.of_row(row, cells))
    return Forecast(plan, selection, devices, reused, tuple(skips.values()), tuple(passes), free_bytes(devices[0]))


@dataclass(frozen=True)
class _Context:
    registry: Registry
    plan: Plan
    machine: str
    frames: int
    costs: _Costs
    run: set[object] = field(default_factory=set)
    """Models that earlier rows run."""

    def of_row(self, row: Row, cells: Sequence[PlannedCell]) -> Pass:
        """Return what one row takes; models that an earlier row runs are not run again."""
        taps, cached = 0, 0
        times: list[float | None] = []
        for stream in row.streams:
            key = stream.backbone, cells[0].identity.seed if stream.random else 0
            if key in self.run:
                continue
            self.run.add(key)
            every, held = len(self.registry.taps(stream)), self._cached(stream, cells[0].identity)
            taps, cached = taps + every - held, cached + held
            if held < every:
                time = self.costs.frame.get(str(stream.backbone))
                times.append(None if time is None else time * self.frames)
        frames = self.frames * len(times)
        times += [self.costs.of_cell(cell) for cell in cells]
        known = [each for each in times if each is not None]
        peak, least = self.costs.memory.get(row.label, 0), row.weights_bytes + RESERVE
        return Pass(
            row.label,
            len(cells),
            taps,
            cached,
            frames,
            sum(known),
            len(times) - len(known),
            max(peak, least),
            bool(peak),
        )

    def _cached(self, stream: Stream, identity: CellIdentity) -> int:
        """Return at how many of its taps the features of ``stream`` are in the cache."""
        weights = self.registry.variant(stream).weights
        identities = feature_identities(
            self.registry,
            stream,
            self.registry.taps(stream),
            self.registry.suites[self.plan.suite].spec,
            weights=self.plan.weights.get(weights.name) if weights and not stream.random else None,
            seed=identity.seed,
            precision=self.plan.precision,
            machine=self.machine,
            libraries=identity.libraries,
            limit=self.plan.limit or None,
        )
        return sum(entry(each.key()).is_whole() for each in (identities or {}).values())


class _Costs:
    """What finished cells took."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.frame: dict[str, float] = {}
        """Seconds a frame, by model."""
        self.memory: dict[str, int] = {}
        """Peak bytes, by encoder."""
        walls: dict[tuple[object, ...], list[float]] = {}
        for cell in cells:
            if cell.cost is None:
                continue
            i = cell.identity
            walls.setdefault(_kind(i.experiment, i.adapter, i.decoder, i.encoder), []).append(cell.cost.wall_seconds)
            walls.setdefault(_kind(i.experiment, i.adapter, i.decoder, ""), []).append(cell.cost.wall_seconds)
            self.memory[i.encoder] = max(self.memory.get(i.encoder, 0), cell.cost.peak_memory_bytes)
            try:
                streams = names.parse(i.encoder)
            except UsageError:
                continue
            if len(streams) == 1 and cell.cost.frames_per_second:
                self.frame[str(streams[0].backbone)] = 1 / cell.cost.frames_per_second
        self.wall: Mapping[object, float] = {key: median(values) for key, values in walls.items()}
        """Seconds of a cell: of the encoder's own, or else of any encoder's."""

    def of_cell(self, cell: PlannedCell) -> float | None:
        i = cell.identity
        mine = self.wall.get(_kind(i.experiment, i.adapter, i.decoder, i.encoder))
        return mine if mine is not None else self.wall.get(_kind(i.experiment, i.adapter, i.decoder, ""))


def _kind(experiment: str, adapter: str | None, decoder: str | None, encoder: str) -> tuple[object, ...]:
    return experiment, adapter, decoder, encoder
