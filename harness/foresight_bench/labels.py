"""What the names in a cell say: what kind of row it is, of which family, and the command that computes it."""

from __future__ import annotations

import shlex
from typing import Literal, get_args

from foresight_bench import names
from foresight_bench.cells import Cell
from foresight_bench.errors import ForesightError
from foresight_bench.further import PART
from foresight_bench.intake import plain
from foresight_bench.registry import Registry
from foresight_bench.specs import SuiteSpec

Kind = Literal["system", "transformed", "control"]
"""A system competes. One with a transform (``~pooled``, ``~random``, ``~shuffled``) shows what a system owes to what
the transform takes away, and a control shows that the suite measures: both stand apart, without a rank."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which tables have them."""


def streams_of(encoder: str) -> tuple[names.Stream, ...]:
    """Return the streams of an encoder's label; none for what follows no grammar, as a file may hold anything."""
    try:
        return names.parse(encoder)
    except ForesightError:
        return ()


def family_of(encoder: str) -> str:
    """Return an encoder's name without variant, taps and transforms; of a hybrid all of them, joined by ``+``."""
    return "+".join(stream.name for stream in streams_of(encoder)) or encoder


def size_of(encoder: str) -> str:
    """Return an encoder's variant; of a hybrid all of them, joined by ``+``."""
    return "+".join(stream.variant for stream in streams_of(encoder) if stream.variant)


def kind_of(encoder: str, suite: SuiteSpec) -> Kind:
    """Return what the rows of an encoder are to the others."""
    if encoder in suite.controls:
        return "control"
    return "transformed" if any(stream.transforms for stream in streams_of(encoder)) else "system"


def surrogate(decoder: str, registry: Registry) -> str:
    """Return why a decoder is a surrogate; empty if it is none, there is none, or no plugin knows it."""
    try:
        return plain(registry.decoders[decoder].spec.surrogate)
    except ForesightError:
        return ""


def command(cell: Cell) -> str:
    """Return the command that computes this very cell, and the controls that it is judged beside."""
    identity = cell.identity
    words = ["foresight-bench", "run", "-e", identity.encoder, "-x", identity.experiment]
    words += ["-a", identity.adapter] if identity.adapter else []
    words += ["-d", identity.decoder] if identity.decoder else []
    words += [word for name in identity.parameters.get(PART, {}) for word in ("--metric", name)]
    words += ["--suite", identity.suite, "--seed", str(identity.seed), "--precision", identity.precision]
    return shlex.join(words)


def seeded(encoder: str, seed: int) -> str:
    """Return an encoder's label, with its seed if that is not the usual one."""
    return f"{encoder} (seed {seed})" if seed else encoder
