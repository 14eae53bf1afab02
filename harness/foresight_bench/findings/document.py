"""The decision document of one cohort: Markdown, every sentence of it derived from the numbers of finished cells."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from foresight_bench.calibration import calibration
from foresight_bench.findings import answers, evidence, recommendation
from foresight_bench.findings.dossier import Dossier, Standing, focus, gather
from foresight_bench.findings.markdown import bullets, name, names, prose, system, table
from foresight_bench.intake import plain
from foresight_bench.registry import Registry
from foresight_bench.tables import number, suite_experiments


def document(
    root: Path, registry: Registry, encoders: Sequence[str] = (), suite: str | None = None, cohort: str | None = None
) -> str:
    """Return the document.

    Raises:
        DataError: nothing in ``root`` is usable, or it holds no such encoder.
        UsageError: it holds several cohorts and none is named.
    """
    found = gather(root, registry, suite, cohort)
    chosen, why = focus(found, registry, encoders)
    sections = [
        f"# Findings\n\nSuite {name(found.suite.name)}, version {prose(found.suite.version)}: "
        f"{prose(found.suite.description)}. Numbers are of held-out clips; brackets hold 95% intervals over clips.",
        _status(found, chosen, why),
        answers.experiments(found, chosen),
        answers.gates(found, chosen),
        answers.learnings(chosen),
        evidence.loss(found, chosen),
        evidence.taps(chosen),
        evidence.dimensions(chosen),
        evidence.random(found, chosen),
        recommendation.pivot(found, chosen),
        answers.undecided(found, chosen),
        _provenance(found, chosen, root, encoders),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _status(found: Dossier, chosen: Standing, why: str) -> str:
    own = chosen.system[1:3] == (found.suite.default_adapter, found.suite.default_decoder)
    through = ", through the suite's own adapter and decoder" if own else ""
    lines = ["## Project status", f"In focus: {system(chosen.system)}; {why}{through}."]
    for gate, result in zip(found.suite.gates, chosen.gates, strict=True):
        done = [each for each in gate.experiments if each in chosen.proceeding]
        lines.append(f"**{prose(gate.title)}: {result.status}, {len(done)}/{len(gate.experiments)} proceed.**")
    experiments = list(suite_experiments(found.suite))
    rows = [
        [
            system(each.system),
            *(answers.decision(each.cells.get(experiment)) for experiment in experiments),
            *(str(result.status) for result in each.gates),
            f"{number(each.least[0])} ({name(each.least[1])} {name(each.least[2])})" if each.gated else "-",
        ]
        for each in found.candidates
    ]
    headers = ["system", *map(name, experiments), *(prose(gate.title) for gate in found.suite.gates), "least skill"]
    lines.append(table(headers, rows))
    most = max((len(each.proceeding) for each in found.candidates), default=0)
    best = [each for each in found.candidates if len(each.proceeding) == most]
    if most > len(chosen.proceeding):
        lines.append(
            "Best-standing, and what proceeds there but not in focus:\n\n"
            + bullets(_ahead(each, chosen) for each in best)
        )
    return "\n\n".join(lines)


def _ahead(best: Standing, chosen: Standing) -> str:
    more = [each for each in best.proceeding if each not in chosen.proceeding]
    return f"{system(best.system)}: {names(more)}"


def _clips(chosen: Standing) -> str:
    counts = {experiment: result.estimate.n for experiment, result in chosen.gated}
    return ", ".join(f"{name(experiment)} {n}" for experiment, n in counts.items()) or "none"


def _provenance(found: Dossier, chosen: Standing, root: Path, encoders: Sequence[str]) -> str:
    checks = calibration(found.suite, found.controls, found.store).checks
    holding = sum(check.holds for check in checks)
    records = [cell.provenance for cell in found.cells]
    libraries = sorted({f"{library} {version}" for each in records for library, version in each.libraries.items()})
    commits = sorted(
        {each.commit + (" with uncommitted changes" if each.dirty else "") for each in records if each.commit}
    )
    packages = {f"{code.distribution} {code.version}" for cell in found.cells for code in cell.identity.code.values()}
    finished = sum(cell.status == "ok" for cell in found.cells)
    lines = [
        f"Cohort {name(found.cohort)}: {finished} finished cells, {len(found.cells) - finished} skipped or failed.",
        f"Calibration: {holding} of {len(checks)} checks hold (ceilings pass, floors fail, by whole intervals).",
        f"Clips: {_clips(chosen)}.",
        f"Commits of the harness: {names(commits)}.",
        f"Measured on {names(sorted({each.device for each in records}))} by {names(sorted(packages))}, Python "
        f"{names(sorted({each.python for each in records}))}; {names(libraries)}.",
    ]
    options = [part for encoder in encoders for part in ("-e", encoder)]
    command = shlex.join(["foresight-bench", "findings", str(root), *options, "--cohort", found.cohort])
    text = f"## Provenance\n\n{bullets(lines)}\n\nWritten by:\n\n    {plain(command)}"
    if found.left_out:
        text += "\n\nLeft out:\n\n" + bullets(f"{name(each.path)}: {prose(each.text)}" for each in found.left_out)
    return text
