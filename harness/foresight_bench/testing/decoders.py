"""The checks of decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Decoder
from foresight_bench.errors import ForesightError, Unsupported
from foresight_bench.grids import Grid
from foresight_bench.registry import target
from foresight_bench.specs import DecoderSpec
from foresight_bench.testing.kit import Broken, Checks, NotApplicable
from foresight_bench.testing.parts import (
    bytes_of,
    generators_kept,
    move_generators,
    require_light,
    require_settings_kept,
    untouched,
)
from foresight_bench.testing.subjects import PartSubject

DECODER_CHECKS: Checks[PartSubject] = Checks()

SIZES = ((128, 128), (224, 112), (100, 140))
"""Heights and widths: of cells of 8, 16 or 32 pixels, of 7 or 14, and what few patches divide."""
RULES = tuple(product((1, 8, 9), SIZES))
"""Lengths and sizes of clips, among them those that many autoencoders do not give back as they were."""
TRIED = ((9, 128), (9, 112), (1, 128), (1, 112), (8, 128), (9, 224), (16, 256), (17, 512))
"""Frames and sides of the clips that everything else is checked on: the first that the decoder takes."""

DARK, BRIGHT = 0.15, 0.9
"""Grey of the ground and of the disc, by which places are found."""

INVERTED = 0.5
"""Most that latents may move, relative to their deviation, when they are decoded and encoded again. `ltx-tiny` moves
them by .22, `patch-pca` by .01; a factor that only one of the two ways applies moves them by its distance from 1."""
BATCHED = 1e-3
"""Most that latents, relative to their deviation, and pixels may move with the batch: a quarter of a grey level."""


@DECODER_CHECKS.must("The module of the entry point imports no torch.")
def import_light(subject: PartSubject) -> None:
    """See :func:`foresight_bench.testing.parts.require_light`."""
    require_light(subject)


@DECODER_CHECKS.must("No setting of the process is left changed.")
def no_global_state(subject: PartSubject) -> None:
    """Building, fitting, encoding and decoding."""
    require_settings_kept(lambda: _coded(replace(subject, cache={})))


@DECODER_CHECKS.must("The spec names a licence, and so do its weights.")
def licence(subject: PartSubject) -> None:
    """Weights travel under terms of their own; a decoder without weights is the plugin's own code."""
    spec = _spec(subject)
    if spec.weights is None:
        raise NotApplicable("It has no weights, so the licence is that of its distribution.")
    if not spec.licence.strip() or not spec.weights.licence.strip():
        where = "DecoderSpec" if not spec.licence.strip() else "Weights"
        raise Broken(f"{where} names no licence; copy the one that the model card of the weights names.")


@DECODER_CHECKS.must("Clips come back in their own length and size, or are refused with Unsupported.")
def frame_rule(subject: PartSubject) -> None:
    """One, eight and nine frames; square, tall, and with sides that few patches divide."""
    decoder, served, reason = _decoder(subject), 0, ""
    for t, (height, width) in RULES:
        given = f"{t} frames of {height} x {width} pixels"
        try:
            found = tuple(decoder.decode(decoder.encode(shapes(1, t, height, width))).shape)
        except Unsupported as refusal:
            reason = refusal.message
            continue
        except Exception as error:
            raise Broken(
                f"Clips of {given} end in {type(error).__name__}, not in Unsupported: {error} Usually the encoder's "
                "patch does not divide them; say so, and the cells are skipped instead of failing."
            ) from error
        if found != (1, t, 3, height, width):
            raise Broken(
                f"Clips of {given} come back as [N, T, 3, H, W] = {found}. Usually the model drops frames or rows that "
                "do not fill a cell, or pads; refuse such clips with Unsupported."
            )
        served += 1
    if not served:
        raise Broken(f"No clip is served: {reason}")


@DECODER_CHECKS.must("Frames are finite float32 in [0, 1], whatever the latents.")
def in_range(subject: PartSubject) -> None:
    """Also of latents three times as large as a clip's, as a bad adapter predicts them."""
    latents = _coded(subject)[0]
    for scale in (1, 3):
        frames = _decoder(subject).decode(replace(latents, values=scale * latents.values))
        if frames.dtype != torch.float32:
            raise Broken(f"Frames are {frames.dtype}, not float32; usually the model's own type is passed on.")
        if not torch.isfinite(frames).all():
            raise Broken(f"Latents times {scale} decode to NaN or infinity; usually the model runs in half precision.")
        low, high = float(frames.min()), float(frames.max())
        if low < 0 or high > 1:
            raise Broken(
                f"Latents times {scale} decode to values from {low:.2f} to {high:.2f}, not in [0, 1]. Usually the "
                "model's [-1, 1] or [0, 255] is passed on, or the clamp is missing."
            )


