"""The pivot that the numbers recommend, of those that were run, and what each option changes."""

from __future__ import annotations

from foresight_bench.cells import Estimate
from foresight_bench.findings.dossier import Dossier, Standing
from foresight_bench.findings.markdown import name, names, prose, signed, system, table
from foresight_bench.findings.pivots import Kind, Option, Pivots, pivots
from foresight_bench.tables import with_interval
from foresight_bench.verdicts import GateStatus, Verdict


def pivot(found: Dossier, chosen: Standing) -> str:
    """Return the recommended pivot, of those that were run."""
    judged = pivots(found, chosen)
    parts = ["## Recommended pivot", _recommendation(found, judged)]
    if judged.comparisons:
        parts.append(
            f"Each option minus {system(chosen.system)}, over the same clips; 95% intervals. An improvement counts if "
            f"it also stands when the intervals of all {judged.comparisons} differences hold together (Bonferroni); a "
            "loss counts by its own interval."
        )
    for kind in Kind:
        options = [option for option in judged.options if option.kind is kind]
        body = "\n\n".join(_option(judged, option) for option in options)
        parts.append(f"### {kind}\n\n{body or 'Not run.'}")
    return "\n\n".join(parts)


def _recommendation(found: Dossier, judged: Pivots) -> str:
    if judged.baseline.gates and all(result.status is GateStatus.PASSED for result in judged.baseline.gates):
        return "None is needed: the gate is passed."
    if not judged.failing:
        return "None: no gated metric fails."
    run = sum(bool(option.differences) for option in judged.options)
    if not judged.recommended:
        return f"None: of {run} that were run, no option improves a failing metric and worsens no gated one."
    best, *others = judged.recommended
    gains = ", ".join(_gain(each.experiment, each.metric, each.difference) for each in judged.helps(best))
    lines = [
        f"Of {run} options that were run: **{best.kind}: {system(best.standing.system)}.** It improves {gains}; "
        "no gated metric is worse by its interval."
    ]
    passes = {(experiment, r.metric) for experiment, r in best.standing.gated if r.verdict == Verdict.PASS}
    gates = zip(found.suite.gates, best.standing.gates, strict=True)
    statuses = ", ".join(f"{prose(gate.title)} is {result.status}" for gate, result in gates)
    lines.append(
        f"With it {len(judged.failing & passes)} of the {len(judged.failing)} failing metrics pass; "
        f"{statuses or 'no gate is set'}."
    )
    if others:
        lines.append(
            "A failing metric improves, and no gated one is worse by its interval, also with "
            f"{'; '.join(system(each.standing.system) for each in others)}. "
            "The options are not compared with one another."
        )
    return "\n\n".join(lines)


def _gain(experiment: str, metric: str, difference: Estimate) -> str:
    return f"{name(experiment)} {name(metric)} by {signed(difference)}"


def _option(judged: Pivots, option: Option) -> str:
    lines = [f"**{system(option.standing.system)}**"]
    for experiment in option.missing:
        cell = option.standing.cells.get(experiment)
        why = "not run." if cell is None else "not every gated metric pairs with that of the system in focus."
        if cell is not None and cell.status != "ok":
            why = f"{cell.status}. {prose(cell.reason)}"
        lines.append(f"{name(experiment)}: {why}")
    if option.same:
        lines.append(f"{names(option.same)}: the same cells as those of the system in focus.")
    rows = [
        [
            name(each.experiment),
            name(each.metric),
            with_interval(each.b),
            with_interval(each.a),
            signed(each.difference),
            judged.reading(each),
        ]
        for each in option.differences
    ]
    if rows:
        lines.append(table(["experiment", "metric", "now", "option", "difference", "option is"], rows))
    return "\n\n".join(lines)
