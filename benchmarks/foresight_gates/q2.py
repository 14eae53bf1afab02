"""Q2, information preservation: where in the encoder is spatial information lost?

At each tap the same two heads read the unpooled tokens: a dense detection probe and a patch decoder. The tap that
gates is chosen on `val`: the one whose worst metric stands best. There, and in `gate1` at every tap, `pooled` (the mean
over a frame's tokens, broadcast) is reported beside `tokens`, and so is a common 16x16 grid where the native one is
another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from foresight_bench.bench import Bench
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import FrameBoxes, Measurement, Outcome
from foresight_bench.grids import Grid, slots
from foresight_bench.scores import Scores
from foresight_bench.specs import ExperimentSpec
from foresight_bench.transforms import next_clip, pooled_grid
from foresight_gates.probes import Block, Heads, Reading, extent_boxes, joined
from foresight_gates.q2_picture import picture
from foresight_gates.targets import cell_targets

READOUT = "tokens"
COMMON = 16
"""Side of the grid on which encoders of different resolution are compared."""
CONFIDENCES = tuple(level / 20 for level in range(2, 19))
"""Objectness levels among which `val` chooses the one above which a box is an answer."""

View = Callable[[Grid], Grid]


def same(grid: Grid) -> Grid:
    """Return ``grid``: the native tokens."""
    return grid


@dataclass(frozen=True)
class _Fitted:
    """The heads of one tap and readout, with the levels that `val` chose."""

    heads: tuple[Heads, ...]
    """One for each frame that shares a token (:func:`foresight_bench.grids.slots`)."""
    view: View
    confidence: float
    cover: float


class InformationPreservation:
    """Reads objects and pixels out of every tap."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.thresholds = {c.metric: c.threshold for c in spec.criteria if c.threshold is not None}
        self.reported = tuple(c.metric for c in spec.criteria if c.threshold is None)
        self.every_tap = bool(spec.params.get("every_tap"))

    def run(self, bench: Bench, progress: Callable[[str], None]) -> Outcome:
        """Return the gating metrics at every tap; all metrics and the shuffled floor at the chosen one.

        The other readouts stand at the chosen tap, or at every one if the suite says ``every_tap``: that fits and
        scores as many heads again, for which a suite made for a CPU has no time.
        """
        candidates = bench.features.candidates
        gating = tuple(self.thresholds)
        measured: list[Measurement] = []
        margins: dict[str, float] = {}
        fitted: dict[str, _Fitted] = {}
        for tap in bench.features.taps:
            progress(tap)
            fitted[tap] = self._fit(bench, tap, same)
            measured += self._measure(bench, fitted[tap], "test", tap, READOUT, same, gating)
            if tap in candidates and len(candidates) > 1:
                on_val = self._measure(bench, fitted[tap], "val", tap, READOUT, same, gating)
                margins[tap] = self._worst_margin(bench, on_val)
        tap = max(margins, key=lambda name: margins[name]) if margins else candidates[0]

        shuffled: list[Measurement] = []
        if bench.features.control != "floor":
            progress(f"{tap} shuffled")
            shuffled = self._measure(bench, fitted[tap], "test", tap, READOUT, next_clip, gating)
        if not bench.features.control:
            progress(f"{tap}, all metrics")
            full = self._measure(bench, fitted[tap], "test", tap, READOUT, same, self.reported)
            measured += [found for found in full if found.metric in self.reported]
            for name in bench.features.taps if self.every_tap else (tap,):
                for readout, view in other_readouts(bench.tokens(name, "train")[0]).items():
                    progress(f"{name} {readout}")
                    measured += self._measure(bench, self._fit(bench, name, view), "test", name, readout, same, gating)
        details: dict[str, float | str] = {f"val_margin.{name}": value for name, value in margins.items()}
        parameters = sum(heads.parameters for heads in fitted[tap].heads)
        drawn = self._picture(bench, fitted[tap], tap, measured)
        return Outcome(tap, READOUT, tuple(measured), tuple(shuffled), parameters, details, drawn)

    def _fit(self, bench: Bench, tap: str, view: View) -> _Fitted:
        train, val = (_blocks(bench, tap, split, view) for split in ("train", "val"))
        # A slot that only one of the two has cannot be fitted; its frames are read by the first slot's heads.
        heads = tuple(Heads.fitted(*pair, len(bench.data.class_names)) for pair in zip(train, val, strict=False))
        height, width = bench.shared.split("val").blocks[0].shape[2:]
        readings = _read(bench.shared.split("val").blocks, heads, [view(grid) for grid in bench.tokens(tap, "val")])

        def best(predict: Callable[[Reading, float], list[FrameBoxes]]) -> float:
            values = [
                bench.score_boxes("box_iou", "val", [b for reading in readings for b in predict(reading, level)]).value
                for level in CONFIDENCES
            ]
            return CONFIDENCES[int(np.argmax(values))]

        return _Fitted(
            heads,
            view,
            best(lambda reading, level: [p.confident(level) for p in reading.proposals]),
            best(lambda reading, level: extent_boxes(reading.cover, level, height, width)),
        )

    def _measure(
        self,
        bench: Bench,
        fitted: _Fitted,
        split: str,
        tap: str,
        readout: str,
        disturb: View,
        metrics: Sequence[str],
    ) -> list[Measurement]:
        """Measure ``metrics`` on a split, with the tokens ``disturb``ed."""
        height, width = bench.shared.split(split).blocks[0].shape[2:]
        grids = [disturb(fitted.view(grid)) for grid in bench.tokens(tap, split)]
        readings = _read(bench.shared.split(split).blocks, fitted.heads, grids)
        frames = torch.cat([reading.frames for reading in readings])
        proposals = [p for reading in readings for p in reading.proposals]
        extents = [b for r in readings for b in extent_boxes(r.cover, fitted.cover, height, width)]
        confident = [p.confident(fitted.confidence) for p in proposals]
        ranked = [p.ranked() for p in proposals]
        found = {}
        for metric in metrics:
            if bench.shared.registry.metrics[metric].spec.kind == "boxes":
                found[metric] = bench.score_boxes(metric, split, confident if metric == "box_iou" else ranked)
            else:
                found[metric] = bench.score_frames(metric, split, frames)
        by_extent = bench.score_boxes("box_iou", split, extents)
        return [
            *(Measurement(metric, tap, readout, scores) for metric, scores in found.items()),
            Measurement("box_iou", tap, f"{readout}-extent", by_extent),
        ]

    def _picture(self, bench: Bench, fitted: _Fitted, tap: str, measured: Sequence[Measurement]) -> bytes:
        """Return boxes and maps of some clips of `test`; empty for a control, of which they are known."""
        by = [m.scores.per_clip for m in measured if (m.metric, m.tap, m.readout) == ("box_iou", tap, READOUT)]
        if bench.features.control or not by or by[0] is None:
            return b""

        def found(blocks: Sequence[ClipBatch], grids: Sequence[Grid]) -> list[FrameBoxes]:
            readings = _read(blocks, fitted.heads, grids)
            return [p.confident(fitted.confidence) for reading in readings for p in reading.proposals]

        return picture(bench, tap, by[0], found)

    def _worst_margin(self, bench: Bench, measured: Sequence[Measurement]) -> float:
        """Return the least margin to a threshold, relative to that threshold; negative if any is missed."""
        values: dict[str, Scores] = {m.metric: m.scores for m in measured if m.readout == READOUT}
        margins = []
        for metric, threshold in self.thresholds.items():
            sign = 1 if bench.shared.registry.metrics[metric].spec.direction == "higher" else -1
            margins.append(sign * (values[metric].value - threshold) / threshold)
        return min(margins)


