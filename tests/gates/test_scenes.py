"""Scenes: the same bytes everywhere, truth that is true, splits that share nothing."""

from __future__ import annotations

import io
import subprocess
import sys
import tokenize
from dataclasses import replace
from math import cos, isclose, pi, sin
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import structural_similarity

import foresight_gates.scenes as scenes_package
from foresight_bench.clips import ClipBatch, Truth
from foresight_bench.contracts import Split
from foresight_bench.errors import DataError
from foresight_gates.data import Recipe, SceneData
from foresight_gates.scenes import (
    CLASS_NAMES,
    Clip,
    SceneParameters,
    assert_disjoint,
    clip_digests,
    digest,
    frame_hashes,
    render_block,
    render_clip,
)
from foresight_gates.scenes.colours import FAMILIES, MIN_CONTRAST
from foresight_gates.scenes.motion import bouncing, eased
from foresight_gates.scenes.random import Stream
from foresight_gates.scenes.shapes import SHAPES, TURN, cosine, inside, rotate, sine
from foresight_gates.scenes.texture import SUBPIXELS, noise, texture

SMALL = SceneParameters(side=64, frames=3)
CLIPS = SceneParameters(side=96, frames=5)
PINNED = "ea76d3660f523dc1d68c7348dbecdf33613ce5399f16174c9b1f9602f1191bf3"


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [render_clip(CLIPS, "train", i) for i in range(60)]


@pytest.fixture(scope="module")
def many() -> Truth:
    truth = render_block(SceneParameters(side=48), "test", 0, 1500).truth
    assert truth is not None
    return truth


def split(name: str, count: int = 6, start: int = 0) -> Split:
    return Split((render_block(SMALL, name, start, count),))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    return float(
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=1
        )
    )


# The same bytes everywhere.


def test_pinned_bytes() -> None:
    assert digest([render_block(SMALL, "train", 0, 4)]) == PINNED


def test_a_clip_does_not_depend_on_its_block() -> None:
    whole = clip_digests(render_block(SMALL, "train", 0, 6))
    parts = clip_digests(render_block(SMALL, "train", 0, 1)) + clip_digests(render_block(SMALL, "train", 1, 5))
    assert whole == parts
    assert len(set(whole)) == 6
    clip = render_clip(SMALL, "train", 4)
    block = render_block(SMALL, "train", 4, 1)
    assert block.truth is not None
    assert np.array_equal(clip.frames, block.frames[0])
    assert np.array_equal(clip.boxes, block.truth.boxes[0])


def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "from foresight_gates.scenes import SceneParameters, digest, render_block\n"
        "print(digest([render_block(SceneParameters(side=64, frames=3), 'val', 3, 2)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest([render_block(SMALL, "val", 3, 2)])


AHEAD = """
import os
from foresight_gates.data import Recipe, SceneData
from foresight_gates.scenes import SceneParameters, render
parent, draw, failing = os.getpid(), render._draw, {failing}
def drawn(params, split, index, clip):
    here = os.getpid() == parent
    if failing and not here and index == 2:
        os._exit(3)
    assert failing or not here, "drawn where it was asked for"
    draw(params, split, index, clip)
render._draw = drawn
data = SceneData(Recipe(SceneParameters(side=64), {{name: ((4, 1), (2, 3)) for name in SceneData.names}}))
data.render_ahead(2)
print(*(data.digest(name) for name in data.names if data.split(name)))
"""


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere clips are rendered when they are asked for")
def test_clips_rendered_ahead_are_the_same_even_if_a_process_fails(failing: bool) -> None:
    code = AHEAD.format(failing=failing)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    data = SceneData(Recipe(SceneParameters(side=64), dict.fromkeys(SceneData.names, ((4, 1), (2, 3)))))
    assert done.stdout.split() == [data.digest(name) for name in data.names]


def test_seed_split_length_and_index_each_change_the_scene() -> None:
    first = render_clip(SMALL, "train", 0).frames[0]
    others = [
        render_clip(replace(SMALL, seed=1), "train", 0),
        render_clip(SMALL, "val", 0),
        render_clip(replace(SMALL, frames=1), "train", 0),
        render_clip(SMALL, "train", 1),
    ]
    assert not any(np.array_equal(first, other.frames[0]) for other in others)


def test_ids_name_tier_split_length_and_index() -> None:
    assert render_block(SMALL, "val", 7, 2).ids == ("textured/val/3f/000007", "textured/val/3f/000008")
    assert render_block(replace(SMALL, tier="plain"), "val", 0, 1).ids == ("plain/val/3f/000000",)


