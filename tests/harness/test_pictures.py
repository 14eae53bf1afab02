from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from foresight_bench.clips import ClipBatch
from foresight_bench.pictures import contact_sheet, export
from foresight_gates.scenes import CLASS_NAMES, SceneParameters, render_block

SMALL = SceneParameters(side=64, frames=3)


def test_contact_sheet_shows_the_clips_asked_for() -> None:
    batch = render_block(SMALL, "train", 0, 3)
    sheet = np.asarray(contact_sheet(batch, CLASS_NAMES, clips=(0, 2), frames=(0, 1, 2)))
    assert sheet.shape == (2 * 64 + 4, 3 * 64 + 2 * 4, 3)
    shown = sheet[:64, :64]
    assert 0.5 < (shown == batch.frames[0, 0]).all(axis=-1).mean() < 1
    assert contact_sheet(ClipBatch(batch.frames, batch.ids), CLASS_NAMES).size == (
        3 * 64 + 2 * 4,
        3 * 64 + 2 * 4,
    )


def test_exported_frames_and_truth_read_back(tmp_path: Path) -> None:
    batch = render_block(SceneParameters(side=64, frames=2), "test", 0, 2)
    assert export([batch], tmp_path) == 4
    folder = tmp_path / batch.ids[1].replace("/", "-")
    assert np.array_equal(np.asarray(Image.open(folder / "001.png")), batch.frames[1, 1])
    assert batch.truth is not None
    with np.load(tmp_path / "truth-0.npz") as truth:
        assert np.array_equal(truth["labels"], batch.truth.labels)
