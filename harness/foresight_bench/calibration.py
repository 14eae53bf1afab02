"""The suite's own test: does every threshold separate what must pass from what must fail?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from foresight_bench.cells import Cell, Estimate
from foresight_bench.judging import OWN_FLOOR, estimate
from foresight_bench.specs import SuiteSpec
from foresight_bench.store import Store
from foresight_bench.tables import number, with_interval


@dataclass(frozen=True)
class Check:
    """One control at one threshold."""

    experiment: str
    decoder: str
    """Empty where the experiment uses none."""
    metric: str
    direction: str
    threshold: float
    control: str
    must: str
    """``pass`` or ``fail``."""
    estimate: Estimate | None
    """None if the control's cell has no such value."""

    @property
    def holds(self) -> bool:
        """Whether the control does what it must, by its whole 95 % interval."""
        found = self.estimate
        if found is None or found.low is None or found.high is None:
            return False
        sign = 1 if self.direction == "higher" else -1
        worst, best = sorted((sign * found.low, sign * found.high))
        return worst > sign * self.threshold if self.must == "pass" else best <= sign * self.threshold


@dataclass(frozen=True)
class Calibration:
    """All checks of a suite."""

    checks: tuple[Check, ...]

    @property
    def separates(self) -> bool:
        """Whether every check holds."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    def records(self) -> list[dict[str, object]]:
        """Return the checks as plain data."""
        return [
            {
                "experiment": c.experiment,
                "decoder": c.decoder,
                "metric": c.metric,
                "threshold": c.threshold,
                "control": c.control,
                "must": c.must,
                "estimate": c.estimate.model_dump() if c.estimate else None,
                "holds": c.holds,
            }
            for c in self.checks
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and body of a table with one row a threshold and one column a floor."""
        floors = list(dict.fromkeys(c.control for c in self.checks if c.must == "fail"))
        body = []
        for key in dict.fromkeys((c.experiment, c.decoder, c.metric) for c in self.checks):
            checks = [c for c in self.checks if (c.experiment, c.decoder, c.metric) == key]
            values = {c.control: with_interval(c.estimate) for c in checks}
            ceiling = next(c for c in checks if c.must == "pass")
            sign = ">" if ceiling.direction == "higher" else "<"
            body.append(
                [*key, f"{sign} {number(ceiling.threshold)}"]
                + [f"{values[ceiling.control]} {ceiling.control}"]
                + [values.get(floor, "-") for floor in floors]
                + ["yes" if all(c.holds for c in checks) else "NO"]
            )
        headers = ["experiment", "decoder", "metric", "threshold", "ceiling, must pass"]
        return headers + [f"{floor}, must fail" for floor in floors] + ["separates"], body

    def text(self, style: str = "simple") -> str:
        """Return that table as text."""
        headers, body = self.table()
        return tabulate(body, headers, tablefmt=style, disable_numparse=True)


def calibration(suite: SuiteSpec, cells: Sequence[Cell], store: Store) -> Calibration:
    """Check every threshold of ``suite`` against the control cells, with each decoder that they were run with.

    The ``shuffled`` floor of a threshold is that of its own ceiling: the very features that pass, handed to
    the wrong clips. Of floors that went through several adapters, those of the suite's default one count.
    """
    found: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for cell in cells:
        identity = cell.identity
        if cell.status != "ok" or identity.adapter not in (None, suite.default_adapter):
            continue
        for key, scores in store.scores(cell).items():
            if (key.tap, key.readout) == (cell.tap, cell.readout):
                name = identity.encoder + (f"~{key.row}" if key.row == OWN_FLOOR else "")
                place = identity.experiment, identity.decoder or "", name
                found.setdefault(place, {})[key.metric] = estimate(scores)
    decoders = sorted({decoder for _, decoder, _ in found if decoder}) or [suite.default_decoder]
    checks = []
    for spec in suite.experiments:
        for decoder in decoders if "decoder" in spec.axes else [""]:
            for criterion in spec.criteria:
                if criterion.threshold is None:
                    continue
                direction = _direction(cells, criterion.metric)
                expected = [(criterion.ceiling, criterion.ceiling, "pass")]
                for floor in criterion.floors:
                    expected.append((f"{criterion.ceiling}~{floor}" if floor == OWN_FLOOR else floor, floor, "fail"))
                for row, shown, must in expected:
                    value = found.get((spec.name, decoder, row), {}).get(criterion.metric)
                    checks.append(
                        Check(spec.name, decoder, criterion.metric, direction, criterion.threshold, shown, must, value)
                    )
    return Calibration(tuple(checks))


def _direction(cells: Sequence[Cell], metric: str) -> str:
    return next((result.direction for cell in cells for result in cell.metrics if result.metric == metric), "higher")
