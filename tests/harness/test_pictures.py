"""Pictures: what is drawn where, from frames whose every pixel is known."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from foresight_bench import store
from foresight_bench.cells import Cell
from foresight_bench.clips import ClipBatch
from foresight_bench.errors import EnvironmentFault
from foresight_bench.pictures import contact_sheet, export
from foresight_bench.strips import strips
from foresight_gates.scenes import CLASS_NAMES, SceneParameters, render_block

SMALL = SceneParameters(side=64, frames=3)


def test_a_contact_sheet_shows_every_block() -> None:
    clips, singles = render_block(SMALL, "train", 0, 3), render_block(SceneParameters(side=64), "train", 0, 7)
    sheet = np.asarray(contact_sheet([clips, singles], CLASS_NAMES, 6))
    # three clips of three frames a row each, then six single frames in rows of five
    assert sheet.shape == (5 * 68 - 4, 5 * 68 - 4, 3)
    for batch, i, t, row, column in ((clips, 0, 0, 0, 0), (clips, 2, 1, 2, 1), (singles, 5, 0, 4, 0)):
        shown = sheet[row * 68 : row * 68 + 64, column * 68 : column * 68 + 64]
        assert 0.5 < (shown == batch.frames[i, t]).all(axis=-1).mean() < 1, "the frame, with the truth drawn on it"
    bare = ClipBatch(clips.frames, clips.ids)
    assert np.array_equal(np.asarray(contact_sheet([bare], CLASS_NAMES))[:64, :64], clips.frames[0, 0])


def test_exported_frames_and_truth_read_back(tmp_path: Path) -> None:
    batch = render_block(SceneParameters(side=64, frames=2), "test", 0, 2)
    assert export([batch], tmp_path) == 4
    folder = tmp_path / batch.ids[1].replace("/", "-")
    assert np.array_equal(np.asarray(Image.open(folder / "001.png")), batch.frames[1, 1])
    assert batch.truth is not None
    with np.load(tmp_path / "truth-0.npz") as truth:
        assert np.array_equal(truth["labels"], batch.truth.labels)


def plain(n: int, t: int, first: int) -> ClipBatch:
    """Return clips of 40 x 60 pixels; frame f of clip i is of one colour, red 10 i + ``first``, green 20 f."""
    frames = np.zeros((n, t, 40, 60, 3), np.uint8)
    frames[..., 0] = 10 * np.arange(n)[:, None, None, None] + first
    frames[..., 1] = 20 * np.arange(t)[:, None, None]
    return ClipBatch(frames, tuple(f"{first}/{i}" for i in range(n)))


def drawn(blocks: list[ClipBatch], made: list[np.ndarray], scores: list[float], direction: str) -> np.ndarray:
    flat = torch.cat([torch.from_numpy(m).flatten(0, 1).permute(0, 3, 1, 2).float() / 255 for m in made])
    png = strips(blocks, flat, np.array(scores), title="A title", metric="ssim", direction=direction)  # type: ignore[arg-type]
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def tiles(image: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Return the colours of the tiles, row by row, each read in its middle, of tiles of 40 x 60 on white paper."""
    right = image[:, 110:]  # of the names of the rows
    rows = []
    for y in range(20, len(right)):
        line = right[y - 20 : y + 20]
        whole = (line == line[:1]).all((0, 2))  # columns of one colour 40 pixels high
        edge = (right[y - 21] != line[0]).any(-1) & whole
        starts = [x for x in np.flatnonzero(edge) if not edge[x - 1] or x == 0]
        if starts and (line[0, starts[0]] != 255).any():
            rows.append([tuple(line[20, x + 30]) for x in starts])
    return rows


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_strips_show_the_clips_by_score_and_the_frames_in_order(direction: str) -> None:
    blocks = [plain(4, 5, 140), plain(9, 1, 40)]
    made = [block.frames.copy() for block in blocks]
    made[0][2, 4, ..., 2] += 30  # of the clips of 5 frames the third is off, in the last frame, by 30 in blue alone
    for i in range(9):
        made[1][i] += np.uint8(i)  # and single frame i by i in each colour
    sign = 1 if direction == "lower" else -1
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]  # from the best to the worst
    scores = [sign * v for v in (0.3, 0.1, 0.4, 0.2)] + [sign * order.index(i) / 10 for i in range(9)]
    image = drawn(blocks, made, scores, direction)
    assert image.shape == (3 * 18 + 2 * (2 * 18 + 3 * 44 + 8), 110 + 9 * 64 + 2 * 8, 3), "tiles of 40 x 60"
    found = tiles(image)
    assert len(found) == 6
    clips, frames = (1, 0, 2), (0, 2, 4)  # best, third of four, worst; first, middle, last
    assert found[0] == [(140 + 10 * i, 20 * f, 0) for i in clips for f in frames]
    assert found[1] == [(140 + 10 * i, 20 * f, 30 * ((i, f) == (2, 4))) for i in clips for f in frames]
    assert found[2] == [(40 * ((i, f) == (2, 4)),) * 3 for i in clips for f in frames], "4 times the mean of RGB"
    shown = [4, 8, 6, 7, 5]  # every second of the nine
    assert found[3] == [(40 + 10 * i, 0, 0) for i in shown]
    assert found[4] == [(40 + 11 * i, i, i) for i in shown]
    assert found[5] == [(4 * i,) * 3 for i in shown], "4 times the difference"


