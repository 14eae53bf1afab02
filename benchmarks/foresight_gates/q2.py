"""Q2, information preservation: where in the encoder is spatial information lost?

At each tap the same two heads read the unpooled tokens: a dense detection probe and a patch decoder. `pooled`
(the mean over a frame's tokens, broadcast) and, where the native grid is another, a common 16x16 grid are
reported beside `tokens`. The tap that gates is chosen on `val`: the one whose worst metric stands best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foresight_bench.bench import Bench
from foresight_bench.contracts import FrameBoxes, Measurement, Outcome
from foresight_bench.features import next_clip, pooled_grid
from foresight_bench.grids import Grid
from foresight_bench.scores import Scores
from foresight_bench.specs import ExperimentSpec
from foresight_gates.probes import DetectionProbe, PatchDecoder, Standard, extent_boxes
from foresight_gates.targets import CellTargets, cell_targets

READOUT = "tokens"
COMMON = 16
"""Side of the grid on which encoders of different resolution are compared."""
BOX_METRICS = ("box_iou", "map50", "map")
CONFIDENCES = tuple(np.linspace(0.1, 0.9, 17))


@dataclass(frozen=True)
class _Heads:
    """The heads of one tap and readout, with the thresholds that `val` chose."""

    detection: DetectionProbe
    decoder: PatchDecoder
    confidence: float
    cover: float


class InformationPreservation:
    """Reads objects and pixels out of every tap."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.thresholds = {c.metric: c.threshold for c in spec.criteria if c.threshold is not None}
        self.frame_metrics = tuple(c.metric for c in spec.criteria if c.metric not in BOX_METRICS)

    def run(self, bench: Bench, progress: Callable[[str], None]) -> Outcome:
        """Return every metric at every tap and readout, and the shuffled floor at the chosen tap."""
        measured: list[Measurement] = []
        margins: dict[str, float] = {}
        heads: dict[str, _Heads] = {}
        for tap in bench.features.taps:
            for readout, view in readouts(bench.tokens(tap, "train")[0]).items():
                progress(f"{tap} {readout}")
                grids = {split: [view(grid) for grid in bench.tokens(tap, split)] for split in ("train", "val", "test")}
                fitted = self._fit(bench, grids)
                measured += self._measure(bench, fitted, "test", grids["test"], tap, readout)
                if readout == READOUT:
                    heads[tap] = fitted
                    on_val = self._measure(bench, fitted, "val", grids["val"], tap, readout)
                    margins[tap] = self._worst_margin(bench, on_val)
        tap = max(margins, key=lambda name: margins[name])
        wrong = [next_clip(grid) for grid in bench.tokens(tap, "test")]
        shuffled = self._measure(bench, heads[tap], "test", wrong, tap, READOUT)
        parameters = sum(
            part.weight.numel() + part.intercept.numel()
            for part in (
                heads[tap].detection.presence,
                heads[tap].detection.classes,
                heads[tap].detection.distances,
                heads[tap].decoder.head,
            )
        )
        details: dict[str, float | str] = {f"val_margin.{name}": value for name, value in margins.items()}
        return Outcome(tap, READOUT, tuple(measured), tuple(shuffled), parameters, details)

    def _fit(self, bench: Bench, grids: dict[str, list[Grid]]) -> _Heads:
        standard = Standard.of(grids["train"])
        targets, frames = {}, {}
        for split in ("train", "val"):
            targets[split] = list(zip(grids[split], cell_targets_of(bench, split, grids[split]), strict=True))
            frames[split] = list(zip(grids[split], frames_of(bench, split), strict=True))
        detection = DetectionProbe.fitted(standard, targets["train"], targets["val"], len(bench.data.class_names))
        decoder = PatchDecoder.fitted(standard, frames["train"], frames["val"])
        height, width = frames["val"][0][1].shape[2:]
        proposals = [p for grid in grids["val"] for p in detection.proposals(grid, height, width)]
        cover = torch.cat([detection.extents(grid) for grid in grids["val"]])

        def best(predict: Callable[[float], list[FrameBoxes]]) -> float:
            values = [bench.score_boxes("box_iou", "val", predict(c)).value for c in CONFIDENCES]
            return float(CONFIDENCES[int(np.argmax(values))])

        return _Heads(
            detection,
            decoder,
            best(lambda c: [p.confident(c) for p in proposals]),
            best(lambda c: extent_boxes(cover, c, height, width)),
        )

    def _measure(
        self, bench: Bench, heads: _Heads, split: str, grids: Sequence[Grid], tap: str, readout: str
    ) -> list[Measurement]:
        height, width = bench.shared.split(split).blocks[0].shape[2:]
        frames = torch.cat([heads.decoder.frames(grid, height, width) for grid in grids])
        found = [
            Measurement(metric, tap, readout, bench.score_frames(metric, split, frames))
            for metric in self.frame_metrics
        ]
        proposals = [p for grid in grids for p in heads.detection.proposals(grid, height, width)]
        cover = torch.cat([heads.detection.extents(grid) for grid in grids])
        extents = extent_boxes(cover, heads.cover, height, width)
        iou = bench.score_boxes("box_iou", split, [p.confident(heads.confidence) for p in proposals])
        found.append(Measurement("box_iou", tap, readout, iou))
        found.append(Measurement("box_iou", tap, f"{readout}-extent", bench.score_boxes("box_iou", split, extents)))
        for metric in ("map50", "map"):
            found.append(
                Measurement(metric, tap, readout, bench.score_boxes(metric, split, [p.ranked() for p in proposals]))
            )
        return found

    def _worst_margin(self, bench: Bench, measured: Sequence[Measurement]) -> float:
        """Return the least margin to a threshold, relative to that threshold; negative if any is missed."""
        values: dict[str, Scores] = {m.metric: m.scores for m in measured if m.readout == READOUT}
        margins = []
        for metric, threshold in self.thresholds.items():
            sign = 1 if bench.shared.registry.metrics[metric].spec.direction == "higher" else -1
            margins.append(sign * (values[metric].value - threshold) / threshold)
        return min(margins)


def readouts(grid: Grid) -> dict[str, Callable[[Grid], Grid]]:
    """Return how a tap with grids like ``grid`` is read, by name."""
    _, _, h, w, _ = grid.shape
    ways: dict[str, Callable[[Grid], Grid]] = {READOUT: lambda g: g, "pooled": pooled_grid}
    if (h, w) != (COMMON, COMMON):
        ways[f"grid{COMMON}"] = lambda g: g.resampled(g.shape[1], COMMON, COMMON)
    return ways


def cell_targets_of(bench: Bench, split: str, grids: Sequence[Grid]) -> list[CellTargets]:
    """Return the targets of each block on its grid."""
    result = []
    for block, grid in zip(bench.shared.split(split).blocks, grids, strict=True):
        assert block.truth is not None
        result.append(cell_targets(block.truth, grid.shape[2], grid.shape[3], bench.device))
    return result


def frames_of(bench: Bench, split: str) -> list[Tensor]:
    """Return the frames [F, 3, H, W] of each block."""
    return [bench.shared.images(block.frames) for block in bench.shared.split(split).blocks]
