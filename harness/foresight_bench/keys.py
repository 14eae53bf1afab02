"""What cached features are filed under: everything that can change one of them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from foresight_bench.cells import Parameter, Record
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import PluginError, WeightsError
from foresight_bench.names import Stream
from foresight_bench.registry import Registry, code_digest
from foresight_bench.specs import Precision, SuiteSpec
from foresight_bench.weights import digest

FEATURE_CODE = (
    "batching",
    "cache",
    "caching",
    "checkpoints",
    "clips",
    "contracts",
    "extraction",
    "features",
    "grids",
    "holding",
    "layout",
    "scrambles",
    "shards",
    "specs",
)
"""Modules of the harness that a feature goes through, that refuse one, or that an encoder is built with."""


class FeatureIdentity(Record):
    """Everything that can change the features of one tap; the key is the digest of this record.

    The size of batches, the device and whether the encoder was compiled are not in it: by contract none of them
    matters. The manifest says what they were.
    """

    encoder: str
    """Encoder with its variant, e.g. ``dinov2:small``."""
    parameters: dict[str, Parameter]
    """What the encoder was built with: the variant's parameters and its options."""
    weights: str
    """SHA-256 of what holds the tensors that the tap needs; empty for random weights."""
    seed: int | None
    """Seed that random weights were drawn from; null for others."""
    deepest: str | None
    """Deepest tap that random weights were drawn for, which the draw depends on; null for others."""
    machine: str | None
    """Kind of machine that random weights were drawn on; null for others."""
    tap: str
    """The tap."""
    precision: str
    """Floating-point type of the forward pass."""
    plugin: str
    """SHA-256 over the sources of the encoder's package."""
    harness: str
    """SHA-256 over the sources of the harness that a feature goes through."""
    libraries: dict[str, str]
    """Minor versions of the libraries that compute."""
    data: dict[str, str]
    """SHA-256 of every split's clips."""
    limit: int | None
    """Clips of each block that were left of the suite; null for all."""

    def key(self) -> str:
        """Return the key: the first 32 hexadecimal digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()[:32]


def feature_identities(
    registry: Registry,
    stream: Stream,
    taps: tuple[str, ...],
    suite: SuiteSpec,
    *,
    weights: ResolvedWeights | None,
    seed: int,
    precision: Precision,
    machine: str,
    libraries: Mapping[str, str],
    limit: int | None = None,
) -> Mapping[str, FeatureIdentity] | None:
    """Return the identity of the features of each tap, None where they are not to be cached.

    That is where a part of the identity is unknown, and where the encoder has no weights: what such an encoder does
    takes less time than reading what it did.

    Args:
        registry: that ``stream`` was resolved with.
        stream: whose own features are meant; transforms other than ``~random`` come after the cache.
        taps: of the pass, in order of depth.
        suite: whose clips go through.
        weights: None for random ones.
        seed: of random weights; others do not depend on it.
        precision: of the forward pass.
        machine: kind of machine, which random weights depend on.
        libraries: minor versions of the libraries that compute.
        limit: clips of each block that are left of the suite.
    """
    variant, entry = registry.variant(stream), registry.encoders[stream.name]
    data = {split: sha for split, sha in suite.digests.items() if sha}
    if variant.weights is None or (weights is None) != stream.random or not data or len(data) < len(suite.digests):
        return None
    try:
        # Of each tap by itself: which other taps are selected must not change its key.
        held = {tap: digest(weights, variant.needs((tap,))) if weights else "" for tap in taps}
        plugin = code_digest(entry.spec.target.partition(":")[0].partition(".")[0])
    except (PluginError, WeightsError):
        return None
    if weights and not all(held.values()):
        return None
    return {
        tap: FeatureIdentity(
            encoder=f"{stream.name}:{variant.name}",
            parameters=registry.params(stream),
            weights=held[tap],
            seed=seed if stream.random else None,
            deepest=taps[-1] if stream.random else None,
            machine=machine if stream.random else None,
            tap=tap,
            precision=precision,
            plugin=plugin,
            harness=harness_digest(),
            libraries=dict(libraries),
            data=data,
            limit=limit,
        )
        for tap in taps
    }


@cache
def harness_digest() -> str:
    """Return the SHA-256 over the modules of :data:`FEATURE_CODE`."""
    found = sha256()
    for name in FEATURE_CODE:
        found.update(name.encode() + b"\0" + Path(__file__).with_name(f"{name}.py").read_bytes() + b"\0")
    return found.hexdigest()


def differences(a: FeatureIdentity, b: FeatureIdentity) -> list[tuple[str, str, str]]:
    """Return name and both values of every part in which two identities differ; ``-`` where one lacks it."""
    ours, theirs = _parts(a), _parts(b)
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [(name, x, y) for name in names if (x := ours.get(name, "-")) != (y := theirs.get(name, "-"))]


def _parts(identity: FeatureIdentity) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in identity.model_dump(mode="json").items():
        if isinstance(value, dict):
            found.update({f"{name}.{key}": str(each) for key, each in value.items()})
        else:
            found[name] = "-" if value is None else str(value)
    return found
