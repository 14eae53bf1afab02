"""The identity of a cell: all that can change a score of it, by digest. And of a cohort. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib import metadata
from types import MappingProxyType

from foresight_bench.cells import CellIdentity, CodeIdentity
from foresight_bench.checkpoints import PICKLES, Checkpoint
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.further import PART, metrics
from foresight_bench.names import Stream
from foresight_bench.plugins import Plugin
from foresight_bench.registry import Entry, Registry, code_digest
from foresight_bench.specs import AdapterSpec, ExperimentSpec, Parameter, Precision, SuiteSpec, Weights
from foresight_bench.weights import digest

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

LIMITED = "-limit"
"""Stands in the name of a cohort of which only some clips were used, before their number."""

Needed = Callable[[str], bool]
"""Which tensors of some weights are needed, by name."""


def everything(name: str) -> bool:
    """Return True: every tensor is needed."""
    return True


def cohort(registry: Registry, suite: SuiteSpec, limit: int = 0) -> str:
    """Return the cohort key: suite, version, a digest of its data and metric implementations, and any limit."""
    metrics = sorted({criterion.metric for experiment in suite.experiments for criterion in experiment.criteria})
    parts = [f"{name}={digest}" for name, digest in sorted(suite.digests.items())]
    parts += [f"{name}@{registry.metrics[name].spec.version}" for name in metrics]
    key = f"{suite.name}-{suite.version}-{sha256(' '.join(parts).encode()).hexdigest()[:8]}"
    return f"{key}{LIMITED}{limit}" if limit else key


@dataclass(frozen=True)
class Identities:
    """What makes the identities of a plan's cells: the suite and all that it is run with."""

    registry: Registry
    suite: Entry[SuiteSpec]
    cohort: str
    weights: Mapping[str, ResolvedWeights]
    """Those that were found; a digest of others is empty."""
    precision: Precision
    libraries: Mapping[str, Mapping[str, str]]
    """Minor versions that an encoder runs with, by its name, where they are not those of this process."""
    limit: int

    def of(
        self,
        label: str,
        streams: Sequence[Stream],
        experiment: ExperimentSpec,
        adapter: str | None,
        decoder: str | None,
        seed: int,
    ) -> CellIdentity:
        """Return the identity of one cell."""
        registry, suite = self.registry, self.suite.spec
        parameters = {"suite": dict(suite.params), "experiment": dict(experiment.params)}
        if self.limit:
            parameters["suite"]["limit"] = self.limit
        own = {name for spec in suite.experiments if spec.name == experiment.name for name in metrics(spec)}
        if further := {name: registry.metrics[name].spec.version for name in metrics(experiment) if name not in own}:
            parameters[PART] = dict(further)
        targets = [(self.suite.plugin, suite.target), (self.suite.plugin, experiment.target)]
        needed: list[tuple[Weights | None, Needed]] = []
        taps: list[str] = []
        for index, stream in enumerate(streams):
            entry, variant = registry.encoders[stream.name], registry.variant(stream)
            parameters["encoder" if len(streams) == 1 else f"encoder.{index}"] = registry.params(stream)
            targets.append((entry.plugin, entry.spec.target))
            prefix = "" if len(streams) == 1 else f"{stream.name}@"
            taps += [prefix + tap for tap in registry.taps(stream)]
            needed.append((None if stream.random else variant.weights, registry.needs(stream)))
        if adapter is not None:
            used_adapter = registry.adapters[adapter]
            parameters["adapter"] = adapter_parameters(used_adapter.spec)
            targets.append((used_adapter.plugin, used_adapter.spec.target))
        if decoder is not None:
            used_decoder = registry.decoders[decoder]
            parameters["decoder"] = dict(used_decoder.spec.params)
            targets.append((used_decoder.plugin, used_decoder.spec.target))
            needed.append((used_decoder.spec.weights, everything))
        for criterion in experiment.criteria:
            metric = registry.metrics[criterion.metric]
            targets.append((metric.plugin, metric.spec.target))
            needed.append((metric.spec.weights, everything))
        return CellIdentity(
            suite=suite.name,
            suite_version=suite.version,
            cohort=self.cohort,
            experiment=experiment.name,
            encoder=label,
            taps=tuple(taps),
            adapter=adapter,
            decoder=decoder,
            seed=seed,
            parameters=parameters,
            weights={each.name: self._digest(each.name, keep) for each, keep in needed if each is not None},
            # An encoder without weights has no forward pass whose precision could matter.
            precision=self.precision if any(registry.variant(s).weights for s in streams) else "float32",
            code=_code(targets),
            libraries=dict(self.libraries_of(streams)),
        )

    def libraries_of(self, streams: Sequence[Stream]) -> Mapping[str, str]:
        """Return the minor versions of the libraries that a row runs with."""
        for stream in streams:
            if stream.name in self.libraries:
                return self.libraries[stream.name]
        return library_versions(minor=True)

    def _digest(self, name: str, keep: Needed) -> str:
        return digest(self.weights[name], keep) if name in self.weights else ""

    def weights_bytes(self, streams: Sequence[Stream]) -> int:
        """Return the bytes that the weights of the largest of ``streams`` take; random ones are not counted."""
        sizes = [0]
        for stream in streams:
            weights = self.registry.variant(stream).weights
            if weights is not None and not stream.random and weights.name in self.weights:
                path = self.weights[weights.name].path
                # What a pickle holds only torch can say: its size stands for that, at four bytes a value.
                values = (
                    path.stat().st_size // 4
                    if path.suffix in PICKLES
                    else Checkpoint(path).values(self.registry.needs(stream))
                )
                sizes.append(values * (4 if self.precision == "float32" else 2))
        return max(sizes)


def adapter_parameters(spec: AdapterSpec) -> dict[str, Parameter]:
    """Return the adapter's parameters and, as ``recipe.*``, how it is trained; several learning rates as one text."""
    recipe = asdict(spec.recipe) if spec.recipe else {}
    written = {
        f"recipe.{name}": ", ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in recipe.items()
    }
    return {**spec.params, **written}


def _code(targets: Iterable[tuple[Plugin, str]]) -> dict[str, CodeIdentity]:
    """Return the identity of every package that ``targets`` or the specs naming them live in, and of the harness."""
    distribution = "foresight-bench"
    code = {
        "foresight_bench": CodeIdentity(
            distribution=distribution,
            version=metadata.version(distribution),
            digest=code_digest("foresight_bench"),
        )
    }
    for plugin, path in targets:
        for module in (plugin.module, path):
            package = module.partition(":")[0].partition(".")[0]
            code[package] = CodeIdentity(
                distribution=plugin.distribution, version=plugin.version, digest=code_digest(package)
            )
    return code


@cache
def library_versions(*, minor: bool) -> Mapping[str, str]:
    """Return the versions of the libraries that compute, cut to ``major.minor`` if asked; absent ones left out."""
    versions = {}
    for name in KEYED_LIBRARIES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = ".".join(version.split(".")[:2]) if minor else version
    return MappingProxyType(versions)
