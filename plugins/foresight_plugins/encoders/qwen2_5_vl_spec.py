"""What Qwen2.5-VL is called, which taps it has, which tensors they need and where they are."""

from __future__ import annotations

from foresight_bench.specs import EncoderSpec, HubFolder, Part, Variant, Weights

BLOCKS = 32
"""Of the vision tower, in both sizes."""


def _variant(name: str, layers: int, licence: str) -> Variant:
    return Variant(
        name=name,
        taps=(
            "patch_embed",
            *(f"block.{index}" for index in range(BLOCKS)),
            "pre_merge",
            "post_merge",
            *(f"llm.{index}" for index in range(layers)),
            "final",
        ),
        default_taps=("patch_embed", "block.15", "pre_merge", "post_merge", f"llm.{layers // 2 - 1}", "final"),
        stem=("patch_embed",),
        output="post_merge",
        params={"size": name},
        weights=Weights(
            name=f"qwen2.5-vl-{name}",
            hub=HubFolder(f"Qwen/Qwen2.5-VL-{name.upper()}-Instruct", model_type="qwen2_5_vl"),
            licence=licence,
        ),
        parts=(
            Part("visual.patch_embed.", "patch_embed"),
            *(Part(f"visual.blocks.{index}.", f"block.{index}") for index in range(BLOCKS)),
            Part("visual.merger.", "post_merge"),
            Part("model.embed_tokens.", "llm.0"),
            *(Part(f"model.layers.{index}.", f"llm.{index}") for index in range(layers)),
            Part("model.norm.", "final"),
        ),
    )


QWEN2_5_VL = EncoderSpec(
    name="qwen2.5-vl",
    target="foresight_plugins.encoders.qwen2_5_vl:Qwen2_5VL",
    description="Vision-language model: a tower with window attention, its merger, and the language model's layers.",
    variants=(_variant("7b", 28, "Apache-2.0"), _variant("3b", 36, "Qwen Research")),
    licence="Apache-2.0",
    preprocessing="Frames in pairs, the last of an odd number twice; the language model reads all pairs of a clip in "
    "one sequence. Sides that are no multiple of 28 are resized to the nearest one, the even one of two as near "
    "(bicubic, antialiased); no crop. RGB in 0 .. 1, less the mean 0.48145466, 0.4578275, 0.40821073, over the "
    "deviation 0.26862954, 0.26130258, 0.27577711.",
)
