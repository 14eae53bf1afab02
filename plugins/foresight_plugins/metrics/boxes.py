"""IoU of boxes matched one to one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from foresight_bench.contracts import FrameBoxes
from foresight_bench.scores import Scores, mean_scores


class BoxIoU:
    """Mean IoU under the one-to-one matching that maximises it, whatever the classes.

    Per frame: the sum of matched IoU over max(number of true boxes, number of predicted boxes), so a missed
    and an invented box cost the same; 1 if both are empty. Per clip: the mean over its frames. No order of
    boxes is assumed: scoring slot by slot against an arbitrary order caps a perfect predictor near .25.
    """

    def score(self, predicted: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], clip: NDArray[np.int64]) -> Scores:
        """Return the mean over clips; see :class:`foresight_bench.contracts.BoxMetric`."""
        frames = [matched_iou(p.boxes, t.boxes) for p, t in zip(predicted, truth, strict=True)]
        return mean_scores(np.bincount(clip, weights=frames) / np.bincount(clip))


def iou_matrix(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return [len(a), len(b)] IoU of half-open boxes [., 4] x0, y0, x1, y1; 0 where both are empty."""
    a, b = a.reshape(-1, 4).astype(np.float64), b.reshape(-1, 4).astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (np.clip(c[:, 2:] - c[:, :2], 0, None).prod(-1) for c in (a, b))
    union = area_a[:, None] + area_b[None] - inter
    iou: NDArray[np.float64] = inter / np.where(union > 0, union, 1)
    return iou


def matched_iou(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Return the score of one frame in [0, 1] for boxes [., 4]."""
    if len(predicted) == 0 or len(truth) == 0:
        return float(len(predicted) == len(truth))
    iou = iou_matrix(predicted, truth)
    return float(iou[linear_sum_assignment(iou, maximize=True)].sum() / max(iou.shape))
