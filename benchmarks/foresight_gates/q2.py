"""Q2, information preservation: where in the encoder is spatial information lost?

At each tap the same two heads read the unpooled tokens: a dense detection probe and a patch decoder. The tap that
gates is chosen on `val`: the one whose worst metric stands best. At every tap `pooled` (the mean over a frame's tokens,
broadcast) is reported beside `tokens`, and so is a common 16x16 grid where the native one is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from foresight_bench.bench import Bench
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Data, FrameBoxes, Measurement, Outcome
from foresight_bench.grids import Grid, slots
from foresight_bench.scores import Scores
from foresight_bench.specs import ExperimentSpec
from foresight_bench.transforms import pooled_grid
from foresight_gates.probes import Block, Heads, Reading, extent_boxes, joined
from foresight_gates.q2_picture import picture
from foresight_gates.targets import CellTargets, cell_targets

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

    def run(self, bench: Bench, progress: Callable[[str], None]) -> Outcome:
        """Return the gating metrics at every tap and readout; all metrics and the shuffled floor at the chosen tap."""
        candidates = bench.features.candidates
        gating = tuple(self.thresholds)
        margins: dict[str, float] = {}
        fitted: dict[str, _Fitted] = {}
        for tap in bench.features.taps:
            progress(f"{tap}, fitting")
            fitted[tap] = self._fit(bench, tap, same)
            if tap in candidates and len(candidates) > 1:
                on_val, _ = self._measure(bench, fitted[tap], "val", tap, READOUT, gating)
                margins[tap] = self._worst_margin(bench, on_val)
        chosen = max(margins, key=lambda name: margins[name]) if margins else candidates[0]

        measured: list[Measurement] = []
        shuffled: list[Measurement] = []
        control = bench.features.control
        for tap, heads in fitted.items():
            progress(tap)
            metrics = gating + self.reported if tap == chosen and not control else gating
            floor = gating if tap == chosen and control != "floor" else ()
            found, crossed = self._measure(bench, heads, "test", tap, READOUT, metrics, floor)
            measured += found
            shuffled += crossed
            for readout, view in {} if control else other_readouts(bench.tokens(tap, "train")[0]).items():
                progress(f"{tap} {readout}")
                found, _ = self._measure(bench, self._fit(bench, tap, view), "test", tap, readout, gating)
                measured += found
        details: dict[str, float | str] = {f"val_margin.{name}": value for name, value in margins.items()}
        parameters = sum(heads.parameters for heads in fitted[chosen].heads)
        drawn = self._picture(bench, fitted[chosen], chosen, measured)
        return Outcome(chosen, READOUT, tuple(measured), tuple(shuffled), parameters, details, drawn)

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
        metrics: Sequence[str],
        shuffled: Sequence[str] = (),
    ) -> tuple[list[Measurement], list[Measurement]]:
        """Measure ``metrics`` on a split, and those ``shuffled`` also on what is read of another clip's tokens.

        A frame is read from its own tokens alone, so what is read of shuffled ones is what is read, shuffled.
        """
        height, width = bench.shared.split(split).blocks[0].shape[2:]
        grids = [fitted.view(grid) for grid in bench.tokens(tap, split)]
        readings = _read(bench.shared.split(split).blocks, fitted.heads, grids)
        frames = torch.cat([reading.frames for reading in readings])
        proposals = [p for reading in readings for p in reading.proposals]
        extents = [b for r in readings for b in extent_boxes(r.cover, fitted.cover, height, width)]
        confident = [p.confident(fitted.confidence) for p in proposals]
        ranked = [p.ranked() for p in proposals]
        order = bench.shared.next_clips(split).tolist() if shuffled else []

        def of_boxes(metric: str, found: Sequence[FrameBoxes]) -> tuple[Scores, ...]:
            rows = [found, [found[frame] for frame in order]] if metric in shuffled else [found]
            return tuple(bench.score_boxes(metric, split, row) for row in rows)

        scores: dict[tuple[str, str], tuple[Scores, ...]] = {}
        for metric in metrics:
            if bench.shared.registry.metrics[metric].spec.kind == "boxes":
                scores[metric, readout] = of_boxes(metric, confident if metric == "box_iou" else ranked)
            elif metric in shuffled:
                scores[metric, readout] = bench.score_crossed(metric, split, frames)
            else:
                scores[metric, readout] = (bench.score_frames(metric, split, frames),)
        scores["box_iou", f"{readout}-extent"] = of_boxes("box_iou", extents)
        measured = [Measurement(metric, tap, name, found[0]) for (metric, name), found in scores.items()]
        floor = [Measurement(metric, tap, name, found[1]) for (metric, name), found in scores.items() if found[1:]]
        return measured, floor

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
    for index, (block, tokens) in enumerate(
        zip(bench.shared.split(split).blocks, bench.tokens(tap, split), strict=True)
    ):
        grid = view(tokens)
        n, t, _, _ = block.shape
        size = grid.shape[2:4]
        targets = _targets(bench.data, split, index, size, bench.device)  # type: ignore[arg-type]  # hashed by identity
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


@lru_cache(maxsize=4)
def _targets(data: Data, split: str, index: int, size: tuple[int, int], device: torch.device) -> CellTargets:
    """Return the targets of a block: the same at every tap with that many cells. `train` and `val`, on two grids."""
    truth = data.split(split).blocks[index].truth
    assert truth is not None
    return cell_targets(truth, *size, device)


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
