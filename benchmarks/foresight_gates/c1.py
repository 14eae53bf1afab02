"""C1, latent sufficiency: can the features be decoded back into video?

An adapter maps each tap's feature grid to the decoder's latent grid, trained on `train` by squared error on
latents normalised per channel. The tap with the least error on `val` is decoded and scored on `test`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from foresight_bench.bench import Bench
from foresight_bench.contracts import Adapter, Measurement, Outcome
from foresight_bench.features import next_clip
from foresight_bench.grids import Grid
from foresight_bench.specs import ExperimentSpec

READOUT = "tokens"


class LatentSufficiency:
    """Decodes the features of the best tap."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.gating = tuple(c.metric for c in spec.criteria if c.threshold is not None)
        self.reported = tuple(c.metric for c in spec.criteria if c.threshold is None)

    def run(self, bench: Bench, progress: Callable[[str], None]) -> Outcome:
        """Return the metrics of the reconstruction from the tap that `val` chose."""
        if bench.features.control == "oracle":
            # The ceiling is the decoder's own round trip: no adapter can hand it better latents than its own.
            tap = bench.features.taps[0]
            latents = bench.latents("test")
            return Outcome(
                tap,
                READOUT,
                self._measure(bench, tap, latents),
                self._measure(bench, tap, [next_clip(grid) for grid in latents]),
            )
        normal = Normal.of(bench.latents("train"))
        pairs = {split: [normal.forward(grid) for grid in bench.latents(split)] for split in ("train", "val")}
        best: tuple[float, str, Adapter] | None = None
        errors: dict[str, float | str] = {}
        for tap in bench.features.candidates:
            progress(f"adapter at {tap}")
            adapter = bench.adapter()
            adapter.fit(
                list(zip(bench.tokens(tap, "train"), pairs["train"], strict=True)),
                list(zip(bench.tokens(tap, "val"), pairs["val"], strict=True)),
            )
            error = mean_squared_error(adapter, bench.tokens(tap, "val"), pairs["val"])
            errors[f"val_mse.{tap}"] = error
            if best is None or error < best[0]:
                best = error, tap, adapter
        assert best is not None
        _, tap, adapter = best
        progress(f"decoding {tap}")
        grids = bench.tokens(tap, "test")
        sizes = [latents.shape[1:4] for latents in bench.latents("test")]

        def predicted(grids: Iterable[Grid]) -> list[Grid]:
            return [normal.backward(adapter.predict(*pair)) for pair in zip(grids, sizes, strict=True)]

        decoded = predicted(grids)
        floor = bench.features.control == "floor"  # a floor needs none of its own
        wrong = [] if floor else predicted(map(next_clip, grids))
        return Outcome(
            tap,
            READOUT,
            self._measure(bench, tap, decoded),
            self._measure(bench, tap, wrong),
            adapter.trainable_parameters,
            errors,
        )

    def _measure(self, bench: Bench, tap: str, latents: Sequence[Grid]) -> tuple[Measurement, ...]:
        if not latents:
            return ()
        frames = torch.cat([bench.decoded(grid) for grid in latents])
        metrics = self.gating if bench.features.control else self.gating + self.reported
        return tuple(
            Measurement(metric, tap, READOUT, bench.score_frames(metric, "test", frames)) for metric in metrics
        )


class Normal:
    """Per-channel normalisation of latents, measured on `train`."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> Normal:
        """Measure ``grids``."""
        rows = torch.cat([grid.values.flatten(0, 3) for grid in grids])
        std = rows.std(0)
        return cls(rows.mean(0), torch.where(std > 0, std, 1.0))

    def forward(self, grid: Grid) -> Grid:
        """Return normalised latents."""
        return Grid((grid.values - self.mean) / self.std)

    def backward(self, grid: Grid) -> Grid:
        """Return latents as the decoder made them."""
        return Grid(grid.values * self.std + self.mean)


def mean_squared_error(adapter: Adapter, features: Sequence[Grid], latents: Sequence[Grid]) -> float:
    """Return the mean squared error over all values of all blocks."""
    total, count = 0.0, 0
    for grid, wanted in zip(features, latents, strict=True):
        error = adapter.predict(grid, wanted.shape[1:4]).values - wanted.values
        total += float(error.square().sum(dtype=torch.float64))
        count += wanted.values.numel()
    return total / count
