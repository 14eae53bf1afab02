"""Planning: from a selection of names to cells with stable ids. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import metadata

from foresight_bench.cells import CellIdentity, CodeIdentity
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import unknown
from foresight_bench.names import Stream
from foresight_bench.plugins import Plugin
from foresight_bench.registry import Entry, Registry, code_digest
from foresight_bench.specs import ExperimentSpec, SuiteSpec, Weights
from foresight_bench.weights import resolve

KEYED_LIBRARIES = (
    "torch",
    "timm",
    "transformers",
    "diffusers",
    "lpips",
    "scikit-image",
    "pycocotools",
    "numpy",
    "scipy",
)
"""Libraries that compute features or scores; their minor version is part of the identity."""
PRECISION = "float32"


@dataclass(frozen=True)
class PlannedCell:
    """One cell that is wanted."""

    identity: CellIdentity
    controls: Mapping[str, str] = field(default_factory=dict)
    """Id of each control row's cell that this one is judged beside."""

    @property
    def id(self) -> str:
        """The cell id."""
        return self.identity.cell_id()


@dataclass(frozen=True)
class Row:
    """One encoder, and its cells: they share a feature pass."""

    label: str
    streams: tuple[Stream, ...]
    control: bool
    cells: tuple[PlannedCell, ...]


@dataclass(frozen=True)
class Plan:
    """All rows of a run, controls first."""

    suite: str
    cohort: str
    device: str
    rows: tuple[Row, ...]
    weights: Mapping[str, ResolvedWeights]

    @property
    def cells(self) -> tuple[PlannedCell, ...]:
        """All cells, in order of execution."""
        return tuple(cell for row in self.rows for cell in row.cells)


@dataclass(frozen=True)
class Selection:
    """What the user asked for."""

    suite: str
    encoders: tuple[str, ...]
    experiments: tuple[str, ...] = ()
    """Empty for all of the suite."""
    adapters: tuple[str, ...] = ()
    """Empty for the suite's default."""
    decoders: tuple[str, ...] = ()
    """Empty for the suite's default."""
    seed: int = 0
    device: str = "cpu"
    controls: bool = True
    """Whether the suite's control rows run beside the encoders."""


def plan(
    registry: Registry,
    selection: Selection,
    find: Callable[[Weights], ResolvedWeights] = resolve,
) -> Plan:
    """Turn a selection into cells; finds the weights, because their digest is part of a cell's identity.

    Raises:
        PluginError: a name is unknown or ambiguous.
        WeightsError: weights cannot be had.
    """
    suite_entry = registry.suites[selection.suite]
    suite = suite_entry.spec
    experiments = choose_experiments(suite, selection.experiments)
    adapters = selection.adapters or (suite.default_adapter,)
    decoders = selection.decoders or (suite.default_decoder,)
    for name in adapters:
        registry.adapters[name]
    for name in decoders:
        registry.decoders[name]
    wanted = {registry.label(streams): streams for streams in map(registry.resolve, selection.encoders)}
    controls = {name: registry.resolve(name) for name in suite.controls} if selection.controls else {}
    rows = {**controls, **{label: streams for label, streams in wanted.items() if label not in controls}}

    weights = {
        needed.name: find(needed) for needed in needed_weights(registry, suite, experiments, rows.values(), decoders)
    }
    context = _Context(registry, suite_entry, cohort(registry, suite), weights, selection)
    planned: list[Row] = []
    ids: dict[tuple[str, str, str | None, str | None], str] = {}
    for label, streams in rows.items():
        cells = []
        for experiment in experiments:
            if label in controls and label not in wanted and label not in named_controls(experiment):
                continue
            for adapter in adapters if "adapter" in experiment.axes else (None,):
                for decoder in decoders if "decoder" in experiment.axes else (None,):
                    identity = context.identity(label, streams, experiment, adapter, decoder)
                    beside = {
                        name: ids[name, experiment.name, adapter, decoder]
                        for name in controls
                        if name != label
                        if (name, experiment.name, adapter, decoder) in ids
                    }
                    cell = PlannedCell(identity, {} if label in controls else beside)
                    ids[label, experiment.name, adapter, decoder] = cell.id
                    cells.append(cell)
        planned.append(Row(label, streams, label in suite.controls, tuple(cells)))
    return Plan(suite.name, context.cohort, selection.device, tuple(planned), weights)


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
) -> list[Weights]:
    """Return every set of weights that the selection needs, once."""
    found = {}
    for streams in rows:
        for stream in streams:
            needed = registry.variant(stream).weights
            if needed is not None and not stream.random:
                found[needed.name] = needed
    for name in decoders:
        if (needed := registry.decoders[name].spec.weights) is not None:
            found[needed.name] = needed
    for experiment in experiments:
        for criterion in experiment.criteria:
            if (needed := registry.metrics[criterion.metric].spec.weights) is not None:
                found[needed.name] = needed
    return list(found.values())


