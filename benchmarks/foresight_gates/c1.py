"""C1, latent sufficiency: can the features be decoded back into video?

An adapter maps each tap's feature grid to the decoder's latent grid, trained on `train` by squared error on
latents normalised per channel. The tap with the least error on `val` is decoded and scored on `test`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from foresight_bench.bench import Bench
from foresight_bench.contracts import Measurement, Outcome
from foresight_bench.grids import Grid
from foresight_bench.specs import ExperimentSpec
from foresight_bench.strips import strips
from foresight_bench.tables import number

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
            frames = decoded(bench, bench.latents("test"))
            measured, shuffled = self._measure(bench, tap, frames)
            return Outcome(tap, READOUT, measured, shuffled, picture=picture(bench, tap, frames, measured[0]))
        adapted = bench.adapted(progress)
        details: dict[str, float | str] = {f"val_mse.{tap}": found.val_error for tap, found in adapted.items()}
        details |= {f"{fact}.{tap}": value for tap, found in adapted.items() for fact, value in found.facts.items()}
        tap = min(adapted, key=lambda tap: adapted[tap].val_error)
        progress(f"decoding {tap}")
        pairs = zip(bench.tokens(tap, "test"), bench.latents("test"), strict=True)
        frames = decoded(bench, (adapted[tap].predict(grid, latents.layout) for grid, latents in pairs))
        measured, shuffled = self._measure(bench, tap, frames)
        parameters = adapted[tap].adapter.trainable_parameters
        drawn = b"" if bench.features.control == "floor" else picture(bench, tap, frames, measured[0])
        return Outcome(tap, READOUT, measured, shuffled, parameters, details, drawn)

    def _measure(
        self, bench: Bench, tap: str, frames: Tensor
    ) -> tuple[tuple[Measurement, ...], tuple[Measurement, ...]]:
        """Return what ``frames`` score, and what they score shuffled; a floor needs none of its own.

        A clip's frames depend on no clip beside it, so those of shuffled features are these frames, shuffled.
        """
        metrics = self.gating if bench.features.control else self.gating + self.reported
        if bench.features.control == "floor":
            scores = {metric: bench.score_frames(metric, "test", frames) for metric in metrics}
            return tuple(Measurement(metric, tap, READOUT, scores[metric]) for metric in metrics), ()
        pairs = [(metric, *bench.score_crossed(metric, "test", frames)) for metric in metrics]
        measured = tuple(Measurement(metric, tap, READOUT, scores) for metric, scores, _ in pairs)
        return measured, tuple(Measurement(metric, tap, READOUT, scores) for metric, _, scores in pairs)


def decoded(bench: Bench, latents: Iterable[Grid]) -> Tensor:
    """Return the frames [F, 3, H, W] of all blocks that ``latents`` decode to."""
    return torch.cat([bench.decoded(grid) for grid in latents])


def picture(bench: Bench, tap: str, frames: Tensor, by: Measurement) -> bytes:
    """Return the reconstructed ``frames`` of `test` beside the originals, the clips ranked by the metric ``by``."""
    through = "its own latents" if bench.features.control == "oracle" else bench.adapter_name
    title = f"{bench.encoder_name} at {tap}, {through} to {bench.decoder_name}: {by.metric} {number(by.scores.value)}"
    assert by.scores.per_clip is not None
    return strips(
        bench.shared.split("test").blocks,
        frames,
        by.scores.per_clip,
        title=title,
        metric=by.metric,
        direction=bench.shared.registry.metrics[by.metric].spec.direction,
    )
