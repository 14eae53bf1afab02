"""Q1, latent alignment: do the encoder's and the decoder's latent spaces share structure?

One vector per clip and space: the grid averaged over time and onto 4x4 cells. Nuisances that any encoder would
share with any decoder (mean colour, foreground area, object count) are regressed out of both, on `train`.
The encoder's residuals are z-scored per dimension, because a few channels of a transformer can outweigh all
others; the decoder's keep the metric the decoder gives them, because z-scoring would count its many components
that hold next to nothing as much as the few that hold the picture (the decoder's latents, rotated, then predict
themselves with R2 .03). The tap is chosen on `val`; results are on `test` and `align`.

At that tap two things are reported beside the gating metrics: R2 from decoder to encoder, and the intrinsic dimension
of both spaces with the gap between them. Neither gates: an encoder may well hold what no decoder does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from foresight_bench.bench import Bench
from foresight_bench.contracts import Data, Measurement, Outcome, Spaces
from foresight_bench.features import COARSE_SIDE
from foresight_bench.specs import ExperimentSpec
from foresight_bench.tables import number
from foresight_gates.q1_picture import picture

SCORED = ("test", "align")
READOUT = "grid4"
RESIDUE = 1e-9
"""A column that keeps less than this share of its variance once the nuisances are out was made of them: what is
left is rounding (about 1e-14 in float64, 1e-11 from float32 features), which z-scoring would blow up to noise."""


class LatentAlignment:
    """Compares the spaces."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.gating = tuple(c.metric for c in spec.criteria if c.threshold is not None)
        self.reported = tuple(c.metric for c in spec.criteria if c.threshold is None)

    def run(self, bench: Bench, progress: Callable[[str], None]) -> Outcome:
        """Return every metric at every tap, and at the chosen tap also raw, on a 1x1 grid, and shuffled."""
        spaces = {}
        errors: dict[str, float | str] = {}
        for tap in bench.features.taps:
            progress(f"choosing a tap: {tap}")
            spaces[tap] = _Pair(bench, tap)
            if tap in bench.features.candidates:
                errors[f"val_r2.{tap}"] = bench.score_spaces("ridge_r2", spaces[tap].spaces(("val",))).value
        tap = max(bench.features.candidates, key=lambda name: float(errors[f"val_r2.{name}"]))

        measured: list[Measurement] = []
        for name, pair in spaces.items():
            progress(f"{name}")
            full = name == tap and not bench.features.control
            metrics = self.gating + self.reported if full else self.gating
            measured += self._measure(bench, name, READOUT, pair.spaces(SCORED), metrics)
        chosen = spaces[tap]
        shuffled: list[Measurement] = []
        if bench.features.control != "floor":
            progress(f"{tap} shuffled")
            shuffled = self._measure(bench, tap, READOUT, chosen.spaces(SCORED, shuffle=True), self.gating)
        if not bench.features.control:
            progress(f"{tap}, raw and 1x1")
            measured += self._measure(bench, tap, "grid4-raw", chosen.spaces(SCORED, regress=False), self.gating)
            measured += self._measure(bench, tap, "grid1", chosen.spaces(SCORED, side=1), self.gating)
        drawn = b"" if bench.features.control else self._picture(bench, tap, chosen.spaces(SCORED), measured)
        return Outcome(tap, READOUT, tuple(measured), tuple(shuffled), details=errors, picture=drawn)

    def _picture(self, bench: Bench, tap: str, spaces: Spaces, measured: Sequence[Measurement]) -> bytes:
        rho = [m.scores.value for m in measured if (m.metric, m.tap, m.readout) == ("spearman", tap, READOUT)]
        correlation = f", Spearman {number(rho[0])}" if rho else ""
        return picture(spaces, f"{bench.encoder_name} at {tap} and {bench.decoder_name}{correlation}")

    def _measure(
        self, bench: Bench, tap: str, readout: str, spaces: Spaces, metrics: Sequence[str]
    ) -> list[Measurement]:
        return [Measurement(metric, tap, readout, bench.score_spaces(metric, spaces)) for metric in metrics]