def other_readouts(grid: Grid) -> dict[str, View]:
    """Return how a tap with grids like ``grid`` is read besides its native tokens, by name."""
    _, _, h, w, _ = grid.shape
    ways: dict[str, View] = {"pooled": pooled_grid}
    if (h, w) != (COMMON, COMMON):
        ways[f"grid{COMMON}"] = lambda g: g.resampled(g.shape[1], COMMON, COMMON)
    return ways


def _blocks(bench: Bench, tap: str, split: str, view: View) -> list[list[Block]]:
    """Return, slot by slot, (grid, targets on that grid, frames [F, 3, H, W]) of each block of a split."""
    result: list[list[Block]] = []
    for block, tokens in zip(bench.shared.split(split).blocks, bench.tokens(tap, split), strict=True):
        assert block.truth is not None
        grid = view(tokens)
        n, t, _, _ = block.shape
        targets = cell_targets(block.truth, grid.shape[2], grid.shape[3], bench.device)
        images = bench.shared.images(block.frames)
        for slot, (cells, frames) in enumerate(slots(grid.shape[1], t)):
            part = grid, targets, images
            if grid.shape[1] != t:  # else no copy, of what is the largest thing in memory
                chosen = _flat(n, t, frames)
                part = Grid(grid.values[:, cells]), targets.at(chosen), images[chosen]
            if slot == len(result):
                result.append([])
            result[slot].append(part)
    return result


def _read(blocks: Sequence[ClipBatch], heads: Sequence[Heads], grids: Sequence[Grid]) -> list[Reading]:
    """Return what ``heads`` read of every frame of ``blocks``, one reading a block."""
    readings = []
    for block, grid in zip(blocks, grids, strict=True):
        n, t, height, width = block.shape
        if grid.shape[1] == t:
            readings.append(heads[0].read(grid, height, width))
            continue
        parts = []
        for slot, (cells, frames) in enumerate(slots(grid.shape[1], t)):
            reader = heads[slot if slot < len(heads) else 0]
            parts.append((_flat(n, t, frames), reader.read(Grid(grid.values[:, cells]), height, width)))
        readings.append(joined(parts))
    return readings


def _flat(n: int, t: int, frames: Sequence[int]) -> list[int]:
    """Return where ``frames`` of each of ``n`` clips stand among all ``n * t`` frames."""
    return [clip * t + frame for clip in range(n) for frame in frames]
