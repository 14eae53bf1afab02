"""What an experiment works with: data, truth, features, decoder, adapters and metrics of one row.

The :class:`Workbench` is shared by all rows of a worker, so that truth, latents and the metrics' reference
features are computed once; a :class:`Bench` adds one row's features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.adapting import Adapted, Adapting, Wanted
from foresight_bench.contracts import (
    BoxMetric,
    CrossedMetric,
    Data,
    Decoder,
    FrameBoxes,
    FrameMetric,
    FrameTruth,
    ResolvedWeights,
    SpaceMetric,
    Spaces,
    Split,
)
from foresight_bench.errors import NonFinite
from foresight_bench.features import FeatureSet
from foresight_bench.grids import Grid, finite
from foresight_bench.registry import Registry, target
from foresight_bench.scores import Scores, mean_scores
from foresight_bench.transforms import next_row

CODED = 32
"""Clips that a decoder encodes or decodes at a time: 808 clips of `gate1` at once took 100 GB on a GPU."""


class Workbench:
    """The parts that rows share."""

    def __init__(self, registry: Registry, data: Data, device: str, weights: Mapping[str, ResolvedWeights]) -> None:
        self.registry = registry
        self.data = data
        self.device = torch.device(device)
        self.weights = weights
        self._decoders: dict[str, Decoder] = {}
        self._latents: dict[tuple[str, str], tuple[Grid, ...]] = {}
        self._metrics: dict[str, Any] = {}
        self._truths: dict[str, FrameTruth] = {}
        self._prepared: dict[tuple[str, str], Any] = {}

    def split(self, name: str) -> Split:
        """Return a split."""
        return self.data.split(name)

    def decoder(self, name: str) -> Decoder:
        """Return a decoder, fitted on ``train`` if it needs fitting."""
        if name not in self._decoders:
            spec = self.registry.decoders[name].spec
            weights = self.weights[spec.weights.name] if spec.weights else None
            decoder = target(spec.target)(weights=weights, device=self.device, **spec.params)
            decoder.fit(self.split("train").blocks)
            self._decoders[name] = decoder
        return self._decoders[name]

    def latents(self, decoder: str, split: str) -> tuple[Grid, ...]:
        """Return the decoder's latents of a split, one grid per block."""
        key = decoder, split
        if key not in self._latents:
            grids = []
            for block in self.split(split).blocks:
                parts = [block[start : start + CODED] for start in range(0, len(block), CODED)]
                found = [self.decoder(decoder).encode(part) for part in parts]
                grid = replace(found[0], values=torch.cat([part.values for part in found]))
                grid.check_finite(f"The latent grid of {decoder}")
                grids.append(grid)
            self._latents[key] = tuple(grids)
        return self._latents[key]

    def decoded(self, decoder: str, latents: Grid) -> Tensor:
        """Return the frames that ``latents`` decode to, flattened over clips and time: [F, 3, H, W] in [0, 1]."""
        parts = [replace(latents, values=values) for values in latents.values.split(CODED)]
        return torch.cat([self.decoder(decoder).decode(part).flatten(0, 1) for part in parts])

    def metric(self, name: str) -> Any:
        """Return a metric."""
        if name not in self._metrics:
            spec = self.registry.metrics[name].spec
            extra: dict[str, Any] = {"device": self.device} if spec.kind == "frames" else {}
            if spec.kind == "frames":
                extra["weights"] = self.weights[spec.weights.name] if spec.weights else None
            self._metrics[name] = target(spec.target)(**extra, **spec.params)
        return self._metrics[name]

    def frame_truth(self, split: str) -> FrameTruth:
        """Return frames, clean plates and labels of a split, flattened over clips and time."""
        if split not in self._truths:
            frames, plates, labels = [], [], []
            for block in self.split(split).blocks:
                assert block.truth is not None
                frames.append(self.images(block.frames))
                plates.append(self.images(block.truth.plates))
                labels.append(torch.from_numpy(block.truth.labels).flatten(0, 1).to(self.device))
            self._truths[split] = FrameTruth(torch.cat(frames), torch.cat(plates), torch.cat(labels))
        return self._truths[split]

    def images(self, frames: NDArray[np.uint8]) -> Tensor:
        """Return uint8 [N, T, H, W, 3] as float32 [N * T, 3, H, W] in [0, 1] on the device."""
        flat = torch.from_numpy(frames).to(self.device).flatten(0, 1)
        return flat.permute(0, 3, 1, 2).to(torch.float32).div_(255)

    def prepared(self, metric: str, split: str) -> Any:
        """Return what a frame metric computes from the truth of a split."""
        key = metric, split
        if key not in self._prepared:
            self._prepared[key] = self.metric(metric).prepare(self.frame_truth(split))
        return self._prepared[key]

    def clip_index(self, split: str) -> NDArray[np.int64]:
        """Return [F], the clip each frame of the split belongs to."""
        index, start = [], 0
        for block in self.split(split).blocks:
            n, t, _, _ = block.shape
            index.append(np.repeat(np.arange(start, start + n), t))
            start += n
        return np.concatenate(index).astype(np.int64)

    def next_clips(self, split: str) -> Tensor:
        """Return [F], for each frame of the split which one stands there when clips are shuffled as features are.

        Raises:
            ContractError: a block has a single clip.
        """
        parts, start = [], 0
        for block in self.split(split).blocks:
            n, t, _, _ = block.shape
            parts.append(
                next_row(torch.arange(start, start + n * t, device=self.device).unflatten(0, (n, t))).flatten()
            )
            start += n * t
        return torch.cat(parts)

    def boxes(self, split: str) -> list[FrameBoxes]:
        """Return the true boxes of every frame of a split."""
        result = []
        for block in self.split(split).blocks:
            truth = block.truth
            assert truth is not None
            n, t, _, _ = block.shape
            for i in range(n):
                for j in range(t):
                    boxes = truth.boxes[i, j]
                    seen = (boxes[:, 2] > boxes[:, 0]) & (truth.classes[i] >= 0)
                    result.append(
                        FrameBoxes(
                            boxes[seen].astype(np.float32),
                            truth.classes[i][seen].astype(np.int64),
                            np.ones(int(seen.sum()), dtype=np.float32),
                        )
                    )
        return result


