from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from foresight_bench.clips import ClipBatch
from foresight_bench.pictures import contact_sheet, export
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
