"""The layout check accepts DINOv2 at every tap and names every scramble that is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Encoder, EncoderSetup
from foresight_bench.errors import ContractError, NonFinite, WeightsError
from foresight_bench.grids import Grid
from foresight_bench.testing.layout import check_layout
from foresight_bench.weights import resolve
from foresight_plugins.encoders.dinov2 import DINOv2
from foresight_plugins.encoders.dinov2_spec import DINOV2

VARIANT = DINOV2.variants[0]
SHALLOW = ("patch_embed", "block.0", "block.1", "block.2", "final")
SIZE = (112, 168)
"""8 x 12 tokens."""

Scramble = Callable[[Tensor], Tensor]


class Recorded:
    """An encoder that remembers: the check is deterministic, so that all scrambles share its passes."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.known: dict[tuple[bytes, tuple[int, ...]], Mapping[str, Grid]] = {}

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        key = (clips.frames.tobytes(), clips.frames.shape)
        if key not in self.known:
            self.known[key] = self.encoder.encode(clips, taps)
        return {tap: self.known[key][tap] for tap in taps}


class Scrambled:
    def __init__(self, encoder: Encoder, scramble: Scramble) -> None:
        self.encoder, self.scramble = encoder, scramble

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        grids = self.encoder.encode(clips, taps)
        return {tap: Grid(self.scramble(grid.values)) for tap, grid in grids.items()}


@pytest.fixture(scope="module")
def trained() -> Encoder:
    assert VARIANT.weights is not None
    try:
        found = resolve(VARIANT.weights)
    except WeightsError as error:
        pytest.skip(f"The DINOv2 weights are out of reach: {error.message}")
    return Recorded(DINOv2(EncoderSetup(weights=found), "vit_small_patch14_dinov2"))


@pytest.fixture(scope="module")
def untrained() -> Encoder:
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        # A layer scale of one: timm starts at 1e-5, which makes every tap a copy of the first.
        patch.setattr(timm, "create_model", lambda name, **kw: create(name, depth=3, **kw))
        encoder = DINOv2(EncoderSetup(), "vit_small_patch14_reg4_dinov2")
    return Recorded(encoder)


def as_raster(change: Callable[[Tensor], Tensor]) -> Scramble:
    """Apply ``change`` to the token sequence [..., H * W, C]."""

    def scramble(values: Tensor) -> Tensor:
        return change(values.flatten(2, 3)).reshape(values.shape)

    return scramble


