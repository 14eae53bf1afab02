"""The built-in adapters. Their rates and widths are tuned on DINOv2 ViT-S/14 and cells of 32 pixels, on `val` alone."""

from __future__ import annotations

from foresight_bench.specs import AdapterSpec, Recipe

_IN = "foresight_plugins.adapters."

ADAPTERS: tuple[AdapterSpec, ...] = (
    AdapterSpec(
        "linear",
        _IN + "linear:LinearAdapter",
        "ridge regression from the tokens that a latent cell covers, in closed form",
    ),
    AdapterSpec(
        "mlp",
        _IN + "mlp:MLPAdapter",
        "two-layer perceptron from the tokens that a latent cell covers",
        {"hidden": 512},
        Recipe(),
    ),
    AdapterSpec(
        "query",
        _IN + "query:Query",
        "learned queries, one a latent cell, read tokens by cross-attention",
        {"width": 64, "heads": 4, "layers": 1},
        Recipe(learning_rates=(5e-3,)),
    ),
    AdapterSpec(
        "spatial",
        _IN + "spatial:Spatial",
        "residual convolutions over neighbouring cells",
        {"width": 64, "blocks": 2},
        Recipe(learning_rates=(3e-3,)),
    ),
    AdapterSpec(
        "coord",
        _IN + "coord:Coord",
        "spatial, told where each cell is (CoordConv)",
        {"width": 64, "blocks": 2},
        Recipe(learning_rates=(3e-3,)),
    ),
    AdapterSpec(
        "upsample",
        _IN + "upsample:Upsample",
        "learned sub-pixel upsampling of a coarse grid",
        {"width": 64, "blocks": 2},
        Recipe(learning_rates=(3e-3,)),
    ),
    AdapterSpec(
        "fusion",
        _IN + "fusion:Fusion",
        "of a hybrid, the spatial encoder's tokens query the others'",
        {"width": 64, "blocks": 2, "heads": 4},
        Recipe(learning_rates=(3e-3,), epochs=8),
    ),
)
