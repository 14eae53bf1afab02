"""What the protocols share: this suite's metrics on plain arrays, boxes, and seeds for what the study left unseeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foresight_bench.contracts import FrameTruth, Spaces
from foresight_bench.registry import Registry, target
from foresight_bench.tables import number
from foresight_bench.weights import resolve
from foresight_gates.suites import THRESHOLDS

_CHUNK = 25  # pictures; LPIPS keeps 8 MB of features of each at 448 px


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw from ``seed`` inside the block, and leave the generator as it was. The study set no seed at all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tensor(pictures: NDArray[Any]) -> Tensor:
    """Return pictures [N, H, W, 3] of 0 to 255 as float32 [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


class FrameScorer:
    """A metric of frames, as the registry has it."""

    def __init__(self, registry: Registry, name: str) -> None:
        spec = registry.metrics[name].spec
        weights = resolve(spec.weights) if spec.weights else None
        self._metric = target(spec.target)(weights=weights, device="cpu", **spec.params)

    def means(self, truth: NDArray[np.uint8], made: Sequence[Callable[[slice], NDArray[Any]]]) -> list[float]:
        """Return the mean score of each of ``made``, a function of which of the N pictures are wanted."""
        totals = [0.0] * len(made)
        for start in range(0, len(truth), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(truth)))
            frames = tensor(truth[part])
            labels = torch.zeros(len(frames), *frames.shape[2:], dtype=torch.uint8)
            prepared = self._metric.prepare(FrameTruth(frames, frames, labels))
            for index, make in enumerate(made):
                totals[index] += float(self._metric.score(tensor(make(part)), prepared).sum())
        return [total / len(truth) for total in totals]


def space_score(registry: Registry, name: str, x: Tensor, y: Tensor) -> float:
    """Return what a metric of the registry gives two spaces [N, D] and [N, E] over the same pictures."""
    spec = registry.metrics[name].spec
    spaces = Spaces(x[:0].double(), y[:0].double(), x.double(), y.double())
    return float(target(spec.target)(**spec.params).score(spaces).value)


def trained(
    head: nn.Module,
    loss: Callable[[slice], Tensor],
    count: int,
    *,
    batch: int,
    epochs: int,
    rate: float,
    decay: float = 0,
) -> None:
    """Train ``head`` on ``loss`` of batches of ``count`` samples, in order, with Adam (AdamW to decay)."""
    kind = torch.optim.AdamW if decay else torch.optim.Adam
    optimiser = kind(head.parameters(), lr=rate, weight_decay=decay)
    for _ in range(epochs):
        for start in range(0, count, batch):
            optimiser.zero_grad()
            loss(slice(start, min(start + batch, count))).backward()
            optimiser.step()


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU [...] of boxes [..., 4] x0, y0, x1, y1, one with one."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return inter / (areas[0] + areas[1] - inter).clamp(min=1e-12)


def outcome(experiment: str, metric: str, value: float) -> str:
    """Return ``.866, which passes .600`` or ``.295, which misses .600``, at the threshold of both study and suite."""
    threshold = THRESHOLDS[experiment][metric]
    passes = value < threshold if metric == "lpips" else value > threshold
    return f"{number(value)}, which {'passes' if passes else 'misses'} {number(threshold)}"
