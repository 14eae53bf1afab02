"""What LLaVA-NeXT is called, which taps it has and where its weights are."""

from __future__ import annotations

from foresight_bench.specs import EncoderSpec, HubFolder, Part, Variant, Weights

TOWERS = ("vision_tower.vision_model.", "vision_tower.")
"""What the names of the vision tower's tensors start with: as on the hub, and as transformers 5 saves them."""
LAYERS = "language_model.model."
PROJECTOR = "multi_modal_projector."
NEWLINE = "image_newline"


def taps(blocks: int, layers: int) -> tuple[str, ...]:
    """Return all taps of a model that reads ``blocks`` blocks of its tower and has ``layers`` language layers."""
    tower = ("patch_embed", *(f"block.{index}" for index in range(blocks)))
    return (*tower, "projector", *(f"llm.{index}" for index in range(layers)), "final")


def parts(blocks: int, layers: int) -> tuple[Part, ...]:
    """Return which tensors of the checkpoint these taps need."""
    found = []
    for tower in TOWERS:
        found += [
            Part(f"{tower}embeddings.patch_embedding.", "patch_embed"),
            Part(f"{tower}embeddings.", "block.0"),
            Part(f"{tower}pre_layrnorm.", "block.0"),
            *(Part(f"{tower}encoder.layers.{index}.", f"block.{index}") for index in range(blocks)),
        ]
    return (
        *found,
        Part(PROJECTOR, "projector"),
        Part(NEWLINE, "llm.0"),
        Part(f"{LAYERS}embed_tokens.", "llm.0"),
        *(Part(f"{LAYERS}layers.{index}.", f"llm.{index}") for index in range(layers)),
        Part(f"{LAYERS}norm.", "final"),
    )


def _variant(name: str, licence: str) -> Variant:
    return Variant(
        name=name,
        taps=taps(23, 32),
        default_taps=("patch_embed", "block.11", "block.22", "projector", "llm.15", "final"),
        stem=("patch_embed",),
        output="projector",
        params={"architecture": name},
        weights=Weights(
            name=f"llava-next-{name}", hub=HubFolder(f"llava-hf/llava-v1.6-{name}-hf", "llava_next"), licence=licence
        ),
        parts=parts(23, 32),
    )


LLAVA_NEXT = EncoderSpec(
    name="llava-next",
    target="foresight_plugins.encoders.llava_next:LlavaNext",
    description="Vision-language model: CLIP's vision transformer, a projector and a 7B language model.",
    variants=(
        _variant("mistral-7b", "Apache-2.0"),
        _variant("vicuna-7b", "Llama 2 Community License"),
    ),
    options={"tiles": False},
    preprocessing="Every frame by itself, squashed to 336 x 336 pixels whatever its shape (bicubic, antialiased); no "
    "crop. With tiles=true resized in its own shape, margins black, onto the one of 336 x 672, 672 x 336, 672 x 672, "
    "1008 x 336 and 336 x 1008 that keeps most of it, and cut into tiles of 336 x 336; the language model reads the "
    "squashed one too. RGB in 0 .. 1, less the mean 0.48145466, 0.4578275, 0.40821073, over the deviation 0.26862954, "
    "0.26130258, 0.27577711.",
)
