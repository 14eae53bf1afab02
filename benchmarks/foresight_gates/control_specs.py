"""What the control encoders are called. Imports nothing heavy."""

from __future__ import annotations

from foresight_bench.specs import EncoderSpec, Variant


def _variant(tap: str) -> tuple[Variant, ...]:
    # 14 pixels: DINOv2's and Qwen2.5-VL's patch, so controls and encoders have grids of one resolution.
    return (Variant("default", taps=(tap,), default_taps=(tap,), params={"patch": 14}),)


CONTROLS = (
    EncoderSpec(
        name="oracle",
        target="foresight_gates.controls:Oracle",
        description="control: each object's class and box (Q2), the decoder's own latents (C1, Q1); must pass",
        variants=_variant("truth"),
        control="oracle",
        preprocessing="Looks at no pixel.",
    ),
    EncoderSpec(
        name="pixels",
        target="foresight_gates.controls:Pixels",
        description="control: raw patches as tokens; must pass Q2's reconstruction",
        variants=_variant("patches"),
        control="pixels",
        preprocessing="Every frame by itself, in its own size; what 14 x 14 patches leave at the right and the bottom "
        "is dropped. RGB in 0 .. 1.",
    ),
    EncoderSpec(
        name="blank",
        target="foresight_gates.controls:Blank",
        description="control: constant features; must fail everything",
        variants=_variant("constant"),
        control="floor",
        preprocessing="Looks at no pixel.",
    ),
    EncoderSpec(
        name="mean-rgb",
        target="foresight_gates.controls:MeanRGB",
        description="control: the clip's mean colour, broadcast; must fail everything",
        variants=_variant("colour"),
        control="floor",
        preprocessing="RGB in 0 .. 1, the mean of the clip.",
    ),
)
