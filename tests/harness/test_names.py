"""The grammar of encoder names."""

from __future__ import annotations

import pytest

from foresight_bench.errors import PluginError, UsageError
from foresight_bench.names import Stream, parse, select_taps

TAPS = ("patch_embed", "block.0", "block.1", "block.2", "final")


def test_a_full_name() -> None:
    assert parse("dinov2:small@block.8~pooled") == (Stream("dinov2", "small", "block.8", ("pooled",)),)


def test_a_hybrid_keeps_its_streams_addressable() -> None:
    assert parse("qwen2.5-vl@post_merge+dinov2:base@final") == (
        Stream("qwen2.5-vl", "", "post_merge"),
        Stream("dinov2", "base", "final"),
    )


def test_options_stand_between_variant_and_taps_in_one_order() -> None:
    stream = Stream("llava-next", "mistral-7b", "projector", (), (("side", "336"), ("tiles", "true")))
    assert parse("llava-next:mistral-7b:tiles=true:side=336@projector") == (stream,)
    assert str(stream) == "llava-next:mistral-7b:side=336:tiles=true@projector"
    assert parse("llava-next:tiles=true~random") == (Stream("llava-next", "", "", ("random",), (("tiles", "true"),)),)


def test_transforms_have_one_order() -> None:
    assert parse("a~shuffled~random") == parse("a~random~shuffled~random")


@pytest.mark.parametrize("text", ["dinov2:small@block.8~pooled", "a+b", "dinov2@all", "dinov2~random~pooled"])
def test_names_read_back(text: str) -> None:
    assert "+".join(str(stream) for stream in parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a+", "Dino V2", "a@", "a:", "a~", "a/b", "../a", "a:b=", "a:=1", "a:b=1:c", "a:b=1:b=2"]
)
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_an_unknown_transform_names_the_nearest() -> None:
    with pytest.raises(PluginError) as caught:
        parse("dinov2~poled")
    assert "pooled" in caught.value.hint


def test_taps_come_back_in_order_of_depth() -> None:
    assert select_taps("final,block.0..block.1", TAPS, ()) == ("block.0", "block.1", "final")
    assert select_taps("", TAPS, ("final",)) == ("final",)
    assert select_taps("all", TAPS, ()) == TAPS


def test_an_unknown_tap_names_the_nearest() -> None:
    with pytest.raises(PluginError) as caught:
        select_taps("block.12", TAPS, ())
    assert "block.1" in caught.value.hint


def test_a_range_against_depth_is_refused() -> None:
    with pytest.raises(UsageError):
        select_taps("final..block.0", TAPS, ())
