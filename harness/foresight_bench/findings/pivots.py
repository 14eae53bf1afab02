"""Which way to turn: the systems that were run beside one that a gate holds up, and what they change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from foresight_bench.cells import Cell
from foresight_bench.comparing import Difference, Found, compare
from foresight_bench.errors import UsageError
from foresight_bench.findings.contrasts import sense, widened
from foresight_bench.findings.dossier import Dossier, Standing
from foresight_bench.store import Store
from foresight_bench.tables import gating
from foresight_bench.verdicts import Verdict


class Kind(StrEnum):
    """A way to turn, in the order in which they are told."""

    HYBRID = "Hybrid encoder"
    TAP = "Pre-merge or other single tap"
    ADAPTER = "Another adapter, spatial enhancement among them"
    ENCODER = "Another encoder"


@dataclass(frozen=True)
class Option:
    """A system that was run beside the baseline."""

    kind: Kind
    standing: Standing
    differences: tuple[Difference, ...]
    """Of every gated metric that pairs: this system (A) minus the baseline (B)."""
    same: tuple[str, ...]
    """Experiments whose cell is that of the baseline: what differs has no part in them."""
    missing: tuple[str, ...]
    """Experiments of the baseline of which a gated metric has no difference: no finished cell, or over other clips."""


@dataclass(frozen=True)
class Pivots:
    """Every option, judged against one baseline."""

    baseline: Standing
    options: tuple[Option, ...]

    @property
    def comparisons(self) -> int:
        """How many paired differences were computed."""
        return sum(len(option.differences) for option in self.options)

    @property
    def failing(self) -> set[tuple[str, str]]:
        """Experiment and metric of what fails in the baseline."""
        return {(name, r.metric) for name, r in self.baseline.gated if r.verdict == Verdict.FAIL}

    def helps(self, option: Option) -> list[Difference]:
        """Return the failing metrics that ``option`` improves, by intervals that hold for all comparisons together."""
        return [
            each
            for each in option.differences
            if (each.experiment, each.metric) in self.failing
            and sense(widened(each.difference, self.comparisons), self._direction(each)) > 0
        ]

    def hurts(self, option: Option) -> list[Difference]:
        """Return the gated metrics that ``option`` worsens, each by its own interval: here doubt weighs against it."""
        return [each for each in option.differences if sense(each.difference, self._direction(each)) < 0]

    def reading(self, each: Difference) -> str:
        """Return how a difference reads."""
        told = sense(each.difference, self._direction(each))
        if told > 0 and not sense(widened(each.difference, self.comparisons), self._direction(each)):
            return "better by this interval alone"
        return {1: "better", 0: "not separated", -1: "worse"}[told]

    @property
    def recommended(self) -> list[Option]:
        """Options that improve a failing metric, worsen no gated one and left none out; most improved first."""
        sound = [o for o in self.options if not o.missing and self.helps(o) and not self.hurts(o)]
        return sorted(sound, key=lambda o: (-len(o.standing.proceeding), -len(self.helps(o)), o.standing.system))

    def _direction(self, each: Difference) -> str:
        return next(
            r.direction for name, r in self.baseline.gated if (name, r.metric) == (each.experiment, each.metric)
        )


def pivots(found: Dossier, baseline: Standing) -> Pivots:
    """Compare ``baseline`` with every system through the same decoder, at the same seed, that turns one way."""
    options = []
    for standing in found.candidates:
        kind = _kind(baseline, standing)
        if kind is not None and standing.system[2:] == baseline.system[2:] and standing is not baseline:
            options.append(_option(found.store, kind, baseline, standing))
    order = list(Kind)
    return Pivots(baseline, tuple(sorted(options, key=lambda o: (order.index(o.kind), o.standing.system))))


def _kind(baseline: Standing, other: Standing) -> Kind | None:
    """Return which way ``other`` turns; None if more than one thing differs: what it shows has then two causes.

    A hybrid may come with an adapter of its own: some adapters take nothing but hybrids.
    """
    (encoder, adapter, *_), (its, with_, *_) = baseline.system, other.system
    if its == encoder:
        return Kind.ADAPTER
    if "+" in its:
        return Kind.HYBRID
    if with_ != adapter:
        return None
    return Kind.TAP if its.partition("@")[0] == encoder.partition("@")[0] else Kind.ENCODER


def _option(store: Store, kind: Kind, baseline: Standing, other: Standing) -> Option:
    differences: list[Difference] = []
    same, missing = [], []
    for experiment, ours in baseline.cells.items():
        theirs = other.cells.get(experiment)
        if theirs is not None and theirs.id == ours.id:  # an experiment that takes no adapter
            same.append(experiment)
            continue
        if theirs is None or theirs.status != "ok" or ours.status != "ok":
            missing.append(experiment)
            continue
        wanted = {result.metric for result in gating(ours)}
        try:
            every = compare(_found(store, theirs), _found(store, ours))
        except UsageError:  # over other clips
            every = []
        gated = [each for each in every if each.metric in wanted and each.difference.value is not None]
        differences += gated
        if {each.metric for each in gated} != wanted:
            missing.append(experiment)
    return Option(kind, other, tuple(differences), tuple(same), tuple(missing))


def _found(store: Store, cell: Cell) -> Found:
    return Found(cell, store.path(cell).with_suffix(".safetensors"))
