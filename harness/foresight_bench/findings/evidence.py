"""Evidence beside the verdicts: where information is lost, the best tap, dimensions, what training adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foresight_bench.cells import Cell, Estimate
from foresight_bench.findings.contrasts import POOLED, Contrast, Fall, falls, pooling, sense, training, widened
from foresight_bench.findings.dossier import Dossier, Standing
from foresight_bench.findings.markdown import bullets, name, signed, table
from foresight_bench.tables import SPACES, number, spaces, suite_experiments, with_interval

TOLD = {1: "better", 0: "not separated", -1: "worse"}


def loss(found: Dossier, chosen: Standing) -> str:
    """Return where information is lost: the experiments that neither adapter nor decoder has a part in."""
    parts = []
    for experiment, spec in suite_experiments(found.suite).items():
        cell = chosen.cells.get(experiment)
        if cell is None or cell.status != "ok" or spec.axes:
            continue
        scores = found.store.scores(cell)
        parts += [_falls(cell, *falls(cell, scores)), _pooling(cell, pooling(cell, scores))]
    return "\n\n".join(["## Where information is lost", *filter(None, parts)]) if any(parts) else ""


def _falls(cell: Cell, found: Sequence[Fall], comparisons: int) -> str:
    if not found:
        return ""
    taps = [tap for tap in cell.identity.taps if any(result.tap == tap for result in cell.metrics)]
    rows = [
        [
            name(fall.metric) + (" (lower is better)" if fall.direction == "lower" else ""),
            f"{with_interval(fall.value)} at {name(fall.best)}",
            name(fall.before) if fall.before else "no loss that the interval can tell",
            f"{signed(fall.change)} at {name(fall.at)} against {name(fall.against)}" if fall.change else "",
            signed(fall.last) if fall.last else "",
        ]
        for fall in found
    ]
    headers = ["quantity", "best", "worse after", "by", f"{name(taps[-1])} against the best"]
    return (
        f"{name(cell.identity.experiment)} was read at these taps and no others, in order of depth, from "
        f"{name(cell.readout)}:\n\n{_curves(cell, found, taps)}\n\nA loss is told at the first tap that is worse than "
        f"the best before it by its paired interval; the intervals of the {comparisons} differences between taps hold "
        f"together at 95% (Bonferroni).\n\n{table(headers, rows)}"
    )


def _curves(cell: Cell, found: Sequence[Fall], taps: Sequence[str]) -> str:
    read = {(r.metric, r.tap): r.estimate for r in cell.metrics if r.readout == cell.readout}
    rows = [[name(tap), *(with_interval(read.get((fall.metric, tap))) for fall in found)] for tap in taps]
    return table(["tap", *(name(fall.metric) for fall in found)], rows)


def _pooling(cell: Cell, found: Sequence[Contrast]) -> str:
    if not found:
        return ""
    rows = [
        [
            name(each.metric),
            with_interval(each.ours),
            with_interval(each.theirs[0]),
            signed(difference),
            TOLD[sense(difference, each.direction)],
        ]
        for each, difference in ((each, widened(each.difference, len(found))) for each in found)
    ]
    headers = ["quantity", name(cell.readout), name(POOLED), "difference", f"{name(cell.readout)} are"]
    return (
        f"Heads of one kind at {name(cell.tap)}, on {name(cell.readout)} and on their mean over a frame; the "
        f"intervals of the {len(found)} differences hold together at 95% (Bonferroni):\n\n{table(headers, rows)}"
    )


def taps(chosen: Standing) -> str:
    """Return the tap of each experiment, and whether one serves all."""
    read = {experiment: cell for experiment, cell in chosen.cells.items() if cell.tap}
    if not read:
        return ""
    lines = bullets(f"{name(experiment)}: {name(cell.tap)}" for experiment, cell in read.items())
    one = {cell.tap for cell in read.values()}
    if len(read) == 1:
        said = ""
    elif len(one) == 1:
        said = f"\n\nOne tap serves all of them: {name(min(one))}."
    else:
        said = "\n\nNo one tap was chosen by all of them; ENCODER@TAP asks one tap all questions."
    return f"## Best tap\n\nChosen on clips that are not scored here:\n\n{lines}{said}"


def dimensions(chosen: Standing) -> str:
    """Return the intrinsic dimension of both spaces, by every estimator."""
    rows, said = [], []
    for cell in chosen.cells.values():
        for metric, values in spaces(cell).items():
            rows.append([name(metric), name(cell.tap), *(with_interval(values.get(space)) for space in SPACES)])
            said.append(f"{name(metric)}: {_gap(values)}.")
    if not rows:
        return ""
    body = table(["estimator", "tap", *SPACES.values()], rows)
    return f"## Dimension gap\n\nDescriptive: no verdict rests on it.\n\n{body}\n\n{bullets(said)}"


def _gap(values: Mapping[str, Estimate]) -> str:
    """Return which space has more dimensions, if intervals can tell: that of the ratio, else those of the two."""
    ends = {
        space: (each.low, each.high) for space, each in values.items() if each.low is not None and each.high is not None
    }
    if "ratio" in ends:
        low, high = (end - 1 for end in ends["ratio"])
    elif {"encoder", "decoder"} <= ends.keys():
        low, high = ends["decoder"][0] - ends["encoder"][1], ends["decoder"][1] - ends["encoder"][0]
    else:
        return "not measured in both"
    if low <= 0 <= high:
        return "no gap that the interval can tell"
    return f"the {'decoder' if low > 0 else 'encoder'}'s space has more dimensions"


def random(found: Dossier, chosen: Standing) -> str:
    """Return what training adds: the same architecture with random weights, where that was run."""
    encoder, adapter, decoder, _ = chosen.system
    others = [s for s in found.standings if s.system[:3] == (f"{encoder}~random", adapter, decoder)]
    others.sort(key=lambda standing: standing.system[3])
    contrasts: list[Contrast] = []
    for experiment, cell in chosen.cells.items():
        beside = [s.cells[experiment] for s in others if experiment in s.cells]
        beside = [other for other in beside if other.status == "ok"]
        if cell.status == "ok" and beside:
            untrained = [(other, found.store.scores(other)) for other in beside]
            contrasts += training(cell, found.store.scores(cell), untrained)
    if not contrasts:
        return ""
    rows = []
    for each in contrasts:
        difference = widened(each.difference, len(contrasts))
        random = " / ".join(number(other.value) for other in each.theirs)
        told = TOLD[sense(difference, each.direction)]
        rows.append(
            [name(each.experiment), name(each.metric), number(each.ours.value), random, signed(difference), told]
        )
    seeds = ", ".join(str(s.system[3]) for s in others)
    headers = ["experiment", "metric", "trained", "random", "trained - random", "trained is"]
    return (
        f"## What training adds\n\n{name(f'{encoder}~random')} is the architecture with random weights, here of "
        f"seed{'s' if len(others) > 1 else ''} {seeds}; the difference is to their mean, each cell at the tap it "
        f"chose. The intervals of the {len(contrasts)} differences hold together at 95% (Bonferroni); they are over "
        f"clips, not over seeds.\n\n{table(headers, rows)}"
    )
