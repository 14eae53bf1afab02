"""InternVL2, 2.5 and 3: vision tower, pixel shuffle, projector and language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import WeightsError, unknown
from foresight_bench.grids import Grid
from foresight_bench.specs import Variant
from foresight_plugins.encoders.images import IMAGENET, normalised, resized
from foresight_plugins.encoders.internvl2_keys import Fields, read_fields, sorted_out
from foresight_plugins.encoders.internvl2_spec import parts, taps
from foresight_plugins.encoders.internvl2_vision import InternViT, pixel_shuffle, projector
from foresight_plugins.encoders.llm import LanguageModel
from foresight_plugins.encoders.seeding import seeded

State = Mapping[str, Mapping[str, Tensor]]
AnyModule = TypeVar("AnyModule", bound=Module)

VISION = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-6,
    "image_size": 448,
    "patch_size": 14,
}
"""InternViT-300M-448px."""


def _text(model_type: str, layers: int, width: int, heads: int, groups: int, hidden: int, words: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": hidden,
        "vocab_size": words,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6 if model_type == "qwen2" else 1e-5,
        "rope_theta": 1e6,
    }


@dataclass(frozen=True)
class Architecture:
    """One model at full size."""

    model_type: str
    """Of the checkpoint."""
    fields: Fields
    prompt: tuple[int, ...]
    """Token ids before the image's tokens: beginning of text if the tokenizer has one, then
    ``<|im_start|>user\\n<img>``."""


_INTERNLM2 = (1, 92543, 1008, 364, 92544)
_QWEN2 = (151644, 872, 198, 151646)
_QWEN2_5 = (151644, 872, 198, 151665)
"""Qwen2.5's tokenizer has more words of its own before ``<img>``; ``image_token_id`` of the config is two further."""

ARCHITECTURES: Mapping[str, Architecture] = {
    name: Architecture(model_type, Fields(VISION, _text(*text)), prompt)
    for name, model_type, text, prompt in (
        ("InternVL2-8B", "internvl_chat", ("internlm2", 32, 4096, 32, 8, 14336, 92553), _INTERNLM2),
        ("InternVL2-1B", "internvl_chat", ("qwen2", 24, 896, 14, 2, 4864, 151655), _QWEN2),
        ("InternVL2_5-8B-MPO-hf", "internvl", ("llama", 32, 4096, 32, 8, 14336, 92553), _INTERNLM2),
        ("InternVL3-8B-hf", "internvl", ("qwen2", 28, 3584, 28, 4, 18944, 151674), _QWEN2_5),
        ("InternVL3-1B-hf", "internvl", ("qwen2", 24, 896, 14, 2, 4864, 151674), _QWEN2_5),
    )
}


