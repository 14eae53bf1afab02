"""LLaVA-NeXT's canvases and pixels are those of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next import image_processing_llava_next, image_processing_pil_llava_next
from transformers.models.llava_next.modeling_llava_next import unpad_image

from foresight_plugins.encoders.images import CLIP, normalised
from foresight_plugins.encoders.llava_next_configs import ARCHITECTURES
from foresight_plugins.encoders.llava_tiles import anyres, pinpoint, squashed

PINPOINTS = ARCHITECTURES["mistral-7b"].pinpoints


def frame_sizes() -> list[tuple[int, int]]:
    sizes = np.random.default_rng(0).integers(20, 1400, (300, 2)).tolist()
    # (176, 110): 15 columns but for a rounding error of 2e-15.
    return [*map(tuple, sizes), (176, 110), (336, 336), (672, 336), (100, 300), (300, 100), (1080, 1920), (224, 224)]


def test_canvases_are_those_of_transformers() -> None:
    pinpoints = [list(size) for size in PINPOINTS]
    for size in frame_sizes():
        canvas = anyres(size, PINPOINTS, 336, 24)
        best = select_best_resolution(size, pinpoints)
        assert pinpoint(size, PINPOINTS) == best == tuple(336 * count for count in canvas.tiles)
        assert pinpoint(size, PINPOINTS[::-1]) == select_best_resolution(size, pinpoints[::-1])
        assert canvas.content == get_patch_output_size(np.empty((3, *size), np.uint8), best, "channels_first")
        cells = torch.empty(1, best[0] // 14, best[1] // 14, device="meta")
        tokens = torch.empty(canvas.tiles[0] * canvas.tiles[1], 576, 1, device="meta")
        assert canvas.assemble(tokens).shape[1:3] == unpad_image(cells, size).shape[1:]
        for length, content, margin in zip(best, canvas.content, canvas.margin, strict=True):
            assert abs((length - content) / 2 - 14 * margin) <= 7 + 1


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (100, 400), (336, 336), (500, 90)])
def test_pixels_are_those_of_the_official_processors(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    given = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processors: list[Any] = [image_processing_llava_next.LlavaNextImageProcessor(**given)]
    if size[0] <= size[1]:  # else PIL 13 resizes the height first
        processors.append(image_processing_pil_llava_next.LlavaNextImageProcessorPil(**given))
    frames = torch.from_numpy(frame)[None]
    canvas = anyres(size, PINPOINTS, 336, 24)
    own = torch.cat([squashed(336).cut(frames), canvas.cut(frames)])
    for processor in processors:
        found = processor(frame, input_data_format="channels_last", return_tensors="pt")
        assert found["image_sizes"].tolist() == [list(size)]
        off = (normalised(own, CLIP) - found["pixel_values"][0]).abs().amax((0, 2, 3))
        assert bool((off * 255 * torch.tensor(CLIP[1]) < 2.01).all()), off
