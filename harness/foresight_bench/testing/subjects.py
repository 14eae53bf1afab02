"""What is checked: one plugin's encoder, adapter, decoder or metric, by the name it has on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import WeightsError
from foresight_bench.names import Stream
from foresight_bench.registry import Registry, target
from foresight_bench.specs import AdapterSpec, DecoderSpec, EncoderSpec, MetricSpec, Variant
from foresight_bench.testing.kit import Unverified
from foresight_bench.weights import resolve

if TYPE_CHECKING:
    from foresight_bench.contracts import Encoder


@dataclass(frozen=True)
class EncoderSubject:
    """An encoder under test. Its weights are random where they cannot be had: no check but one depends on them."""

    registry: Registry
    stream: Stream
    """Resolved."""
    device: str = "cpu"

    @classmethod
    def named(cls, name: str, device: str = "cpu") -> EncoderSubject:
        """Return the subject called ``name``; of a hybrid, the first stream."""
        registry = Registry.installed()
        return cls(registry, registry.resolve(name)[0], device)

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's spec."""
        return self.registry.encoders[self.stream.name].spec

    @property
    def variant(self) -> Variant:
        """The variant under test."""
        return self.registry.variant(self.stream)

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps under test, in order of depth: those that the name selects."""
        return self.registry.taps(self.stream)

    @cached_property
    def weights(self) -> ResolvedWeights | WeightsError | None:
        """Where the weights lie, or why they cannot be had; None for an encoder without, or with random ones."""
        if self.variant.weights is None or self.stream.random:
            return None
        try:
            return resolve(self.variant.weights, needed=self.registry.needs(self.stream))
        except WeightsError as error:
            return error

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, built once for all checks that leave it as it is."""
        return self.build()

    def build(self, **changes: Any) -> Encoder:
        """Return a new encoder; ``changes`` replace fields of its setup."""
        weights = self.weights if isinstance(self.weights, ResolvedWeights) else None
        setup = {"weights": weights, "taps": self.taps, "device": self.device, **changes}
        made: Encoder = target(self.spec.target)(EncoderSetup(**setup), **self.registry.params(self.stream))
        return made


@dataclass(frozen=True)
class PartSubject:
    """An adapter, a decoder or a metric under test."""

    registry: Registry
    spec: AdapterSpec | DecoderSpec | MetricSpec
    device: str = "cpu"
    cache: dict[str, Any] = field(default_factory=dict)
    """What checks share."""

    @property
    def weights(self) -> ResolvedWeights | None:
        """Where the weights lie; None for a part without.

        Raises:
            Unverified: they cannot be had.
        """
        weights = getattr(self.spec, "weights", None)
        if weights is None:
            return None
        try:
            return resolve(weights)
        except WeightsError as error:
            raise Unverified(f"{error.message} {error.hint}") from error
