"""Runs of the toy suite through the real worker: cells, verdicts, reuse, and every way to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from foresight_bench.cells import Cell
from foresight_bench.cli import main
from foresight_bench.errors import DataError
from foresight_bench.store import Store


def run(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", "--suite", "toy", "--device", "cpu", "--results", str(results), *arguments])


def cells(results: Path) -> dict[tuple[str, str], Cell]:
    return {(c.identity.encoder, c.identity.experiment): c for c in Store(results).cells()}


def test_a_run_judges_an_encoder_beside_its_controls_and_is_reused(toy: Path) -> None:
    first = run(toy, "-e", "sound")
    assert first.exit_code == 0, first.output
    found = cells(toy)
    assert {name for name, _ in found} == {"sound", "oracle", "pixels", "blank", "mean-rgb"}
    q2 = found["sound", "Q2"]
    gating = {result.metric: result for result in q2.metrics if result.gates}
    assert set(gating) == {"box_iou", "map50", "psnr"}
    assert set(gating["box_iou"].floors) == {"blank", "mean-rgb", "shuffled"}
    assert gating["box_iou"].ceiling_name == "oracle"
    assert all(result.verdict for result in gating.values())
    assert q2.decision in ("PROCEED", "PIVOT", "INCONCLUSIVE")
    assert {result.tap for result in q2.metrics} == {"early", "late"}
    assert found["oracle", "Q2"].decision is None
    counts = {name: cell.cost.encoder_parameters for (name, _), cell in found.items() if cell.cost}
    assert counts == {"sound": 12, "oracle": 0, "pixels": 0, "blank": 0, "mean-rgb": 0}
    assert "Gate 1" in first.stdout
    for cell in found.values():
        assert cell.id == cell.identity.cell_id()
        assert str(Path.home()) not in cell.model_dump_json()

    stamps = {path: path.stat().st_mtime_ns for path in toy.rglob("*.json")}
    started = time.monotonic()
    second = run(toy, "-e", "sound")
    assert time.monotonic() - started < 10
    assert second.stdout == first.stdout
    assert "13 reused" in second.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in toy.rglob("*.json")}

    as_json = run(toy, "-e", "sound", "--json")
    assert [record["status"] for record in json.loads(as_json.stdout)] == ["ok"] * 3


def test_control_cells_are_shared_by_encoders_and_transforms_differ(controlled: Path) -> None:
    assert run(controlled, "-e", "sound", "-x", "Q2").exit_code == 0
    second = run(controlled, "-e", "sound~shuffled", "-e", "sound~pooled", "-x", "Q2", "--seed", "1")
    assert second.exit_code == 0, second.output
    assert "6 cells, 4 reused" in second.stderr
    found = cells(controlled)

    def value(encoder: str, metric: str) -> float:
        (result,) = [r for r in found[encoder, "Q2"].metrics if r.metric == metric and r.gates]
        assert result.estimate.value is not None
        return result.estimate.value

    assert value("sound~shuffled", "psnr") < value("sound", "psnr")
    assert value("sound~pooled", "psnr") < value("sound", "psnr")


def test_a_hybrid_takes_each_stream_at_its_output_or_at_the_tap_named(controlled: Path) -> None:
    hybrids = ("-e", "sound+pixels", "-e", "sound@early+pixels", "-e", "sound@early+sound@late")
    done = run(controlled, *hybrids, "-x", "Q2")
    assert done.exit_code == 0, done.output
    found = {name: cell for (name, _), cell in cells(controlled).items() if "+" in name}
    names = ("sound@late+pixels@patches", "sound@early+pixels@patches", "sound@early+sound@late")
    assert {name: cell.tap for name, cell in found.items()} == {name: name for name in names}
    # An encoder in two streams has its parameters once, and a control has none.
    assert {cell.cost.encoder_parameters for cell in found.values() if cell.cost} == {12}


def test_fusion_serves_hybrids_and_skips_the_rest(controlled: Path) -> None:
    done = run(
        controlled, "-e", "sound+pixels", "-e", "sound@late", "-x", "C1", "-a", "fusion", "--seed", "0", "--seed", "1"
    )
    assert done.exit_code == 0, done.output
    found = [cell for cell in Store(controlled).cells() if cell.identity.adapter == "fusion"]
    assert {(cell.identity.encoder, cell.identity.seed, cell.status) for cell in found} == {
        ("sound@late+pixels@patches", 0, "ok"),
        ("sound@late+pixels@patches", 1, "ok"),
        ("sound@late", 0, "skipped"),
        ("sound@late", 1, "skipped"),
        ("blank", 0, "skipped"),
        ("mean-rgb", 0, "skipped"),
    }
    assert "joins the encoders of a hybrid" in done.stdout
    first, second = (cell for cell in found if cell.status == "ok")
    assert first.cost is not None
    assert first.cost.trainable_parameters > 0
    assert first.scores_sha256 != second.scores_sha256


def test_what_an_encoder_lacks_ends_its_own_cells_and_says_what_to_do(controlled: Path) -> None:
    done = run(controlled, "-e", "refuses", "-e", "sound:shift=0.5@late", "-x", "Q2")
    assert done.exit_code == 4, done.output
    assert "error: Frames of 112 x 112 cannot be taken by refuses.\nChoose another suite." in done.stderr
    assert cells(controlled)["refuses", "Q2"].status == "data_missing"
    sound = cells(controlled)["sound:shift=0.5@late", "Q2"]
    assert sound.status == "ok"
    assert "sound:shift=0.5@late" in done.stdout
    # An option reaches the encoder and the identity; the precision only that of encoders with weights.
    assert sound.identity.parameters["encoder"] == {"fault": "sound", "shift": 0.5}
    assert sound.cost is not None
    assert not sound.cost.compiled
    again = run(controlled, "-e", "sound:shift=0.5@late", "-x", "Q2", "--precision", "bfloat16", "--compile")
    assert "5 cells, 5 reused" in again.stderr


def test_what_a_decoder_cannot_take_is_skipped_with_its_reason(toy: Path) -> None:
    done = run(toy, "-e", "sound", "-x", "C1", "-d", "picky")
    assert done.exit_code == 0, done.output
    cell = cells(toy)["sound", "C1"]
    assert (cell.status, cell.reason) == ("skipped", "picky takes clips of 8 k + 2 frames, not of 1.")
    assert "C1 SKIPPED" in done.stdout
    assert cell.reason in done.stdout
    assert not list(toy.rglob("*.failure.txt")), "a skip is no failure"
    assert CliRunner().invoke(main, ["validate", str(toy)]).exit_code == 0
    assert "4 cells, 4 reused" in run(toy, "-e", "sound", "-x", "C1", "-d", "picky").stderr


def test_too_little_memory_is_said_before_anything_runs(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = toy.parent / "weights.safetensors"
    save_file({"blocks.0.w": np.zeros((1000, 4000), np.float32)}, weights)
    monkeypatch.setattr("foresight_bench.memory.free_bytes", lambda device: 1_000_000)
    done = run(toy, "-e", "dinov2", "-x", "Q1", "--weights", f"dinov2-small={weights}")
    assert done.exit_code == 4, done.output
    assert "The weights of dinov2:small need 0.0160 GB" in done.stderr
    assert not list(toy.rglob("*.json"))


def test_calibration_tells_a_suite_that_separates_from_one_that_does_not(
    toy: Path, calibrated: tuple[Path, Any]
) -> None:
    _, done = calibrated
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith(("C1", "Q1", "Q2"))]
    assert len(lines) == 5
    assert all(line.endswith("yes") for line in lines)
    # Q1's threshold lies above what 24 train clips let the ceiling reach.
    arguments = ["calibrate", "--suite", "hard", "--device", "cpu", "--results", str(toy)]
    hard = CliRunner().invoke(main, arguments)
    assert hard.exit_code == 6
    assert [line.split()[0] for line in hard.stdout.splitlines() if line.endswith("NO")] == ["Q1"]


FAULTS = {
    "nan": ("nonfinite", "Tap 'early' holds NaN"),
    "raises": ("error", "out of luck"),
    "short": ("contract", "clips for a batch"),
    "forgets": ("contract", "no grid for tap 'late'"),
    "scrambled": (
        "contract",
        "Tap 'early': tokens stand in windows of 2 x 2; 73% of 15 changes of one patch show up in the wrong token.",
    ),
}


def test_failures_end_their_own_cells_and_no_others_and_are_retried(controlled: Path) -> None:
    names = [argument for fault in FAULTS for argument in ("-e", fault)]
    done = run(controlled, *names, "-e", "sound", "-x", "Q2")
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    found = cells(controlled)
    for fault, (status, sentence) in FAULTS.items():
        assert found[fault, "Q2"].status == status
        assert sentence in found[fault, "Q2"].reason
        assert f"{fault} Q2 {status}" in done.stderr
    assert found["sound", "Q2"].status == "ok"
    again = run(controlled, "-e", "raises", "-e", "sound", "-x", "Q2")
    assert again.exit_code == 1
    assert "6 cells, 5 reused" in again.stderr


def test_a_dead_worker_keeps_what_it_finished(controlled: Path) -> None:
    done = run(controlled, "-e", "sound", "-e", "crash", "-x", "Q2")
    assert done.exit_code == 1, done.output
    found = cells(controlled)
    assert found["crash", "Q2"].status == "error"
    assert found["crash", "Q2"].reason == "The worker ended with exit code 7 before the cell did."
    assert found["sound", "Q2"].status == "ok"


def test_a_plan_that_changed_under_the_worker_is_said_so(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foresight_bench.identities.code_digest", lambda package: "0" * 64)  # the worker finds another
    done = run(toy, "-e", "sound", "-x", "Q2")
    assert done.exit_code == 4, done.output
    assert "changed while the run was starting" in done.stderr
    assert not list(toy.rglob("*.json"))


def test_a_leaking_split_stops_the_run(toy: Path) -> None:
    done = run(toy, "-e", "sound", "--suite", "leaky")
    assert done.exit_code == 4
    assert "also occurs" in done.stderr
    assert not list(toy.rglob("*.json"))


def test_altered_data_stops_the_run(toy: Path) -> None:
    done = run(toy, "-e", "sound", "--suite", "altered")
    assert done.exit_code == 4
    assert "Split 'test'" in done.stderr


def test_an_interrupt_keeps_finished_cells_and_resumes(toy: Path) -> None:
    command = [sys.executable, "-m", "foresight_bench", "run", "--suite", "toy", "--device", "cpu"]
    command += ["--results", str(toy), "-x", "Q2", "-e", "slow"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell job ignores it
    )
    deadline = time.monotonic() + 120
    while len(list(toy.rglob("*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "resumes" in errors
    assert "Traceback" not in errors
    assert {cell.identity.encoder for cell in Store(toy).cells()} == {"oracle", "pixels", "blank", "mean-rgb"}
    assert "4 reused" in run(toy, "-e", "raises", "-x", "Q2").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-e", "dinov"], 3, "dinov2"),
        (["-e", "sound@lat"], 3, "late"),
        (["-e", "sound", "-a", "linar"], 3, "linear"),
        (["-e", "sound", "-d", "patchpca"], 3, "patch-pca"),
        (["-e", "sound", "-x", "gate7"], 3, "gate1"),
        (["-e", "sound", "--suite", "quik"], 3, "quick"),
        (["-e", "Sound!"], 2, "not an encoder name"),
        (["-e", "sound", "--device", "tpu"], 2, "not a device"),
        (["-e", "sound", "--weights", "nonsense"], 2, "NAME=PATH"),
        (["-e", "sound:shft=1"], 3, "shift"),
        (["-e", "sound:shift=far"], 2, "no value of shift"),
        (["-e", "sound@all+pixels"], 2, "one tap"),
        (["-e", "dinov2:smal"], 3, "small"),
        (["-e", "dinov2", "--precision", "float64"], 2, "float64"),
        (["-e", "dinov2", "--weights", "dinov2-small=nowhere.safetensors"], 4, "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(toy: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = run(toy, *arguments)
    assert done.exit_code == code, done.output
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def test_a_checkpoint_folder_runs_through_every_experiment(controlled: Path, tmp_path: Path) -> None:
    config = Qwen2_5_VLConfig.from_dict(
        {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "vocab_size": 300,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 44,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
        }
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)
    done = run(controlled, "-e", "qwen2.5-vl@post_merge", "--weights", f"qwen2.5-vl-7b={tmp_path}")
    assert done.exit_code == 0, done.output
    for experiment in ("C1", "Q1", "Q2"):
        assert cells(controlled)["qwen2.5-vl:7b@post_merge", experiment].status == "ok"
    lacking = run(controlled, "-e", "qwen2.5-vl@block.5", "-x", "Q1", "--weights", f"qwen2.5-vl-7b={tmp_path}")
    assert lacking.exit_code == 4, lacking.output
    assert "lacks the tap block.5" in lacking.stderr


@pytest.mark.parametrize(
    ("taps", "files", "sentence"),
    [
        ("post_merge", {}, "is not a checkpoint: it holds no config.json"),
        ("post_merge", {"config.json": {"model_type": "llama"}}, "'llama' checkpoint, not 'qwen2_5_vl'"),
        ("post_merge", {"config.json": {"model_type": "qwen2_5_vl"}}, "holds neither model.safetensors nor"),
        ("llm.0", {"config.json": {"model_type": "qwen2_5_vl"}, "index": True}, "language.safetensors is not there"),
    ],
)
def test_a_bad_checkpoint_is_said_before_anything_runs(
    toy: Path, tmp_path: Path, taps: str, files: dict[str, object], sentence: str
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    if files.pop("index", None):
        names = {"visual.patch_embed.proj.weight": "vision", "model.layers.0.mlp.up_proj.weight": "language"}
        index = {"weight_map": {name: f"{file}.safetensors" for name, file in names.items()}}
        save_file({"visual.patch_embed.proj.weight": np.zeros(3, np.float32)}, folder / "vision.safetensors")
        files["model.safetensors.index.json"] = index
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    done = run(toy, "-e", f"qwen2.5-vl@{taps}", "-x", "Q1", "--weights", f"qwen2.5-vl-7b={folder}")
    assert done.exit_code == 4, done.output
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not list(toy.rglob("*.json"))


def test_a_missing_device_is_an_error(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foresight_bench.devices._gpus", list)
    done = run(toy, "-e", "sound", "--device", "cuda")
    assert done.exit_code == 4
    assert "no CUDA device" in done.stderr


def test_an_unwritable_folder_is_said_so(toy: Path) -> None:
    toy.write_text("a file where the folder should be")
    done = run(toy / "results", "-e", "sound")
    assert done.exit_code == 4
    assert "Cannot write" in done.stderr


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foresight_bench import store
    from foresight_bench.errors import EnvironmentFault

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        store.write_atomically(tmp_path / "cell.json", b"half")
    assert not list(tmp_path.iterdir())


def test_altered_scores_are_noticed(controlled: Path) -> None:
    cell = cells(controlled)["blank", "Q2"]
    path = Store(controlled).path(cell).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="not the file"):
        Store(controlled).scores(cell)
