"""The libraries' own forward passes, which the encoders are measured against.

Each at its best: images that are already preprocessed and on the device, bfloat16, and whichever attention the
library chooses (``sdpa``, where it has several). Weights and inputs are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], object]
Prepare = Callable[[int], Call]
"""From a number of images to the forward pass of that many."""

PRECISION = torch.bfloat16
QWEN_TOKENS = 256
"""Of an image of 448 x 448 pixels in Qwen's language model."""


@dataclass(frozen=True)
class Reference:
    """One model of a library."""

    name: str
    """Library and class."""
    build: Callable[[str], Prepare]
    """From a device to a model on it that is ready to run."""


def qwen_vision(device: str) -> Prepare:
    """Qwen2.5-VL's tower; it always runs its merger too."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    model = _pretrained(Qwen2_5_VisionTransformerPretrainedModel, _qwen().vision_config, device)
    return lambda images: partial(model, *_qwen_patches(images, device))


def qwen_language(device: str) -> Prepare:
    """The layers of Qwen2.5-VL's language model and its final norm."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    model = _pretrained(Qwen2_5_VLTextModel, _qwen().text_config, device)

    def prepare(images: int) -> Call:
        inputs, positions = language_inputs(images, device)
        return partial(model, inputs_embeds=inputs, position_ids=positions, use_cache=False)

    return prepare


def language_inputs(images: int, device: str) -> tuple[Tensor, Tensor]:
    """Return embeddings [images, S, D] and positions [3, images, S] for Qwen's language model."""
    inputs = torch.randn(images, QWEN_TOKENS, _qwen().text_config.hidden_size, device=device, dtype=PRECISION)
    return inputs, torch.arange(QWEN_TOKENS, device=device).expand(3, images, -1)


def qwen_whole(device: str) -> Prepare:
    """Qwen2.5-VL without a head, on the prompt that the encoder uses."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    from foresight_plugins.encoders.qwen2_5_vl import PREFIX

    config = _qwen()
    model = _pretrained(Qwen2_5_VLModel, config, device)
    prompt = torch.tensor([*PREFIX, *[config.image_token_id] * QWEN_TOKENS], device=device)

    def prepare(images: int) -> Call:
        pixels, grid = _qwen_patches(images, device)
        ids = prompt.expand(images, -1)
        kinds = (ids == config.image_token_id).int()
        return partial(
            model, input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds, use_cache=False
        )

    return prepare


def sam(width: int, depth: int, heads: int, full: tuple[int, ...]) -> Callable[[str], Prepare]:
    """Return the build of SAM's image encoder; ``full`` are the blocks with full attention."""

    def build(device: str) -> Prepare:
        from segment_anything.modeling import ImageEncoderViT

        with torch.device(device):
            model = ImageEncoderViT(
                depth=depth,
                embed_dim=width,
                num_heads=heads,
                global_attn_indexes=full,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=14,
            )
        return _on_images(_ready(model), 1024, device)

    return build


def dinov2(architecture: str) -> Callable[[str], Prepare]:
    """Return the build of a DINOv2 by timm's name."""

    def build(device: str) -> Prepare:
        import timm

        with torch.device(device):
            model = timm.create_model(architecture, img_size=448, num_classes=0, init_values=1.0)
        return _on_images(_ready(model).forward_features, 448, device)

    return build


def internvl_vision(device: str) -> Prepare:
    """InternViT-300M."""
    from transformers import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionModel

    config = InternVLVisionConfig(attention_bias=True, image_size=[448, 448], patch_size=[14, 14])
    return _on_images(_pretrained(InternVLVisionModel, config, device), 448, device)


def clip_vision(device: str) -> Prepare:
    """CLIP ViT-L/14 at 336 pixels, as far as LLaVA-NeXT reads it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return _on_images(_pretrained(CLIPVisionModel, config, device), 336, device)


def _qwen() -> Any:
    from foresight_plugins.encoders.qwen2_5_vl import configuration

    return configuration("7b")


def _qwen_patches(images: int, device: str) -> tuple[Tensor, Tensor]:
    """Return the official processor's rows [images * 1024, 1176] and the grid of each image."""
    pixels = torch.randn(images * 1024, 3 * 2 * 14 * 14, device=device, dtype=PRECISION)
    return pixels, torch.tensor([[1, 32, 32]] * images, device=device)


def _on_images(forward: Callable[[Tensor], object], side: int, device: str) -> Prepare:
    return lambda images: partial(forward, torch.randn(images, 3, side, side, device=device, dtype=PRECISION))


def _pretrained(model: Any, config: Any, device: str) -> Any:
    """Return a transformers model with random weights."""
    config._attn_implementation = "sdpa"
    with torch.device(device):
        return _ready(model._from_config(config, dtype=PRECISION))


def _ready(model: nn.Module) -> Any:
    """Return the model frozen and in half precision, with random numbers also where it starts from zeros."""
    for parameter in model.parameters():
        if parameter.ndim > 1:  # arithmetic on zeros draws less power, and so runs faster than on weights
            nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False).to(PRECISION)