class InternVL2:
    """A frozen InternVL (Chen et al., arXiv:2404.16821 and arXiv:2412.05271; 3: Zhu et al., arXiv:2504.10479).

    Every frame is one tile: squashed to 448 x 448 pixels, as the official processor does with one tile and no
    thumbnail. Every frame is a sequence of its own, also in the language model, where only a short prompt
    without a system message precedes its tokens: T' = T.

    Taps: ``patch_embed`` (the patch convolution's output, without positions), ``block.0`` ... ``block.23`` (the
    residual stream behind that block, without [CLS]), ``pixel_shuffle`` (four neighbours in one token of 4096
    channels), ``projector``, ``llm.0`` ... (the residual stream behind that layer at the image's tokens), ``final``
    (the last one after the final norm). Grids are 32 x 32 up to ``block.23`` and 16 x 16 from there on.

    Args:
        setup: the weights are a folder as on the Hugging Face hub.
        architecture: the hub's name without the owner, e.g. ``InternVL2-8B``.

    Raises:
        WeightsError: the checkpoint is of another model, or an entry is missing, unexpected or of another shape.
        PluginError: a tap is unknown.
    """

    def __init__(self, setup: EncoderSetup, architecture: str) -> None:
        shape = ARCHITECTURES[architecture]
        fields, checkpoint = shape.fields, None
        if setup.weights is not None:
            checkpoint = Checkpoint(setup.weights.path)
            checkpoint.expect(shape.model_type)
            fields = read_fields(checkpoint.config, fields, architecture, checkpoint.path)
        text = fields.text_config()
        blocks, layers = fields.vision["num_hidden_layers"], text.num_hidden_layers
        known = taps(blocks, layers)
        for tap in setup.taps:
            if tap not in known:
                raise unknown("tap", tap, known)
        self._taps, self._prompt = setup.taps, shape.prompt
        self._device, self._dtype = torch.device(setup.device), getattr(torch, setup.precision)
        self._block = torch.compile(_block) if setup.compiled else _block

        # Only what the deepest tap needs is read and built.
        deepest = max((known.index(tap) for tap in setup.taps), default=0)
        behind = deepest - known.index("projector")
        state: State | None = None
        if checkpoint is not None:
            every = Variant(architecture, known, (), parts=parts(shape.model_type, blocks, layers))
            kept = checkpoint.tensors(every.needs(known[: deepest + 1]), self._device, self._dtype)
            state = sorted_out(kept, shape.model_type, text)

        self._projector: Module | None = None
        self._language: LanguageModel | None = None
        with seeded(setup.device, setup.seed):
            with self._device if state is None else torch.device("meta"):
                vision = InternViT(fields.vision, min(deepest, blocks)).to(self._dtype)
                joint = projector(fields.vision["hidden_size"], text.hidden_size).to(self._dtype)
            self._vision = _filled(vision, state, "vision tower", architecture)
            if behind >= 0:
                self._projector = _filled(joint, state, "projector", architecture)
            if behind > 0:
                if max(shape.prompt) >= text.vocab_size:
                    raise WeightsError(
                        f"The checkpoint is not {architecture}: its vocabulary has {text.vocab_size} words, and the "
                        f"prompt needs word {max(shape.prompt)}."
                    )
                self._language = LanguageModel(
                    text,
                    min(behind, layers),
                    final="final" in setup.taps,
                    tensors=None if state is None else state["language model"].items(),
                    device=setup.device,
                    dtype=self._dtype,
                    compiled=setup.compiled,
                )

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return a grid [N, T, H', W', C] per tap, in the precision that was asked for; frames may have any size.

        Raises:
            PluginError: a tap is unknown, or was not asked for when the encoder was built.
        """
        for tap in taps:
            if tap not in self._taps:
                raise unknown("tap", tap, self._taps)
        found: dict[str, Tensor] = {}
        # Not inference_mode: an adapter trains on these grids, and autograd refuses inference tensors.
        with torch.no_grad():
            frames = torch.tensor(clips.frames, device=self._device).flatten(0, 1)
            images = normalised(resized(frames, self._vision.tile, self._vision.tile), IMAGENET)
            for tap, grid in self._states(images.to(self._dtype), taps):
                if tap in taps:
                    found[tap] = grid
                if found.keys() >= set(taps):
                    break
        n, t, _, _ = clips.shape
        return {tap: Grid(found[tap].reshape(n, t, *found[tap].shape[1:])) for tap in taps}

    def _states(self, images: Tensor, taps: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield taps and grids [B, H', W', C] in order of depth; what is not asked for any more does not run."""
        patches = self._vision.patches(images)
        yield "patch_embed", patches
        tokens = self._vision.tokens(patches)
        for index, block in enumerate(self._vision.blocks):
            tokens = self._block(block, tokens)
            yield f"block.{index}", self._vision.grid(tokens)
        shuffled = pixel_shuffle(self._vision.grid(tokens))
        yield "pixel_shuffle", shuffled
        assert self._projector is not None
        projected: Tensor = self._projector(shuffled)
        yield "projector", projected
        assert self._language is not None
        prompt = self._language.embed(self._prompt).expand(len(projected), -1, -1)
        inputs = torch.cat([prompt, projected.flatten(1, 2)], 1)
        positions = torch.arange(inputs.shape[1], device=self._device).expand(len(inputs), -1)
        wanted = [int(tap.removeprefix("llm.")) for tap in taps if tap.startswith("llm.")]
        kept, last = self._language.run(inputs, positions, wanted)
        for tap, states in (*((f"llm.{index}", kept[index]) for index in wanted), ("final", last)):
            yield tap, states[:, len(self._prompt) :].unflatten(1, projected.shape[1:3])


def _filled(module: AnyModule, state: State | None, part: str, architecture: str) -> AnyModule:
    """Return ``module``, frozen, with its tensors of ``state``, or with those it was drawn with."""
    if state is not None:
        fill(module, state[part].items(), f"the {part} of {architecture}")
    return module.eval().requires_grad_(False)


def _block(block: Any, tokens: Tensor) -> Tensor:
    """One function for all blocks, so that compiling it compiles them all."""
    output: Tensor = block(tokens)
    return output
