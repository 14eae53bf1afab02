"""Which tensors the selected taps need."""

from __future__ import annotations

import pytest

from foresight_bench.specs import Part, Variant

VARIANT = Variant(
    "tiny",
    taps=("patch_embed", "block.1", "block.10", "final"),
    default_taps=("final",),
    parts=(
        Part("visual.patch.", "patch_embed"),
        Part("visual.1.", "block.1"),
        Part("visual.10.", "block.10"),
        Part("norm.", "final"),
    ),
)


@pytest.mark.parametrize(
    ("taps", "needed"),
    [
        ((), set()),
        (("patch_embed",), {"visual.patch.w"}),
        (("block.1",), {"visual.patch.w", "visual.1.w"}),
        (("block.10", "patch_embed"), {"visual.patch.w", "visual.1.w", "visual.10.w"}),
        (("final",), {"visual.patch.w", "visual.1.w", "visual.10.w", "norm.w"}),
    ],
)
def test_a_tap_needs_its_own_part_and_all_before_it(taps: tuple[str, ...], needed: set[str]) -> None:
    names = {"visual.patch.w", "visual.1.w", "visual.10.w", "norm.w", "lm_head.weight"}
    assert set(filter(VARIANT.needs(taps), names)) == needed


def test_without_parts_everything_is_needed() -> None:
    assert Variant("whole", ("final",), ("final",)).needs(())("anything")
