"""Procedural clips with exact ground truth, in integer arithmetic: every machine renders the same bytes."""

from foresight_gates.scenes.digest import assert_disjoint, clip_digests, digest, frame_hashes
from foresight_gates.scenes.parameters import SceneParameters
from foresight_gates.scenes.render import CLASS_NAMES, Clip, render_block, render_clip

__all__ = [
    "CLASS_NAMES",
    "Clip",
    "SceneParameters",
    "assert_disjoint",
    "clip_digests",
    "digest",
    "frame_hashes",
    "render_block",
    "render_clip",
]