def windows(side: int) -> Scramble:
    """Leave the tokens in the order of windows of ``side`` x ``side``."""

    def scramble(values: Tensor) -> Tensor:
        n, t, h, w, c = values.shape
        split = values.reshape(n, t, h // side, side, w // side, side, c)
        return split.permute(0, 1, 2, 4, 3, 5, 6).reshape(values.shape)

    return scramble


def windows_of_groups(values: Tensor) -> Tensor:
    """The order in which Qwen2.5-VL's blocks hold their tokens: windows of 4 x 4, in groups of 2 x 2."""
    n, t, h, w, c = values.shape
    split = values.reshape(n, t, h // 4, 2, 2, w // 4, 2, 2, c)
    return split.permute(0, 1, 2, 5, 3, 6, 4, 7, 8).reshape(values.shape)


def left_in(prefix: int) -> Scramble:
    def change(tokens: Tensor) -> Tensor:
        mean = tokens.mean(2, keepdim=True).expand(-1, -1, prefix, -1)
        return torch.cat([mean, tokens[:, :, :-prefix]], 2)

    return as_raster(change)


def folded_time_first(values: Tensor) -> Tensor:
    n, t = values.shape[:2]
    return values.reshape(t, n, *values.shape[2:]).transpose(0, 1)


def last_row_reversed(values: Tensor) -> Tensor:
    return torch.cat([values[:, :, :-1], values[:, :, -1:].flip(3)], 2)


def last_two_swapped(values: Tensor) -> Tensor:
    last = values[:, :, -1]
    swapped = torch.cat([last[:, :, :-2], last[:, :, -2:].flip(2)], 2)
    return torch.cat([values[:, :, :-1], swapped[:, :, None]], 2)


SCRAMBLES: dict[str, tuple[Scramble, str]] = {
    "transposed grid": (lambda v: v.transpose(2, 3), "the grid is transposed: 12 x 8 cells"),
    "transposed tokens": (lambda v: v.transpose(2, 3).reshape(v.shape), "the grid is transposed: its tokens"),
    "rolled by a row": (lambda v: v.roll(1, 2), "the grid is rolled by 1 rows and 0 columns"),
    "rolled back by two columns": (lambda v: v.roll(-2, 3), "the grid is rolled by 0 rows and -2 columns"),
    "windows": (windows(4), "tokens stand in windows of 4 x 4"),
    "merge groups": (windows(2), "tokens stand in windows of 2 x 2"),
    "windows of groups": (windows_of_groups, "tokens stand in windows of 4 x 4, grouped 2 x 2"),
    "upside down": (lambda v: v.flip(2), "the grid is upside down"),
    "mirrored": (lambda v: v.flip(3), "the grid is mirrored left to right"),
    "turned": (lambda v: v.flip(2, 3), "the grid is turned by half a turn"),
    "class token left in": (left_in(1), "tokens stand 1 late in raster order, as if 1 prefix"),
    "prefix left in": (left_in(5), "tokens stand 5 late in raster order, as if 5 prefix"),
    "one corner": (last_two_swapped, "single tokens are misplaced"),
    "last row": (last_row_reversed, "single tokens are misplaced"),
    "channels first": (lambda v: v.permute(0, 1, 4, 2, 3), "channels stand where rows should"),
    "shuffled": (
        as_raster(lambda x: x[:, :, torch.randperm(96, generator=torch.manual_seed(0))]),
        "in no order",
    ),
    "blind": (torch.zeros_like, "the tap does not depend on the image"),
    "clips swapped": (lambda v: v.flip(0), "a change in one clip shows up in another"),
}

IN_TIME: dict[str, tuple[Scramble, str]] = {
    "frames swapped": (lambda v: v.flip(1), "the place is right, the frame is wrong in 100% of the probes"),
    "clips swapped": (lambda v: v.flip(0), "a change in one clip shows up in another"),
    "time folded first": (folded_time_first, ""),
}


def assert_passes(encoder: Encoder, taps: Sequence[str], frames: int = 1) -> None:
    for finding in check_layout(encoder, taps, size=SIZE, frames=frames):
        assert finding.passed, finding
        assert (finding.misplaced, finding.diagnosis) == (0.0, "")


def assert_named(encoder: Encoder, taps: Sequence[str], scramble: Scramble, diagnosis: str, frames: int = 1) -> None:
    findings = check_layout(Scrambled(encoder, scramble), taps, size=SIZE, frames=frames)
    assert [finding.tap for finding in findings] == list(taps)
    for finding in findings:
        assert not finding.passed, finding
        assert diagnosis in finding.diagnosis, finding


@pytest.mark.parametrize("name", SCRAMBLES)
def test_scramble_is_named_at_every_tap(name: str, untrained: Encoder) -> None:
    assert_passes(untrained, SHALLOW)
    assert_named(untrained, SHALLOW, *SCRAMBLES[name])


@pytest.mark.archives
@pytest.mark.parametrize("name", ["transposed tokens", "rolled by a row", "windows of groups", "prefix left in"])
def test_scramble_is_named_at_every_tap_of_the_trained_model(name: str, trained: Encoder) -> None:
    assert_passes(trained, VARIANT.taps)
    assert_named(trained, VARIANT.taps, *SCRAMBLES[name])


@pytest.mark.parametrize("name", IN_TIME)
def test_mistake_in_time_is_named_at_every_tap(name: str, untrained: Encoder) -> None:
    assert_passes(untrained, SHALLOW, frames=2)
    assert_named(untrained, SHALLOW, *IN_TIME[name], frames=2)


class Pooled:
    """Means over cells of pixels on grids of several sizes, and over pairs of frames."""

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        n, t, h, w = clips.shape
        pixels = torch.tensor(clips.frames).float()
        grids = {}
        for tap in taps:
            cell, pair = (int(part) for part in tap.split("x"))
            split = pixels.reshape(n, t // pair, pair, h // cell, cell, w // cell, cell, 3)
            grids[tap] = Grid(split.mean((2, 4, 6)))
        return grids


def test_every_frame_is_probed() -> None:
    def last_frame_mirrored(values: Tensor) -> Tensor:
        return torch.cat([values[:, :-1], values[:, -1:].flip(3)], 1)

    (finding,) = check_layout(Scrambled(Pooled(), last_frame_mirrored), ["14x1"], size=SIZE, frames=3)
    assert 0.1 < finding.misplaced < 0.6


def test_taps_with_grids_of_several_sizes() -> None:
    findings = check_layout(Pooled(), ["14x1", "28x2", "56x4"], size=(112, 168), frames=4)
    assert all(finding.passed for finding in findings), findings


def test_check_is_deterministic_and_the_seed_matters() -> None:
    seen = []

    class Spy(Pooled):
        def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
            seen.append(clips.frames.copy())
            return super().encode(clips, taps)

    for seed in (0, 0, 1):
        check_layout(Spy(), ["14x1"], size=(28, 42), probes=6, seed=seed)
    first, second, other = seen[:4], seen[4:8], seen[8:]
    assert len(seen) == 12
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_tolerance_is_a_share_of_the_probes(untrained: Encoder) -> None:
    encoder = Scrambled(untrained, last_row_reversed)
    finding = check_layout(encoder, SHALLOW, size=SIZE)[-1]
    assert 0 < finding.misplaced < 0.5
    assert check_layout(encoder, SHALLOW, size=SIZE, tolerance=0.5)[-1].passed


@pytest.mark.parametrize(
    ("scramble", "error", "match"),
    [
        (lambda v: v.flatten(0, 1)[None], ContractError, "holds 1 clips; 2 were given"),
        (lambda v: v * torch.nan, NonFinite, "Tap '14x1' holds NaN"),
    ],
)
def test_broken_grids_are_errors(scramble: Scramble, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        check_layout(Scrambled(Pooled(), scramble), ["14x1"], size=SIZE)


def test_missing_tap_is_an_error() -> None:
    class Empty:
        def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
            return {}

    with pytest.raises(ContractError, match="no grid for tap 'final'"):
        check_layout(Empty(), ["final"])