def test_no_float_anywhere_in_the_renderer() -> None:
    """Neither true division, nor a float literal, nor a call that would bring one in."""
    banned = {"/", "/=", "**="}
    names = {"float", "float32", "float64", "sqrt", "exp", "log", "sin", "cos", "mean", "linspace", "round"}
    for path in Path(scenes_package.__path__[0]).glob("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            where = f"{path.name}:{token.start[0]}: {token.line.strip()}"
            assert not (token.type == tokenize.OP and token.string in banned), where
            assert not (token.type == tokenize.NAME and token.string in names), where
            assert not (token.type == tokenize.NUMBER and "." in token.string), where


def test_dtypes(clips: list[Clip]) -> None:
    clip = clips[0]
    dtypes = [getattr(clip, n).dtype for n in ("frames", "boxes", "classes", "labels", "plates", "areas")]
    assert dtypes == [np.uint8, np.int16, np.int8, np.uint8, np.uint8, np.int32]
    field = texture(Stream(0), 40, 30, 9 * SUBPIXELS, 3, 50, 1000)
    assert field.dtype == np.int32
    assert field.shape == (40, 30)


# The stream.


def test_stream_draws_the_same_numbers_one_by_one_and_together() -> None:
    one, together = Stream(3, "train", 5), Stream(3, "train", 5)
    single = [one.integer(-7, 900) for _ in range(20)]
    assert together.integers(-7, 900, (4, 5)).ravel().tolist() == single
    assert one.integer(0, 1 << 31) == together.integer(0, 1 << 31)


def test_stream_matches_splitmix64() -> None:
    """The first outputs of the reference implementation for state 1234567."""
    stream = Stream("any")
    stream._state = 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [stream.integer(0, (1 << 32) - 1) for _ in range(3)] == [value >> 32 for value in expected]


def test_stream_children_are_independent_of_what_was_drawn() -> None:
    parent = Stream(0)
    before = parent.child("a").integer(0, 1 << 31)
    parent.integer(0, 9)
    assert parent.child("a").integer(0, 1 << 31) == before
    assert parent.child("b").integer(0, 1 << 31) != before


def test_stream_covers_its_range_evenly() -> None:
    counts = np.bincount(Stream(1).integers(0, 9, (20000,)))
    assert len(counts) == 10
    assert counts.min() > 1850
    assert counts.max() < 2150


# The truth.


def objects(clip: Clip) -> list[int]:
    return np.flatnonzero(clip.classes >= 0).tolist()


def test_boxes_are_tight_around_what_is_visible(clips: list[Clip]) -> None:
    for clip in clips:
        for t, k in np.ndindex(clip.areas.shape):
            rows, columns = np.nonzero(clip.labels[t] == k + 1)
            if clip.classes[k] < 0:
                assert rows.size == 0
                assert clip.boxes[t, k].tolist() == [0, 0, 0, 0]
            else:
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert clip.boxes[t, k].tolist() == tight


def test_slots_are_filled_from_the_front_with_at_least_one_object(clips: list[Clip]) -> None:
    for clip in clips:
        present = objects(clip)
        assert present == list(range(max(1, len(present))))
        assert set(np.unique(clip.labels)) == {0, *(k + 1 for k in present)}
    assert {len(objects(clip)) for clip in clips} == {1, 2, 3, 4}


def test_at_least_half_of_each_object_is_visible(clips: list[Clip]) -> None:
    occluded = 0
    for clip in clips:
        for t, k in np.ndindex(clip.areas.shape):
            seen = np.count_nonzero(clip.labels[t] == k + 1)
            assert seen <= clip.areas[t, k]
            assert 2 * seen >= clip.areas[t, k]
            occluded += seen < clip.areas[t, k]
    assert occluded > 20


def test_half_is_visible_behind_several_objects_too() -> None:
    crowd = SceneParameters(side=64, objects_min=12, objects_max=12, size_min=200)
    behind_two = 0
    for i in range(40):
        clip = render_clip(crowd, "crowd", i)
        seen = np.bincount(clip.labels.ravel(), minlength=13)[1:]
        assert (2 * seen >= clip.areas[0]).all()
        behind_two += int((3 * seen < 2 * clip.areas[0]).sum())
    assert behind_two > 20


def test_areas_are_those_of_whole_objects(clips: list[Clip]) -> None:
    """An object's area follows from its shape and its circle, so none is cut off by the border."""
    filled = {"disc": pi, "square": 2.0, "triangle": 3 * 3**0.5 / 4, "cross": 20 * (80 / 256) ** 2}
    checked = 0
    for clip in clips:
        for t, k in np.ndindex(clip.areas.shape):
            seen = np.count_nonzero(clip.labels[t] == k + 1)
            if clip.classes[k] < 0 or seen < clip.areas[t, k] or seen < 150:
                continue
            rows, columns = np.nonzero(clip.labels[t] == k + 1)
            centre = (columns.mean(), rows.mean())
            radius = np.hypot(columns - centre[0], rows - centre[1]).max() + 0.3
            expected = filled[SHAPES[clip.classes[k] // 3]] * radius**2
            assert isclose(seen, expected, rel_tol=0.16), (CLASS_NAMES[clip.classes[k]], seen, expected)
            checked += 1
    assert checked > 200


def test_the_plate_is_the_frame_wherever_no_object_is(clips: list[Clip]) -> None:
    for clip in clips:
        differs = (clip.frames != clip.plates).any(axis=-1)
        assert np.array_equal(differs, clip.labels > 0)


def test_every_object_pixel_stands_out_from_the_plate(clips: list[Clip]) -> None:
    least = 10**6
    for clip in clips:
        apart = ((clip.frames.astype(np.int32) - clip.plates) ** 2).sum(axis=-1)
        least = min(least, int(apart[clip.labels > 0].min()))
    assert least >= MIN_CONTRAST**2


def test_overlapping_objects_differ_in_colour(clips: list[Clip]) -> None:
    for clip in clips:
        for t in range(CLIPS.frames):
            for k in objects(clip):
                x0, y0, x1, y1 = clip.boxes[t, k]
                whole = clip.labels[t, max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
                if np.count_nonzero(clip.labels[t] == k + 1) == clip.areas[t, k]:
                    continue
                hiding = [j for j in objects(clip) if j > k and (whole == j + 1).any()]
                mine = clip.frames[t][clip.labels[t] == k + 1].mean(axis=0)
                theirs = [clip.frames[t][clip.labels[t] == j + 1].mean(axis=0) for j in hiding]
                # Texture moves a mean by some levels; of several neighbours one at least hides this object.
                assert max(np.linalg.norm(mine - other) for other in theirs) > MIN_CONTRAST - 20


def test_colour_families_are_what_their_names_say(clips: list[Clip]) -> None:
    for clip in clips:
        for k in objects(clip):
            colour = clip.frames[0][clip.labels[0] == k + 1].mean(axis=0)
            assert FAMILIES[clip.classes[k] % 3] == FAMILIES[int(colour.argmax())]


def test_objects_are_textured_or_plain(clips: list[Clip]) -> None:
    plain = [
        len(np.unique(clip.frames[0][clip.labels[0] == k + 1], axis=0)) == 1 for clip in clips for k in objects(clip)
    ]
    assert 0.15 < np.mean(plain) < 0.45


def test_sizes_span_their_range() -> None:
    params = replace(SMALL, side=400, frames=1)
    sides = []
    for i in range(60):
        clip = render_clip(params, "sizes", i)
        whole = [k for k in objects(clip) if np.count_nonzero(clip.labels[0] == k + 1) == clip.areas[0, k]]
        sides += [int(max(b[2] - b[0], b[3] - b[1])) for b in clip.boxes[0, whole]]
    # A square's longer side is 1 / sqrt(2) of its circle's diameter at least; a border covers one pixel more.
    assert min(sides) >= 0.07 * 400 / 2**0.5 - 1
    assert max(sides) <= 0.45 * 400 + 1
    assert min(sides) < 0.10 * 400
    assert max(sides) > 0.36 * 400


def test_things_move_and_the_camera_pans() -> None:
    params = replace(SMALL, side=160, frames=9)
    steps, still = [], 0
    for i in range(30):
        clip = render_clip(params, "motion", i)
        still += np.array_equal(clip.plates[0], clip.plates[-1])
        for k in objects(clip):
            if (np.count_nonzero(clip.labels == k + 1, axis=(1, 2)) == clip.areas[:, k]).all():
                box = clip.boxes[:, k].astype(int)
                centres = (box[:, :2] + box[:, 2:]) / 2
                steps.append(np.linalg.norm(np.diff(centres, axis=0), axis=1))
    assert still <= 2
    # A box also moves by what its shape's rotation adds, up to 2% of the side here.
    assert np.max(steps) < (0.06 + 0.02) * 160
    assert np.median(np.max(steps, axis=1)) > 0.02 * 160


def test_paths() -> None:
    assert eased(10, 80, 0, 5) == [10, 30, 50, 70, 90]
    assert eased(0, 160, 1000, 5) == [0, 10, 40, 90, 160]
    assert eased(0, 160, -1000, 5) == [0, 70, 120, 150, 160]
    assert eased(7, 0, 0, 1) == [7]
    assert bouncing(8, 3, 0, 10, 5) == [8, 9, 6, 3, 0]
    assert bouncing(2, -3, 0, 10, 3) == [2, 1, 4]
    assert bouncing(5, 3, 5, 5, 2) == [5, 5]


def test_sines_come_from_integers_and_are_sines() -> None:
    for angle in range(-TURN, TURN, 7):
        assert abs(sine(angle) - 16384 * sin(2 * pi * angle / TURN)) < 0.51
        assert abs(cosine(angle) - 16384 * cos(2 * pi * angle / TURN)) < 0.51


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize("angle", [0, 300, 1024, 2900])
def test_a_shape_stays_within_its_circle(shape: int, angle: int) -> None:
    axis = np.arange(-100, 100, dtype=np.int32) * SUBPIXELS + SUBPIXELS // 2
    u, v = rotate(axis, axis, angle)
    covered = inside(shape, u, v, 80 * SUBPIXELS)
    distance = np.hypot(axis[None, :], axis[:, None])[covered] / SUBPIXELS
    assert 78 < distance.max() <= 80.1


# The background.


def test_noise_reaches_but_never_leaves_its_amplitude() -> None:
    field = noise(Stream(0), 200, 300, 10 * SUBPIXELS, 5000)
    assert 4900 < field.max() <= 5000
    assert -5000 <= field.min() < -4900


def test_the_amplitude_spectrum_falls_faster_than_a_codec_needs() -> None:
    """About 1/f^2.4 from 5 to 32 cycles a side, where the octaves lie; 1/f^1.3 was too much for a codec."""
    params = SceneParameters(side=256)
    power = np.zeros(128)
    fy, fx = np.meshgrid(np.fft.fftfreq(256, 1 / 256), np.fft.fftfreq(256, 1 / 256))
    ring = np.hypot(fy, fx).astype(int)
    window = np.hanning(256)[:, None] * np.hanning(256)
    for i in range(8):
        grey = render_clip(params, "spectrum", i).plates[0].mean(axis=-1)
        spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
        power += [spectrum[ring == r].mean() for r in range(128)]
    band = np.arange(5, 32)
    slope = np.polyfit(np.log(band), np.log(power[band]) / 2, 1)[0]
    assert slope < -2.2


@pytest.mark.parametrize("side", [224, 448])
def test_a_blank_scores_low_and_a_thumbnail_scores_high(side: int) -> None:
    params = SceneParameters(side=side)
    blank, thumbnail = [], []
    for i in range(3):
        frame = render_clip(params, "ssim", i).frames[0] / 255
        blank.append(ssim(frame, np.broadcast_to(frame.mean(axis=(0, 1)), frame.shape)))
        cells = frame.reshape(side // 8, 8, side // 8, 8, 3).mean(axis=(1, 3))
        at = np.clip((np.arange(side) + 0.5) / 8 - 0.5, 0, side // 8 - 1)
        left = np.minimum(at.astype(int), side // 8 - 2)
        weights = np.zeros((side, side // 8))
        weights[np.arange(side), left] = 1 - (at - left)
        weights[np.arange(side), left + 1] = at - left
        thumbnail.append(ssim(frame, np.einsum("ha,abc,wb->hwc", weights, cells, weights, optimize=True)))
    assert np.mean(blank) < 0.62
    # Bilinear here, which needs no image library; bicubic scores .05 more at 224.
    assert np.mean(thumbnail) > 0.74


def test_the_plain_tier_has_the_same_truth_on_white() -> None:
    textured = render_block(SMALL, "train", 0, 5)
    plain = render_block(replace(SMALL, tier="plain"), "train", 0, 5)
    assert textured.truth is not None
    assert plain.truth is not None
    for name in ("boxes", "classes", "labels"):
        assert np.array_equal(getattr(textured.truth, name), getattr(plain.truth, name))
    assert (plain.truth.plates == 255).all()
    assert (plain.frames[plain.truth.labels == 0] == 255).all()
    for i, k in zip(*np.nonzero(plain.truth.classes >= 0), strict=True):
        assert len(np.unique(plain.frames[i][plain.truth.labels[i] == k + 1], axis=0)) == 1


@pytest.mark.parametrize("side", [32, 75, 131])
def test_any_side_will_do(side: int) -> None:
    batch = render_block(SceneParameters(side=side, frames=2), "odd", 0, 3)
    assert batch.shape == (3, 2, side, side)


@pytest.mark.parametrize(
    "bad",
    [
        {"side": 8},
        {"frames": 0},
        {"size_max": 450.0},
        {"size_min": 500},
        {"objects_min": 0},
        {"tier": "grey"},
        {"fill_contrast": 90},
        {"texture_contrast": 300},
    ],
)
def test_parameters_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad)).split("_")[0]):
        SceneParameters(**bad)  # type: ignore[arg-type]


# No category structure.


def test_class_predicts_neither_place_nor_company_nor_background(many: Truth) -> None:
    """Between-class share of the variance is what chance gives: (classes - 1) / (objects - 1), about .003."""
    here = many.classes >= 0
    classes = many.classes[here]
    boxes = many.boxes[:, 0][here].astype(float)
    count = np.broadcast_to(here.sum(axis=1, keepdims=True), here.shape)[here]
    background = np.broadcast_to(many.plates.mean(axis=(1, 2, 3, 4))[:, None], here.shape)[here]
    assert np.bincount(classes, minlength=12).min() > 0.8 * len(classes) / 12
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    for values in (centre[:, 0], centre[:, 1], count, background):
        means = np.array([values[classes == c].mean() for c in range(12)])
        between = ((means[classes] - values.mean()) ** 2).mean() / values.var()
        assert between < 0.010
    size = np.log((boxes[:, 2:] - boxes[:, :2]).max(axis=1))
    for family in range(3):
        # Not by shape: a square fills less of its circle's box than a disc does.
        assert abs(size[classes % 3 == family].mean() - size.mean()) < 0.1 * size.std()
        shapes = classes[classes % 3 == family] // 3
        assert np.bincount(shapes, minlength=4).max() < 1.25 * len(shapes) / 4


def test_places_are_spread_over_the_frame(many: Truth) -> None:
    boxes = many.boxes[:, 0][many.classes >= 0].astype(float)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 96
    assert np.abs(centre.mean(axis=0) - 0.5).max() < 0.02
    assert (centre.std(axis=0) > 0.18).all()


# Splits and digests.


def test_splits_are_disjoint() -> None:
    assert_disjoint({name: split(name).blocks for name in ("train", "val", "test")})


def test_a_single_shared_frame_is_found() -> None:
    train, test = split("train"), split("test")
    frames = test.blocks[0].frames.copy()
    frames[4, 2] = train.blocks[0].frames[1, 0]
    planted = Split((ClipBatch(frames, test.blocks[0].ids),))
    with pytest.raises(DataError) as caught:
        assert_disjoint({"train": train.blocks, "val": split("val").blocks, "test": planted.blocks})
    for part in ("'train'", "'test'", "'textured/train/3f/000001'", "'textured/test/3f/000004'", "Frame 2"):
        assert part in caught.value.message


def test_a_frame_repeated_within_a_split_is_allowed() -> None:
    train = split("train")
    assert_disjoint({"train": train.blocks + train.blocks, "test": split("test").blocks})


def test_frame_hashes_depend_on_content_and_shape() -> None:
    blank = np.zeros((1, 2, 4, 6, 3), dtype=np.uint8)
    first, second = frame_hashes(ClipBatch(blank, ("a",)))[0]
    assert first == second
    assert first != frame_hashes(ClipBatch(blank.reshape(1, 2, 6, 4, 3), ("a",)))[0][0]


@pytest.mark.parametrize("name", ["boxes", "classes", "labels", "plates", "frames"])
def test_the_digest_sees_every_array(name: str) -> None:
    batch = render_block(SMALL, "train", 0, 2)
    assert batch.truth is not None
    before = digest([batch])
    array = batch.frames if name == "frames" else getattr(batch.truth, name)
    array.reshape(-1)[-1] += 1
    assert digest([batch]) != before


def test_the_digest_ignores_blocks_and_byte_order_but_not_order() -> None:
    batch = render_block(SMALL, "train", 0, 4)
    assert batch.truth is not None
    assert digest([batch[:1], batch[1:]]) == digest([batch])
    assert digest([batch[[1, 0, 2, 3]]]) != digest([batch])
    swapped = replace(batch.truth, boxes=batch.truth.boxes.astype(">i2"))
    assert digest([ClipBatch(batch.frames, batch.ids, swapped)]) == digest([batch])
