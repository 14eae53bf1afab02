"""LLaVA-NeXT: CLIP's vision transformer, the projector and the language model, each as far as the taps need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import unknown
from foresight_bench.grids import Grid
from foresight_bench.specs import Variant
from foresight_plugins.encoders import llava_next_spec as spec
from foresight_plugins.encoders.clip import ClipTower, fused
from foresight_plugins.encoders.images import CLIP, normalised
from foresight_plugins.encoders.llava_next_configs import ARCHITECTURES
from foresight_plugins.encoders.llava_tiles import Canvas, anyres, squashed
from foresight_plugins.encoders.llm import LanguageModel
from foresight_plugins.encoders.seeding import seeded


class LlavaNext:
    """A frozen LLaVA-NeXT (Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024).

    Taps: ``patch_embed`` (the patch convolution's output, without positions), ``block.0`` ... ``block.22`` (the
    residual stream after that block of the tower; the 24th is never read), ``projector`` (what the language model
    reads), ``llm.0`` ... ``llm.31`` (the residual stream after that layer), ``final`` (the last layer after the
    final norm). The CLS token, the prompt and the newline columns are dropped.

    The model sees a frame twice: squashed to 336 x 336 pixels, and in its own shape on a canvas of two to four such
    tiles. These are two geometries, so a grid holds one of them.

    Args:
        setup: the weights are a checkpoint in the layout of llava-hf on the hub, or as transformers 5 saves it.
        architecture: ``mistral-7b`` or ``vicuna-7b``.
        tiles: False for the 24 x 24 cells of the squashed frame. In the language model they stand before the
            canvas, and attention is causal, so their states are those in the full sequence. True for the cells of
            the canvas without its margins, whose edges are off by up to half a cell (see
            :func:`~foresight_plugins.encoders.llava_tiles.anyres`); the language model then reads the full sequence.

    Raises:
        WeightsError: the checkpoint is another model, or an entry is missing or of another shape.
        PluginError: a tap is unknown.
    """

    def __init__(self, setup: EncoderSetup, architecture: str, tiles: bool = False) -> None:
        about = ARCHITECTURES[architecture]
        checkpoint = Checkpoint(setup.weights.path) if setup.weights else None
        config = about.config(checkpoint)
        vision: Any = config.vision_config
        text: Any = config.text_config
        self._tiled, self._pinpoints = tiles, about.pinpoints
        self._side, self._cells = vision.image_size, vision.image_size // vision.patch_size
        self._device, self._dtype = setup.device, getattr(torch, setup.precision)
        # The projector reads the last block but one.
        self._last = vision.num_hidden_layers - 2
        every = spec.taps(self._last + 1, text.num_hidden_layers)
        _check(setup.taps, every)
        self._taps = every[: max((every.index(tap) + 1 for tap in setup.taps), default=0)]
        layers = len(_indices("llm", self._taps))
        with seeded(setup.device, setup.seed):
            with torch.device("meta" if checkpoint else setup.device):
                depth = len(_indices("block", self._taps))
                self._tower = ClipTower(vision, depth, compiled=setup.compiled).to(self._dtype)
                self._bridge = _Bridge(config, "projector" in self._taps, newline=tiles and layers > 0).to(self._dtype)
            read = None
            if checkpoint:
                parts = spec.parts(self._last + 1, text.num_hidden_layers)
                needs = Variant("", every, (), parts=parts).needs(setup.taps)
                read = _reader(checkpoint, needs, self._device, self._dtype)
                fill(self._tower, fused(read(*spec.TOWERS)), f"the vision tower of LLaVA-NeXT {architecture}")
                bridge = checkpoint.tensors(self._bridge.state_dict().__contains__, self._device, self._dtype)
                fill(self._bridge, bridge, f"the projector of LLaVA-NeXT {architecture}")
            if layers:
                self._llm = LanguageModel(
                    text,
                    layers,
                    final="final" in self._taps,
                    tensors=read(spec.LAYERS) if read else None,
                    device=setup.device,
                    dtype=self._dtype,
                    compiled=setup.compiled,
                )
                self._prompt = self._llm.embed(about.prompt)
        for module in (self._tower, self._bridge):
            module.eval().requires_grad_(False)

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return a grid [N, T, H', W', C] per tap; each frame is encoded on its own.

        H' x W' is 24 x 24, or with ``tiles`` the canvas without its margins: at most 48 x 48, 72 x 24 or 24 x 72.

        Raises:
            PluginError: a tap is unknown, or deeper than those the encoder was built for.
            DataError: with ``tiles``, a frame is too thin to be cut.
        """
        _check(taps, self._taps)
        n, t, h, w = clips.shape
        canvas = squashed(self._side)
        if self._tiled:
            canvas = anyres((h, w), self._pinpoints, self._side, self._cells)
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            found = self._run(torch.tensor(clips.frames, device=self._device).flatten(0, 1), canvas, taps)
        return {tap: Grid(found[tap].unflatten(0, (n, t))) for tap in taps}

    def _run(self, frames: Tensor, canvas: Canvas, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return [B, H', W', C] for ``taps`` at least, of ``frames`` [B, H, W, 3] uint8."""
        language = [tap for tap in taps if tap == "final" or tap.startswith("llm.")]
        blocks = {*_indices("block", taps)}
        if language or "projector" in taps:
            blocks.add(self._last)
        patches, states = self._tower.run(self._images(frames, canvas), blocks)
        found = {"patch_embed": patches, **{f"block.{index}": tokens for index, tokens in states.items()}}
        found = {tap: canvas.assemble(tokens) for tap, tokens in found.items()}
        if language or "projector" in taps:
            found["projector"] = self._bridge(found[f"block.{self._last}"])
        if language:
            found |= self._read(frames, found["projector"], _indices("llm", language))
        return found

    def _read(self, frames: Tensor, cells: Tensor, layers: Sequence[int]) -> dict[str, Tensor]:
        """Return the states [B, H', W', D] of the image tokens ``cells`` [B, H', W', D] in the language model."""
        sequence = [self._prompt.expand(len(cells), -1, -1), cells.flatten(1, 2)]
        rows, columns = cells.shape[1:3]
        if self._tiled:
            # Prompt, squashed frame, canvas; each row of the canvas ends with a newline.
            _, base = self._tower.run(self._images(frames, squashed(self._side)), {self._last})
            newline = self._bridge.image_newline.expand(*cells.shape[:2], 1, -1)
            sequence[1:] = [self._bridge(base[self._last]), torch.cat([cells, newline], 2).flatten(1, 2)]
            columns += 1
        inputs = torch.cat(sequence, 1)
        kept, final = self._llm.run(inputs, torch.arange(inputs.shape[1], device=inputs.device)[None], layers)
        found = {**{f"llm.{index}": states for index, states in kept.items()}, "final": final}
        return {tap: _grid(states, rows, columns)[:, :, : cells.shape[2]] for tap, states in found.items()}

    def _images(self, frames: Tensor, canvas: Canvas) -> Tensor:
        """Return the tower's input [B * tiles, 3, 336, 336]."""
        return normalised(canvas.cut(frames), CLIP).to(self._dtype)


class _Bridge(nn.Module):
    """What stands between the tower and the language model, by the names of the checkpoint; empty if not needed."""

    def __init__(self, config: LlavaNextConfig, projector: bool, newline: bool) -> None:
        super().__init__()
        if projector:
            self.multi_modal_projector = LlavaNextMultiModalProjector(config)
        if newline:
            text: Any = config.text_config
            self.image_newline = nn.Parameter(torch.randn(text.hidden_size) * text.hidden_size**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.multi_modal_projector(tokens)
        return projected


def _grid(states: Tensor, rows: int, columns: int) -> Tensor:
    """Return the last tokens of ``states`` [B, S, D] as [B, rows, columns, D]."""
    grid: Tensor = states[:, -rows * columns :].unflatten(1, (rows, columns))
    return grid


def _check(asked: Sequence[str], known: Sequence[str]) -> None:
    for tap in asked:
        if tap not in known:
            raise unknown("tap", tap, known)


def _indices(kind: str, taps: Sequence[str]) -> list[int]:
    return [int(tap.removeprefix(f"{kind}.")) for tap in taps if tap.startswith(f"{kind}.")]


def _reader(
    checkpoint: Checkpoint, needs: Callable[[str], bool], device: str, dtype: torch.dtype
) -> Callable[..., Iterator[tuple[str, Tensor]]]:
    """Return a function that yields what is needed of the tensors below some prefixes, named without them."""

    def read(*prefixes: str) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in checkpoint.tensors(lambda name: needs(name) and name.startswith(prefixes), device, dtype):
            prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
            yield name.removeprefix(prefix), tensor

    return read
