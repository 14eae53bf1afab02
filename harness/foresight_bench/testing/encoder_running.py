"""The checks of what an encoder does beside returning grids. ``encoders`` has all checks."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder
from foresight_bench.inventory import holdings
from foresight_bench.isolation import restored
from foresight_bench.testing.encoder_specs import ENCODER_CHECKS
from foresight_bench.testing.kit import Broken, Unverified
from foresight_bench.testing.probing import formed, isolated, noise, square, values
from foresight_bench.testing.subjects import EncoderSubject

ENCODES = 5
"""Calls over which memory must not grow."""


@ENCODER_CHECKS.must("The model is frozen: evaluation mode, no gradients, and a state that encoding leaves as it is.")
@isolated
def frozen(subject: EncoderSubject) -> None:
    """Look through a new encoder before and after it encodes."""
    encoder = subject.build()
    held = holdings(encoder)
    training = [path or "the encoder" for path, module in held.modules.items() if module.training]
    if training:
        raise Broken(f"{len(training)} modules are in training mode, {training[0]} among them: call model.eval().")
    trainable = [path for path, tensor in held.tensors.items() if tensor.requires_grad]
    if trainable:
        raise Broken(f"{len(trainable)} tensors require a gradient, {trainable[0]} among them: requires_grad_(False).")
    before = held.digests()
    for tap, grid in formed(encoder, noise(square(encoder, subject.taps)), subject.taps).items():
        if grid.values.requires_grad:
            raise Broken(f"The grid of tap '{tap}' requires a gradient: encode under torch.no_grad().")
        if grid.values.is_inference():
            raise Broken(
                f"The grid of tap '{tap}' is an inference tensor, on which no adapter can train: encode under "
                "torch.no_grad(), not torch.inference_mode()."
            )
    # What was not there before, such as positions kept for a size of frames, is the encoder's own business.
    after = holdings(encoder).digests()
    if changed := [path for path, digest in before.items() if after.get(path) != digest]:
        raise Broken(
            f"Encoding changes {len(changed)} tensors of the encoder, {changed[0]} among them. Usually running "
            "statistics are updated, or an operation in place (add_, +=) meets a parameter."
        )


@ENCODER_CHECKS.must("The frames given are left as they are.")
@isolated
def input_untouched(subject: EncoderSubject) -> None:
    """Compare the frames with a copy."""
    clips = noise(square(subject.encoder, subject.taps), frames=2)
    before = clips.frames.copy()
    formed(subject.encoder, clips, subject.taps)
    if not np.array_equal(before, clips.frames):
        raise Broken(
            "encode changes clips.frames, which others read after it. Usually torch.from_numpy shares their memory and "
            "an operation in place (div_, sub_, flips by assignment) follows; copy first: torch.tensor(clips.frames)."
        )


@ENCODER_CHECKS.must("Building and encoding leave no setting, variable or random state of the process changed.")
@isolated
def no_global_state(subject: EncoderSubject) -> None:
    """Build and encode, and compare what the process is set to."""
    changed: list[str] = []
    with restored(changed.append):
        encoder = subject.build()
        size = square(encoder, subject.taps)
        before = _random_states()
        values(encoder, noise(size), subject.taps)
        drawn = [name for name, state in _random_states().items() if state != before[name]]
    if changed:
        raise Broken(
            f"{' '.join(changed)} Others then run with it: use a context manager, or pass a dtype and a device to the "
            "calls that need them."
        )
    if drawn:
        raise Broken(
            f"encode draws from the generator of {' and '.join(drawn)} or seeds it, which moves every draw that "
            "follows: use a torch.Generator of your own. Dropout in training mode draws, too."
        )


@ENCODER_CHECKS.must("The model runs on setup.device, and its grids stand there.")
@isolated
def device_honoured(subject: EncoderSubject) -> None:
    """Look where the grids stand; on a machine with a CPU only, ask for torch's device without memory as well."""
    asked = torch.device(subject.device)
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise Unverified("There is no CUDA device here.")
    clips = noise(square(subject.encoder, subject.taps))
    _stand_on(subject.encoder, clips, subject.taps, asked)
    if asked.type != "cpu":
        return
    try:
        found = formed(subject.build(device="meta"), clips, subject.taps)
    except Exception as error:
        raise Unverified(
            "Grids stand on the CPU as asked. Whether another device would be honoured takes a GPU to tell; torch's "
            f"device 'meta' ends in {type(error).__name__}."
        ) from error
    if any(grid.values.device.type != "meta" for grid in found.values()):
        raise Broken(
            "The encoder was built for another device than the CPU, and its grids stand on the CPU. Usually the model "
            "is not moved (model.to(setup.device)), or grids are brought back with .cpu()."
        )


@ENCODER_CHECKS.must("An encoder that is no longer used frees its memory, and encoding does not take more each time.")
@isolated
def memory_released(subject: EncoderSubject) -> None:
    """Count what tensors hold over several calls, then see whether the encoder goes when it is dropped."""
    gc.collect()
    gc.freeze()  # so that only what is made from here on is looked through: a quarter of a second, not one
    try:
        _release(subject)
    finally:
        gc.unfreeze()


def _random_states() -> Mapping[str, object]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpys = (kind, bytes(np.asarray(keys).data), *rest)
    return {"random": random.getstate(), "numpy": numpys, "torch": torch.get_rng_state().numpy().tobytes()}


def _stand_on(encoder: Encoder, clips: ClipBatch, taps: tuple[str, ...], device: torch.device) -> None:
    for tap, grid in formed(encoder, clips, taps).items():
        found = grid.values.device
        if found.type != device.type or device.index not in (None, found.index):
            raise Broken(f"The grid of tap '{tap}' stands on {found}, not on {device}, where setup.device asks for it.")


def _release(subject: EncoderSubject) -> None:
    encoder = subject.build()
    size = square(encoder, subject.taps)
    found = values(encoder, noise(size), subject.taps)
    call = sum(grid.untyped_storage().nbytes() for grid in found.values())
    del found
    before = _tensor_bytes()
    for seed in range(1, ENCODES + 1):
        encoder.encode(noise(size, seed=seed), subject.taps)
    # Whoever keeps something of each call keeps five times that; a buffer that is used again is allowed.
    if (grown := _tensor_bytes() - before) > call:
        raise Broken(
            f"{ENCODES} calls leave {grown / 1e6:.1f} MB of tensors behind; the grids of one take {call / 1e6:.1f} MB. "
            "Usually a hook appends activations to a list that is never emptied."
        )
    references: dict[str, weakref.ref[Any]] = {p: weakref.ref(m) for p, m in holdings(encoder).modules.items()}
    references["the encoder"] = weakref.ref(encoder)
    del encoder
    gc.collect()
    if alive := [path for path, reference in references.items() if reference() is not None]:
        raise Broken(
            f"{alive[-1]} is still there after the encoder was dropped: one encoder more in memory with each row of a "
            "run. Usually a cache at module level (functools.cache) or a registered hook holds it."
        )


def _tensor_bytes() -> int:
    """Return the bytes behind all tensors that are alive and not frozen."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors if each.device.type != "meta"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
