"""What InternVL2 is called, which taps it has, where its weights are and how their files name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foresight_bench.specs import EncoderSpec, HubFolder, Part, Variant, Weights

_LICENCE = "MIT AND Apache-2.0"
"""InternVL's own, and that of the language models it starts from."""
BLOCKS = 24
"""Depth of the vision tower, InternViT-300M, in every variant."""


@dataclass(frozen=True)
class Layout:
    """What the tensors of a checkpoint are called: prefixes of their names."""

    vision: str
    blocks: str
    """Below ``vision``; a number follows."""
    projector: str
    language: str
    """The language model without its head, which no tap needs."""


LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "internvl_chat": (Layout("vision_model.", "encoder.layers.", "mlp1.", "language_model.model."),),
    "internvl": (
        Layout("vision_tower.", "encoder.layer.", "multi_modal_projector.", "language_model.model."),
        Layout("model.vision_tower.", "encoder.layer.", "model.multi_modal_projector.", "model.language_model."),
    ),
}
"""By ``model_type``: the authors' own, and transformers', on disk and as the modules are named in memory."""


def taps(blocks: int, layers: int) -> tuple[str, ...]:
    """Return all taps of a vision tower of ``blocks`` and a language model of ``layers``, in order of depth."""
    vision = (f"block.{index}" for index in range(blocks))
    language = (f"llm.{index}" for index in range(layers))
    return ("patch_embed", *vision, "pixel_shuffle", "projector", *language, "final")


def parts(model_type: str, blocks: int, layers: int) -> tuple[Part, ...]:
    """Return which tensors which of these taps need."""
    found = []
    for layout in LAYOUTS[model_type]:
        found += [Part(f"{layout.vision}embeddings.", "patch_embed"), Part(layout.projector, "projector")]
        found += [Part(f"{layout.vision}{layout.blocks}{index}.", f"block.{index}") for index in range(blocks)]
        found += [Part(f"{layout.language}{name}.", "llm.0") for name in ("embed_tokens", "tok_embeddings")]
        found += [Part(f"{layout.language}layers.{index}.", f"llm.{index}") for index in range(layers)]
        found.append(Part(f"{layout.language}norm.", "final"))
    return tuple(found)


def _variant(name: str, repo: str, model_type: str, layers: int) -> Variant:
    return Variant(
        name=name,
        taps=taps(BLOCKS, layers),
        default_taps=(
            "patch_embed",
            f"block.{BLOCKS // 2 - 1}",
            f"block.{BLOCKS - 1}",
            "pixel_shuffle",
            "projector",
            f"llm.{layers // 2 - 1}",
            "final",
        ),
        stem=("patch_embed",),
        output="projector",
        params={"architecture": repo.partition("/")[2]},
        weights=Weights(name=f"internvl2-{name}", hub=HubFolder(repo, model_type), licence=_LICENCE),
        parts=parts(model_type, BLOCKS, layers),
    )


INTERNVL2 = EncoderSpec(
    name="internvl2",
    target="foresight_plugins.encoders.internvl2:InternVL2",
    description="Vision-language model: InternViT-300M, pixel shuffle and projector, then the language model.",
    variants=(
        _variant("8b", "OpenGVLab/InternVL2-8B", "internvl_chat", 32),
        _variant("1b", "OpenGVLab/InternVL2-1B", "internvl_chat", 24),
        _variant("v2.5-8b", "OpenGVLab/InternVL2_5-8B-MPO-hf", "internvl", 32),
        _variant("v3-8b", "OpenGVLab/InternVL3-8B-hf", "internvl", 28),
        _variant("v3-1b", "OpenGVLab/InternVL3-1B-hf", "internvl", 24),
    ),
    licence=_LICENCE,
    preprocessing="Every frame by itself, squashed to one tile of 448 x 448 pixels whatever its shape (bicubic, "
    "antialiased); no crop, no thumbnail. RGB in 0 .. 1, less the mean 0.485, 0.456, 0.406, over the deviation 0.229, "
    "0.224, 0.225.",
)
