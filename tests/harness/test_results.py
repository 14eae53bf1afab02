"""Results folders: joined, checked, compared and judged anew; and what hostile files in them come to."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from committed import QUICK
from foresight_bench.cells import Cell, schema, seal
from foresight_bench.cli import main
from foresight_bench.errors import DataError
from foresight_bench.judging import estimate
from foresight_bench.merging import merge
from foresight_bench.packing import Key, pack, unpack
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores, mean_scores
from foresight_bench.sharding import ShardRecord, plan_digest, read_shard, write_shard
from foresight_bench.store import Store, folder_name
from foresight_bench.validating import validate

REGISTRY = Registry.installed()


def invoke(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def committed(**wanted: object) -> list[Cell]:
    cells = Store(QUICK).cells()
    return [c for c in cells if all(getattr(c.identity, name) == value for name, value in wanted.items())]


(SAMPLE,) = committed(encoder="dinov2:small", experiment="C1", adapter="linear", decoder="ltx-tiny")
SCORES = Store(QUICK).scores(SAMPLE)
PICTURE = b"a picture, as far as anybody looks"


def changed(cell: Cell, update: dict[str, Any] | None = None, **identity: object) -> Cell:
    """Return ``cell`` with another identity, the id that goes with it, and ``update``."""
    new = cell.identity.model_copy(update=identity)
    return cell.model_copy(update={"identity": new, "id": new.cell_id(), **(update or {})})


def put(root: Path, cell: Cell = SAMPLE, scores: bytes | None = None, picture: bytes = PICTURE) -> Path:
    """Write a cell that vouches for ``scores`` and ``picture`` into ``root``; return its file."""
    data = pack(SCORES) if scores is None else scores
    if cell.status == "ok":
        digests = {"scores_sha256": sha256(data).hexdigest(), "picture_sha256": sha256(picture).hexdigest()}
        Store(root).write(cell.model_copy(update=digests), data, picture)
    else:
        nothing = {"metrics": (), "decision": None, "scores_sha256": "", "picture_sha256": ""}
        Store(root).write(cell.model_copy(update=nothing), failure="a traceback")
    return Store(root).path(cell)


def scored(scores: dict[Key, Scores], cell: Cell = SAMPLE) -> tuple[Cell, bytes]:
    """Return ``cell`` as it would be had it measured ``scores``, its verdicts apart, and their file."""
    metrics = tuple(
        result.model_copy(update={"estimate": estimate(scores[Key(result.metric, result.tap, result.readout)])})
        for result in cell.metrics
    )
    return cell.model_copy(update={"metrics": metrics}), pack(scores)


def with_scores(metric: str, change: Callable[[Scores], Scores]) -> dict[Key, Scores]:
    return {key: change(each) if (key.metric, key.row) == (metric, "score") else each for key, each in SCORES.items()}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


# The schema and the files it is of.


def test_the_schema_describes_every_field_and_wants_the_seal() -> None:
    done = invoke("show", "--schema")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found == schema()
    assert "seal" in found["required"]
    record = json.loads(SAMPLE.sealed())
    assert set(found["properties"]) == set(record)
    for part in (found, *found["$defs"].values()):
        assert part["additionalProperties"] is False
        assert all(each.get("description") for name, each in part["properties"].items() if name != "provenance")
    assert invoke("show", "dinov2").exit_code == 0
    assert invoke("show").exit_code == 2
    assert invoke("show", "dinov2", "--schema").exit_code == 2


def test_scores_come_back_as_they_were_packed() -> None:
    per_clip = np.arange(6.0).reshape(3, 2)
    whole = {
        Key("cka", "a", "tokens"): Scores(0.5, np.array([0.25, 0.75]), 3, per_clip),
        Key("cka", "a", "tokens", "shuffled"): Scores(float("nan"), np.array([np.inf]), 0),
    }
    found = unpack(pack(whole))
    assert found.keys() == whole.keys()
    first = found[Key("cka", "a", "tokens")]
    assert (first.value, first.n) == (0.5, 3)
    assert np.array_equal(first.replicates, [0.25, 0.75])
    assert first.per_clip is not None
    assert np.array_equal(first.per_clip, per_clip)
    assert not found[Key("cka", "a", "tokens", "shuffled")].finite


# Merge.


def test_merging_the_halves_of_a_folder_gives_the_folder(tmp_path: Path) -> None:
    a, b, whole = tmp_path / "a", tmp_path / "b", tmp_path / "whole"
    encoders = sorted({cell.identity.encoder for cell in Store(QUICK).cells()})
    for index, path in enumerate(sorted(QUICK.glob("*/*/*"))):
        half = (a, b)[index % 2]
        shutil.copytree(path, half / path.relative_to(QUICK))
    assert len(encoders) > 2
    picture = put(a, changed(SAMPLE, seed=7)).with_suffix(".png")
    (a / "notes.txt").write_text("mine")
    (picture.parent / "0123456789abcdef.failure.txt").write_text("a traceback")
    (a / picture.parts[-4] / picture.parts[-3] / "worker.log").write_text("a log")
    done = invoke("merge", a, b, "-o", whole)
    assert done.exit_code == 0, done.output
    count = sum(1 for _ in QUICK.rglob("*.json")) + 1
    assert f"{count} cells, {count} of them new" in done.stderr
    merged = files(whole)
    expected = files(QUICK)
    assert {name: merged[name] for name in expected} == expected
    assert set(merged) - set(expected) == {
        str(picture.relative_to(a).with_suffix(suffix)) for suffix in (".json", ".safetensors", ".png")
    }
    assert f"{count} cells, 0 of them new" in invoke("merge", a, b, "-o", whole).stderr
    assert files(whole) == merged


def test_of_one_cell_the_first_finished_is_kept_and_a_failed_one_gives_way(tmp_path: Path) -> None:
    later = SAMPLE.provenance.model_copy(update={"finished": "2999-01-01T00:00:00+00:00"})
    failed = SAMPLE.model_copy(update={"status": "oom", "reason": "Out of memory."})
    put(tmp_path / "a", failed)
    put(tmp_path / "b", changed(SAMPLE, {"provenance": later, "cost": None}))
    put(tmp_path / "c")
    merge([tmp_path / "a"], tmp_path / "out")
    assert [cell.status for cell in Store(tmp_path / "out").cells()] == ["oom"]
    assert not list((tmp_path / "out").rglob("*.failure.txt"))
    merge([tmp_path / name for name in "abc"], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "c")
    # What is finished in the folder that is written to is never changed, not for an earlier one either.
    assert merge([tmp_path / "c"], tmp_path / "b").added == 0
    assert [cell.cost for cell in Store(tmp_path / "b").cells()] == [None]


def _other_cohort(a: Path, b: Path) -> None:
    put(a)
    put(b, changed(SAMPLE, cohort="quick-1-00000000"))


def _conflict(a: Path, b: Path) -> None:
    put(a)
    moved = with_scores("ssim", lambda s: dataclasses.replace(s, value=s.value + 1e-9))
    put(b, *scored(moved))


def _other_verdict(a: Path, b: Path) -> None:
    put(a)
    put(b, SAMPLE.model_copy(update={"decision": "PROCEED"}))


def _flipped_cell(a: Path, b: Path) -> None:
    put(a)
    path = put(b)
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))


def _flipped_scores(a: Path, b: Path) -> None:
    put(a)
    path = put(b).with_suffix(".safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _flipped_picture(a: Path, b: Path) -> None:
    put(a)
    put(b).with_suffix(".png").write_bytes(b"another picture")


def _cut_short(a: Path, b: Path) -> None:
    put(a)
    path = put(b)
    path.write_bytes(path.read_bytes()[:100])


def _no_scores(a: Path, b: Path) -> None:
    put(a)
    put(b).with_suffix(".safetensors").unlink()


def shard(root: Path, index: int, of: int, cells: tuple[str, ...], plan: str) -> None:
    write_shard(
        Store(root).folder(SAMPLE.identity.cohort, "cpu-x86_64"),
        ShardRecord(plan=plan, shard=index, of=of, cells=cells),
    )


ONE, TWO = changed(SAMPLE, seed=1), changed(SAMPLE, seed=2)
PLAN = plan_digest([ONE.id, TWO.id])


def _missing_shard(a: Path, b: Path) -> None:
    put(a, ONE)
    put(b, TWO)
    shard(a, 1, 2, (ONE.id,), PLAN)


def _unfinished_shard(a: Path, b: Path) -> None:
    put(a, ONE)
    put(b, TWO.model_copy(update={"status": "error"}))
    shard(a, 1, 2, (ONE.id,), PLAN)
    shard(b, 2, 2, (TWO.id,), PLAN)


def _shards_of_less(a: Path, b: Path) -> None:
    put(a, ONE)
    put(b, TWO)
    shard(a, 1, 2, (ONE.id,), PLAN)
    shard(b, 2, 2, (ONE.id,), PLAN)


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (_other_cohort, "cells of 2 cohorts"),
        (_conflict, "hold different results"),
        (_other_verdict, "hold different results"),
        (_flipped_cell, "its seal is broken"),
        (_flipped_scores, "is not the file its cell vouches for"),
        (_flipped_picture, "is not the file its cell vouches for"),
        (_cut_short, "Cannot merge"),
        (_no_scores, "No such file"),
        (_missing_shard, f"of plan {PLAN} in 2 shards there are 1, not 2"),
        (_unfinished_shard, f"shard 2 of 2 of plan {PLAN} has 1 unfinished cells, as {TWO.id}"),
        (_shards_of_less, f"the shards of plan {PLAN} do not hold the cells of that plan"),
    ],
)
def test_merge_refuses_before_anything_is_written(
    prepare: Callable[[Path, Path], None], sentence: str, tmp_path: Path
) -> None:
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    prepare(a, b)
    done = invoke("merge", a, b, "-o", out)
    assert done.exit_code == 4, done.output
    assert sentence in done.stderr
    assert not out.exists()
    before = files(a)
    assert invoke("merge", b, "-o", a).exit_code == 4
    assert files(a) == before


def test_all_shards_of_a_plan_merge_and_their_records_stay_behind(tmp_path: Path) -> None:
    put(tmp_path / "a", ONE)
    put(tmp_path / "b", TWO)
    shard(tmp_path / "a", 1, 2, (ONE.id,), PLAN)
    shard(tmp_path / "b", 2, 2, (TWO.id, ONE.id), PLAN)
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out").cells == 2
    assert not list((tmp_path / "out").rglob("shard-*"))
    assert plan_digest([TWO.id, ONE.id, TWO.id]) == PLAN
    assert len(PLAN) == 16


def test_a_shard_record_is_read_as_it_was_written_and_only_under_its_name(tmp_path: Path) -> None:
    record = ShardRecord(plan=PLAN, shard=1, of=2, cells=(ONE.id,))
    write_shard(tmp_path, record)
    path = tmp_path / "shard-1-of-2.json"
    assert read_shard(path) == record
    path.rename(tmp_path / "shard-2-of-2.json")
    with pytest.raises(DataError, match="not a readable shard record"):
        read_shard(tmp_path / "shard-2-of-2.json")
    (tmp_path / "shard-9-of-2.json").write_text(record.model_copy(update={"shard": 9}).model_dump_json())
    with pytest.raises(DataError, match="not a readable shard record"):
        read_shard(tmp_path / "shard-9-of-2.json")


# Validate.


def test_committed_results_have_no_problems() -> None:
    done = invoke("validate", QUICK)
    assert (done.exit_code, done.stdout) == (0, "")


def _result(update: dict[str, Any], metric: str = "ssim") -> Cell:
    metrics = tuple(r.model_copy(update=update) if r.metric == metric else r for r in SAMPLE.metrics)
    return SAMPLE.model_copy(update={"metrics": metrics})


def _provenance(**update: object) -> Cell:
    return SAMPLE.model_copy(update={"provenance": SAMPLE.provenance.model_copy(update=update)})


SSIM = next(result for result in SAMPLE.metrics if result.metric == "ssim")
LOW, HIGH = SSIM.estimate.low or 0.0, SSIM.estimate.high or 0.0
WEIGHTS = {**SAMPLE.identity.weights, "ltx-tiny": ""}


def _skewed(scores: Scores) -> Scores:
    """Return replicates of which so many are equal that the interval round their mean leaves it out."""
    return Scores(0.9, np.append(np.zeros(990), np.full(10, 1.0)), scores.n)


CELLS: dict[str, tuple[Cell, dict[Key, Scores], list[str]]] = {
    "sound": (SAMPLE, SCORES, []),
    "dirty": (_provenance(dirty=True), SCORES, ["uncommitted changes"]),
    "smoke": (changed(SAMPLE, cohort=f"{SAMPLE.identity.cohort}-limit4"), SCORES, ["smoke cohort, of at most 4 clips"]),
    "cohort": (changed(SAMPLE, cohort="quick-1-00000000"), SCORES, ["not that of the installed suite"]),
    "suite": (changed(SAMPLE, suite="unheard-of"), SCORES, ["Unknown suite 'unheard-of'"]),
    "experiment": (changed(SAMPLE, experiment="Z9"), SCORES, ["Z9 is no experiment of the suite quick"]),
    "weights": (changed(SAMPLE, weights=WEIGHTS), SCORES, ["lacks the digest of its code, or of some weights"]),
    "code": (changed(SAMPLE, code={}), SCORES, ["lacks the digest of its code, or of some weights"]),
    "moved": (
        _result({"estimate": SSIM.estimate.model_copy(update={"value": LOW})}),
        SCORES,
        ["ssim at block.2 tokens is .* and its scores give"],
    ),
    "clips": (
        _result({"estimate": SSIM.estimate.model_copy(update={"n": 99})}),
        SCORES,
        ["over 99 clips, and its scores give .* over 100 clips"],
    ),
    "implementation": (_result({"implementation": "0"}), SCORES, ["not of the installed implementation, 1, higher"]),
    "direction": (_result({"direction": "lower"}), SCORES, ["not of the installed implementation, 1, higher"]),
    "unknown metric": (_result({"metric": "unheard-of"}), SCORES, ["belong to none of its metrics", "Unknown metric"]),
    "scores of an unknown metric": (
        _result({"metric": "unheard-of"}),
        {dataclasses.replace(k, metric="unheard-of") if k.metric == "ssim" else k: v for k, v in SCORES.items()},
        ["Unknown metric"],
    ),
    "twice": (SAMPLE.model_copy(update={"metrics": (*SAMPLE.metrics, SSIM)}), SCORES, ["stands twice"]),
    "empty": (SAMPLE.model_copy(update={"metrics": ()}), {}, ["holds no metrics"]),
    "ceiling": (
        _result({"ceiling": SSIM.estimate.model_copy(update={"value": 7.0, "low": 6.0, "high": 8.0})}),
        SCORES,
        ["its ceiling, 7 lies outside of what it can be, -1 to 1"],
    ),
    "floor": (
        _result({"floors": {"blank": SSIM.estimate.model_copy(update={"value": HIGH + 0.1})}}),
        SCORES,
        ["its floor blank, .* does not lie in its interval"],
    ),
}
MEASURED: dict[str, tuple[dict[Key, Scores], list[str]]] = {
    "range": (
        with_scores("lpips", lambda s: mean_scores(np.zeros(s.n) - 0.5)),
        ["-0.5 lies outside of what it can be, 0 to inf"],
    ),
    "clips replaced": (
        with_scores("ssim", lambda s: dataclasses.replace(s, per_clip=np.roll(s.per_clip, 1))),
        ["the scores score/ssim/block.2/tokens are not those of its clips"],
    ),
    "replicates of another plan": (
        with_scores("ssim", lambda s: dataclasses.replace(s, replicates=s.replicates[:200])),
        ["the scores score/ssim/block.2/tokens are not those of its clips"],
    ),
    "not finite": (
        with_scores("psnr", lambda s: dataclasses.replace(s, value=float("nan"))),
        ["psnr at block.2 tokens is not finite"],
    ),
    "skewed": (
        with_scores("ssim", _skewed),
        ["does not lie in its interval"],
    ),
}
CELLS |= {name: (*(scored(scores)[:1]), scores, lines) for name, (scores, lines) in MEASURED.items()}


@pytest.mark.parametrize("case", CELLS)
def test_validate_names_each_fault_of_a_cell_and_nothing_else(case: str, tmp_path: Path) -> None:
    cell, scores, lines = CELLS[case]
    put(tmp_path, cell, pack(scores))
    found = [str(problem) for problem in validate(tmp_path, REGISTRY)]
    assert len(found) == len(lines), found
    for text, line in zip(sorted(found), lines, strict=True):
        assert re.search(line, text), text


def _moved(root: Path) -> str:
    path = put(root)
    shutil.move(path.parent, path.parent.with_name("elsewhere"))
    return f"it belongs at {path.relative_to(root)}"


def _renamed(root: Path) -> str:
    path = put(root)
    path.with_suffix(".json").rename(path.with_name("0123456789abcdef.json"))
    for suffix in (".safetensors", ".png"):
        path.with_suffix(suffix).rename(path.with_name(f"0123456789abcdef{suffix}"))
    return f"it belongs at {path.relative_to(root)}"


def _copied(root: Path) -> str:
    path = put(root)
    for suffix in (".json", ".safetensors", ".png"):
        shutil.copy(path.with_suffix(suffix), path.with_name(f"0123456789abcdef{suffix}"))
    return f"0123456789abcdef.json: it belongs at {path.relative_to(root)}"


def _left_over(root: Path) -> str:
    (put(root).parent / ".tmp-abcd").write_bytes(b"half")
    return ".tmp-abcd: no cell vouches for it"


def _logged(root: Path) -> str:
    put(root)
    (root / "worker.log").write_text("a log")
    return "worker.log: no cell vouches for it"


def _unvouched(root: Path) -> str:
    path = put(root)
    (path.parent / "0123456789abcdef.safetensors").write_bytes(b"scores")
    return "0123456789abcdef.safetensors: no cell vouches for it"


def _noted(root: Path) -> str:
    put(root)
    (root / "notes \x1b[31m.txt").write_text("mine")
    return r"notes \x1b[31m.txt: no cell vouches for it"


def _stale_failure(root: Path) -> str:
    path = put(root)
    path.with_suffix(".failure.txt").write_text("a traceback")
    return ".failure.txt: no cell vouches for it"


def _half_a_plan(root: Path) -> str:
    put(root, ONE)
    shard(root, 1, 2, (ONE.id,), PLAN)
    return f".: of plan {PLAN} in 2 shards there are 1, not 2"


def _another_picture(root: Path) -> str:
    put(root).with_suffix(".png").write_bytes(b"another picture")
    return ".png is not the file its cell vouches for"


def _no_digest(root: Path) -> str:
    Store(root).write(SAMPLE.model_copy(update={"scores_sha256": "", "picture_sha256": ""}))
    return "it lacks the digest of its scores"


@pytest.mark.parametrize(
    "plant",
    [
        _moved, _renamed, _copied, _left_over, _logged, _unvouched, _noted, _stale_failure, _half_a_plan,
        _another_picture, _no_digest,
    ],
)  # fmt: skip
def test_validate_names_each_file_that_should_not_be_there(plant: Callable[[Path], str], tmp_path: Path) -> None:
    sentence = plant(tmp_path)
    done = invoke("validate", tmp_path)
    assert done.exit_code == 6
    (line,) = done.stdout.splitlines()
    assert sentence in line
    as_json = invoke("validate", tmp_path, "--json")
    assert as_json.exit_code == 6
    assert [f"{each['path']}: {each['text']}" for each in json.loads(as_json.stdout)] == [line]


def test_what_a_run_leaves_beside_cells_is_no_problem(tmp_path: Path) -> None:
    path = put(tmp_path)
    put(tmp_path, changed(SAMPLE, {"status": "oom"}, seed=1))
    (path.parents[1] / "worker.log").write_text("a log")
    put(tmp_path, changed(SAMPLE, seed=2)).with_suffix(".png").unlink()  # a picture may be left out
    assert validate(tmp_path, REGISTRY) == []
    assert invoke("validate", tmp_path / "nothing").exit_code == 4


# Hostile files.


def refused(root: Path, *sentences: str) -> None:
    """Check that both commands refuse ``root`` in a sentence, and that nothing appears outside of it."""
    outside = sorted(root.parent.rglob("*"))
    checked = invoke("validate", root)
    assert checked.exit_code == 6
    merged = invoke("merge", root, "-o", root.parent / "out")
    assert merged.exit_code == 4, merged.output
    for sentence in sentences:
        assert sentence in checked.stdout
        assert sentence in merged.stderr
    assert merged.stderr.count("\n") == 2  # a sentence and a hint
    assert sorted(root.parent.rglob("*")) == outside


def forge(root: Path, record: dict[str, Any]) -> Path:
    """Write a sealed file of any content to where the sample would lie."""
    path = Store(root).path(SAMPLE)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**record, "seal": seal(record)}))
    return path


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "..", ".hidden", "a\\b", "a\x1b[2Jb", "a\nb"])
@pytest.mark.parametrize("field", ["encoder", "cohort", "machine"])
def test_names_that_could_lead_elsewhere_are_refused(field: str, name: str, tmp_path: Path) -> None:
    cell = _provenance(machine=name) if field == "machine" else changed(SAMPLE, **{field: name})
    root = tmp_path / "in"
    path = put(root, cell)
    assert path.resolve().is_relative_to(root)
    refused(root, "is no name of an encoder, a cohort or a machine")
    assert folder_name(name) not in ("..", ".", "")


@pytest.mark.parametrize("id_", ["../../../../escaped", "", "0" * 16, "0" * 17])
def test_an_id_that_is_not_the_digest_is_refused(id_: str, tmp_path: Path) -> None:
    forge(tmp_path / "in", {**json.loads(SAMPLE.model_dump_json()), "id": id_})
    refused(tmp_path / "in", "its id is not the digest of its identity")


def test_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / SAMPLE.identity.cohort).symlink_to(tmp_path / "elsewhere" / SAMPLE.identity.cohort)
    refused(tmp_path / "in", f"{SAMPLE.identity.cohort}: a link, which is not followed")


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".png"])
def test_links_to_the_very_files_are_not_followed(suffix: str, tmp_path: Path) -> None:
    path = put(tmp_path / "in").with_suffix(suffix)
    kept = path.rename(tmp_path / "kept")
    path.symlink_to(kept)
    refused(tmp_path / "in", f"{path.name}: a link, which is not followed")


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".png"])
def test_a_pipe_holds_nobody_up(suffix: str, tmp_path: Path) -> None:
    path = put(tmp_path / "in").with_suffix(suffix)
    path.unlink()
    os.mkfifo(path)
    refused(tmp_path / "in")


def _without(field: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(SAMPLE.model_dump_json()).items() if name != field}


RECORD = json.loads(SAMPLE.model_dump_json())
SEALED = SAMPLE.sealed()
JSON: dict[str, tuple[bytes, str]] = {
    "deep": (b"[" * 1_000_000, "nested too deeply"),
    "deep object": (b'{"a":' * 1_000_000, "nested too deeply"),
    "NaN": (SEALED.replace(b'"seed": 0', b'"seed": NaN'), "NaN is no number"),
    "infinity": (SEALED.replace(b'"seed": 0', b'"seed": -Infinity'), "-Infinity is no number"),
    "overflow": (SEALED.replace(b'"seed": 0', b'"seed": 1e999'), "a number is too large"),
    "digits": (SEALED.replace(b'"seed": 0', b'"seed": ' + b"9" * 1_000_000), "digits"),
    "many digits": (b"9" * 17_000_000, "larger than 16000000 bytes"),
    "duplicate": (SEALED.replace(b'"seed": 0', b'"seed": 1, "seed": 0'), "a key stands twice"),
    "bytes": (b"\xff\xfe" + SEALED, "decode"),
    "UTF-16": (SEALED.decode().encode("utf-16"), "decode"),
    "nothing": (b"", "Expecting value"),
    "list": (b"[]", "not an object"),
    "no seal": (json.dumps(RECORD).encode(), "its seal is broken"),
}


@pytest.mark.parametrize("case", JSON)
def test_hostile_json_is_refused(case: str, tmp_path: Path) -> None:
    data, sentence = JSON[case]
    put(tmp_path / "in").write_bytes(data)
    refused(tmp_path / "in", sentence)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({**RECORD, "metrics": "none"}, "metrics: Input should be a valid array"),
        ({**RECORD, "identity": {**RECORD["identity"], "seed": "0"}}, "identity.seed: Input should be a valid integer"),
        (
            {**RECORD, "identity": {**RECORD["identity"], "seed": True}},
            "identity.seed: Input should be a valid integer",
        ),
        ({**RECORD, "reason": "\ud800"}, "Invalid JSON"),
        ({**RECORD, "surprise\x1b[2J": 1}, r"surprise\x1b[2J: Extra inputs"),
        (_without("status"), "status: Field required"),
        ({**RECORD, "schema_version": 2}, "schema_version: Input should be 1"),
    ],
)
def test_sealed_json_of_another_shape_is_refused(record: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    forge(tmp_path / "in", record)
    refused(tmp_path / "in", sentence)


@pytest.mark.parametrize("name", ["shard-1-of-1.json", "shard-1-of-1000000000.json"])
def test_a_hostile_shard_record_is_refused(name: str, tmp_path: Path) -> None:
    path = put(tmp_path / "in").parents[1] / name
    path.write_text(json.dumps({"plan": PLAN, "shard": 1, "of": int(name[11:-5]), "cells": ["../../../x"]}))
    refused(tmp_path / "in", "cells.0: String should match pattern")
    path.write_text(json.dumps({"plan": PLAN, "shard": 1, "of": int(name[11:-5]), "cells": [ONE.id]}))
    refused(tmp_path / "in")


def tensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def one(dtype: str, shape: list[int], offsets: list[int], name: str = "score/ssim/a/tokens#value") -> dict[str, object]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def parts(**changes: object) -> bytes:
    """Return the file of one score with parts of other types or shapes, or further parts."""
    from safetensors.numpy import save

    sound = {"replicates": np.zeros(4, np.float32), "value": np.array([0.5, 3.0]), "clips": np.zeros(3, np.float32)}
    arrays = {**sound, **changes}
    return save({f"score/ssim/a/tokens#{name}": array for name, array in arrays.items() if array is not None})


NAME = "score/ssim/a/tokens#"


def named(name: str) -> bytes:
    """Return the file of one sound score under another name, as long as its own."""
    assert len(name) == len(NAME)
    return parts().replace(NAME.encode(), name.encode())


def twice() -> bytes:
    """Return the file of one sound score in whose header a part stands twice."""
    data = parts()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().strip()
    value = json.dumps({f"{NAME}value": json.loads(header)[f"{NAME}value"]})
    return tensors(f"{header[:-1]},{value[1:]}".encode(), data[8 + size :])


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "giant header": struct.pack("<Q", 2**63) + b"{}",
    "header past the end": struct.pack("<Q", 10**6) + b"{}",
    "deep header": tensors(b"[" * 100_000),
    "list": tensors(b"[]"),
    "no UTF-8": tensors(b'{"\xff": 1}'),
    "trailing": tensors({}, b"abc"),
    "overlapping": tensors({**one("F64", [2], [0, 16]), **one("F32", [4], [8, 24], "b")}, bytes(24)),
    "out of range": tensors(one("F64", [2], [0, 10**9]), bytes(16)),
    "negative": tensors(one("F64", [-2], [0, 16]), bytes(16)),
    "overflow": tensors(one("F64", [2**40, 2**40], [0, 16]), bytes(16)),
    "no type": tensors(one("object", [2], [0, 16]), bytes(16)),
    "type without numpy": tensors(one("F8_E5M2", [2], [0, 2]), bytes(2)),
    "twice": twice(),
    "complex value": parts(value=np.zeros(2, np.complex64)),
    "integer replicates": parts(replicates=np.zeros(4, np.int32)),
    "no replicates": parts(replicates=np.zeros(0, np.float32)),
    "replicates of rank 2": parts(replicates=np.zeros((2, 2), np.float32)),
    "one value": parts(value=np.zeros(1)),
    "n is NaN": parts(value=np.array([0.5, np.nan])),
    "n is half": parts(value=np.array([0.5, 2.5])),
    "n is negative": parts(value=np.array([0.5, -3.0])),
    "n is endless": parts(value=np.array([0.5, 1e18]), clips=None),
    "fewer clips": parts(clips=np.zeros(2, np.float32)),
    "a number for clips": parts(clips=np.zeros((), np.float32)),
    "no value": parts(value=None),
    "another part": parts(more=np.zeros(1, np.float32)),
    "a name without a part": tensors(one("F64", [2], [0, 16], "score/ssim/a/tokens"), bytes(16)),
    "a step more": named("score/ssim/a/b/toke#"),
    "a step less": named("score/ssim/a_tokens#"),
    "another row": named("other/ssim/a/tokens#"),
    "a path": named("../../ssim/a_tokens#"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_hostile_safetensors_are_refused(case: str, tmp_path: Path) -> None:
    path = put(tmp_path / "in", scores=SAFETENSORS[case])
    path.with_suffix(".safetensors").write_bytes(SAFETENSORS[case])
    refused(tmp_path / "in", path.name)
    with pytest.raises(DataError, match="holds no scores"):
        Store(tmp_path / "in").scores(Store(tmp_path / "in").read(path))


@pytest.mark.parametrize("case", ["a step more", "a step less", "another row", "a path"])
def test_a_name_that_is_none_is_said_so(case: str) -> None:
    with pytest.raises(ValueError, match="names no score"):
        unpack(SAFETENSORS[case])


def test_the_parts_that_the_hostile_cases_change_are_sound() -> None:
    assert list(unpack(parts())) == [Key("ssim", "a", "tokens")]


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["BOMB"],)


def test_no_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    bomb = pickle.dumps(_Bomb())
    put(tmp_path / "in", scores=bomb)
    refused(tmp_path / "in", "no safetensors")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()