def cohort(registry: Registry, suite: SuiteSpec) -> str:
    """Return the cohort key: suite, version, and a digest of its data and metric implementations."""
    metrics = sorted({criterion.metric for experiment in suite.experiments for criterion in experiment.criteria})
    parts = [f"{name}={digest}" for name, digest in sorted(suite.digests.items())]
    parts += [f"{name}@{registry.metrics[name].spec.version}" for name in metrics]
    return f"{suite.name}-{suite.version}-{sha256(' '.join(parts).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class _Context:
    registry: Registry
    suite: Entry[SuiteSpec]
    cohort: str
    weights: Mapping[str, ResolvedWeights]
    selection: Selection

    def identity(
        self,
        label: str,
        streams: Sequence[Stream],
        experiment: ExperimentSpec,
        adapter: str | None,
        decoder: str | None,
    ) -> CellIdentity:
        registry, suite = self.registry, self.suite.spec
        parameters = {"suite": dict(suite.params), "experiment": dict(experiment.params)}
        targets = [(self.suite.plugin, suite.target), (self.suite.plugin, experiment.target)]
        needed: list[Weights | None] = []
        taps: list[str] = []
        for index, stream in enumerate(streams):
            entry, variant = registry.encoders[stream.name], registry.variant(stream)
            parameters["encoder" if len(streams) == 1 else f"encoder.{index}"] = dict(variant.params)
            targets.append((entry.plugin, entry.spec.target))
            prefix = "" if len(streams) == 1 else f"{stream.name}@"
            taps += [prefix + tap for tap in registry.taps(stream)]
            needed.append(None if stream.random else variant.weights)
        if adapter is not None:
            used_adapter = registry.adapters[adapter]
            parameters["adapter"] = dict(used_adapter.spec.params)
            targets.append((used_adapter.plugin, used_adapter.spec.target))
        if decoder is not None:
            used_decoder = registry.decoders[decoder]
            parameters["decoder"] = dict(used_decoder.spec.params)
            targets.append((used_decoder.plugin, used_decoder.spec.target))
            needed.append(used_decoder.spec.weights)
        for criterion in experiment.criteria:
            metric = registry.metrics[criterion.metric]
            targets.append((metric.plugin, metric.spec.target))
            needed.append(metric.spec.weights)
        return CellIdentity(
            suite=suite.name,
            suite_version=suite.version,
            cohort=self.cohort,
            experiment=experiment.name,
            encoder=label,
            taps=tuple(taps),
            adapter=adapter,
            decoder=decoder,
            seed=0 if label in suite.controls else self.selection.seed,  # rows of every seed share the controls
            parameters=parameters,
            weights={each.name: self.weights[each.name].sha256 for each in needed if each is not None},
            precision=PRECISION,
            code=_code(targets),
            libraries=library_versions(minor=True),
        )


def _code(targets: Iterable[tuple[Plugin, str]]) -> dict[str, CodeIdentity]:
    """Return the identity of every package that ``targets`` live in, and of the harness."""
    distribution = "foresight-bench"
    code = {
        "foresight_bench": CodeIdentity(
            distribution=distribution,
            version=metadata.version(distribution),
            digest=code_digest("foresight_bench"),
        )
    }
    for plugin, path in targets:
        package = path.partition(":")[0].partition(".")[0]
        code[package] = CodeIdentity(
            distribution=plugin.distribution, version=plugin.version, digest=code_digest(package)
        )
    return code


def library_versions(*, minor: bool) -> dict[str, str]:
    """Return the versions of the libraries that compute, cut to ``major.minor`` if asked; absent ones left out."""
    versions = {}
    for name in KEYED_LIBRARIES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = ".".join(version.split(".")[:2]) if minor else version
    return versions
