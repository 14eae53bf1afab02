"""What specs say of preprocessing is what encoders do to black, white and noisy frames before the model sees them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder, EncoderSetup
from foresight_bench.specs import EncoderSpec
from foresight_gates.control_specs import CONTROLS
from foresight_gates.controls import MeanRGB, Pixels
from foresight_plugins.encoders import dinov2, internvl2, llava_next, llava_tiles, qwen2_5_vl, sam
from foresight_plugins.encoders.dinov2_spec import DINOV2
from foresight_plugins.encoders.internvl2_spec import INTERNVL2
from foresight_plugins.encoders.llava_next_configs import ARCHITECTURES
from foresight_plugins.encoders.llava_next_spec import LLAVA_NEXT
from foresight_plugins.encoders.qwen2_5_vl_spec import QWEN2_5_VL
from foresight_plugins.encoders.sam_spec import SAM

TAP = ("patch_embed",)
SETUP = EncoderSetup(taps=TAP)
Size = tuple[int, int]


def clips(*frames: NDArray[np.uint8]) -> ClipBatch:
    return ClipBatch(np.stack(frames)[None], ("a",))


def noise(size: Size, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def small_sam(monkeypatch: pytest.MonkeyPatch) -> sam.SAM:
    """Return vit_b, narrow and shallow."""
    monkeypatch.setitem(sam.ARCHITECTURES, "vit_b", replace(sam.ARCHITECTURES["vit_b"], dim=32, depth=4, heads=2))
    return sam.SAM(SETUP, "vit_b")


def sizes(words: str) -> list[Size]:
    """Return every height and width in ``words``."""
    return [(int(height), int(width)) for height, width in re.findall(r"(\d+) x (\d+)", words)]


def unit(words: str) -> int:
    return int(re.findall(r"no multiple of (\d+)", words)[0])


def longest(words: str) -> int:
    return int(re.findall(r"a longest side of (\d+)", words)[0])


class Seen:
    """What went through a module's ``normalised`` and another's ``resized``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, resizing: ModuleType) -> None:
        self.images: list[Tensor] = []
        self.modes: set[str] = set()
        normalised, resized = module.normalised, resizing.resized
        signature = inspect.signature(resized)

        def spy_normalised(*arguments: Any) -> Tensor:
            self.images.append(normalised(*arguments))
            return self.images[-1]

        def spy_resized(*arguments: Any, **options: Any) -> Tensor:
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            self.modes.add(bound.arguments["mode"])
            found: Tensor = resized(*arguments, **options)
            return found

        monkeypatch.setattr(module, "normalised", spy_normalised)
        monkeypatch.setattr(resizing, "resized", spy_resized)


@pytest.mark.parametrize(
    ("spec", "build", "resizing", "size", "fed"),
    [
        # 105 lies between 98 and 112; 70 between 56 and 84.
        (DINOV2, lambda _: dinov2.DINOv2(SETUP, "vit_small_patch14_dinov2"), dinov2, (44, 105),
            lambda words: (3 * unit(words), 8 * unit(words))),
        (QWEN2_5_VL, lambda _: qwen2_5_vl.Qwen2_5VL(SETUP, "3b"), qwen2_5_vl, (70, 140),
            lambda words: (2 * unit(words), 5 * unit(words))),
        (INTERNVL2, lambda _: internvl2.InternVL2(SETUP, "InternVL2-1B"), internvl2, (40, 90),
            lambda words: sizes(words)[0]),
        (LLAVA_NEXT, lambda _: llava_next.LlavaNext(SETUP, "mistral-7b"), llava_tiles, (40, 90),
            lambda words: sizes(words)[0]),
        (SAM, small_sam, sam, (32, 64), lambda words: (longest(words) // 2, longest(words))),
    ],
    ids=lambda each: each.name if isinstance(each, EncoderSpec) else "",
)  # fmt: skip
def test_words_are_what_an_encoder_does(
    spec: EncoderSpec,
    build: Callable[[pytest.MonkeyPatch], Encoder],
    resizing: ModuleType,
    size: Size,
    fed: Callable[[str], Size],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, encoder = spec.preprocessing, build(monkeypatch)
    module = inspect.getmodule(type(encoder))
    assert module is not None
    seen = Seen(monkeypatch, module, resizing)
    black = np.zeros((*size, 3), np.uint8)
    encoder.encode(clips(black, black + 255), TAP)
    (images,) = seen.images
    assert tuple(images.shape[2:]) == fed(words)
    (mode,) = seen.modes
    assert f"({mode}, antialiased)" in words

    # Black is -mean / deviation, white is (1 - mean) / deviation.
    low, high = images.double().flatten(2).mean(2)
    numbers = re.findall(r"\d+\.\d+", words)
    assert "RGB in 0 .. 1, less the mean" in words
    assert (-low / (high - low)).tolist() == pytest.approx([float(each) for each in numbers[:3]], abs=5e-7)
    assert (1 / (high - low)).tolist() == pytest.approx([float(each) for each in numbers[3:]], abs=5e-7)

    # Whether frames see each other.
    frames = [noise(size, seed) for seed in range(3)]
    together, last = encoder.encode(clips(*frames), TAP)[TAP[0]].values, encoder.encode(clips(frames[2]), TAP)[TAP[0]]
    assert torch.allclose(together[:, -1:], last.values, atol=1e-5)
    first = encoder.encode(clips(frames[0]), TAP)[TAP[0]].values
    alone = words.startswith("Every frame by itself")
    assert together.shape[1] == (3 if alone else 2)
    assert torch.allclose(together[:, :1], first, atol=1e-5) is alone


def test_sam_drops_tokens_of_zeros_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_sam(monkeypatch)
    (square,) = set(sizes(SAM.preprocessing))
    fed = sam.preprocess(torch.full((1, 32, 64, 3), 255, dtype=torch.uint8), square[0])
    assert tuple(fed.shape[2:]) == square
    assert not fed[..., square[0] // 2 :, :].any()
    assert encoder.encode(clips(noise((32, 64), 0)), TAP)[TAP[0]].shape[2:4] == (32, 64)


def test_llava_names_every_canvas_and_its_tile() -> None:
    tile, *canvases, cut = sizes(LLAVA_NEXT.preprocessing)
    for architecture in ARCHITECTURES.values():
        assert list(architecture.pinpoints) == canvases
        assert (architecture.vision["image_size"],) * 2 == tile == cut


def test_every_internvl_has_the_tile_that_is_named() -> None:
    (tile,) = sizes(INTERNVL2.preprocessing)
    assert {(each.fields.vision["image_size"],) * 2 for each in internvl2.ARCHITECTURES.values()} == {tile}


def test_controls_say_what_they_look_at() -> None:
    words = {spec.name: spec.preprocessing for spec in CONTROLS}
    (patch,) = sizes(words["pixels"])
    assert {spec.variants[0].params["patch"] for spec in CONTROLS} == {patch[0]}
    white = clips(np.full((40, 30, 3), 255, np.uint8))
    pixels, mean = Pixels(EncoderSetup(), patch[0]), MeanRGB(EncoderSetup(), patch[0])
    assert pixels.tokens(white).shape[2:4] == (2, 2)  # 12 rows and 2 columns are dropped
    assert all("RGB in 0 .. 1" in words[name] for name in ("pixels", "mean-rgb"))
    assert {float(each.tokens(white).values.max()) for each in (pixels, mean)} == {1.0}
