"""The study's pictures of nine categories, for Q1, and of five textures, for Q2, as it drew them."""

from __future__ import annotations

import random

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foresight_gates.study.drawings import SEED, WHITE, Pictures, draw_shape

CATEGORIES = (
    *("red circle", "blue circle", "green square", "yellow square", "purple triangle"),
    *("horizontal stripes", "vertical stripes", "warm gradient", "cool gradient"),
)
TEXTURES = ("stripes", "checkerboard", "gradient", "noise", "circles")


def categories(each: int) -> tuple[Pictures, NDArray[np.int64]]:
    """Return ``each`` pictures of nine categories, 256 pixels a side, and their categories (q1/eq1_4.py to eq1_7.py).

    Picture i of every category is drawn from seed i.
    """
    drawn = [_category(name, random.Random(i)) for name in CATEGORIES for i in range(each)]
    return np.stack(drawn), np.repeat(np.arange(len(CATEGORIES)), each)


def textures(count: int = 150, seed: int = SEED) -> tuple[Pictures, NDArray[np.int64]]:
    """Return the five ``TEXTURES`` in turn, 448 pixels a side, and which is which (q2/e_q2_5.py)."""
    rng = RandomState(seed)
    kinds = np.arange(count) % len(TEXTURES)
    return np.stack([_texture(TEXTURES[kind], rng) for kind in kinds]), kinds


def _category(name: str, rng: random.Random) -> Pictures:
    image = Image.new("RGB", (256, 256), WHITE)
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
        image = Image.new("RGB", (side, side), WHITE)
        draw = ImageDraw.Draw(image)
        for radius in range(10, side // 2, 10):
            red, green, blue = (int(rng.randint(0, 255)) for _ in range(3))
            low, high = side // 2 - radius, side // 2 + radius
            draw.ellipse((low, low, high, high), outline=(red, green, blue), width=3)
        picture = np.asarray(image)
    return picture
