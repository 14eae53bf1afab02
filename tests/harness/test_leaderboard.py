"""BENCHMARKS.md, JSON and CSV: the same bytes for the same cells, drift is seen, nothing from outside is markup."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from committed import ALL, QUICK
from foresight_bench.board import Board
from foresight_bench.board_files import as_csv, as_json
from foresight_bench.building import build
from foresight_bench.cells import Estimate
from foresight_bench.cli import main
from foresight_bench.intake import Problem
from foresight_bench.leaderboard import page
from foresight_bench.pages.leaderboard import rendered
from foresight_bench.registry import Registry

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>|`x`[y](javascript:z)~~s~~"


@pytest.fixture(scope="module")
def board() -> Board:
    return build(QUICK, Registry.installed())


def edited(board: Board, **update: Any) -> Board:
    """Return the board with its first row of C1 changed: fields of the identity, or ``metrics`` or ``cost``."""
    cohort = board.cohorts[0]
    section = cohort.sections[0]
    row = section.rows[0]
    identity = row.cell.identity.model_copy(update={k: v for k, v in update.items() if k not in ("metrics", "cost")})
    cell = row.cell.model_copy(
        update={
            "identity": identity,
            "metrics": update.get("metrics", row.cell.metrics),
            "cost": update.get("cost", row.cell.cost),
        },
    )
    sections = (replace(section, rows=(replace(row, cell=cell), *section.rows[1:])), *cohort.sections[1:])
    return replace(board, cohorts=(replace(cohort, sections=sections),))


def table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below ``heading``."""
    lines = text[text.index(heading) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


# The command.


def leaderboard(*arguments: object) -> Result:
    done = CliRunner().invoke(main, ["leaderboard", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_the_committed_files_are_what_the_committed_results_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = leaderboard("--check")
    assert done.exit_code == 0, done.output


def test_the_same_cells_give_the_same_bytes_and_drift_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ALL, tmp_path / "mine")
    assert leaderboard("--results", "mine", "--check").exit_code == 6
    assert leaderboard("--results", "mine").exit_code == 0
    # Other results than the committed ones have a page of their own, and touch none of the committed ones' files.
    names = {"BENCHMARKS.md", "index.html", "leaderboard.csv", "leaderboard.json", "verdicts.svg"}
    assert {path.name for path in (tmp_path / "leaderboard").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "leaderboard"}
    assert leaderboard("--results", "mine", "--check").exit_code == 0
    for name, committed in (
        ("BENCHMARKS.md", ROOT),
        ("leaderboard.csv", ROOT / "benchmarks/leaderboard"),
        ("leaderboard.json", ROOT / "benchmarks/leaderboard"),
    ):
        path = tmp_path / "leaderboard" / name
        assert path.read_bytes() == (committed / name).read_bytes()
        path.write_text(path.read_text().replace("PIVOT", "PROCEED", 1))
        done = leaderboard("--results", "mine", "--check")
        assert (done.exit_code, name in done.output) == (6, True)
        shutil.copy(committed / name, path)
    first = (tmp_path / "leaderboard" / "index.html").read_bytes()
    assert leaderboard("--results", "mine", "--output", "B.md", "--site", "site").exit_code == 0
    assert (tmp_path / "site" / "index.html").read_bytes() == first
    assert (tmp_path / "B.md").read_bytes() == (ROOT / "BENCHMARKS.md").read_bytes()


def test_what_is_left_out_is_said_and_no_results_are_an_error(tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(QUICK, results)
    (results / "notes.txt").write_text("mine")
    done = leaderboard("--results", results, "--site", tmp_path / "site")
    assert "Left out: notes.txt: no cell vouches for it" in done.output
    assert "- notes.txt: no cell vouches for it" in (tmp_path / "site" / "BENCHMARKS.md").read_text()
    assert leaderboard("--results", tmp_path / "nothing", "--site", tmp_path / "site").exit_code == 4


def test_a_board_of_controls_alone_has_no_gates(tmp_path: Path) -> None:
    shutil.copytree(QUICK, tmp_path / "results", ignore=shutil.ignore_patterns("dinov2*"))
    found = build(tmp_path / "results", Registry.installed())
    text = page(found)
    assert "### Gate" not in text
    assert "### Calibration" in text
    assert "<h2" in rendered(found)


# Markdown.


def test_values_stand_with_interval_verdict_and_rank(board: Board) -> None:
    text = page(board)
    header, _, *rows = table(text, "### C1")
    assert header == ["system", "tap", "lpips < .350", "ssim > .750", "spatial_iou > .600", "verdict"]
    assert rows[0] == [
        "dinov2:small, coord + ltx-tiny†", "block.2",
        ".334 [.327, .341] ✓ PASS #2=", ".649 [.644, .654] ✗ FAIL #2=", ".451 [.414, .489] ✗ FAIL #2=", "✗ PIVOT",
    ]  # fmt: skip
    assert rows[-1] == [
        "pixels, linear + patch-pca†", "patches",
        ".012 [.011, .013]", ".982 [.980, .984]", ".976 [.973, .978]", "control",
    ]  # fmt: skip
    assert "† patch-pca: a linear codec of patches, no video decoder." in text
    assert all("†" not in row[0] for row in table(text, "### Q2"))


def test_incomplete_systems_stand_below_with_their_coverage(board: Board) -> None:
    text = page(board)
    complete, incomplete = table(text, "### Gate"), table(text, "### Incomplete")
    assert [row[1] for row in incomplete[2:]] == ["fusion", "upsample"]
    assert {row[3] for row in incomplete[2:]} == {"8/11"}
    assert incomplete[2][4].startswith("C1 skipped: The adapter \\`fusion\\` joins")
    assert not {"fusion", "upsample"} & {row[1] for row in complete}
    assert complete[2][3:] == ["✗ PIVOT at block.2", "✗ PIVOT at block.2", "✗ PIVOT at block.5", "✗ BLOCKED"]


def test_both_spaces_stand_side_by_side(board: Board) -> None:
    header, _, *rows = table(page(board), "### Both spaces")
    (row,) = (row for row in rows if row[0] == "dinov2:small, ltx-tiny†" and row[2] == "dim_mle")
    assert header == ["system", "tap", "metric", "encoder", "decoder", "decoder / encoder"]
    (q1,) = (r for r in board.cohorts[0].sections[1].rows if (r.name, r.through) == ("dinov2:small", "ltx-tiny"))
    values = {each.metric: each.estimate.value for each in q1.reported}
    assert [float(cell.split()[0]) for cell in row[3:]] == [
        pytest.approx(values[f"dim_mle_{space}"], rel=0.01) for space in ("encoder", "decoder", "ratio")
    ]


def test_costs_say_what_is_on_the_front_and_every_row_has_its_command(board: Board) -> None:
    text = page(board)
    (row,) = (r for r in table(text, "### Cost") if r[:2] == ["dinov2:small, linear + patch-pca†", "C1"])
    mine = "dinov2:small", "linear + patch-pca"
    (cost,) = (r.cell.cost for r in board.cohorts[0].sections[0].rows if (r.name, r.through.rstrip("†")) == mine)
    assert cost is not None
    took = [f"{cost.feature_seconds:.0f}", f"{cost.wall_seconds:.0f}"]
    peak = f"{cost.peak_memory_bytes / 2**30:.1f}"
    assert row[2:] == [*took, "22,056,192", "36,960", peak, "lpips, ssim, spatial_iou"]
    commands = text[text.index("```sh") :].split("```")[1].splitlines()[1:]
    mine = [row for section in board.cohorts[0].sections for row in section.rows if row.kind != "control"]
    assert commands == [row.command for row in mine]


def test_how_large_an_encoder_is_stands_with_its_cost_and_unknown_is_not_0(board: Board) -> None:
    cell = board.cohorts[0].sections[0].rows[0].cell
    assert cell.cost is not None
    for count, shown, number in ((22_056_192, "22,056,192", 22_056_192), (0, "unknown", None)):
        found = edited(board, cost=cell.cost.model_copy(update={"encoder_parameters": count}))
        header, _, first, *_ = table(page(found), "### Cost")
        assert first[header.index("encoder parameters")] == shown
        (record, *_) = json.loads(as_json(found))["cohorts"][0]["experiments"][0]["rows"]
        assert record["cost"]["encoder_parameters"] == number
        (line, *_) = csv.DictReader(io.StringIO(as_csv(found)))
        assert line["encoder_parameters"] == str(number or "")


def test_what_comes_from_outside_is_no_markup(board: Board) -> None:
    hostile = replace(edited(board, adapter=HOSTILE), left_out=(Problem(f"a/{HOSTILE}", HOSTILE),))
    checks = board.cohorts[0].calibration.checks
    bad = replace(board.cohorts[0].calibration, checks=tuple(replace(each, decoder=HOSTILE) for each in checks))
    hostile = replace(hostile, cohorts=(replace(hostile.cohorts[0], calibration=bad),))
    text = page(hostile)
    escaped = r"\<script\>alert(1)\</script\>\|\`x\`\[y\](javascript:z)\~\~s\~\~"
    assert text.count(escaped) >= 4
    assert HOSTILE not in text
    assert "<script>" not in text
    widths = {len(row) for row in table(text, "### C1")}
    assert widths == {6}


# JSON and CSV.


def test_json_holds_every_row_with_what_it_reports(board: Board) -> None:
    found = json.loads(as_json(board))
    assert found["schema"] == 1
    (cohort,) = found["cohorts"]
    sections = board.cohorts[0].sections
    assert [len(each["rows"]) for each in cohort["experiments"]] == [len(section.rows) for section in sections]
    row, record = sections[0].rows[0], cohort["experiments"][0]["rows"][0]
    assert (record["cell"], record["command"]) == (row.cell.id, row.command)
    assert [each["metric"] for each in record["metrics"]] == ["lpips", "ssim", "spatial_iou"]
    assert record["metrics"][0]["rank"] == row.placed[0].rank.place  # type: ignore[union-attr]
    assert record["metrics"][0]["value"] == pytest.approx(row.placed[0].result.estimate.value, rel=1e-5)
    assert [each["metric"] for each in record["reported"]] == ["psnr"]
    q2 = next(r for r in cohort["experiments"][2]["rows"] if r["encoder"] == "dinov2:small")
    assert list(q2["taps"]) == ["patch_embed", "block.2", "block.5", "block.8", "final"]
    assert cohort["calibration"]["separates"] is True
    (card,) = cohort["encoders"]
    assert (card["name"], card["encoder_parameters"]) == ("dinov2:small", [22_056_192])
    assert card["preprocessing"] == board.cohorts[0].cards[0].preprocessing != ""
    assert len(as_json(board)) + len(as_csv(board)) < 400_000


def test_a_metric_that_a_run_adds_is_shown_as_reported(board: Board) -> None:
    cell = board.cohorts[0].sections[0].rows[0].cell
    estimate = Estimate(value=0.5, low=0.25, high=0.75, n=100)
    extra = cell.metrics[0].model_copy(update={"metric": "mine", "gates": False, "estimate": estimate})
    elsewhere = extra.model_copy(update={"tap": "another"})
    found = edited(board, metrics=(*cell.metrics, extra, elsewhere))
    record = json.loads(as_json(found))["cohorts"][0]["experiments"][0]["rows"][0]
    assert [each for each in record["reported"] if each["metric"] == "mine"] == [
        {"metric": "mine", "direction": extra.direction, "value": 0.5, "low": 0.25, "high": 0.75, "clips": 100}
    ]
    lines = [line for line in csv.DictReader(io.StringIO(as_csv(found))) if line["metric"] == "mine"]
    assert [(line["gates"], line["value"], line["verdict"], line["rank"]) for line in lines] == [
        ("false", "0.5", "", "")
    ]


def test_csv_has_a_line_for_each_metric_of_each_row(board: Board) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(board))))
    rows = [row for section in board.cohorts[0].sections for row in section.rows]
    assert len(lines) == sum(len(row.placed) + len(row.reported) for row in rows)
    first = lines[0]
    assert (first["experiment"], first["encoder"], first["metric"], first["gates"]) == (
        "C1", "dinov2:small", "lpips", "true",
    )  # fmt: skip
    assert (first["rank"], first["rank_shared"], first["surrogate"]) == ("2", "true", "true")
    assert float(first["low"]) < float(first["value"]) < float(first["high"])
    assert all(None not in line and None not in line.values() for line in lines)


def test_a_spreadsheet_computes_nothing(board: Board) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(edited(board, adapter='=HYPERLINK("x")', encoder="@sum")))))
    assert (lines[0]["adapter"], lines[0]["encoder"]) == ('\'=HYPERLINK("x")', "'@sum")
    values = [line["value"] for line in lines if line["value"].startswith("-")]
    assert values
    assert all(float(value) <= 0 for value in values)
