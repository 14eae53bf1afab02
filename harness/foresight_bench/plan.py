"""Planning: from a selection of names to cells with stable ids. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType

from foresight_bench.cells import CellIdentity
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import EnvironmentFault, WeightsError, unknown
from foresight_bench.further import reporting
from foresight_bench.identities import Identities, Needed, cohort, everything
from foresight_bench.names import Stream
from foresight_bench.registry import Registry, Shelf
from foresight_bench.specs import (
    AdapterSpec,
    DecoderSpec,
    ExperimentSpec,
    Precision,
    SuiteSpec,
    Weights,
)
from foresight_bench.weights import resolve

ALL = "all"
"""Stands for every registered encoder that is no control, in its first variant, and for every adapter or decoder."""


def _resolve(weights: Weights, needed: Needed) -> ResolvedWeights:
    return resolve(weights, needed=needed)


@dataclass(frozen=True)
class PlannedCell:
    """One cell that is wanted."""

    identity: CellIdentity
    controls: Mapping[str, str] = field(default_factory=dict)
    """Id of each control row's cell that this one is judged beside."""
    lacking: WeightsError | None = None
    """Why it cannot be computed: weights that cannot be had, whose digest in the identity is empty."""

    @property
    def id(self) -> str:
        """The cell id."""
        return self.identity.cell_id()


@dataclass(frozen=True)
class Row:
    """One encoder, and its cells: they share a feature pass. Cells of several seeds do unless the features are drawn
    from the seed."""

    label: str
    streams: tuple[Stream, ...]
    control: bool
    cells: tuple[PlannedCell, ...]
    wanted: bool = True
    """Whether it was asked for by name; a control that was not stands beside those that were."""
    weights_bytes: int = 0
    """Memory that the weights of its largest encoder take, in the precision they are run in."""


@dataclass(frozen=True)
class Plan:
    """All rows of a run, controls first."""

    suite: str
    cohort: str
    device: str
    precision: Precision
    rows: tuple[Row, ...]
    weights: Mapping[str, ResolvedWeights]
    limit: int = 0
    """Clips of each block that are used at most; 0 for all."""

    @property
    def cells(self) -> tuple[PlannedCell, ...]:
        """All cells, in order of execution."""
        return tuple(cell for row in self.rows for cell in row.cells)

    def keep(self, ids: Collection[str]) -> Plan:
        """Return the plan of the cells ``ids``, and of the controls that they are judged beside.

        Raises:
            EnvironmentFault: some id is not of this plan.
        """
        if unknown_ids := set(ids) - {cell.id for cell in self.cells}:
            raise EnvironmentFault(
                f"{len(unknown_ids)} cells, the first {min(unknown_ids)}, are not of this plan.",
                "The code, a library, the weights or the kind of device changed since; plan again.",
            )
        beside = {control for cell in self.cells if cell.id in ids for control in cell.controls.values()}
        rows = []
        for row in self.rows:
            cells = tuple(cell for cell in row.cells if cell.id in ids or cell.id in beside)
            if cells:
                rows.append(replace(row, cells=cells, wanted=any(cell.id in ids for cell in cells)))
        return replace(self, rows=tuple(rows))

    def part(self, index: int, of: int) -> Plan:
        """Return part ``index``, from 1, of ``of``: every so many-th encoder, and the controls it is judged beside.

        The parts are the same wherever they are planned. Controls that were asked for are in the first one.
        """
        groups: dict[object, list[Row]] = {}
        for row in self.rows:
            key = "controls" if row.control else tuple(stream.backbone for stream in row.streams)
            if row.wanted:
                groups.setdefault(key, []).append(row)
        mine = [row for group in list(groups.values())[index - 1 :: of] for row in group]
        return self.keep({cell.id for row in mine for cell in row.cells})


@dataclass(frozen=True)
class Selection:
    """What the user asked for."""

    suite: str
    encoders: tuple[str, ...]
    """``all`` for every one that is no control."""
    experiments: tuple[str, ...] = ()
    """Empty for all of the suite."""
    adapters: tuple[str, ...] = ()
    """Empty for the suite's default; ``all`` for every one."""
    decoders: tuple[str, ...] = ()
    """Empty for the suite's default; ``all`` for every one."""
    seeds: tuple[int, ...] = (0,)
    """Of everything random; controls always have seed 0."""
    device: str = "cpu"
    precision: Precision | None = None
    """Of the encoders' forward passes; None for float32 on the CPU and bfloat16 on a GPU."""
    compiled: bool | None = None
    """Whether encoders are compiled; None for where it pays."""
    controls: bool = True
    """Whether the suite's control rows run beside the encoders."""
    limit: int = 0
    """Clips of each block that are used at most, for a first try whose results no table accepts; 0 for all."""
    metrics: tuple[str, ...] = ()
    """Metrics that are reported beside the suite's."""