@dataclass
class _Pair:
    """The two spaces of one tap."""

    bench: Bench
    tap: str

    def spaces(
        self, scored: Sequence[str], *, regress: bool = True, side: int = COARSE_SIDE, shuffle: bool = False
    ) -> Spaces:
        """Return the vectors of ``train`` and of the ``scored`` splits, ready to compare."""
        splits = ("train", *scored)
        y = [_averaged(latents_coarse(self.bench, split), side) for split in splits]
        if self.bench.features.control == "oracle":
            x = [rotated(part) for part in y]
        else:
            x = [_averaged(self.bench.features.coarse[self.tap, split].double(), side) for split in splits]
        u = [nuisances(self.bench, split) if regress else None for split in splits]
        outside = None if not regress else torch.cat([part for part in u[1:] if part is not None])
        x_train, x_scored = cleaned(x[0], torch.cat(x[1:]), u[0], outside)
        y_train, y_scored = cleaned(y[0], torch.cat(y[1:]), u[0], outside, z_score=False)
        if shuffle:
            x_scored = x_scored.roll(1, 0)
        return Spaces(x_train, y_train, x_scored, y_scored)


def latents_coarse(bench: Bench, split: str) -> Tensor:
    """Return the decoder's latents as one vector per clip: [N, 16 E] float64."""
    return torch.cat([grid.coarse(COARSE_SIDE) for grid in bench.latents(split)]).double()


def rotated(vectors: Tensor) -> Tensor:
    """Return ``vectors`` [N, D] in a rotated basis at another scale: the same space to any sound metric."""
    return 3.0 * vectors @ _basis(vectors.shape[1]).to(vectors.device)


@lru_cache(maxsize=2)
def _basis(size: int) -> Tensor:
    """Return a random orthogonal matrix [size, size] float64."""
    generator = torch.Generator().manual_seed(0)
    basis: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return basis


def _averaged(vectors: Tensor, side: int) -> Tensor:
    """Return ``vectors`` [N, 16 D] averaged onto a grid of ``side`` (4 or 1) cells a side."""
    if side == COARSE_SIDE:
        return vectors
    return torch.mean(vectors.reshape(len(vectors), COARSE_SIDE**2, -1), 1)


def nuisances(bench: Bench, split: str) -> Tensor:
    """Return mean red, green, blue, foreground area and object count of each clip: [N, 5] float64."""
    found: Tensor = _nuisances(bench.data, split)  # type: ignore[arg-type]  # hashed by identity, as objects are
    return found.to(bench.device)


@lru_cache(maxsize=8)
def _nuisances(data: Data, split: str) -> Tensor:
    rows = []
    for block in data.split(split).blocks:
        assert block.truth is not None
        n, t, height, width = block.shape
        # Whole rows first, in integers: 15 times as fast as numpy's mean over all axes but the last, and as exact.
        rows_of_clip = block.frames.reshape(n, t * height, width * 3).sum(1, dtype=np.uint32)
        colour = rows_of_clip.reshape(n, width, 3).sum(1) / (t * height * width) / 255
        area = [np.count_nonzero(labels) / labels.size for labels in block.truth.labels]
        count = (block.truth.classes >= 0).sum(1)
        rows.append(np.column_stack([colour, area, count]))
    return torch.from_numpy(np.concatenate(rows))


def cleaned(
    train: Tensor, scored: Tensor, u_train: Tensor | None, u_scored: Tensor | None, *, z_score: bool = True
) -> tuple[Tensor, Tensor]:
    """Regress the nuisances out (least squares with intercept) and z-score, both measured on train.

    Args:
        train: [M, D] float64.
        scored: [N, D] float64.
        u_train: [M, 5] nuisances, or None to leave them in.
        u_scored: [N, 5].
        z_score: Whether to divide by the standard deviation; columns made of nuisances alone become 0 either way.
    """
    variance = train.var(0)
    if u_train is None or u_scored is None:
        mean = train.mean(0)
        train, scored = train - mean, scored - mean
    else:
        design = torch.cat([torch.ones_like(u_train[:, :1]), u_train], 1)
        beta = torch.linalg.lstsq(design, train).solution
        train = train - design @ beta
        scored = scored - torch.cat([torch.ones_like(u_scored[:, :1]), u_scored], 1) @ beta
    std = train.std(0)
    alive = std.square() > RESIDUE * variance
    scale = torch.where(alive, 1 / std.clamp_min(1e-300) if z_score else torch.ones_like(std), 0.0)
    return train * scale, scored * scale
