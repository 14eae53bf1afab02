"""Estimates, verdicts and decisions once more, from the scores beside the cells: nothing is run, no torch is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

from foresight_bench.cells import FINISHED, Cell, Estimate, MetricResult
from foresight_bench.contracts import Measurement, Outcome
from foresight_bench.errors import DataError
from foresight_bench.identities import cohort
from foresight_bench.intake import take
from foresight_bench.judging import OWN_FLOOR, metric_results
from foresight_bench.packing import Key
from foresight_bench.plan import named_controls
from foresight_bench.recomputing import agree, altered, key
from foresight_bench.registry import Registry
from foresight_bench.scores import Scores
from foresight_bench.specs import ExperimentSpec
from foresight_bench.store import Store
from foresight_bench.tables import suite_experiments
from foresight_bench.validating import SMOKE
from foresight_bench.verdicts import Verdict, decide


@dataclass(frozen=True)
class Rescored:
    """What rescoring did."""

    cells: int
    """Finished cells, all of which were written."""
    changed: tuple[str, ...]
    """Ids of those that say something else than before."""


def rescore(root: Path, out: Path, registry: Registry) -> Rescored:
    """Write every finished cell of ``root`` into the new folder ``out``, judged anew by the installed suites.

    Identity, id, cost and provenance stay: they are about the scores, which do. What sound scores and unchanged
    thresholds give is the same file, byte for byte.

    Raises:
        DataError: a file in ``root`` is not sound, or of another cohort than the installed suite's; a cell's control
            is not there; scores are not those of their clips. Nothing is written.
        EnvironmentFault: ``out`` cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already.", "Name a new folder with -o: results are never changed in place.")
    taken = take(root)
    if taken.faults:
        raise DataError(f"Cannot rescore: {taken.faults[0]}.", f"Run `foresight-bench validate {root}` for all of it.")
    done = [cell for cell in taken.cells if cell.status in FINISHED]
    if not done:
        raise DataError(f"{root} holds no finished cells.", "Name a results folder, as `run --results` writes it.")
    anew = [_rescored(cell, done, taken.path(cell), Store(root), registry) for cell in done]
    store = Store(out)
    for cell in anew:
        store.write(cell, taken.beside(cell, ".safetensors"), taken.beside(cell, ".png"))
    return Rescored(len(done), tuple(new.id for new, old in zip(anew, done, strict=True) if new != old))


def _rescored(cell: Cell, done: Sequence[Cell], path: Path, store: Store, registry: Registry) -> Cell:
    identity = cell.identity
    suite = registry.suites[identity.suite].spec
    smoke = SMOKE.fullmatch(identity.cohort)
    if (smoke["cohort"] if smoke else identity.cohort) != (expected := cohort(registry, suite)):
        raise DataError(f"{path} is of cohort {identity.cohort}, not {expected}.", "Install the suite it was run on.")
    if cell.status != "ok":
        return cell
    scores = store.scores(cell)
    if wrong := altered(registry, cell, scores):
        raise DataError(f"{path}: the scores {wrong[0]} are not those of its clips.", "Delete it and run it again.")
    spec = suite_experiments(suite).get(identity.experiment)
    if spec is None:
        raise DataError(f"{path}: {identity.experiment!a} is no experiment of the suite.", "Delete it.")
    results = metric_results(spec, _outcome(cell, scores), registry, _controls(cell, spec, done, store))
    metrics = tuple(_settled(result, cell.metrics) for result in results)
    judged = [Verdict(result.verdict) for result in metrics if result.verdict is not None]
    return cell.model_copy(update={"metrics": metrics, "decision": decide(judged) if judged else None})


def _outcome(cell: Cell, scores: Mapping[Key, Scores]) -> Outcome:
    """Return what the experiment measured; what it did not, and was NOT RUN for, is left out as it was then."""
    measurements = []
    for result in cell.metrics:
        found = scores.get(key(result))
        if found is not None:
            details = {name: nan if value is None else value for name, value in result.details.items()}
            full = Scores(found.value, found.replicates, found.n, found.per_clip, details)
            measurements.append(Measurement(result.metric, result.tap, result.readout, full))
    own = [Measurement(k.metric, k.tap, k.readout, each) for k, each in scores.items() if k.row == OWN_FLOOR]
    return Outcome(cell.tap, cell.readout, tuple(measurements), tuple(own))


def _controls(
    cell: Cell, spec: ExperimentSpec, done: Iterable[Cell], store: Store
) -> dict[str, dict[str, Scores]] | None:
    """Return the gating scores of the controls beside ``cell``; None if it is one, or was judged beside none."""
    if cell.decision is None:
        return None
    beside = [other for other in done if _beside(other, cell)]
    controls = {}
    for name in sorted(named_controls(spec) - {"", OWN_FLOOR}):
        # With the cell's own adapter; what takes none (the oracle) stands beside all.
        choices = [other for other in beside if other.identity.encoder == name]
        choices = [other for other in choices if other.identity.adapter is not None] or choices
        if len(choices) != 1:
            raise DataError(
                f"Beside {cell.id}, {cell.identity.encoder} in {spec.name}, stand {len(choices)} cells of {name}.",
                "Merge the results of exactly one run of each control into the folder first.",
            )
        if choices[0].status == "ok":
            controls[name] = gating_scores(choices[0], store.scores(choices[0]))
    return controls


def _beside(control: Cell, cell: Cell) -> bool:
    """Return whether ``cell`` may be judged beside ``control``: all that both rest on is the same."""
    a, b = control.identity, cell.identity
    return (
        control.provenance.machine == cell.provenance.machine
        and (a.cohort, a.experiment, a.decoder) == (b.cohort, b.experiment, b.decoder)
        and a.adapter in (None, b.adapter)
        and all(a.code[name] == b.code[name] for name in a.code.keys() & b.code.keys())
        and all(a.weights[name] == b.weights[name] for name in a.weights.keys() & b.weights.keys())
        and all(
            a.parameters[part] == b.parameters[part]
            for part in (a.parameters.keys() & b.parameters.keys()) - {"encoder"}
        )
    )


def gating_scores(cell: Cell, scores: Mapping[Key, Scores]) -> dict[str, Scores]:
    """Return the scores of ``cell`` at the tap and readout that gate, by metric."""
    return {
        name.metric: each
        for name, each in scores.items()
        if (name.row, name.tap, name.readout) == ("score", cell.tap, cell.readout)
    }


def _settled(new: MetricResult, stored: Sequence[MetricResult]) -> MetricResult:
    """Return ``new`` with the stored estimates where they agree: their intervals are of replicates before rounding."""
    old = next((each for each in stored if key(each) == key(new)), None)
    if old is None:
        return new
    floors = {name: _kept(floor, old.floors.get(name)) for name, floor in new.floors.items()}
    return new.model_copy(update={"estimate": _kept(new.estimate, old.estimate), "floors": floors})


def _kept(new: Estimate, old: Estimate | None) -> Estimate:
    return old if old is not None and agree(new, old) else new
