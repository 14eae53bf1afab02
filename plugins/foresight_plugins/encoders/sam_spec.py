"""What SAM is called, which taps it has and where its weights are."""

from __future__ import annotations

from foresight_bench.specs import EncoderSpec, HubFile, Part, Variant, Weights

_LICENCE = "Apache-2.0"

_LAYOUTS = (("vision_encoder.", "layers"), ("image_encoder.", "blocks"))
"""What the vision encoder's tensors and its blocks are called, on the hub and in the original ``.pth`` files."""


def _variant(name: str, repo: str, depth: int) -> Variant:
    blocks = tuple(f"block.{index}" for index in range(depth))
    quarters = [blocks[depth * quarter // 4 - 1] for quarter in (1, 2, 3)]
    parts = []
    for prefix, layers in _LAYOUTS:
        parts += [Part(f"{prefix}patch_embed.", "patch_embed"), Part(f"{prefix}pos_embed", "block.0")]
        parts += [Part(f"{prefix}{layers}.{index}.", tap) for index, tap in enumerate(blocks)]
        parts += [Part(f"{prefix}neck.", "neck")]
    return Variant(
        name=name,
        taps=("patch_embed", *blocks, "neck"),
        default_taps=("patch_embed", *quarters, "neck"),
        stem=("patch_embed",),
        output="neck",
        params={"architecture": name},
        weights=Weights(name=f"sam-{name}", hub=HubFile(repo, "model.safetensors"), licence=_LICENCE),
        parts=tuple(parts),
    )


SAM = EncoderSpec(
    name="sam",
    target="foresight_plugins.encoders.sam:SAM",
    description="Segment Anything's image encoder at 1024 pixels, windowed attention, patch size 16.",
    variants=(
        _variant("vit_b", "facebook/sam-vit-base", 12),
        _variant("vit_l", "facebook/sam-vit-large", 24),
        _variant("vit_h", "facebook/sam-vit-huge", 32),
    ),
    licence=_LICENCE,
    preprocessing="Every frame by itself, resized in its own shape to a longest side of 1024 pixels (bilinear, "
    "antialiased); no crop. RGB in 0 .. 1, less the mean 0.485, 0.456, 0.406, over the deviation 0.229, 0.224, 0.225; "
    "then zeros at the right and the bottom up to 1024 x 1024, where tokens of zeros alone are dropped.",
)
