"""The decision document: planted losses and pivots are told, noise is not, and nothing that was not measured."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt

from committed import QUICK
from foresight_bench.cells import Cell, Estimate
from foresight_bench.cli import main
from foresight_bench.findings.contrasts import widened
from foresight_bench.judging import estimate
from foresight_bench.packing import Key, pack
from foresight_bench.scores import FloatArray, Scores, bootstrap_counts, mean_scores
from foresight_bench.store import Store
from foresight_bench.tables import number
from foresight_bench.verdicts import Verdict, decide

CELLS = list(Store(QUICK).cells())
N = 100
RNG = np.random.default_rng(0)
BASE = RNG.normal(0.5, 0.1, N)
START = RNG.bit_generator.state
TAPS = ("patch_embed", "block.2", "block.5", "block.8", "final")
Curves = Mapping[tuple[str, str], FloatArray]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Let a test draw the same numbers whatever ran before it."""
    RNG.bit_generator.state = START


def noise(scale: float = 0.02) -> FloatArray:
    return RNG.normal(0.0, scale, N)


def sample(experiment: str) -> Cell:
    wanted = {"adapter": {"C1": "linear"}.get(experiment), "decoder": None if experiment == "Q2" else "ltx-tiny"}
    (cell,) = [
        cell
        for cell in CELLS
        if (cell.identity.encoder, cell.identity.experiment) == ("dinov2:small", experiment)
        and all(getattr(cell.identity, axis) == value for axis, value in wanted.items())
    ]
    return cell


def put(
    root: Path,
    question: str,
    planted: Curves | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
    tap: str = "",
    **identity: Any,
) -> Cell:
    """Write a cell whose scores are ``planted`` by metric and tap (else ``BASE``), and passed but for ``verdicts``."""
    old = sample(question)
    new = old.identity.model_copy(update=identity)
    curves = planted or {}
    scores = {Key(r.metric, r.tap, r.readout): mean_scores(curves.get((r.metric, r.tap), BASE)) for r in old.metrics}
    metrics = []
    for r in old.metrics:
        update: dict[str, Any] = {"estimate": estimate(scores[Key(r.metric, r.tap, r.readout)])}
        if r.gates:
            update |= {"verdict": str((verdicts or {}).get(r.metric, Verdict.PASS)), "reason": "", "clips_needed": None}
        metrics.append(r.model_copy(update=update))
    data = pack(scores)
    update = {
        "identity": new,
        "id": new.cell_id(),
        "metrics": tuple(metrics),
        "decision": str(decide([Verdict(r.verdict) for r in metrics if r.verdict is not None])),
        "scores_sha256": sha256(data).hexdigest(),
        "picture_sha256": "",
    }
    if tap:
        update["tap"] = tap
    cell = old.model_copy(update=update)
    Store(root).write(cell, data)
    return cell


def put_all(root: Path, encoder: str = "dinov2:small", **more: Any) -> None:
    for experiment in ("C1", "Q1", "Q2"):
        put(root, experiment, encoder=encoder, **more)


