"""The checks of an encoder's grids: their form, what they show, what they depend on. ``encoders`` has all checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder, ResolvedWeights
from foresight_bench.errors import ContractError, DataError
from foresight_bench.grids import Grid
from foresight_bench.grids import finite as all_finite
from foresight_bench.testing.encoder_specs import ENCODER_CHECKS
from foresight_bench.testing.kit import Broken, NotApplicable, Unverified
from foresight_bench.testing.layout import LayoutFinding, check_layout
from foresight_bench.testing.probing import (
    OBLONG,
    SQUARE,
    Size,
    accepted,
    formed,
    grids,
    isolated,
    noise,
    square,
    values,
)
from foresight_bench.testing.subjects import EncoderSubject

TOLERANCE = 1e-4
"""Largest difference that counts as rounding, in parts of a tap's largest value. Kernels for other batch sizes may sum
in another order, 6e-8 a sum in float32; this leaves room for a thousand. DINOv2 ViT-S/14 on a CPU gives equal bits."""
ODD: Sequence[Size] = ((227, 173), (173, 227))
"""Primes: multiples of no patch size."""
SEEDS = (1, 2)
"""Of further random weights. A random convolution may move the largest change to a neighbour: another one each time."""
CAUSES: Mapping[str, str] = {
    "transposed": "Usually tokens are unflattened to (w, h), or a permute swaps the sides.",
    "rolled": "Usually the torch.roll of shifted windows is not undone.",
    "windows": "Usually the order of window attention is not undone behind the last window block.",
    "prefix": "Usually CLS or register tokens are not dropped: tokens[:, prefix:].",
    "upside down": "Usually an axis of the frames or of the tokens is flipped.",
    "mirrored": "Usually an axis of the frames or of the tokens is flipped.",
    "half a turn": "Usually the sequence of tokens is reversed.",
    "another": "Usually clips and frames change places when they are flattened and unflattened again.",
    "the frame is wrong": "Usually frames are joined or unflattened in another order than [N, T'].",
    "part of the frame": "Usually the model's own preprocessing crops the centre; only resize.",
    "more than the frame": "Usually frames are padded to a square, and the tokens of the padding are left in.",
    "resampled": "Usually tokens are interpolated to another grid; return the model's own.",
    "does not depend": "Usually the tap is a parameter, or a pooled token that is broadcast.",
}


@ENCODER_CHECKS.must("encode returns one floating-point grid [N, T', H', W', C] for each tap asked for, and no other.")
@isolated
def shapes(subject: EncoderSubject) -> None:
    """Ask for all taps, and for the first and the last by itself."""
    encoder = subject.encoder
    clips = noise(square(encoder, subject.taps), frames=2)
    together = grids(encoder, clips, subject.taps)
    for tap in (subject.taps[0], subject.taps[-1]):
        alone = grids(encoder, clips, (tap,))[tap].shape
        if alone != together[tap].shape:
            raise Broken(f"Tap '{tap}' is {list(alone)} by itself, {list(together[tap].shape)} beside the others.")


@ENCODER_CHECKS.must("Grids hold neither NaN nor infinity.")
@isolated
def finite(subject: EncoderSubject) -> None:
    """Encode noise, black and white."""
    encoder = subject.encoder
    clips = noise(square(encoder, subject.taps), clips=3)
    clips.frames[1], clips.frames[2] = 0, 255
    for tap, grid in formed(encoder, clips, subject.taps).items():
        for content, clip in zip(("noise", "a black frame", "a white frame"), grid.values, strict=True):
            if not all_finite(clip):
                raise Broken(
                    f"Tap '{tap}' of {content} holds NaN or infinity. Usually a standard deviation of zero is divided "
                    "by, a type is too narrow, or memory from torch.empty is not filled."
                )


@ENCODER_CHECKS.must("Token (t, r, c) describes the image region at (t, r, c), at every tap.")
@isolated
def layout(subject: EncoderSubject) -> None:
    """Change small regions of oblong frames, then of square ones of several frames."""
    if subject.spec.control == "floor":
        raise NotApplicable("It is a floor, whose tokens describe no region.")
    encoder = subject.encoder
    for sizes, frames, probes in ((OBLONG, 1, 12), (SQUARE, 3, 6)):
        size = accepted(encoder, subject.taps, sizes)
        if size is None and sizes is OBLONG:
            continue  # an encoder may take square frames only
        size = size or square(encoder, subject.taps)
        for found in _misplaced(encoder, subject.taps, size, frames, probes):
            if not isinstance(subject.weights, ResolvedWeights) and subject.variant.weights is not None:
                _see_other_draws(subject, found, size, frames, probes)
            cause = next((cause for text, cause in CAUSES.items() if text in found.diagnosis), "")
            raise Broken(
                f"Tap '{found.tap}', {frames} frames of {size[0]} x {size[1]}: {found.diagnosis}; "
                f"{found.misplaced:.0%} of the changes show up in the wrong token. {cause}".strip()
            )


@dataclass(frozen=True)
class _Values:
    """An encoder's values and nothing else; what is wrong with their form is for other checks to say."""

    encoder: Encoder

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return {tap: Grid(each) for tap, each in values(self.encoder, clips, taps).items()}