def plan(
    registry: Registry,
    selection: Selection,
    find: Callable[[Weights, Needed], ResolvedWeights] = _resolve,
    libraries: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Plan:
    """Turn a selection into cells; finds the weights, because their digest is part of a cell's identity.

    Args:
        find: returns where weights lie.
        libraries: minor versions of the libraries that an encoder runs with, by its name, where they are not the ones
            of this process.

    Raises:
        PluginError: a name is unknown or ambiguous.
        UsageError: no experiment measures what one of the metrics scores.
        WeightsError: weights cannot be had, and no encoder can be run without them. Where some can, the cells of the
            others are ``lacking``.
    """
    suite_entry = registry.suites[selection.suite]
    suite = suite_entry.spec
    experiments = choose_experiments(suite, selection.experiments)
    full = {spec.name: spec for spec in reporting(registry, experiments, selection.metrics)}
    adapters = choose(registry.adapters, selection.adapters or (suite.default_adapter,))
    decoders = choose(registry.decoders, selection.decoders or (suite.default_decoder,))
    names = choose_encoders(registry, suite, selection.encoders)
    wanted = {registry.label(streams): streams for streams in map(registry.resolve, names)}
    controls = {name: registry.resolve(name) for name in suite.controls} if selection.controls else {}
    rows = {**controls, **{label: streams for label, streams in wanted.items() if label not in controls}}

    weights, lacking = {}, {}
    for each, needed in needed_weights(registry, suite, full.values(), rows.values(), decoders):
        try:
            weights[each.name] = find(each, needed)
        except WeightsError as error:
            lacking[each.name] = error
    precision: Precision = selection.precision or ("float32" if selection.device == "cpu" else "bfloat16")
    identities = Identities(
        registry, suite_entry, cohort(registry, suite, selection.limit), weights, precision, libraries, selection.limit
    )
    planned: list[Row] = []
    ids: dict[tuple[str, str | None, str | None], dict[str, str]] = {}
    for label, streams in rows.items():
        control = label in suite.controls
        for seeds in sharing(streams, (0,) if control else selection.seeds):
            cells = []
            for seed, experiment in product(seeds, experiments):
                if label in controls and label not in wanted and label not in named_controls(experiment):
                    continue
                # The oracle brings the decoder's own latents where others need an adapter to predict them.
                free = any(registry.encoders[stream.name].spec.control == "oracle" for stream in streams)
                for adapter, decoder in product(
                    adapters if "adapter" in experiment.axes and not free else (None,),
                    decoders if "decoder" in experiment.axes else (None,),
                ):
                    same, others = (ids.setdefault((experiment.name, each, decoder), {}) for each in (adapter, None))
                    measured = experiment if control else full[experiment.name]
                    identity = identities.of(label, streams, measured, adapter, decoder, seed)
                    missing = next((lacking[name] for name in identity.weights if name in lacking), None)
                    cell = PlannedCell(identity, {} if label in controls else {**others, **same}, missing)
                    if label in controls:
                        same[label] = cell.id
                    cells.append(cell)
            planned.append(
                Row(label, streams, control, tuple(cells), label in wanted, identities.weights_bytes(streams))
            )
    asked = [cell for row in planned if row.label in wanted for cell in row.cells]
    if asked and all(cell.lacking for cell in asked):
        raise next(cell.lacking for cell in asked if cell.lacking)
    return Plan(suite.name, identities.cohort, selection.device, precision, tuple(planned), weights, selection.limit)


def choose_encoders(registry: Registry, suite: SuiteSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` with every encoder that is no control in the place of ``all``."""
    every = [entry.spec.name for entry in registry.encoders if not entry.spec.control]
    return tuple(found for name in names for found in (every if name == ALL else [name]))


def choose(shelf: Shelf[AdapterSpec] | Shelf[DecoderSpec], names: Sequence[str]) -> tuple[str, ...]:
    """Return each of ``names`` once, with those of the whole shelf in the place of ``all``.

    Raises:
        PluginError: a name is unknown or ambiguous.
    """
    chosen = dict.fromkeys(
        found for name in names for found in ([entry.spec.name for entry in shelf] if name == ALL else [name])
    )
    for name in chosen:
        shelf[name]
    return tuple(chosen)


def sharing(streams: Iterable[Stream], seeds: Iterable[int]) -> list[tuple[int, ...]]:
    """Return ``seeds`` in groups that share their features: one group, or one a seed if weights are drawn from it."""
    unique = tuple(dict.fromkeys(seeds))
    return [(seed,) for seed in unique] if any(stream.random for stream in streams) else [unique]


def choose_experiments(suite: SuiteSpec, names: Sequence[str]) -> tuple[ExperimentSpec, ...]:
    """Return the experiments called ``names`` (a gate's name stands for its experiments), all if empty."""
    by_name = {experiment.name: experiment for experiment in suite.experiments}
    gates = {gate.name: gate.experiments for gate in suite.gates}
    chosen: list[str] = []
    for name in names or tuple(by_name):
        if name in gates:
            chosen.extend(gates[name])
        elif name.upper() in by_name:
            chosen.append(name.upper())
        else:
            raise unknown("experiment or gate", name, [*by_name, *gates])
    return tuple(by_name[name] for name in by_name if name in chosen)


def named_controls(experiment: ExperimentSpec) -> set[str]:
    """Return the control rows that some criterion of ``experiment`` is judged beside."""
    return {name for criterion in experiment.criteria for name in (criterion.ceiling, *criterion.floors)}


def needed_weights(
    registry: Registry,
    suite: SuiteSpec,
    experiments: Iterable[ExperimentSpec],
    rows: Iterable[Sequence[Stream]],
    decoders: Iterable[str],
) -> list[tuple[Weights, Needed]]:
    """Return every set of weights that the selection needs, once, and which of its tensors any row needs."""
    found: dict[str, tuple[Weights, list[Needed]]] = {}

    def add(weights: Weights | None, needed: Needed = everything) -> None:
        if weights is not None:
            found.setdefault(weights.name, (weights, []))[1].append(needed)

    for streams in rows:
        for stream in streams:
            if not stream.random:
                add(registry.variant(stream).weights, registry.needs(stream))
    for name in decoders:
        add(registry.decoders[name].spec.weights)
    for experiment in experiments:
        for criterion in experiment.criteria:
            add(registry.metrics[criterion.metric].spec.weights)
    return [(weights, _any(needs)) for weights, needs in found.values()]


def _any(needs: Sequence[Needed]) -> Needed:
    return lambda name: any(needed(name) for needed in needs)