@DECODER_CHECKS.must("A clip that is encoded and decoded looks more like itself than its mean colour does.")
def round_trip(subject: PartSubject) -> None:
    """In peak signal-to-noise ratio over all clips."""
    pixels = _pixels(_clips(subject))
    error = (_coded(subject)[1].cpu() - pixels).square().mean()
    baseline = (pixels.mean((1, 3, 4), keepdim=True) - pixels).square().mean()
    if not error < baseline:
        found, wanted = (-10 * float(torch.log10(each)) for each in (error, baseline))
        raise Broken(
            f"The round trip has a PSNR of {found:.1f} dB, and the clip's mean colour has {wanted:.1f}. Usually pixels "
            "go in as [0, 1] where the model takes [-1, 1] or [0, 255], or channels or axes are in another order."
        )


@DECODER_CHECKS.must("What is seen at a place and time is decoded at that place and time.")
def orientation(subject: PartSubject) -> None:
    """A bright disc in each quarter of the frame, and at either end of the clip, by the centroid of what it changes."""
    t = _clips(subject).shape[1]
    places = list(product((0.25, 0.75), (0.25, 0.75)))
    everywhen, ends = range(t), (range(t // 3), range(t - t // 3, t))
    centroids = _centroids(subject, [*((place, everywhen) for place in places), *(((0.5, 0.5), part) for part in ends)])
    found = [(y, x) for _, y, x in centroids[:4]]
    if _misplaced(found, places):
        for text, moved in _MISTAKES:
            if not _misplaced(found, [moved(y, x) for y, x in places]):
                raise Broken(f"Frames come back {text}; usually latents or pixels are permuted or flipped once.")
        raise Broken("Discs in the four quarters come back elsewhere; usually cells are put together in a wrong order.")
    start, end = (centroid[0] for centroid in centroids[4:])
    if t > 2 and not start < 0.5 < end:
        raise Broken(
            f"A disc in the first third of a clip comes back at {start:.0%} of its length, one in the last third "
            f"at {end:.0%}. Usually time runs backwards, or clips and frames are flattened in different orders."
        )


_MISTAKES: tuple[tuple[str, Callable[[float, float], tuple[float, float]]], ...] = (
    ("mirrored left to right", lambda y, x: (y, 1 - x)),
    ("upside down", lambda y, x: (1 - y, x)),
    ("turned by half a turn", lambda y, x: (1 - y, 1 - x)),
    ("transposed", lambda y, x: (x, y)),
)


def _misplaced(found: list[tuple[float, float]], places: list[tuple[float, float]]) -> bool:
    """Return whether any of ``found`` is in another quarter than its place."""
    return any((a < 0.5) != (b < 0.5) for pair in zip(found, places, strict=True) for a, b in zip(*pair, strict=True))


def _centroids(
    subject: PartSubject, discs: Sequence[tuple[tuple[float, float], range]]
) -> list[tuple[float, float, float]]:
    """Return time, y and x, each in [0, 1], of the energy by which clips with a disc differ from one without.

    Args:
        discs: place in the frame, and the frames in which it is there.
    """
    t, height, width = _clips(subject).shape[1:]
    pictures = np.full((len(discs) + 1, t, height, width, 3), DARK)
    for picture, (place, shown) in zip(pictures, discs, strict=False):
        picture[shown.start : shown.stop] += (BRIGHT - DARK) * _soft_disc(height, width, place, 0.15)[..., None]
    decoder = _decoder(subject)
    frames = decoder.decode(decoder.encode(_as_clips(pictures)))
    found = []
    for energy in (frames[:-1] - frames[-1]).square().sum(2).cpu().double():
        centre = []
        for axis in range(3):
            weights = energy.sum([other for other in range(3) if other != axis])
            centre.append(float((weights * (torch.arange(len(weights)) + 0.5)).sum() / weights.sum() / len(weights)))
        found.append((centre[0], centre[1], centre[2]))
    return found


@DECODER_CHECKS.must("Decoding undoes the normalisation of encoding.")
def normalisation_invertible(subject: PartSubject) -> None:
    """Latents that are decoded and encoded again are nearly the same."""
    latents, frames = _coded(subject)
    first = latents.values
    again = _decoder(subject).encode(_as_clips(frames.permute(0, 1, 3, 4, 2).cpu().numpy())).values
    moved = float((again - first).square().mean().sqrt() / first.flatten(0, 3).std(0).square().mean().sqrt())
    if not moved <= INVERTED:
        raise Broken(
            f"Latents move by {moved:.2f} of their deviation when decoded and encoded again. Usually the scaling "
            "factor, or mean and deviation of the latents, are applied in one direction only."
        )


@DECODER_CHECKS.must("Encoding and decoding give equal bits for equal input: the posterior's mean, never a sample.")
def deterministic(subject: PartSubject) -> None:
    """Whatever the global random generators hold."""
    clips, found = _clips(subject), []
    latents = _coded(subject)[0]
    with generators_kept():
        for seed in (1, 2):
            move_generators(seed)
            encoded = _decoder(subject).encode(clips).values
            found.append((bytes_of(encoded), bytes_of(_decoder(subject).decode(latents))))
    for what, first, second in zip(("Latents", "Frames"), *found, strict=True):
        if first != second:
            raise Broken(
                f"{what} differ between two calls on the same input. Usually `latent_dist.sample()` stands where "
                "`mode()` should, or the model is in training mode, or adds noise without a seed of its own."
            )


@DECODER_CHECKS.must("A clip's latents and frames do not depend on the clips beside it.")
def batch_invariant(subject: PartSubject) -> None:
    """Alone, and among others in another order."""
    clips = _clips(subject)
    latents, frames = _coded(subject)
    scale = float(latents.values.std()) or 1.0
    for order in ([0], [2, 1, 0]):
        encoded = _decoder(subject).encode(clips[order]).values
        decoded = _decoder(subject).decode(replace(latents, values=latents.values[order]))
        moves = {"latents": encoded - latents.values[order], "frames": decoded - frames[order]}
        for what, by in (("latents", scale), ("frames", 1.0)):
            moved = float(moves[what].abs().max()) / by
            if not moved <= BATCHED:
                raise Broken(
                    f"A clip's {what} move by {moved:.1e} with the clips beside it. Usually something is normalised "
                    "with statistics of the batch, or clips and frames are flattened in different orders."
                )


@DECODER_CHECKS.must("Clips and latents are left as they are.")
def input_untouched(subject: PartSubject) -> None:
    """In ``fit``, ``encode`` and ``decode``."""
    clips, (latents, _) = _clips(subject), _coded(subject)
    with untouched({"the clips": clips.frames, "the latents": latents.values}):
        decoder = _built(subject)
        decoder.fit([clips])
        decoder.encode(clips)
        decoder.decode(latents)


def shapes(clips: int, t: int, height: int, width: int, seed: int = 0) -> ClipBatch:
    """Return clips of soft discs that move over a soft gradient."""
    rng = np.random.default_rng([seed, clips, t])
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    frames = np.empty((clips, t, height, width, 3))
    for clip in frames:
        slopes, base = rng.uniform(-0.3, 0.3, (2, 3)), rng.uniform(0.3, 0.7, 3)
        clip[:] = base + (y - 0.5)[..., None] * slopes[0] + (x - 0.5)[..., None] * slopes[1]
        for _ in range(3):
            place, step, colour = rng.uniform(0.2, 0.8, 2), rng.uniform(-0.02, 0.02, 2), rng.uniform(0, 1, 3)
            for frame, picture in enumerate(clip):
                weight = _soft_disc(height, width, place + step * frame, rng.uniform(0.1, 0.2) if t == 1 else 0.15)
                picture += weight[..., None] * (colour - picture)
    return _as_clips(frames)


def _soft_disc(height: int, width: int, place: Any, radius: float) -> NDArray[np.float64]:
    """Return [H, W] in [0, 1], 1 within ``radius`` of ``place``; y, x and radius are shares of the sides."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    found: NDArray[np.float64] = 1 / (1 + np.exp((np.hypot(y - place[0], x - place[1]) - radius) * 100))
    return found


def _spec(subject: PartSubject) -> DecoderSpec:
    assert isinstance(subject.spec, DecoderSpec)
    return subject.spec


def _built(subject: PartSubject) -> Decoder:
    spec = _spec(subject)
    decoder: Decoder = target(spec.target)(weights=subject.weights, device=torch.device(subject.device), **spec.params)
    return decoder


def _ready(subject: PartSubject) -> tuple[Decoder, ClipBatch]:
    """Return the decoder, fitted once for all checks, and three clips that it takes and was not fitted on."""
    if "ready" not in subject.cache:
        for t, side in TRIED:
            decoder, clips = _built(subject), shapes(3, t, side, side, seed=1)
            try:
                decoder.fit([shapes(16, 1, side, side)])
                decoder.encode(clips)
            except ForesightError as refusal:
                reason = refusal
                continue
            subject.cache["ready"] = decoder, clips
            break
        else:
            raise reason
    found: tuple[Decoder, ClipBatch] = subject.cache["ready"]
    return found


def _decoder(subject: PartSubject) -> Decoder:
    return _ready(subject)[0]


def _clips(subject: PartSubject) -> ClipBatch:
    """Return a copy, so that no check sees what another has changed."""
    clips = _ready(subject)[1]
    return replace(clips, frames=clips.frames.copy())


def _coded(subject: PartSubject) -> tuple[Grid, Tensor]:
    """Return the latents of the clips, and the frames that they decode to."""
    if "coded" not in subject.cache:
        latents = _decoder(subject).encode(_clips(subject))
        subject.cache["coded"] = latents, _decoder(subject).decode(replace(latents, values=latents.values.clone()))
    latents, frames = subject.cache["coded"]
    return replace(latents, values=latents.values.clone()), frames.clone()


def _pixels(clips: ClipBatch) -> Tensor:
    return torch.from_numpy(clips.frames).permute(0, 1, 4, 2, 3).float() / 255


def _as_clips(frames: NDArray[np.floating]) -> ClipBatch:
    """Return [N, T, H, W, 3] in [0, 1] as clips."""
    pixels = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    return ClipBatch(pixels, tuple(f"check-{n}" for n in range(len(pixels))))
