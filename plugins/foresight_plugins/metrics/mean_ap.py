"""COCO mean average precision, with a bootstrap over clips (Lin et al. 2014; matching by pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foresight_bench.contracts import FrameBoxes
from foresight_bench.scores import FloatArray, Scores, bootstrap_counts

_MAX_DETECTIONS = 100
_ALL_AREAS = [0.0, 1e10]


class MeanAP:
    """Mean average precision over classes and over IoU thresholds ``low`` to ``high`` in steps of .05.

    101 recall points, at most 100 detections a frame and class, boxes of all sizes. The value is
    pycocotools'. Its matches within a frame do not depend on other frames, so a replicate only accumulates
    them again, weighted by how often their clip was drawn. Classes without a true box are left out; with no
    true box at all the value is NaN.
    """

    def __init__(self, low: float = 0.5, high: float = 0.95) -> None:
        self._thresholds = np.linspace(low, high, round((high - low) / 0.05) + 1)

    def score(self, predicted: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], clip: NDArray[np.int64]) -> Scores:
        """Return scores over clips; see :class:`foresight_bench.contracts.BoxMetric`."""
        evaluation = evaluate(predicted, truth, self._thresholds)
        precision = evaluation.eval["precision"]
        value = float(precision[precision > -1].mean()) if (precision > -1).any() else float("nan")
        classes = matches(evaluation, clip)
        counts = bootstrap_counts(int(clip.max()) + 1).astype(np.float64)
        return Scores(value, weighted_map(classes, counts, evaluation.params.recThrs), counts.shape[1])


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class over all frames, best score first."""

    clip: NDArray[np.int64]
    """[D] clip of each detection."""
    true: NDArray[np.bool_]
    """[T, D] whether it matches a true box at each threshold."""
    truth_clip: NDArray[np.int64]
    """[G] clip of each true box."""


def evaluate(predicted: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], thresholds: FloatArray) -> Any:
    """Return a ``COCOeval``, evaluated and accumulated, whose image i is frame i."""
    classes = sorted({int(c) for frames in (predicted, truth) for f in frames for c in f.classes})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(_coco(truth, classes), _coco(predicted, classes), "bbox")
        evaluation.params.iouThrs = thresholds
        evaluation.params.maxDets = [_MAX_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [_ALL_AREAS], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def matches(evaluation: Any, clip: NDArray[np.int64]) -> list[ClassMatches]:
    """Return the matches of every class that has detections or true boxes."""
    by_class: dict[int, list[dict[str, Any]]] = {}
    for image in evaluation.evalImgs:  # classes outer, images inner; None where a frame has neither
        if image is not None:
            by_class.setdefault(image["category_id"], []).append(image)
    found = []
    for images in by_class.values():
        # COCO leaves out detections whose area is negative; all others count.
        counted = ~np.concatenate([i["dtIgnore"] for i in images], axis=1).astype(bool).all(0)
        score = np.concatenate([np.asarray(i["dtScores"], dtype=np.float64) for i in images])[counted]
        order = np.argsort(-score, kind="mergesort")  # stable, as in COCOeval.accumulate
        of_image = np.array([clip[i["image_id"]] for i in images])
        found.append(
            ClassMatches(
                np.repeat(of_image, [len(i["dtIds"]) for i in images])[counted][order],
                np.concatenate([i["dtMatches"] > 0 for i in images], axis=1)[:, counted][:, order],
                np.repeat(of_image, [len(i["gtIds"]) for i in images]),
            )
        )
    return found


def weighted_map(classes: Sequence[ClassMatches], counts: FloatArray, recalls: FloatArray) -> FloatArray:
    """Return [R] mean average precision with each clip taken ``counts`` [R, n] times.

    Interpolated precision at a recall is a maximum over true detections, where recall rises; false ones
    enter only through the number of detections up to there.
    """
    total = np.zeros(len(counts))
    present = np.zeros(len(counts))
    for matched in classes:
        positives = counts[:, matched.truth_clip].sum(1)
        seen = counts[:, matched.clip].cumsum(1)
        precision = np.zeros(len(counts))
        for true in matched.true:
            hits = counts[:, matched.clip[true]].cumsum(1)
            envelope = hits / (seen[:, true] + np.spacing(1))
            envelope = np.maximum.accumulate(envelope[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(positives, 1)[:, None]
            reached = np.searchsorted(recalls, recall, side="right")  # recall points at or below
            precision += (envelope * np.diff(reached, axis=1, prepend=0)).sum(1) / len(recalls)
        total += np.where(positives > 0, precision / len(matched.true), 0)
        present += positives > 0
    return np.divide(total, present, where=present > 0, out=np.full_like(total, np.nan))


def _coco(frames: Sequence[FrameBoxes], classes: Sequence[int]) -> Any:
    """Return ``frames`` as a COCO data set; annotation ids start at 1, since 0 means unmatched."""
    annotations: list[dict[str, Any]] = []
    for image, frame in enumerate(frames):
        for (x0, y0, x1, y1), category, score in zip(
            frame.boxes.tolist(), frame.classes.tolist(), frame.scores.tolist(), strict=True
        ):
            width, height = x1 - x0, y1 - y0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(len(frames))],
        "categories": [{"id": c} for c in classes],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
