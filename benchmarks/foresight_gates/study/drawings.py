"""The study's pictures, drawn as it drew them: plain shapes on a white canvas, the generator seeded anew at each call.

Every function names the handler of the study whose pictures it draws, below ``infra/modal/handlers`` of the public
repository a1j9o94/foresight, and draws the same random numbers in the same order, so its pictures are the same pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SEED = 42
"""The study's only seed: both of its splits are drawn from it."""
CATEGORIES = (
    *("red circle", "blue circle", "green square", "yellow square", "purple triangle"),
    *("horizontal stripes", "vertical stripes", "warm gradient", "cool gradient"),
)
TEXTURES = ("stripes", "checkerboard", "gradient", "noise", "circles")
CLASSES = 12
"""Three shapes in four colours."""
_WHITE = (255, 255, 255)
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


def categories(each: int) -> tuple[Pictures, NDArray[np.int64]]:
    """Return ``each`` pictures of nine categories, 256 pixels a side, and their categories (q1/eq1_4.py to eq1_7.py).

    Picture i of every category is drawn from seed i.
    """
    drawn = [_category(name, random.Random(i)) for name in CATEGORIES for i in range(each)]
    return np.stack(drawn), np.repeat(np.arange(len(CATEGORIES)), each)


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


def textures(count: int = 150, seed: int = SEED) -> tuple[Pictures, NDArray[np.int64]]:
    """Return the five ``TEXTURES`` in turn, 448 pixels a side, and which is which (q2/e_q2_5.py)."""
    rng = RandomState(seed)
    kinds = np.arange(count) % len(TEXTURES)
    return np.stack([_texture(TEXTURES[kind], rng) for kind in kinds]), kinds


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
        self._image = Image.new("RGB", (side, side), _WHITE)
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
        image = Image.new("RGB", (224, 224), _WHITE)
        box = (cx - half, cy - half, cx + half, cy + half)
        draw_shape(ImageDraw.Draw(image), _SHAPES[i % shapes], box, _COLOURS[i % colours])
        pictures.append(np.asarray(image))
        boxes.append((cx, cy, 2 * half, 2 * half))
    return Placed(
        np.stack(pictures), index % shapes, index % colours, np.array(boxes, dtype=np.float32) / np.float32(224)
    )


def _category(name: str, rng: random.Random) -> Pictures:
    image = Image.new("RGB", (256, 256), _WHITE)
    draw = ImageDraw.Draw(image)
    cx, cy, half = rng.randint(60, 196), rng.randint(60, 196), rng.randint(35, 60)
    strong, weak = (180, 255), (0, 50)
    ranges = {
        "red circle": (strong, weak, weak),
        "blue circle": (weak, weak, strong),
        "green square": (weak, strong, weak),
        "yellow square": ((200, 255), (200, 255), weak),
        "purple triangle": ((100, 180), weak, (100, 180)),
    }
    if name in ranges:
        red, green, blue = (rng.randint(*ends) for ends in ranges[name])
        shape = name.split()[1]
        draw_shape(draw, shape, (cx - half, cy - half, cx + half, cy + half), (red, green, blue))
    elif name.endswith("stripes"):
        width = rng.randint(12, 30)
        colour = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        for start in range(0, 256, 2 * width):
            across = name.startswith("horizontal")
            draw.rectangle((0, start, 256, start + width) if across else (start, 0, start + width, 256), fill=colour)
    else:  # a gradient: nothing in it depends on the seed
        for y in range(256):
            light, other = int(255 - y * 0.3), int(100 + y * 0.5)
            draw.line([(0, y), (256, y)], fill=(light, other, 50) if name.startswith("warm") else (50, other, light))
    return np.asarray(image)


def _texture(kind: str, rng: RandomState) -> Pictures:
    side = 448
    picture = np.full((side, side, 3), 255, dtype=np.uint8)
    if kind == "stripes":
        width = rng.randint(5, 20)
        for x in range(0, side, 2 * width):
            picture[:, x : x + width] = rng.randint(50, 200)
    elif kind == "checkerboard":
        width = rng.randint(10, 30)
        for y in range(0, side, width):
            for x in range(0, side, width):
                ends = (150, 250) if (y // width + x // width) % 2 else (50, 150)
                picture[y : y + width, x : x + width] = rng.randint(*ends)
    elif kind == "gradient":
        picture[:] = (255 * np.arange(side) // side)[:, None, None]
        picture = picture + rng.randint(-20, 20, picture.shape).astype(np.uint8)  # wraps around, as it did
    elif kind == "noise":
        picture = rng.randint(0, 255, (side, side, 3), dtype=np.uint8)
    else:
        image = Image.new("RGB", (side, side), _WHITE)
        draw = ImageDraw.Draw(image)
        for radius in range(10, side // 2, 10):
            red, green, blue = (int(rng.randint(0, 255)) for _ in range(3))
            low, high = side // 2 - radius, side // 2 + radius
            draw.ellipse((low, low, high, high), outline=(red, green, blue), width=3)
        picture = np.asarray(image)
    return picture
