"""Question and answer per experiment, the gates, what works and what does not, and what is undecided."""

from __future__ import annotations

from collections.abc import Sequence

from foresight_bench.cells import Cell, Estimate, MetricResult
from foresight_bench.findings.contrasts import Fall, falls
from foresight_bench.findings.dossier import Dossier, Standing
from foresight_bench.findings.markdown import bullets, name, names, prose, table
from foresight_bench.tables import gating, number, suite_experiments, threshold, with_interval
from foresight_bench.verdicts import GateStatus, Verdict


def decision(cell: Cell | None) -> str:
    if cell is None:
        return "not run"
    if cell.status != "ok":
        return cell.status
    return f"{cell.decision} at {name(cell.tap)}" if cell.decision else "no verdict"


def experiments(found: Dossier, chosen: Standing) -> str:
    parts = ["## Experiments"]
    for experiment, spec in suite_experiments(found.suite).items():
        cell = chosen.cells.get(experiment)
        question = f"**Question:** {prose(spec.question)}"
        if cell is None or cell.status != "ok":
            parts.append(f"### {name(experiment)}: {decision(cell)}\n\n{question}")
            continue
        lost = "" if spec.axes else _lost(falls(cell, found.store.scores(cell))[0])
        body = table(
            ["metric", "value", "threshold", "best floor", "ceiling", "skill", "verdict"],
            [_row(r) for r in gating(cell)],
        )
        heading = f"### {name(experiment)}: {cell.decision or 'no verdict'}"
        parts.append(f"{heading}\n\n{question}\n\n**Answer:** {_answer(cell)}{lost}\n\n{body}")
    return "\n\n".join(parts)


def _answer(cell: Cell) -> str:
    """Return how many of the gated metrics have which verdict, at which tap."""
    gated = gating(cell)
    said = []
    for verdict in Verdict:
        mine = [result.metric for result in gated if result.verdict == verdict]
        if mine:
            said.append(f"{len(mine)} of {len(gated)} {verdict} ({names(mine)})")
    clips = max((result.estimate.n for result in gated), default=0)
    return f"{'; '.join(said) or 'no gated metric'}, at {name(cell.tap)} over {clips} clips."


def _lost(found: Sequence[Fall]) -> str:
    """Return after which taps which quantities fall, in the order of the taps' first mention."""
    after: dict[str, list[str]] = {}
    for fall in found:
        after.setdefault(fall.before, []).append(fall.metric)
    none = after.pop("", [])
    said = [
        f"{names(metrics)} worsen{'s' if len(metrics) == 1 else ''} after {name(tap)}" for tap, metrics in after.items()
    ]
    if none:
        said.append(f"of {names(none)} no loss can be told")
    return f" Over depth: {'; '.join(said)}." if said else ""


def _row(result: MetricResult) -> list[str]:
    floor = result.floors.get(result.best_floor)
    return [
        name(result.metric),
        with_interval(result.estimate),
        threshold(result),
        f"{with_interval(floor)} {name(result.best_floor)}" if floor else "-",
        f"{with_interval(result.ceiling)} {name(result.ceiling_name)}" if result.ceiling else "-",
        number(result.skill),
        result.verdict or "-",
    ]


def gates(found: Dossier, chosen: Standing) -> str:
    parts = ["## Decision gates"]
    for gate, result in zip(found.suite.gates, chosen.gates, strict=True):
        done = [each for each in gate.experiments if each in chosen.proceeding]
        held = [each for each in gate.experiments if each not in done]
        lines = [
            f"### {prose(gate.title)}: {result.status}",
            f"**Progress:** {len(done)}/{len(gate.experiments)} proceed.",
        ]
        if held:
            lines.append(f"**Blocker:** held by {names(held)}.\n\n" + bullets(_holds(chosen, each) for each in held))
        elif result.status is not GateStatus.PASSED:
            at = "; ".join(f"{name(each)} at {name(tap)}" for each, tap in result.taps.items())
            lines.append(f"**Blocker:** all proceed, at different taps ({at}): no one representation does it all.")
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _holds(chosen: Standing, experiment: str) -> str:
    """Return what keeps one experiment from proceeding."""
    cell = chosen.cells.get(experiment)
    if cell is None or cell.status != "ok":
        return f"{name(experiment)}: {decision(cell)}" + (f", {prose(cell.reason)}" if cell and cell.reason else "")
    why = []
    for result in gating(cell):
        if result.verdict == Verdict.FAIL and (missed := _missed(result)):
            why.append(f"{name(result.metric)} misses {threshold(result)} by {missed}")
        elif result.verdict != Verdict.PASS:
            why.append(f"{name(result.metric)} is {result.verdict}")
    return f"{name(experiment)} {cell.decision}: {'; '.join(why) or 'no gated metric'}"


def _missed(result: MetricResult) -> str:
    """Return by how much a value misses its threshold, with its interval."""
    found = result.estimate
    if found.value is None or found.low is None or found.high is None or result.threshold is None:
        return ""
    gaps = [abs(result.threshold - each) for each in (found.value, found.low, found.high)]
    return with_interval(Estimate(value=gaps[0], low=min(gaps), high=max(gaps), n=found.n))


def learnings(chosen: Standing) -> str:
    """Return what works and what does not, by verdict, each in order of skill."""

    def lines(verdict: Verdict, sign: int) -> str:
        mine = [each for each in chosen.gated if each[1].verdict == verdict]
        mine.sort(key=lambda each: (sign * (each[1].skill or 0.0), each[0], each[1].metric))
        return bullets(
            f"{name(experiment)} {name(r.metric)}: {with_interval(r.estimate)}, {threshold(r)}; skill {number(r.skill)}"
            for experiment, r in mine
        )

    works = lines(Verdict.PASS, -1) or "No gated metric passes."
    fails = lines(Verdict.FAIL, 1) or "No gated metric fails."
    skill = "Skill is 0 at the best floor and 1 at the ceiling."
    return f"## Key learnings\n\n{skill}\n\n### What is working\n\n{works}\n\n### What is not working\n\n{fails}"


def undecided(found: Dossier, chosen: Standing) -> str:
    """Return what no verdict could be given on, and what was not run."""
    lines = []
    for experiment, r in chosen.gated:
        if r.verdict not in (Verdict.PASS, Verdict.FAIL):
            clips = (
                f"; about {r.clips_needed} clips would decide, should the value stay"
                if r.clips_needed is not None
                else ""
            )
            value = f" {with_interval(r.estimate)}, {threshold(r)}" if r.estimate.value is not None else ""
            reason = f", {prose(r.reason)}" if r.reason else ""
            lines.append(f"{name(experiment)} {name(r.metric)}{value}: {r.verdict or 'no verdict'}{reason}{clips}.")
    for experiment in suite_experiments(found.suite):
        cell = chosen.cells.get(experiment)
        if cell is None:
            lines.append(f"{name(experiment)}: NOT RUN.")
        elif cell.status != "ok":
            lines.append(f"{name(experiment)}: {cell.status}, {prose(cell.reason)}")
    return f"## What remains inconclusive\n\n{bullets(lines) or 'Nothing: every gated metric passes or fails.'}"
