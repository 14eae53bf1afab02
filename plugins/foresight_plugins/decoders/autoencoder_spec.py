"""The autoencoders of diffusers that serve as decoders: what tells their classes apart, and where their weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foresight_bench.specs import DecoderSpec, HubFolder, PackageFolder, Weights


@dataclass(frozen=True)
class Family:
    """One class of diffusers, and where it says which clips it takes.

    A key is one of config.json or, where that is silent, an attribute of the module. It holds a number, or the
    widths of the levels, each of which but one halves the sides.
    """

    class_name: str
    stride: str = ""
    """Key of k: clips have k n + 1 frames. Empty for an image autoencoder, which takes frames one by one."""
    side: str = "spatial_compression_ratio"
    """Key of what the sides of a frame must be multiples of."""


FAMILIES: Mapping[str, Family] = {
    "ltx": Family("AutoencoderKLLTXVideo", "temporal_compression_ratio"),
    "wan": Family("AutoencoderKLWan", "scale_factor_temporal", "scale_factor_spatial"),
    "hunyuan": Family("AutoencoderKLHunyuanVideo", "temporal_compression_ratio"),
    # Compresses time by 4, but decodes an even number of latent frames to as many frames as an odd number never has.
    "cogvideox": Family("AutoencoderKLCogVideoX", "num_sample_frames_batch_size", "block_out_channels"),
    "cosmos": Family("AutoencoderKLCosmos", "temporal_compression_ratio"),
    "kl": Family("AutoencoderKL", side="block_out_channels"),
    "tiny": Family("AutoencoderTiny", side="block_out_channels"),
}


def _spec(name: str, family: str, repo: str, subfolder: str, licence: str, description: str) -> DecoderSpec:
    hub = HubFolder(repo, class_name=FAMILIES[family].class_name, subfolder=subfolder)
    return DecoderSpec(
        name=name,
        target="foresight_plugins.decoders.autoencoder:Autoencoder",
        description=description,
        params={"family": family},
        weights=Weights(name, hub=hub, licence=licence),
        licence=licence,
        surrogate="" if FAMILIES[family].stride else "an image autoencoder, which knows no motion",
    )


LTX_TINY = DecoderSpec(
    name="ltx-tiny",
    target="foresight_plugins.decoders.autoencoder:Autoencoder",
    description="LTX-Video's autoencoder at a hundredth of its size, trained on scenes and shipped with this package",
    params={"family": "ltx"},
    weights=Weights(
        "ltx-tiny",
        package=PackageFolder("foresight_plugins", "decoders/ltx_tiny", FAMILIES["ltx"].class_name),
        licence="Apache-2.0",
    ),
    licence="Apache-2.0",
    surrogate="LTX-Video's architecture at a hundredth of its size, trained on scenes alone",
)

AUTOENCODERS = (
    LTX_TINY,
    _spec(
        "ltx-video",
        "ltx",
        "Lightricks/LTX-Video",
        "vae",
        "LTX-Video licence",
        "LTX-Video's autoencoder: 32 x 32 x 8 pixels a cell, 128 channels, 8 n + 1 frames, sides of 32 n",
    ),
    _spec(
        "wan",
        "wan",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "vae",
        "Apache-2.0",
        "Wan 2.1's autoencoder: 8 x 8 x 4 pixels a cell, 16 channels, 4 n + 1 frames, sides of 8 n",
    ),
    _spec(
        "hunyuan-video",
        "hunyuan",
        "hunyuanvideo-community/HunyuanVideo",
        "vae",
        "Tencent Hunyuan Community",
        "HunyuanVideo's autoencoder: 8 x 8 x 4 pixels a cell, 16 channels, 4 n + 1 frames, sides of 8 n",
    ),
    _spec(
        "cogvideox",
        "cogvideox",
        "THUDM/CogVideoX-2b",
        "vae",
        "Apache-2.0",
        "CogVideoX's autoencoder: 8 x 8 x 4 pixels a cell, 16 channels, 8 n + 1 frames, sides of 8 n",
    ),
    _spec(
        "cosmos",
        "cosmos",
        "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        "vae",
        "NVIDIA Open Model License",
        "Cosmos' continuous video tokenizer: 8 x 8 x 8 pixels a cell, 16 channels, 8 n + 1 frames, sides of 8 n",
    ),
    _spec(
        "sd-vae",
        "kl",
        "stabilityai/sd-vae-ft-mse",
        "",
        "MIT",
        "Stable Diffusion's image autoencoder: 8 x 8 pixels a cell, 4 channels, frame by frame, sides of 8 n",
    ),
    _spec(
        "taesd",
        "tiny",
        "madebyollin/taesd",
        "",
        "MIT",
        "Stable Diffusion's tiny image autoencoder: 8 x 8 pixels a cell, 4 channels, frame by frame, sides of 8 n",
    ),
)
