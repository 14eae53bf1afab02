"""What metrics are checked on: a truth and a prediction of it, identical at first, and more or less noisy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.contracts import FrameBoxes, FrameTruth, Spaces
from foresight_bench.testing.parts import Values, noise

SIDE = 64
"""Pixels of a side: AlexNet, the hungriest trunk in use, needs 63."""
FRAMES = 2
"""Frames of a clip of boxes."""


@dataclass(frozen=True)
class FrameCase:
    """Frames of as many clips, one each, and what was made of them."""

    truth: FrameTruth
    given: Tensor
    """[F, 3, H, W] float32."""

    def noisy(self, level: float) -> FrameCase:
        """Return the case with normal noise of half that ``level`` on the reconstruction, clamped to [0, 1]."""
        given = self.given + 0.5 * level * noise(*self.given.shape, seed=1)
        return replace(self, given=given.clamp(0, 1))

    def empty(self) -> FrameCase:
        """Return the case with black for a reconstruction."""
        return replace(self, given=torch.zeros_like(self.given))

    def swapped(self) -> FrameCase:
        """Return the case with the reconstruction for the truth, and the other way round."""
        return FrameCase(replace(self.truth, frames=self.given), self.truth.frames)

    def taken(self, clips: NDArray[np.int64]) -> FrameCase:
        """Return the case of some clips."""
        truth = FrameTruth(self.truth.frames[clips], self.truth.plates[clips], self.truth.labels[clips])
        return FrameCase(truth, self.given[clips])

    def score(self, metric: Any) -> Any:
        """Return what ``metric`` makes of the case: [F]."""
        return metric.score(self.given, metric.prepare(self.truth))

    def named(self) -> dict[str, Values]:
        """Return all values by what they are called."""
        truth = self.truth
        return {
            "the reconstruction": self.given,
            "the true frames": truth.frames,
            "the plates": truth.plates,
            "the labels": truth.labels,
        }


@dataclass(frozen=True)
class BoxCase:
    """Boxes of clips of two frames, and what was predicted."""

    truth: Sequence[FrameBoxes]
    given: Sequence[FrameBoxes]
    clip: NDArray[np.int64]

    def noisy(self, level: float) -> BoxCase:
        """Return the case with corners moved by normal noise of that ``level`` times half the boxes' side."""
        rng = np.random.default_rng(1)
        given = []
        for frame in self.given:
            side = (frame.boxes[:, 2:] - frame.boxes[:, :2]).mean(1, keepdims=True)
            moved = frame.boxes + level / 2 * side * np.tile(rng.standard_normal((len(side), 2)), 2)
            given.append(replace(frame, boxes=moved.astype(np.float32)))
        return replace(self, given=given)

    def empty(self) -> BoxCase:
        """Return the case without any predicted box."""
        nothing = FrameBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        return replace(self, given=[nothing for _ in self.given])

    def swapped(self) -> BoxCase:
        """Return the case with the predicted boxes for the truth, and the other way round."""
        return replace(self, truth=self.given, given=self.truth)

    def taken(self, clips: NDArray[np.int64]) -> BoxCase:
        """Return the case of some clips."""
        frames = [int(frame) for clip in clips for frame in np.flatnonzero(self.clip == clip)]
        truth, given = ([some[frame] for frame in frames] for some in (self.truth, self.given))
        return BoxCase(truth, given, np.repeat(np.arange(len(clips)), FRAMES))

    def score(self, metric: Any) -> Any:
        """Return what ``metric`` makes of the case."""
        return metric.score(self.given, self.truth, self.clip)

    def named(self) -> dict[str, Values]:
        """Return all values by what they are called."""
        sides = {"the predicted boxes": self.given, "the true boxes": self.truth}
        return {
            f"{key} of {name}, frame {number}": getattr(frame, key)
            for name, frames in sides.items()
            for number, frame in enumerate(frames)
            for key in ("boxes", "classes", "scores")
        }


