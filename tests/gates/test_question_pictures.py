"""The pictures of Q1 and Q2: the right clips, boxes, taps and pairs, and no score that depends on them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from foresight_bench.bench import Bench, Workbench
from foresight_bench.contracts import EncoderSetup, FrameBoxes, Outcome, Spaces
from foresight_bench.extraction import extract
from foresight_bench.features import FeatureSet
from foresight_bench.grids import Grid
from foresight_bench.registry import Registry, target
from foresight_bench.sheets import FOUND, TRUE, Column, Seen, box_sheet, component_maps
from foresight_gates import q1_picture, q2, q2_picture
from foresight_gates.data import Recipe, SceneData
from foresight_gates.scenes import SceneParameters
from foresight_plugins.metrics.boxes import matched_iou

SPLITS = {"train": ((24, 1),), "val": ((8, 1),), "test": ((10, 1), (4, 3)), "align": ((12, 1),)}


@cache
def shared() -> Workbench:
    data = SceneData(Recipe(SceneParameters(side=112, objects_max=2), SPLITS))
    return Workbench(Registry.installed(), data, "cpu", {})


@cache
def features(encoder: str) -> FeatureSet:
    spec = shared().registry.encoders[encoder].spec
    model = target(spec.target)(EncoderSetup(), **spec.variants[0].params)
    return extract(lambda: model, spec.variants[0].default_taps, shared().data, control=spec.control)


def run(name: str, row: FeatureSet) -> Outcome:
    spec = {spec.name: spec for spec in shared().registry.suites["quick"].spec.experiments}[name]
    kept = "box_iou", "edge_f1", "spearman", "cka"
    spec = replace(spec, criteria=tuple(c for c in spec.criteria if c.metric in kept))
    outcome: Outcome = target(spec.target)(spec).run(Bench(shared(), row, 0, "", "patch-pca", None, "mine"), str)
    return outcome


def two_taps() -> FeatureSet:
    """Features that hold the truth at one tap, and raw patches at another before it."""
    truth, patches = features("oracle"), features("pixels")
    tokens = {("truth", split): grids for (_, split), grids in truth.tokens.items()}
    tokens |= {("patches", split): grids for (_, split), grids in patches.tokens.items()}
    return replace(truth, taps=("patches", "truth"), tokens=tokens, control="")


# Boxes.


def sheet_of(true: list[list[float]], found: list[list[float]], side: int = 112) -> np.ndarray:
    """Return the tile of a black frame."""

    def boxes(rows: list[list[float]]) -> FrameBoxes:
        n = len(rows)
        array = np.array(rows, np.float32).reshape(n, 4)
        return FrameBoxes(array, np.zeros(n, np.int64), np.full(n, 0.516, np.float32))

    seen = Seen(np.zeros((side, side, 3), np.uint8), boxes(true), boxes(found))
    png = box_sheet("title", "caption", [[Column(("best", "clip"), (seen,))]], (), ["disc"])
    assert Image.open(io.BytesIO(png)).format == "PNG"
    edge = min(side, 224)
    return np.asarray(Image.open(io.BytesIO(png)))[90 : 90 + edge, 110 : 110 + edge]


def test_true_boxes_are_solid_and_found_ones_dashed() -> None:
    tile = sheet_of([[20, 30, 60, 70]], [])
    for line in (tile[30, 20:60], tile[69, 20:60], tile[30:70, 20], tile[30:70, 59]):
        assert (line == TRUE).all()
    tile = sheet_of([], [[20, 30, 60, 70]])
    for line in (tile[30, 20:60], tile[69, 20:60], tile[30:70, 20], tile[30:70, 59]):
        mine = (line == FOUND).all(-1)
        assert 0.5 < mine.mean() < 0.85
        assert np.abs(np.diff(mine.astype(int))).sum() >= 5, "on and off and on again"
    assert not (sheet_of([], [])[:100] != 0).any()


def test_boxes_shrink_with_their_frame() -> None:
    tile = sheet_of([[100, 120, 300, 400]], [], side=448)
    assert (tile[60:199, 50] == TRUE).all()
    assert (tile[60, 50:149] == TRUE).all()


def test_found_boxes_name_their_class_and_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **style: said.append(text))
    sheet_of([[20, 30, 60, 70]], [[22, 30, 60, 70]])
    assert said[:2] == ["boxes", "best\nclip"]
    assert said[2:4] == ["disc", "disc 0.52"]


def test_maps_stand_below_their_frames_with_sharp_cells() -> None:
    none = FrameBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    seen = Seen(np.full((40, 60, 3), 50, np.uint8), none, none)
    one = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    maps = ((one, 255 - one), (one // 2, one))
    png = box_sheet("title", "caption", [[Column(("best", "clip"), (seen, seen), maps)]], ("early", "late"), [])
    image = np.asarray(Image.open(io.BytesIO(png)))
    for row in range(3):
        for frame in range(2):
            tile = image[90 + 44 * row :, 110 + 64 * frame :][:40, :60]
            cells = tile.reshape(2, 20, 3, 20, 3).transpose(0, 2, 1, 3, 4).reshape(2, 3, 400, 3)
            assert (cells == cells[:, :, :1]).all()
            assert (cells[:, :, 0] == (maps[frame][row - 1] if row else 50)).all()


# Maps.


def planted(scale: float = 1.0, channels: int = 12) -> torch.Tensor:
    """Return tokens [10, 14, C]: six channels hold one pattern, four another, two a third, the rest nothing."""
    rows = torch.arange(10.0)[:, None].pow(2).expand(10, 14)
    columns = torch.arange(14.0).pow(2).expand(10, 14)
    patterns = [rows - rows.mean(), columns - columns.mean()]
    patterns.append(patterns[0] * patterns[1])
    held = [pattern * (k + 1) for k, pattern in enumerate([patterns[0]] * 6 + [patterns[1]] * 4 + [patterns[2]] * 2)]
    tokens = torch.cat([torch.stack(held, -1), torch.zeros(10, 14, channels - 12)], -1)
    tokens[..., 0] *= scale
    return tokens


@pytest.mark.parametrize("channels", [12, 300], ids=["more tokens than channels", "fewer"])
@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["alike", "one outweighs all"])
def test_planted_patterns_are_red_green_and_blue(channels: int, scale: float) -> None:
    (found,) = component_maps([planted(scale, channels)])
    for k, channel in enumerate((1, 7, 11)):
        pattern = planted()[..., channel].double()
        pattern = pattern * torch.sign(pattern.flatten()[pattern.abs().argmax()])
        low, high = torch.quantile(pattern, torch.tensor([0.02, 0.98], dtype=torch.float64))
        expected = ((pattern - low) / (high - low)).clamp(0, 1) * 255
        assert np.abs(found[..., k] - expected.numpy()).max() <= 1


def test_maps_of_several_frames_share_their_colours() -> None:
    one, other = component_maps([planted(), planted()[:5]])
    assert one.shape == (10, 14, 3)
    assert np.array_equal(one[:5], other)


def test_what_has_no_variance_is_grey() -> None:
    (found,) = component_maps([torch.full((4, 4, 2), 0.1)])
    assert (found == 128).all()
    (found,) = component_maps([torch.arange(16.0).reshape(4, 4, 1)])
    assert len(np.unique(found[..., 0])) > 8
    assert (found[..., 1:] == 128).all()


def test_components_of_many_tokens_are_fitted_on_some() -> None:
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(100, 100, 40, generator=generator)
    fine[80:] += 9
    (found,) = component_maps([fine])
    assert found[80:, :, 0].mean() > 220
    assert found[:80, :, 0].mean() < 60


# Q2.


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Collect what sheets are drawn of."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(q2_picture, "box_sheet", lambda *arguments: (calls.append(arguments), b"png")[1])
    return calls


def test_q2_draws_the_boxes_that_its_score_is_made_of(drawn: list[tuple[Any, ...]]) -> None:
    row = two_taps()
    outcome = run("Q2", row)
    assert outcome.picture == b"png"
    assert outcome.tap == "truth"
    ((title, _, bands, taps, classes),) = drawn
    gating = "box_iou", "truth", "tokens"
    (scores,) = (m.scores.per_clip for m in outcome.measurements if (m.metric, m.tap, m.readout) == gating)
    assert scores is not None
    assert title.startswith("mine at truth, clips by box IoU: ")
    assert (taps, classes) == (["patches", "truth"], shared().data.class_names)
    blocks = shared().split("test").blocks
    ids = [name for block in blocks for name in block.ids]
    frames = {name: clip for block in blocks for name, clip in zip(block.ids, block.frames, strict=True)}
    for band, count, first, n in zip(bands, (5, 3), (0, 10), (10, 4), strict=True):
        assert len(band) == count
        shown = [scores[ids.index(column.lines[1])] for column in band]
        assert shown == sorted(shown, reverse=True)
        assert (shown[0], shown[-1]) == (scores[first : first + n].max(), scores[first : first + n].min())
        for column, score in zip(band, shown, strict=True):
            images = np.stack([seen.image for seen in column.frames])
            assert np.array_equal(images, frames[column.lines[1]])
            found = [matched_iou(seen.found.boxes, seen.true.boxes) for seen in column.frames]
            assert np.mean(found) == pytest.approx(score, abs=1e-6)
    assert 0 < scores.min() < 1


def test_q2_maps_each_tap_below_the_frames_it_describes(drawn: list[tuple[Any, ...]]) -> None:
    row = two_taps()
    run("Q2", row)
    first, second = drawn[0][2]
    clips = [shared().split("test").blocks[0].ids.index(column.lines[1]) for column in first]
    for tap, name in enumerate(row.taps):
        expected = component_maps([row.tokens[name, "test"][0].values[clip, 0] for clip in clips])
        for column, each in zip(first, expected, strict=True):
            assert np.array_equal(column.maps[0][tap], each)
    assert all(column.maps == () for column in second)


def test_a_token_of_two_frames_is_mapped_below_both() -> None:
    bench = Bench(shared(), features("pixels"), 0)
    values = torch.arange(4.0).reshape(2, 2, 1, 1, 1).expand(2, 2, 4, 4, 1) + torch.arange(16.0).reshape(4, 4, 1) / 20
    bench.features = replace(bench.features, tokens={("late", "test"): (Grid(values),)})
    choices = [q2_picture.Choice(1, (0, 1, 2), ("", "")), q2_picture.Choice(0, (0, 1, 2), ("", ""))]
    maps = q2_picture._maps(bench, "late", choices, 3)
    means = [each[..., 0].mean() for each in maps]
    assert means[0] == means[1] < means[2] or means[0] == means[1] > means[2]
    assert means[3] == means[4] != means[0]


def test_of_many_taps_some_are_mapped() -> None:
    taps = [f"block.{k}" for k in range(40)]
    shown = q2_picture.shown_taps(taps, "block.17")
    assert len(shown) <= q2_picture.MOST_TAPS
    assert {"block.0", "block.17", "block.39"} <= set(shown)
    assert shown == sorted(shown, key=taps.index)
    assert q2_picture.shown_taps(taps[:12], "block.3") == taps[:12]


@pytest.mark.parametrize("control", ["oracle", "pixels"])
def test_controls_draw_nothing(control: str) -> None:
    assert run("Q2", replace(features("pixels"), control=control)).picture == b""


def same_scores(one: Outcome, other: Outcome) -> bool:
    return all(
        np.array_equal(a.scores.replicates, b.scores.replicates) and a.scores.value == b.scores.value
        for a, b in zip(one.measurements + one.shuffled, other.measurements + other.shuffled, strict=True)
    )


@pytest.mark.parametrize(("name", "module"), [("Q1", "foresight_gates.q1"), ("Q2", "foresight_gates.q2")])
def test_no_score_and_no_generator_depends_on_a_picture(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(features("oracle"), control="")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    with_one = run(name, row)
    assert with_one.picture.startswith(b"\x89PNG")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert run(name, row).picture == with_one.picture, "the same bytes again"
    monkeypatch.setattr(f"{module}.picture", lambda *arguments: b"")
    without = run(name, row)
    assert without.picture == b""
    assert same_scores(with_one, without)


def test_a_sheet_of_scenes_is_small() -> None:
    assert q2.picture is q2_picture.picture
    png = run("Q2", replace(features("oracle"), control="")).picture
    assert 20_000 < len(png) < 1_000_000


# Q1.


def test_distances_are_those_of_the_pairs_over_their_median() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 20.0], [0.0, 0.0]], dtype=torch.float64)
    one, other = np.array([0, 0, 0]), np.array([1, 2, 3])
    assert q1_picture.relative_distances(points, one, other).tolist() == [1.0, 4.0, 0.0]
    assert q1_picture.relative_distances(points[[0, 0, 0, 0]], one, other).tolist() == [0.0, 0.0, 0.0]


def test_pairs_are_different_and_the_same_again() -> None:
    one, other = q1_picture.sampled_pairs(400)
    assert len(one) == 2000
    assert (one < other).all()
    assert len(set(zip(one.tolist(), other.tolist(), strict=True))) == 2000
    assert len(np.unique(one)) > 300
    assert np.array_equal(q1_picture.sampled_pairs(400)[0], one)
    assert len(q1_picture.sampled_pairs(5)[0]) == 10


def test_equal_spaces_lie_on_the_diagonal_and_x_is_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    points: list[tuple[np.ndarray, np.ndarray]] = []
    real: Callable[..., Any] = Axes.scatter

    def scatter(self: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> Any:
        points.append((x, y))
        return real(self, x, y, **style)

    monkeypatch.setattr(Axes, "scatter", scatter)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    other = torch.zeros(50, 8, dtype=torch.float64)
    assert q1_picture.picture(Spaces(x, x, x, 3 * x), "a $\\frac{title$").startswith(b"\x89PNG")
    assert points[0][0] == pytest.approx(points[0][1])
    q1_picture.picture(Spaces(x, x, x, other), "flat")
    assert points[1][0].std() > 0
    assert not points[1][1].any()
