"""Video and image autoencoders through diffusers: one file for all classes, which differ in data only."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import Unsupported, WeightsError
from foresight_bench.grids import Grid
from foresight_plugins.decoders.autoencoder_spec import FAMILIES
from foresight_plugins.decoders.single_frame import with_single_frames
from foresight_plugins.encoders.seeding import seeded

PIXELS = 2**21
"""Pixels that go through at a time, one clip at least: 9 frames of 448 x 448 are 1.8 million."""

TIMESTEP = 0.05
"""``decode_timestep`` of LTX-Video's pipelines, for the decoders that are conditioned on one (0.9.1, 0.9.5)."""

SEED = 0
"""Of the noise that LTX-Video's 0.9.1 decoder adds to its activations."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What the tensors of attention were called when the first image autoencoders were published, and are called now."""

OLD = re.compile(rf"\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)$")


class Autoencoder:
    """A frozen autoencoder, in float32 whatever its checkpoint is stored in.

    Latents are the posterior's mean, normalised with what the checkpoint says of itself:
    ``(z - mean) * scaling_factor / std``, where the mean is ``latents_mean`` or ``shift_factor``. LTX-Video keeps
    mean and deviation as buffers, Wan and Cosmos in config.json (Cosmos one pair for each latent frame); others
    have a factor alone.

    Clips that the class does not give back in their own length and size are refused; diffusers drops frames or
    resizes without a word. A decoder with timestep conditioning runs at a fixed timestep, on the latents as they
    are. Noise that it adds is drawn anew from one seed at each call, and one draw serves all clips of a call, so
    that a clip decodes to the same frames in any batch.

    Args:
        weights: a folder as diffusers saves it: config.json and ``diffusion_pytorch_model.safetensors``.
        device: where the model runs and where its latents stand.
        family: one of :data:`FAMILIES`.

    Raises:
        WeightsError: there are none, or the checkpoint is of another class, or an entry is missing, unexpected or
            of another shape.
    """

    def __init__(self, *, weights: ResolvedWeights | None, device: torch.device, family: str) -> None:
        self._name = FAMILIES[family].class_name
        self._device = torch.device(device)
        if weights is None:
            raise WeightsError(f"{self._name} needs weights.", "A decoder is never run with random ones.")
        checkpoint = Checkpoint(weights.path)
        checkpoint.expect(self._name, "_class_name")
        self._module: Any = with_single_frames(_loaded(checkpoint, self._name, self._device))
        self._video = bool(FAMILIES[family].stride)
        self._stride = _size(self._module, FAMILIES[family].stride) if self._video else 1
        self._side = _size(self._module, FAMILIES[family].side)
        self._mean, self._scale = _statistics(self._module, self._device)

    def fit(self, clips: Sequence[ClipBatch]) -> None:
        """Do nothing: the weights are given."""

    def encode(self, clips: ClipBatch) -> Grid:
        """Return the normalised latents [N, T', H', W', C], float32, without a graph.

        Raises:
            Unsupported: the autoencoder does not take clips of this length or size.
        """
        _, t, height, width = clips.shape
        self._check(t, height, width)
        parts = []
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            for frames in torch.from_numpy(clips.frames).split(max(1, PIXELS // (t * height * width))):
                pixels = frames.to(self._device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
                parts.append(self._through(self._encoded, pixels))
        latents = torch.cat(parts)
        mean, scale = self._normalisation(latents.shape[2])
        values = ((latents - mean) * scale).permute(0, 2, 3, 4, 1).contiguous()
        return Grid(values, _spans(t, values.shape[1]) if self._video else ())

    def decode(self, latents: Grid) -> Tensor:
        """Return frames [N, T, 3, H, W], float32 in [0, 1]; gradients flow back to the latents.

        Raises:
            Unsupported: no clip that the autoencoder takes has latents of this length.
        """
        _, t, height, width, _ = latents.shape
        mean, scale = self._normalisation(t)
        values = latents.values.to(self._device, torch.float32).permute(0, 4, 1, 2, 3) / scale + mean
        parts = []
        for raw in values.split(max(1, PIXELS // (t * self._stride * height * width * self._side**2))):
            parts.append(self._through(self._decoded, raw))
            self._check(*parts[0].shape[2:])
        frames = torch.cat(parts)
        return ((frames + 1) / 2).clamp(0, 1).transpose(1, 2)

    def _through(self, model: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Return what ``model`` makes of [N, C, T, H, W]; to an image autoencoder, frames are the batch."""
        if self._video:
            return model(values)
        frames: Tensor = model(values.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(values), -1))
        return frames.transpose(1, 2)

    def _encoded(self, pixels: Tensor) -> Tensor:
        output = self._module.encode(pixels)
        raw: Tensor = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
        return raw

    def _decoded(self, raw: Tensor) -> Tensor:
        conditions = []
        if self._module.config.get("timestep_conditioning"):
            conditions.append(torch.full((len(raw),), TIMESTEP, device=self._device))
        # The noise is as large as a frame's cells, not as the batch, so a seed is all it takes to fix it.
        with seeded(str(self._device), SEED):
            frames: Tensor = self._module.decode(raw, *conditions).sample
        return frames

    def _check(self, t: int, height: int, width: int) -> None:
        """Raise :class:`Unsupported` unless clips of this shape come back in this shape."""
        k, side = self._stride, self._side
        if (t - 1) % k or height % side or width % side:
            frames = f"{k} n + 1 frames" if k > 1 else "any number of frames"
            raise Unsupported(
                f"{self._name} takes clips of {frames} with sides that are multiples of {side}, "
                f"not {t} frames of {height} x {width} pixels."
            )

    def _normalisation(self, t: int) -> tuple[Tensor, Tensor]:
        """Return mean and scale of ``t`` latent frames, each [1, C or 1, t or 1, 1, 1]."""
        known = max(self._mean.shape[2], self._scale.shape[2])
        if 1 < known < t:
            raise Unsupported(f"{self._name} has statistics of {known} latent frames, and a clip has {t}.")
        return self._mean[:, :, :t], self._scale[:, :, :t]


def _spans(frames: int, cells: int) -> tuple[tuple[int, int], ...]:
    """Return the frames of each latent frame: the first describes one, as video autoencoders are causal."""
    k = (frames - 1) // max(1, cells - 1)
    return (0, 1), *((1 + k * cell, 1 + k * (cell + 1)) for cell in range(cells - 1))


def _loaded(checkpoint: Checkpoint, name: str, device: torch.device) -> nn.Module:
    """Return the module that config.json describes, frozen, with every tensor of the checkpoint in float32."""
    import diffusers

    try:
        build = getattr(diffusers, name)
        known = inspect.signature(build).parameters
        with _empty(device):
            module: nn.Module = build(**{key: value for key, value in checkpoint.config.items() if key in known})
    except Exception as error:  # whatever a class makes of values that it does not expect
        raise WeightsError(
            f"The config.json of {checkpoint.path} does not describe an {name} ({type(error).__name__}).",
            "Fetch the checkpoint again, or a version of diffusers that knows it.",
        ) from error
    tensors = checkpoint.tensors(lambda tensor: True, device, torch.float32)
    fill(module, ((OLD.sub(_renamed, tensor), value) for tensor, value in tensors), f"this {name}")
    return module.eval().requires_grad_(False)


@contextmanager
def _empty(device: torch.device) -> Iterator[None]:
    """Build parameters on ``meta``, as a checkpoint replaces them, and buffers on ``device``, as it lacks some."""

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"))

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # it may return one
    try:
        # Some classes draw a parameter before it is one: that shall not move anyone's generator.
        with seeded(str(device), SEED), device:
            yield
    finally:
        hook.remove()


def _renamed(found: re.Match[str]) -> str:
    return f".{OLD_ATTENTION[found[1]]}.{found[2]}"


def _size(module: Any, key: str) -> int:
    """Return the number that a key of :class:`Family` stands for."""
    value = module.config.get(key) or getattr(module, key)
    return int(value) if isinstance(value, int | float) else 2 ** (len(value) - 1)


def _statistics(module: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the latents, float32 [1, C or 1, T' or 1, 1, 1]: latents are (z - mean) * scale."""
    stated = {**module.config, **dict(module.named_buffers())}

    def read(default: float, *keys: str) -> Tensor:
        value = next((stated[key] for key in keys if stated.get(key) is not None), default)
        values = torch.as_tensor(value, dtype=torch.float32, device=device)
        channels = module.config.get("latent_channels") or module.config.get("z_dim")
        return values.reshape(1, channels if values.ndim else 1, -1, 1, 1)

    return read(0.0, "latents_mean", "shift_factor"), read(1.0, "scaling_factor") / read(1.0, "latents_std")