def invoke(*arguments: object) -> Result:
    done = CliRunner().invoke(main, ["findings", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def findings(*arguments: object) -> str:
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next of its level or above; empty if there is none."""
    level = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}.*?\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S)
    return found[1] if found else ""


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables of ``text`` by their first cell; a later table's win."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def shown(difference: FloatArray, comparisons: int) -> str:
    """Return a paired mean with the interval that holds for all comparisons, computed here by other means."""
    replicates = bootstrap_counts(N) @ difference / N
    spread = replicates - replicates.mean()
    low, high = np.quantile(spread, [0.025, 0.975])
    stretch = NormalDist().inv_cdf(1 - 0.025 / comparisons) / NormalDist().inv_cdf(0.975)
    mean = float(difference.mean())
    sign = "+" if mean >= 0 else ""
    return f"{sign}{number(mean)} [{number(mean + stretch * low)}, {number(mean + stretch * high)}]"


# Where information is lost.


def test_a_fall_after_the_third_tap_is_found_and_named(tmp_path: Path) -> None:
    drop = 0.08 + noise()
    curve = {("box_iou", tap): BASE + (-drop if place > 2 else 0.01 * place) for place, tap in enumerate(TAPS)}
    put(tmp_path, "Q2", curve)
    text = findings(tmp_path)
    lost = rows(section(text, "## Where information is lost").partition("Heads of one kind")[0])
    # 4 metrics x 10 pairs of 5 taps; the best before block.8 is block.5, which is .02 up.
    assert "40 differences" in text
    by = shown(-drop - 0.02, 40)
    best = mean_scores(BASE + 0.02)
    low, high = best.interval()
    assert lost["`box_iou`"][:3] == [
        f"{number(best.value)} [{number(low)}, {number(high)}] at `block.5`",
        "`block.5`",
        f"{by} at `block.8` against `block.5`",
    ]
    assert lost["`map50`"][1:] == ["no loss that the interval can tell", "", "+.000 [.000, .000]"]
    assert "`box_iou` worsens after `block.5`" in section(text, "### `Q2`")
    assert "of `lpips`, `edge_f1` and `map50` no loss can be told" in section(text, "### `Q2`")


def test_a_rise_of_a_lower_is_better_quantity_is_its_loss(tmp_path: Path) -> None:
    up, down = BASE + 0.1 + noise(), BASE - 0.1 + noise()
    put(tmp_path, "Q2", {("lpips", "final"): up, ("edge_f1", "final"): up, ("map50", "final"): down})
    answer = section(findings(tmp_path), "### `Q2`")
    assert "`lpips` and `map50` worsen after `block.8`" in answer
    assert "of `box_iou` and `edge_f1` no loss can be told" in answer


def test_a_slow_loss_is_told_against_the_best_tap_before(tmp_path: Path) -> None:
    # An interval for 40 differences is about .009 wide to either side: one step is within it, two are not.
    drawn = {tap: noise() for tap in TAPS}
    curve = {tap: BASE + 0.006 * place + drawn[tap] - drawn[tap].mean() for place, tap in enumerate(TAPS)}
    put(tmp_path, "Q2", {("lpips", tap): values for tap, values in curve.items()})
    lost = rows(section(findings(tmp_path), "## Where information is lost").partition("Heads of one kind")[0])
    best, after, by, _ = lost["`lpips` (lower is better)"]
    assert best.endswith("at `patch_embed`")
    assert after == "`block.2`"
    assert by.startswith("+.012 [")
    assert by.endswith("at `block.5` against `patch_embed`")


def test_what_lies_within_the_interval_is_no_fall_however_many_taps_are_searched(tmp_path: Path) -> None:
    told = uncorrected = 0
    for run in range(12):
        metrics = ("box_iou", "lpips", "edge_f1", "map50")
        curve = {(metric, tap): BASE + noise(0.1) for metric in metrics for tap in TAPS}
        put(tmp_path / str(run), "Q2", curve)
        told += findings(tmp_path / str(run)).count("no loss that the interval can tell") < 4
        gaps = [curve[metric, a] - curve[metric, b] for metric in metrics for a in TAPS for b in TAPS if a < b]
        uncorrected += any(abs(gap.mean()) > 1.96 * gap.std() / np.sqrt(N) for gap in gaps)
    assert uncorrected >= 8  # by 95 % intervals, a fall or a rise stands in most of them
    assert told <= 1


def test_intervals_are_widened_by_the_quantile_of_all_comparisons() -> None:
    one = Estimate(value=1.0, low=0.9, high=1.3, n=N)
    assert widened(one, 1) == one
    assert widened(one, 0) == one
    many = widened(one, 40)
    assert many.low == pytest.approx(1 - 0.1 * 3.2272 / 1.95996, abs=1e-4)  # z(1 - .05 / 80) from a table
    assert many.high == pytest.approx(1 + 0.3 * 3.2272 / 1.95996, abs=1e-4)
    nothing = Estimate(value=None, low=None, high=None, n=0)
    assert widened(nothing, 40) == nothing


def test_tokens_stand_against_their_mean_at_the_tap_that_gates(tmp_path: Path) -> None:
    old = sample("Q2")
    cell = put(tmp_path, "Q2", {("box_iou", old.tap): BASE})
    store = Store(tmp_path)
    scores, extra = store.scores(cell), 0.2 + noise()
    scores[Key("box_iou", cell.tap, "tokens")] = mean_scores(BASE + extra)
    data = pack(scores)
    fixed = cell.model_copy(update={"scores_sha256": sha256(data).hexdigest()})
    shutil.rmtree(tmp_path)
    store.write(fixed, data)
    text = findings(tmp_path)
    assert f"| {shown(extra, 4)} | better" in re.sub(" +", " ", section(text, "## Where information is lost"))
    assert f"Heads of one kind at `{old.tap}`" in text


# Pivots.


FAILS = {"ssim": Verdict.FAIL, "spatial_iou": Verdict.FAIL}


def baseline(root: Path) -> None:
    put(root, "C1", verdicts=FAILS)
    put(root, "Q1")
    put(root, "Q2", verdicts={"box_iou": Verdict.FAIL})


def rival(root: Path, encoder: str, c1: Curves, **more: Any) -> None:
    put(root, "C1", c1, encoder=encoder, **more)
    put(root, "Q1", encoder=encoder)
    put(root, "Q2", encoder=encoder)


def at(experiment: str, metric: str) -> tuple[str, str]:
    return metric, sample(experiment).tap


def test_a_hybrid_that_helps_is_recommended_with_its_difference(tmp_path: Path) -> None:
    gain = 0.1 + noise()
    baseline(tmp_path)
    rival(tmp_path, "dinov2:small+sam:base", {at("C1", "ssim"): BASE + gain}, verdicts={"ssim": Verdict.FAIL})
    said = section(findings(tmp_path), "## Recommended pivot")
    assert "**Hybrid encoder: `dinov2:small+sam:base`, `linear`, `ltx-tiny`.** It improves `C1` `ssim` by" in said
    assert f"`C1` `ssim` by {shown(gain, 1)};" in said
    assert "all 11 differences" in said
    assert "With it 2 of the 3 failing metrics pass; Gate 1: Reconstruction is BLOCKED." in said
    assert section(said, "### Another encoder").strip() == "Not run."
    assert section(said, "### Pre-merge").strip() == "Not run."


def test_what_helps_one_metric_and_hurts_another_is_not_recommended(tmp_path: Path) -> None:
    baseline(tmp_path)
    # lpips passes in the baseline and is lower-is-better; a loss counts by its own interval, here 2.6 standard errors.
    worse = noise()
    worse += 2.6 * worse.std() / np.sqrt(N) - worse.mean()
    rival(tmp_path, "dinov2:small+sam:base", {at("C1", "ssim"): BASE + 0.1, at("C1", "lpips"): BASE + worse})
    said = section(findings(tmp_path), "## Recommended pivot")
    assert said.strip().startswith("None: of 1 that were run, no option improves a failing metric and worsens no gated")
    assert said.count("| better ") == 1
    assert said.count("| worse ") == 1


def test_an_improvement_that_only_its_own_interval_tells_is_not_recommended(tmp_path: Path) -> None:
    baseline(tmp_path)
    better = noise()
    better += 2.3 * better.std() / np.sqrt(N) - better.mean()
    rival(tmp_path, "dinov2:small+sam:base", {at("C1", "ssim"): BASE + better})
    said = section(findings(tmp_path), "## Recommended pivot")
    assert "better by this interval alone" in said
    assert said.strip().startswith("None: of 1")


def test_an_improvement_of_what_passes_already_is_no_reason(tmp_path: Path) -> None:
    baseline(tmp_path)
    rival(tmp_path, "dinov2:small+sam:base", {at("C1", "lpips"): BASE - 0.1})
    assert section(findings(tmp_path), "## Recommended pivot").strip().startswith("None: of 1")


def test_an_option_that_left_an_experiment_out_is_not_recommended(tmp_path: Path) -> None:
    baseline(tmp_path)
    put(tmp_path, "C1", {at("C1", "ssim"): BASE + 0.1}, encoder="dinov2:small+sam:base")
    put(tmp_path, "Q2", encoder="dinov2:small+sam:base")
    said = section(findings(tmp_path), "## Recommended pivot")
    assert said.strip().startswith("None: of 1")
    assert "`Q1`: not run." in said


def test_each_way_to_turn_has_its_rows(tmp_path: Path) -> None:
    baseline(tmp_path)
    gain = {at("C1", "spatial_iou"): BASE + 0.1}
    put(tmp_path, "C1", gain, adapter="spatial")
    rival(tmp_path, "dinov2:small@block.2", {})
    rival(tmp_path, "sam:base", {})
    rival(tmp_path, "qwen2.5-vl:7b", {}, adapter="spatial")  # two things differ
    rival(tmp_path, "dinov2:small~pooled", {})  # a control, no pivot
    said = section(findings(tmp_path, "-e", "dinov2:small"), "## Recommended pivot")
    assert "`dinov2:small@block.2`" in section(said, "### Pre-merge")
    assert "`sam:base`" in section(said, "### Another encoder")
    adapters = section(said, "### Another adapter")
    assert "`dinov2:small`, `spatial`, `ltx-tiny`" in adapters
    assert "`Q1` and `Q2`: the same cells" in adapters
    assert "qwen" not in said
    assert "pooled" not in said
    assert "**Another adapter, spatial enhancement among them: `dinov2:small`, `spatial`, `ltx-tiny`.**" in said


# Where things stand.


def test_a_passed_gate_needs_no_pivot(tmp_path: Path) -> None:
    put_all(tmp_path, tap="final")
    text = findings(tmp_path)
    assert "**Gate 1: Reconstruction: PASSED, 3/3 proceed.**" in text
    assert "None is needed: the gate is passed." in text
    assert "Blocker" not in text
    assert "No gated metric fails." in text
    assert "One tap serves all of them: `final`." in text
    assert "Nothing: every gated metric passes or fails." in text


def test_different_taps_hold_a_gate_up_whose_experiments_all_proceed(tmp_path: Path) -> None:
    put_all(tmp_path)
    text = findings(tmp_path)
    assert "**Gate 1: Reconstruction: INCONCLUSIVE, 3/3 proceed.**" in text
    assert "all proceed, at different taps (`C1` at `block.2`; `Q1` at `block.2`; `Q2` at `block.5`)" in text
    assert "No one tap was chosen by all" in text
    assert "One tap serves" not in text


def test_when_all_is_inconclusive_nothing_works_fails_or_is_recommended(tmp_path: Path) -> None:
    for experiment in ("C1", "Q1", "Q2"):
        put(tmp_path, experiment, verdicts={r.metric: Verdict.INCONCLUSIVE for r in sample(experiment).metrics})
    text = findings(tmp_path)
    assert "INCONCLUSIVE, 0/3 proceed" in text
    assert "No gated metric passes." in text
    assert "No gated metric fails." in text
    assert "None: no gated metric fails." in text
    assert section(text, "## What remains inconclusive").count("INCONCLUSIVE") == 11


@pytest.mark.parametrize("verdict", [Verdict.VACUOUS, Verdict.UNREACHABLE, Verdict.NOT_RUN])
def test_what_has_no_verdict_is_named_with_its_reason(tmp_path: Path, verdict: Verdict) -> None:
    cell = sample("C1")
    metrics = tuple(
        r.model_copy(update={"verdict": str(verdict), "reason": "because"}) if r.metric == "ssim" else r
        for r in cell.metrics
    )
    Store(tmp_path).write(
        cell.model_copy(update={"metrics": metrics, "picture_sha256": ""}), pack(Store(QUICK).scores(cell))
    )
    left = section(findings(tmp_path), "## What remains inconclusive")
    assert f"`C1` `ssim` .626 [.620, .630], > .750: {verdict}, because." in left


def test_misses_have_the_distance_and_its_interval(tmp_path: Path) -> None:
    put(
        tmp_path, "C1", {at("C1", "ssim"): BASE, at("C1", "lpips"): BASE}, {"ssim": Verdict.FAIL, "lpips": Verdict.FAIL}
    )
    low, high = mean_scores(BASE).interval()
    mean = float(BASE.mean())
    text = section(findings(tmp_path), "## Decision gates")
    assert f"`ssim` misses > .750 by {number(0.75 - mean)} [{number(0.75 - high)}, {number(0.75 - low)}]" in text
    assert f"`lpips` misses < .350 by {number(mean - 0.35)} [{number(low - 0.35)}, {number(high - 0.35)}]" in text


def test_nothing_is_said_of_experiments_that_were_not_run(tmp_path: Path) -> None:
    put(tmp_path, "C1", verdicts=FAILS)
    text = findings(tmp_path)
    assert "BLOCKED, 0/3 proceed" in text
    assert not section(text, "## Where information is lost")
    assert not section(text, "## Dimension gap")
    assert not section(text, "## What training adds")
    assert "- `Q1`: NOT RUN." in text
    assert "- `Q2`: NOT RUN." in text
    measured = {"`box_iou`", "`edge_f1`", "`map50`", "`cka`", "`ridge_r2`"}
    assert not [line for line in text.splitlines() if any(metric in line for metric in measured)]
    assert section(text, "## Recommended pivot").count("Not run.") == 4


def test_failed_cells_hold_the_gate_and_say_why(tmp_path: Path) -> None:
    put(tmp_path, "C1", tap="final")
    put(tmp_path, "Q1", tap="final")
    old = sample("Q2")
    failed = {"status": "oom", "reason": "It ran out of *memory*.", "metrics": (), "decision": None, "tap": ""}
    Store(tmp_path).write(old.model_copy(update={**failed, "scores_sha256": "", "picture_sha256": ""}), failure="x")
    text = findings(tmp_path)
    assert "INCONCLUSIVE, 2/3 proceed" in text
    assert "- `Q2`: oom, It ran out of \\*memory\\*." in section(text, "## Decision gates")
    assert "- `Q2`: oom, It ran" in section(text, "## What remains inconclusive")
    assert not section(text, "## Where information is lost")
    assert "2 finished cells, 1 skipped or failed" in text
    assert "Calibration: 0 of 44 checks hold" in text


def test_training_stands_against_the_mean_of_its_seeds(tmp_path: Path) -> None:
    put(tmp_path, "Q2", {at("Q2", "box_iou"): BASE + 0.2})
    seeds = [noise() for _ in range(3)]
    for seed, each in enumerate(seeds):
        put(tmp_path, "Q2", {at("Q2", "box_iou"): BASE + each}, encoder="dinov2:small~random", seed=seed)
    text = section(findings(tmp_path), "## What training adds")
    assert "seeds 0, 1, 2;" in text
    values = " / ".join(number(float((BASE + each).mean())) for each in seeds)
    line = next(re.sub(" +", " ", line) for line in text.splitlines() if "`box_iou`" in line)
    assert f"| {values} | {shown(0.2 - np.mean(seeds, axis=0), 4)} | better |" in line
    assert text.count("not separated") == 3


# The system in focus.


def test_of_several_encoders_the_best_standing_is_in_focus_and_the_text_says_so(tmp_path: Path) -> None:
    baseline(tmp_path)
    put(tmp_path, "C1", encoder="sam:base", verdicts=FAILS)
    put(tmp_path, "Q1", encoder="sam:base")
    put(tmp_path, "Q2", encoder="sam:base")
    put_all(tmp_path, "dinov2:small", seed=1)  # of several seeds the first
    put_all(tmp_path, "dinov2:small+sam:base")  # a pivot, never the one to turn from
    text = findings(tmp_path)
    assert "In focus: `sam:base`, `linear`, `ltx-tiny`; the best-standing of 2 encoders" in text
    assert "- `dinov2:small+sam:base`, `linear`, `ltx-tiny`: `C1`\n" in text
    named = findings(tmp_path, "-e", "dinov2")
    assert "In focus: `dinov2:small`, `linear`, `ltx-tiny`; the only encoder named with -e, through the" in named
    assert "findings" in section(named, "## Provenance")
    assert "-e dinov2 --cohort" in section(named, "## Provenance")
    unknown = invoke(tmp_path, "-e", "unheard-of")
    assert unknown.exit_code == 4
    assert "It holds dinov2:small, dinov2:small+sam:base, sam:base." in unknown.output


def test_another_decoder_is_not_called_the_suites_own(tmp_path: Path) -> None:
    put(tmp_path, "C1", decoder="patch-pca")
    text = findings(tmp_path)
    assert (
        "In focus: `dinov2:small`, `linear`, `patch-pca`; the only encoder that is no hybrid and no single tap." in text
    )


def test_equal_decisions_are_ranked_by_the_worst_skill(tmp_path: Path) -> None:
    for encoder, skill in (("a", 0.9), ("b", 0.2), ("c", 0.5)):
        cell = put(tmp_path / "once", "C1", verdicts=FAILS, encoder=encoder)
        metrics = tuple(r.model_copy(update={"skill": skill}) if r.metric == "ssim" else r for r in cell.metrics)
        others = tuple(r if r.metric == "ssim" else r.model_copy(update={"skill": 0.6}) for r in metrics)
        data = Store(tmp_path / "once").path(cell).with_suffix(".safetensors").read_bytes()
        Store(tmp_path / "all").write(cell.model_copy(update={"metrics": others}), data)
    text = findings(tmp_path / "all")
    assert "In focus: `a`" in text
    order = re.findall(r"^\| `([abc])`, `linear`.*\| ([.\d]+) \(`C1` `\w+`\)", text, re.M)
    assert order == [("a", ".600"), ("c", ".500"), ("b", ".200")]


def test_a_folder_of_controls_alone_has_no_findings(tmp_path: Path) -> None:
    shutil.copytree(QUICK, tmp_path / "r", ignore=shutil.ignore_patterns("dinov2*"))
    done = invoke(tmp_path / "r")
    assert (done.exit_code, "controls alone" in done.output) == (4, True)


# What is taken in.


def test_cohorts_are_never_mixed(tmp_path: Path) -> None:
    put(tmp_path, "C1")
    put(tmp_path, "C1", cohort="quick-1-other")
    done = invoke(tmp_path)
    assert done.exit_code == 2
    assert "Name one with --cohort: quick-1-cb81eef6, quick-1-other." in done.output
    text = findings(tmp_path, "--cohort", "quick-1-other")
    assert "Cohort `quick-1-other`: 1 finished cells" in text
    assert invoke(tmp_path, "--suite", "gate1").exit_code == 4
    assert invoke(tmp_path, "--cohort", "nothing").exit_code == 4
    assert invoke(tmp_path / "nowhere").exit_code == 4


def test_what_the_document_does_not_rest_on_is_named(tmp_path: Path) -> None:
    put(tmp_path, "C1")
    limited = put(tmp_path, "C1", cohort="quick-1-cb81eef6-limit16")
    foreign = put(tmp_path, "C1", suite="theirs", cohort="theirs-1-aa")
    future = put(tmp_path, "C1", suite_version="2", cohort="quick-2-aa")
    alien = put(tmp_path, "C1", experiment="Z9")
    again = sample("C1").provenance.model_copy(update={"machine": "other", "finished": "2020-01-01T00:00:00+00:00"})
    older = put(tmp_path, "C1").model_copy(update={"provenance": again})
    data = Store(tmp_path).path(put(tmp_path, "C1")).with_suffix(".safetensors").read_bytes()
    Store(tmp_path).write(older, data)
    (tmp_path / "notes|`<b>.txt").write_text("")
    broken = put(tmp_path, "Q2")
    Store(tmp_path).path(broken).write_text("{}")
    left = findings(tmp_path).partition("Left out:")[2]
    reasons = {
        limited.id: "a smoke cohort, of at most 16 clips a block",
        foreign.id: "its suite theirs is not installed",
        future.id: "of version 2 of quick; version 1 is installed",
        alien.id: "quick has no experiment Z9",
        f"other/dinov2_small/{older.id}": "another cell, finished later, answers the same",
        "notes": "no cell vouches for it",
        broken.id: "its seal is broken",
    }
    for which, reason in reasons.items():
        assert [line for line in left.splitlines() if which in line and reason in line], (which, left)
    assert len(left.strip().splitlines()) == len(reasons)
    assert "<b>" not in left


def test_words_that_are_no_verdicts_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "Q1")
    cell = put(tmp_path / "x", "C1")
    data = Store(tmp_path / "x").path(cell).with_suffix(".safetensors").read_bytes()
    Store(tmp_path).write(cell.model_copy(update={"decision": "<script>"}), data)
    text = findings(tmp_path / ".")
    assert "it says what is no verdict" in text
    assert "<script" not in text
    shutil.rmtree(tmp_path / "x")


# Nothing that was not measured, and nothing that is not text.

HOSTILE = "a|b`c`<script>alert(1)</script>**x**"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = HOSTILE.replace("/", "")
    old = put(tmp_path / "once", "C1", verdicts=FAILS, encoder=evil, adapter=f"{evil}\n# Injected\n<img src=x>")
    scores = Store(tmp_path / "once").scores(old)
    renamed = {Key(k.metric + "|`<b>", k.tap + "`|", k.readout): found for k, found in scores.items()}
    data = pack(renamed)
    floors = {"f|`<i>": Estimate(value=0.1, low=0.1, high=0.1, n=N)}
    metrics = tuple(
        r.model_copy(
            update={
                "metric": r.metric + "|`<b>",
                "tap": r.tap + "`|",
                "floors": floors,
                "best_floor": "f|`<i>",
                "ceiling_name": "c|`<i>",
                "reason": "[x](http://evil.example) <b>bold</b>\n# Injected | `",
                "verdict": "INCONCLUSIVE" if r.gates else None,
            }
        )
        for r in old.metrics
    )
    evil_cell = old.model_copy(
        update={"metrics": metrics, "tap": old.tap + "`|", "scores_sha256": sha256(data).hexdigest()}
    )
    Store(tmp_path / "r").write(evil_cell, data)
    text = findings(tmp_path / "r")
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert not re.findall(r"<(?:script|img|b|i|a)\b", html)
    assert "Injected</h1>" not in html
    assert "a\\x7cb\\x60c\\x60" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def replicated(difference: Scores, comparisons: int) -> set[str]:
    """Return the numbers of a difference and of its interval, computed here by other means."""
    spread = difference.replicates - difference.replicates.mean()
    stretch = NormalDist().inv_cdf(1 - 0.025 / comparisons) / NormalDist().inv_cdf(0.975)
    low, high = difference.value + stretch * np.quantile(spread, [0.025, 0.975])
    return {number(x) for x in (difference.value, float(low), float(high))}


def gating_scores(cell: Cell) -> dict[str, Scores]:
    scores = Store(QUICK).scores(cell)
    return {r.metric: scores[Key(r.metric, r.tap, r.readout)] for r in cell.metrics if r.gates}


def measured() -> tuple[set[str], set[str]]:
    """Return every number that the findings of the committed results may hold: read, and computed as differences."""
    focus = [sample(experiment) for experiment in ("C1", "Q1", "Q2")]
    read: set[str] = set()
    for cell in (c for c in CELLS if c.identity.encoder == "dinov2:small" and c.status == "ok"):
        for r in cell.metrics:
            gated = [r.ceiling, r.floors.get(r.best_floor)] if r.gates else []
            shown = r.gates or "dim_" in r.metric or (cell in focus and r.readout in ("tokens", "pooled"))
            read |= {number(x) for e in (r.estimate, *gated) if e and shown for x in (e.value, e.low, e.high)}
            read |= {number(r.skill), number(r.threshold)} if r.gates else set()
            if r.verdict == Verdict.FAIL and cell in focus and r.threshold is not None:
                ends = (r.estimate.value, r.estimate.low, r.estimate.high)
                read |= {number(abs(r.threshold - x)) for x in ends if x is not None}
    differences: set[str] = set()
    for cell in focus:
        ours, identity = gating_scores(cell), cell.identity
        beside = [c for c in CELLS if c.status == "ok" and c.identity.experiment == identity.experiment]
        adapters = [c for c in beside if c.identity.encoder == "dinov2:small" and c.identity.decoder == "ltx-tiny"]
        random = [
            gating_scores(c)
            for c in beside
            if c.identity.encoder == "dinov2:small~random" and c.identity.decoder == identity.decoder
        ]
        for metric, scores in ours.items():
            read |= {number(other[metric].value) for other in random}
            mean = Scores(
                float(np.mean([other[metric].value for other in random])),
                np.mean([other[metric].replicates for other in random], axis=0),
                scores.n,
            )
            differences |= replicated(scores.minus(mean), 11)
            for other in adapters if identity.experiment == "C1" else []:
                differences |= replicated(gating_scores(other)[metric].minus(scores), 1)
    curve = Store(QUICK).scores(focus[2])
    for metric in ours:
        every = [curve[Key(metric, tap, "tokens")] for tap in TAPS]
        for place, late in enumerate(every):
            for early in every[:place]:
                differences |= replicated(late.minus(early), 40)
        differences |= replicated(ours[metric].minus(curve[Key(metric, focus[2].tap, "pooled")]), 4)
    return read, differences


def test_every_number_is_that_of_a_cell_or_a_difference() -> None:
    text = re.sub(r"`[^`]*`", "", findings(QUICK).partition("## Provenance")[0])
    read, differences = measured()
    told = re.compile(r"[+-](?:\d*\.\d+|\d+) \[[^\]]*\]")
    of_differences = [each.lstrip("+") for found in told.findall(text) for each in re.findall(r"[+-]?[.\d]+", found)]
    assert len(of_differences) > 90
    assert not [each for each in of_differences if each not in differences]
    of_cells = re.findall(r"(?<![\w.])-?\d*\.\d+(?!\w)", told.sub("", text))
    assert len(of_cells) > 300
    assert not [each for each in of_cells if each not in read]
    # The sets say something: a number of three digits drawn at random is in neither most of the time.
    assert len({each for each in read | differences if re.fullmatch(r"\.\d{3}", each)}) < 400


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    text = findings(QUICK)
    done = invoke(QUICK, "-o", tmp_path / "FINDINGS.md")
    assert (done.exit_code, done.stdout) == (0, "")
    assert (tmp_path / "FINDINGS.md").read_text("utf-8") == text
    assert text.endswith("\n")


def test_the_committed_results_read_as_they_should() -> None:
    text = findings(QUICK)
    assert "**Gate 1: Reconstruction: BLOCKED, 0/3 proceed.**" in text
    assert "`linear`, `ltx-tiny`; the only encoder that is no hybrid and no single tap, through the suite's own" in text
    assert "- `dinov2:small`, `linear`, `patch-pca`: `C1` and `Q1`" in text
    assert "`map50` worsens after `block.8`; of `box_iou` no loss can be told" in text
    gap = section(text, "## Dimension gap")
    assert "- `dim_mle`: no gap that the interval can tell." in gap
    assert "- `dim_pca95`: the encoder's space has more dimensions." in gap
    assert "Calibration: 72 of 72 checks hold" in text
    spare = findings(QUICK, "-e", "dinov2:small~random")
    assert "In focus: `dinov2:small~random`" in spare
    assert "worse" in section(spare, "## Where information is lost")