def test_strips_say_what_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **style: said.append(text))
    blocks = [plain(4, 1, 40), plain(2, 5, 140)]
    drawn(blocks, [block.frames for block in blocks], [0.2, 0.4, 0.1, 0.3, 0.6, 0.5], "higher")
    assert [text for text in said if "/" in text] == [
        "best of 4: .400\n40/1",
        "2 of 4: .300\n40/3",
        "3 of 4: .200\n40/0",
        "worst of 4: .100\n40/2",
        "best of 2: .600, frames 0, 2, 4\n140/0",
        "worst of 2: .500, frames 0, 2, 4\n140/1",
    ]
    assert "A title" in said
    assert any("by ssim" in text and "4 x |original - reconstruction|" in text for text in said)
    assert said.count("reconstruction") == 2


def scenes(side: int, frames: int, clips: int) -> ClipBatch:
    return render_block(SceneParameters(side=side, frames=frames), "test", 0, clips)


def test_wide_frames_do_not_make_the_picture_wider() -> None:
    clips = ClipBatch(np.zeros((3, 9, 180, 640, 3), np.uint8), ("a", "b", "c"))
    black = torch.zeros(27, 3, 180, 640)
    png = strips([clips], black, np.arange(3.0), title="A title", metric="lpips", direction="lower")
    assert 1400 < Image.open(io.BytesIO(png)).width < 1600


@pytest.mark.parametrize("blocks", [[(224, 1, 5), (224, 9, 3)], [(448, 9, 3)]], ids=["quick", "gate1"])
def test_a_picture_is_small_even_of_noise(blocks: list[tuple[int, int, int]]) -> None:
    clips = [scenes(*block) for block in blocks]
    side, n = blocks[0][0], sum(block[2] for block in blocks)
    noise = torch.rand(sum(len(block) * block.shape[1] for block in clips), 3, side, side)
    png = strips(clips, noise, np.arange(n) / n, title="A title", metric="lpips", direction="lower")
    assert 500_000 < len(png) < 1_500_000
    assert 1000 < Image.open(io.BytesIO(png)).width < 1600


def test_a_cell_vouches_for_its_picture_and_is_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = next(store.Store(Path(__file__).parents[2] / "benchmarks" / "results").cells())
    assert "picture_sha256" in Cell.model_fields
    cell = committed.model_copy(update={"picture_sha256": sha256(b"a picture").hexdigest()})
    folder = store.Store(tmp_path)
    written: list[str] = []
    monkeypatch.setattr(store, "write_atomically", lambda path, data: written.append(path.name))
    folder.write(cell, b"scores", b"a picture")
    assert written == [f"{cell.id}.safetensors", f"{cell.id}.png", f"{cell.id}.json"]
    written.clear()
    folder.write(cell, b"scores")
    assert written == [f"{cell.id}.safetensors", f"{cell.id}.json"]
    monkeypatch.undo()

    folder.write(cell, b"scores", b"a picture")
    path = folder.path(cell)
    assert folder.read(path) == cell
    assert sha256(path.with_suffix(".png").read_bytes()).hexdigest() == cell.picture_sha256
    path.unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(EnvironmentFault):
        folder.write(cell, b"", b"a picture")
    assert not path.exists(), "a cell whose picture could not be written is not done"
