"""The study's pictures, drawn as it drew them: plain shapes on a white canvas, the generator seeded anew at each call.

Every function names the handler of the study whose pictures it draws, below ``infra/modal/handlers`` of the public
repository a1j9o94/foresight, and draws the same random numbers in the same order, so its pictures are the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SEED = 42
"""The study's only seed: both of its splits are drawn from it."""
CLASSES = 12
"""Three shapes in four colours."""
WHITE = (255, 255, 255)
_SHAPES = ("circle", "square", "triangle", "star")
_COLOURS = (
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)),
    *((255, 0, 255), (0, 255, 255), (128, 128, 128), (255, 128, 0)),
)

Colour = tuple[int, int, int]
Pictures = NDArray[np.uint8]
"""[N, H, W, 3]"""


@dataclass(frozen=True)
class Scene:
    """One picture of several objects."""

    picture: Pictures
    """[H, W, 3]"""
    boxes: NDArray[np.float32]
    """[M, 4] x0, y0, x1, y1 as shares of the side, in the order in which they were drawn."""
    labels: NDArray[np.int64]
    """[M]"""


@dataclass(frozen=True)
class Placed:
    """Pictures of one object each."""

    pictures: Pictures
    shapes: NDArray[np.int64]
    """[N]"""
    colours: NDArray[np.int64]
    """[N]"""
    boxes: NDArray[np.float32]
    """[N, 4] centre x, centre y, width, height as shares of the side."""


def single_shapes(count: int, seed: int = SEED) -> Placed:
    """Return one of 4 shapes in one of 8 colours, 224 pixels a side (c1/e1_5.py)."""
    rng = RandomState(seed)
    places = []
    for _ in range(count):
        cx, cy = rng.randint(60, 164), rng.randint(60, 164)
        places.append((cx, cy, rng.randint(25, 50)))
    return _placed(places, 4, 8)


def positioned_shapes(count: int, seed: int = SEED) -> Placed:
    """Return one of 3 shapes in one of 6 colours, 224 pixels a side (c1/e1_4.py)."""
    rng = RandomState(seed)
    places = []
    for _ in range(count):
        size = rng.randint(25, 60)
        cx, cy = rng.randint(size + 10, 214 - size), rng.randint(size + 10, 214 - size)
        places.append((cx, cy, size))
    return _placed(places, 3, 6)


def box_scenes(count: int = 200, seed: int = SEED) -> list[Scene]:
    """Return scenes of 1 to 3 shapes that may overlap, 448 pixels a side (q2/e_q2_2.py)."""
    rng = RandomState(seed)
    scenes = []
    for _ in range(count):
        canvas = _Canvas(448)
        for _ in range(rng.randint(1, 4)):
            size = rng.randint(30, 80)
            x, y = rng.randint(0, 448 - size), rng.randint(0, 448 - size)
            shape = int(rng.choice(3))
            canvas.add(shape, int(rng.randint(4)), (x, y, x + size, y + size))
        scenes.append(canvas.scene())
    return scenes


def detection_scenes(count: int = 200, seed: int = SEED) -> list[Scene]:
    """Return scenes of 1 to 5 shapes of 12 classes, small, medium or large, 448 pixels a side (q2/e_q2_4.py)."""
    rng = RandomState(seed)
    scenes = []
    for _ in range(count):
        canvas = _Canvas(448)
        for _ in range(rng.randint(1, 6)):
            size = rng.randint(*((20, 40), (40, 70), (70, 100))[rng.choice(3)])
            x, y = rng.randint(0, 448 - size), rng.randint(0, 448 - size)
            shape = int(rng.randint(3))
            canvas.add(shape, int(rng.randint(4)), (x, y, x + size, y + size))
        scenes.append(canvas.scene())
    return scenes


def fingerprints(pictures: Sequence[Pictures] | Pictures) -> list[str]:
    """Return the SHA-256 of each picture's pixels."""
    return [sha256(np.ascontiguousarray(picture).tobytes()).hexdigest() for picture in pictures]


def known(test: Sequence[str], train: Sequence[str]) -> int:
    """Return how many fingerprints of ``test`` are also in ``train``."""
    return sum(mark in set(train) for mark in test)


class _Canvas:
    """A white square that objects are drawn on."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._image = Image.new("RGB", (side, side), WHITE)
        self._boxes: list[tuple[int, int, int, int]] = []
        self._labels: list[int] = []

    def add(self, shape: int, colour: int, box: tuple[int, int, int, int]) -> None:
        """Draw a shape."""
        draw_shape(ImageDraw.Draw(self._image), _SHAPES[shape], box, _COLOURS[colour])
        self._boxes.append(box)
        self._labels.append(shape * 4 + colour)

    def scene(self) -> Scene:
        """Return what was drawn."""
        boxes = np.array(self._boxes, dtype=np.float32) / np.float32(self.side)
        return Scene(np.asarray(self._image), boxes, np.array(self._labels, dtype=np.int64))


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], colour: Colour) -> None:
    """Draw a shape that fills ``box``, whose sides PIL takes as drawn; a star only has its points on them."""
    x0, y0, x1, y1 = box
    cx, cy = (x0 + x1) // 2, (y0 + y1) // 2
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(cx, y0), (x0, y1), (x1, y1)], fill=colour)
    else:
        outer = (x1 - x0) // 2
        corners = [(np.pi / 2 + j * np.pi / 5, outer // 2 if j % 2 else outer) for j in range(10)]
        draw.polygon([(cx + int(r * np.cos(a)), cy - int(r * np.sin(a))) for a, r in corners], fill=colour)


def _placed(places: Sequence[tuple[int, int, int]], shapes: int, colours: int) -> Placed:
    """Return shape and colour in turn at each (centre x, centre y, half size)."""
    pictures, boxes = [], []
    index = np.arange(len(places))
    for i, (cx, cy, half) in enumerate(places):
        image = Image.new("RGB", (224, 224), WHITE)
        box = (cx - half, cy - half, cx + half, cy + half)
        draw_shape(ImageDraw.Draw(image), _SHAPES[i % shapes], box, _COLOURS[i % colours])
        pictures.append(np.asarray(image))
        boxes.append((cx, cy, 2 * half, 2 * half))
    return Placed(
        np.stack(pictures), index % shapes, index % colours, np.array(boxes, dtype=np.float32) / np.float32(224)
    )
