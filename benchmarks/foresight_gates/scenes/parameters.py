"""What a scene may look like."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from foresight_gates.scenes.colours import FILL


@dataclass(frozen=True)
class SceneParameters:
    """What a scene may look like. Whole numbers only; lengths relative to the side are in thousandths."""

    side: int = 224
    """Height and width of a frame in pixels."""
    frames: int = 1
    """T, frames in a clip."""
    seed: int = 0
    """Seed of the suite."""
    tier: Literal["textured", "plain"] = "textured"
    """``plain`` keeps objects and truth, and puts them untextured on white."""
    objects_min: int = 1
    objects_max: int = 4
    """Objects asked for; K is ``objects_max``."""
    size_min: int = 70
    size_max: int = 450
    """Diameter of an object's circumscribed circle, thousandths of the side."""
    speed_max: int = 60
    """Top speed of an object, thousandths of the side per frame."""
    spin_max: int = 68
    """Top rotation of an object per frame, 1/4096 of a turn (68 is 6 degrees)."""
    pan_max: int = 20
    """Top speed of the background along each axis, thousandths of the side per frame."""
    texture_cell: int = 77
    """Coarsest cell of the background's texture, thousandths of the side."""
    texture_octaves: int = 3
    texture_falloff: int = 35
    """Amplitude of an octave, percent of the coarser one before; 50 gives a 1/f^2 spectrum, 35 1/f^2.4."""
    texture_contrast: int = 120
    """Most that the texture moves the background's brightness up or down, in levels."""
    gradient_contrast: int = 40
    """The same for the linear gradient."""
    fill_chance: int = 700
    """Thousandths of objects that are textured."""
    fill_contrast: int = 36
    """Most that an object's texture moves its brightness, in levels, at most 36."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "tier" and type(value) is not int:
                raise ValueError(f"{field.name} must be a whole number, got {value!r}")
        if self.tier not in ("textured", "plain"):
            raise ValueError(f"tier must be 'textured' or 'plain', got {self.tier!r}")
        if self.side < 32 or self.frames < 1:
            raise ValueError(f"side must be at least 32 and frames at least 1, got {self.side} and {self.frames}")
        if not 1 <= self.objects_min <= self.objects_max <= 100:
            raise ValueError(f"objects must number 1 to 100, got {self.objects_min} to {self.objects_max}")
        if not 0 < self.size_min <= self.size_max <= 1000:
            raise ValueError(f"sizes must lie in 1 to 1000, got {self.size_min} to {self.size_max}")
        if not 0 <= self.texture_contrast <= 255:
            raise ValueError(f"texture_contrast must be 0 to 255, got {self.texture_contrast}")
        if not 0 <= self.fill_contrast <= FILL:
            raise ValueError(f"fill_contrast must be 0 to {FILL}, got {self.fill_contrast}")
