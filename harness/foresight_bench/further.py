"""Metrics that no suite names: reported beside an experiment's own, where that measures their kind. They never gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from foresight_bench.errors import UsageError
from foresight_bench.registry import Registry
from foresight_bench.specs import Criterion, ExperimentSpec

PART = "metrics"
"""Part of a cell's parameters: the versions of its further metrics by name. A cell without any has no such part."""


def reporting(
    registry: Registry, experiments: Sequence[ExperimentSpec], names: Iterable[str]
) -> tuple[ExperimentSpec, ...]:
    """Return ``experiments`` with the metrics ``names`` among what they report, each where its kind is measured.

    What an experiment measures is what its own metrics score. One that it names already stays as it is there.

    Raises:
        PluginError: a name is unknown or ambiguous.
        UsageError: none of ``experiments`` measures the kind of a metric.
    """
    found = list(experiments)
    for name in dict.fromkeys(names):
        kind = registry.metrics[name].spec.kind
        able = [
            index
            for index, spec in enumerate(experiments)
            if kind in {registry.metrics[criterion.metric].spec.kind for criterion in spec.criteria}
        ]
        if not able:
            chosen = ", ".join(spec.name for spec in experiments)
            raise UsageError(
                f"No selected experiment ({chosen}) measures {kind}, which {name} scores.",
                "Select another one, with -x.",
            )
        for index in able:
            spec = found[index]
            if name not in metrics(spec):
                found[index] = replace(spec, criteria=(*spec.criteria, Criterion(name)))
    return tuple(found)


def metrics(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return the names of all metrics of an experiment."""
    return tuple(criterion.metric for criterion in spec.criteria)