def _misplaced(encoder: Encoder, taps: Sequence[str], size: Size, frames: int, probes: int) -> list[LayoutFinding]:
    """Return the findings at taps that fail, having checked taps of one shape at a time: regions are one cell."""
    values_only = _Values(encoder)
    groups: dict[object, list[str]] = {}
    for tap, grid in values_only.encode(noise(size, frames=frames), taps).items():
        groups.setdefault(grid.shape, []).append(tap)
    found: list[LayoutFinding] = []
    try:
        for group in groups.values():
            found += check_layout(values_only, group, size=size, frames=frames, probes=probes)
    except ContractError as error:
        raise Broken(error.message) from error
    return [each for each in found if not each.passed]


def _see_other_draws(subject: EncoderSubject, found: LayoutFinding, size: Size, frames: int, probes: int) -> None:
    """Raise Unverified unless what is wrong with random weights is wrong in the same way with others."""
    for seed in SEEDS:
        others = _misplaced(subject.build(seed=seed), (found.tap,), size, frames, probes)
        if [each.diagnosis for each in others] != [found.diagnosis]:
            raise Unverified(
                f"Tap '{found.tap}': with random weights the token that changes most is a matter of the draw. It takes "
                "the real weights to tell."
            )


@ENCODER_CHECKS.must("The same clips give the same grids, from the same encoder and from one built anew.")
@isolated
def deterministic(subject: EncoderSubject) -> None:
    """Encode twice, and with a second encoder."""
    encoder = subject.encoder
    clips = noise(square(encoder, subject.taps), frames=2)
    first = values(encoder, clips, subject.taps)
    tolerance = 0.0 if subject.device == "cpu" else TOLERANCE  # kernels of a GPU may add in any order
    if tap := _differing(first, values(encoder, clips, subject.taps), tolerance):
        raise Broken(
            f"Tap '{tap}' differs when the same clips are encoded again. Usually dropout is active (no eval()), noise "
            "is drawn, or something is kept from call to call."
        )
    if tap := _differing(first, values(subject.build(), clips, subject.taps), tolerance):
        raise Broken(
            f"Tap '{tap}' differs when the encoder is built anew from the same setup. Usually random weights are not "
            "drawn from setup.seed, or parameters that the weights lack are left as they were drawn."
        )


@ENCODER_CHECKS.must("A clip's grids do not depend on the batch that it comes in.")
@isolated
def batch_invariant(subject: EncoderSubject) -> None:
    """Encode three clips together, in another order, and one by one."""
    encoder = subject.encoder
    clips = noise(square(encoder, subject.taps), clips=3)
    together = values(encoder, clips, subject.taps)
    if _differing(together, values(encoder, clips, subject.taps), TOLERANCE):
        raise Unverified("The same clips give other grids each time; see the check 'deterministic'.")
    order = [2, 0, 1]
    turned = values(encoder, clips[order], subject.taps)
    if tap := _differing({tap: each[order] for tap, each in together.items()}, turned, TOLERANCE):
        raise Broken(
            f"Tap '{tap}' of a clip changes with the order of the batch. Usually clips are mixed up where the batch is "
            "reshaped, or the place in the batch enters the model."
        )
    single = [values(encoder, clips[index : index + 1], subject.taps) for index in range(3)]
    alone = {tap: torch.cat([each[tap] for each in single]) for tap in together}
    if tap := _differing(together, alone, TOLERANCE):
        raise Broken(
            f"Tap '{tap}' of a clip differs by over {TOLERANCE} of the largest value when it is encoded alone. Usually "
            "a batch norm is in training mode, or something is normalised over the whole batch."
        )


@ENCODER_CHECKS.must("Frames of any size give a sensible grid, or a DataError that says which sizes are taken.")
@isolated
def odd_sizes(subject: EncoderSubject) -> None:
    """Encode frames whose sides are prime."""
    for height, width in ODD:
        clips = noise((height, width), clips=2)
        try:
            found = values(subject.encoder, clips, subject.taps)
        except DataError:
            continue
        except Unverified:
            raise
        except Exception as error:
            raise Broken(
                f"Frames of {height} x {width} end in {type(error).__name__}: {_first_line(error)}. Resize frames to a "
                "multiple of the patch size, or raise DataError."
            ) from error
        for tap, each in found.items():
            _, _, rows, columns, _ = each.shape
            if rows > height or columns > width:
                raise Broken(
                    f"Tap '{tap}' of frames of {height} x {width} has {rows} x {columns} cells, more than pixels. "
                    "Usually tokens are unflattened by a size that belongs to other frames."
                )


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float) -> str:
    """Return the first tap at which ``a`` and ``b`` differ by over ``tolerance`` of the largest value, or nothing."""
    for tap, ours in a.items():
        theirs = b[tap]
        if ours.shape != theirs.shape:
            return tap
        if float((ours.double() - theirs.double()).abs().max()) > tolerance * float(ours.abs().max()):
            return tap
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0].rstrip(".")