@dataclass
class Bench:
    """One row on the workbench."""

    shared: Workbench
    features: FeatureSet
    seed: int
    adapter_name: str = ""
    decoder_name: str = ""
    adapting: Adapting | None = None
    """Where the row's adapters are trained together; None to train this cell's by itself."""
    encoder_name: str = ""
    """As the row is called."""

    @property
    def device(self) -> torch.device:
        """The device everything runs on."""
        return self.shared.device

    @property
    def data(self) -> Data:
        """The suite's data."""
        return self.shared.data

    def tokens(self, tap: str, split: str) -> tuple[Grid, ...]:
        """Return the feature grids of a dense split, one per block."""
        return self.features.tokens[tap, split]

    def latents(self, split: str) -> tuple[Grid, ...]:
        """Return the decoder's latent grids of a split, one per block."""
        return self.shared.latents(self.decoder_name, split)

    def decoded(self, latents: Grid) -> Tensor:
        """Return the frames [F, 3, H, W] that the cell's decoder makes of ``latents``."""
        return self.shared.decoded(self.decoder_name, latents)

    @property
    def wanted(self) -> Wanted:
        """The cell's adapter."""
        return Wanted(self.adapter_name, self.decoder_name, self.seed)

    def adapted(self, progress: Callable[[str], None]) -> dict[str, Adapted]:
        """Return the cell's adapter, fitted on ``train`` at every candidate tap, in order of depth.

        Raises:
            Unsupported: the adapter or the decoder cannot serve what they are given.
            NonFinite: the loss did not stay finite.
        """
        adapting = self.adapting or Adapting(self.shared, self.features, [self.wanted])
        return adapting.take(self.wanted, progress)

    def score_frames(self, metric: str, split: str, reconstruction: Tensor) -> Scores:
        """Score reconstructed frames [F, 3, H, W] of a split; the per-clip score is the mean over frames.

        Raises:
            NonFinite: the reconstruction holds NaN or infinity.
        """
        _require_finite(metric, reconstruction)
        scorer: FrameMetric = self.shared.metric(metric)
        return self._by_clip(split, scorer.score(reconstruction, self.shared.prepared(metric, split)))

    def score_crossed(self, metric: str, split: str, reconstruction: Tensor) -> tuple[Scores, Scores]:
        """Score reconstructed frames as :meth:`score_frames` does, and also as those of the next clip.

        Raises:
            ContractError: a block has a single clip.
            NonFinite: the reconstruction holds NaN or infinity.
        """
        _require_finite(metric, reconstruction)
        scorer: FrameMetric = self.shared.metric(metric)
        prepared, order = self.shared.prepared(metric, split), self.shared.next_clips(split)
        if isinstance(scorer, CrossedMetric):
            straight, crossed = scorer.crossed(reconstruction, prepared, order)
        else:
            straight, crossed = (scorer.score(frames, prepared) for frames in (reconstruction, reconstruction[order]))
        return self._by_clip(split, straight), self._by_clip(split, crossed)

    def _by_clip(self, split: str, per_frame: Tensor) -> Scores:
        clip = self.shared.clip_index(split)
        values = per_frame.cpu().double().numpy()
        return mean_scores(np.bincount(clip, values) / np.bincount(clip))

    def score_boxes(self, metric: str, split: str, predicted: Sequence[FrameBoxes]) -> Scores:
        """Score predicted boxes, one entry per frame of the split."""
        scorer: BoxMetric = self.shared.metric(metric)
        return scorer.score(predicted, self.shared.boxes(split), self.shared.clip_index(split))

    def score_spaces(self, metric: str, spaces: Spaces) -> Scores:
        """Score a pair of spaces."""
        scorer: SpaceMetric = self.shared.metric(metric)
        return scorer.score(spaces)


def _require_finite(metric: str, reconstruction: Tensor) -> None:
    if not finite(reconstruction):
        raise NonFinite(f"The reconstruction scored by {metric} holds NaN or infinite values.")