@dataclass(frozen=True)
class SpaceCase:
    """Two spaces over the same clips."""

    spaces: Spaces

    def noisy(self, level: float) -> SpaceCase:
        """Return the case with y in part replaced by noise, all of it at level 1."""
        keep, add = float(np.sqrt(1 - level**2)), level
        y, y_train = self.spaces.y, self.spaces.y_train
        return SpaceCase(
            replace(
                self.spaces,
                y=keep * y + add * noise(*y.shape, seed=1).double(),
                y_train=keep * y_train + add * noise(*y_train.shape, seed=2).double(),
            )
        )

    def empty(self) -> SpaceCase:
        """Return the case with a y in which all clips coincide."""
        y, y_train = (torch.ones_like(each) for each in (self.spaces.y, self.spaces.y_train))
        return SpaceCase(replace(self.spaces, y=y, y_train=y_train))

    def swapped(self) -> SpaceCase:
        """Return the case with either space for the other."""
        one = self.spaces
        return SpaceCase(replace(one, x=one.y, y=one.x, x_train=one.y_train, y_train=one.x_train))

    def taken(self, clips: NDArray[np.int64]) -> SpaceCase:
        """Return the case of some clips, with the whole of ``train``."""
        return SpaceCase(replace(self.spaces, x=self.spaces.x[clips], y=self.spaces.y[clips]))

    def score(self, metric: Any) -> Any:
        """Return what ``metric`` makes of the case."""
        return metric.score(self.spaces)

    def named(self) -> dict[str, Values]:
        """Return all values by what they are called."""
        return {field.name: getattr(self.spaces, field.name) for field in fields(self.spaces)}


Case = FrameCase | BoxCase | SpaceCase


def frame_case(clips: int, seed: int) -> FrameCase:
    """Return frames of one or two flat objects on a soft gradient."""
    rng = np.random.default_rng([seed, clips, 1])
    y, x = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE), indexing="ij")
    plates = np.empty((clips, SIDE, SIDE, 3))
    labels = np.zeros((clips, SIDE, SIDE), np.uint8)
    frames = plates.copy()
    for plate, label, frame in zip(plates, labels, frames, strict=True):
        slopes = rng.uniform(-0.2, 0.2, (2, 3))
        plate[:] = 0.3 + (y - 0.5)[..., None] * slopes[0] + (x - 0.5)[..., None] * slopes[1]
        frame[:] = plate
        for index in range(int(rng.integers(1, 3))):
            place, radius = rng.uniform(0.25, 0.75, 2), rng.uniform(0.12, 0.2)
            inside = np.hypot(y - place[0], x - place[1]) < radius
            frame[inside], label[inside] = rng.uniform(0.6, 1, 3), index + 1
    true, plain = (torch.from_numpy(each).float().permute(0, 3, 1, 2).contiguous() for each in (frames, plates))
    return FrameCase(FrameTruth(true, plain, torch.from_numpy(labels)), true.clone())


def box_case(clips: int, seed: int) -> BoxCase:
    """Return one to three boxes a frame, of two classes."""
    rng = np.random.default_rng([seed, clips, 2])
    truth, given = [], []
    for _ in range(clips * FRAMES):
        count = int(rng.integers(1, 4))
        low, side = rng.uniform(0, 150, (count, 2)), rng.uniform(20, 60, (count, 2))
        boxes = np.concatenate([low, low + side], 1).astype(np.float32)
        classes = rng.integers(0, 2, count)
        truth.append(FrameBoxes(boxes, classes, np.ones(count, np.float32)))
        given.append(FrameBoxes(boxes.copy(), classes.copy(), rng.uniform(0.1, 1, count).astype(np.float32)))
    return BoxCase(truth, given, np.repeat(np.arange(clips), FRAMES))


def space_case(clips: int, seed: int) -> SpaceCase:
    """Return normal points in 8 dimensions, and the same again."""
    x, x_train = (noise(rows, 8, seed=10 * seed + part).double() for part, rows in ((3, clips), (4, 128)))
    return SpaceCase(Spaces(x_train, x_train.clone(), x, x.clone()))
