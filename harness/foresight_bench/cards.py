"""A card for every encoder on a board: what it is, where its weights came from, what it was read at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from foresight_bench import names
from foresight_bench.admission import Admitted
from foresight_bench.cells import Parameter
from foresight_bench.errors import ForesightError
from foresight_bench.intake import Intake, plain
from foresight_bench.labels import streams_of
from foresight_bench.registry import Registry
from foresight_bench.showing import runs
from foresight_bench.specs import EncoderSpec, Variant

WIDTH = 480
"""Pixels of a sample picture across: what a card has room for, in 20 kilobytes instead of a megabyte."""
LARGEST = 20_000_000
"""Pixels of a picture that is opened at most; one that the harness drew has 1.5 million."""


@dataclass(frozen=True)
class Card:
    """One encoder in one size."""

    name: str
    """Name and variant."""
    description: str
    """Empty if no installed plugin provides the encoder; so are licence, preprocessing and taps."""
    licence: str
    weights: tuple[tuple[str, str, str], ...]
    """Name, source and SHA-256 of each set that its rows used, random ones left out."""
    parameters: tuple[tuple[str, Parameter], ...]
    """What it was built with, in every way that a row used."""
    precisions: tuple[str, ...]
    """Floating-point types of its forward pass."""
    encoder_parameters: tuple[int, ...]
    """How many it has, as built for the taps that a run read of it: every number that a row of it alone says, the
    smallest first. Empty if unknown."""
    preprocessing: str
    """As the installed plugin states it; empty if it does not, or none is installed."""
    taps: tuple[str, ...]
    """All that it has, in order of depth, numbered ones as ranges."""
    read: tuple[str, ...]
    """Those that rows here read."""
    cells: tuple[str, ...]
    """Ids of the rows that it has a part in, in order of their names."""
    picture: bytes
    """WebP of originals and reconstructions, of the first row that has one; empty if none has."""
    pictured: str
    """What was decoded how for that picture."""

    @property
    def magnitude(self) -> str:
        """``encoder_parameters`` in words; empty if unknown."""
        ends = dict.fromkeys(map(rounded, (*self.encoder_parameters[:1], *self.encoder_parameters[-1:])))
        return " to ".join(ends)


def cards(found: Sequence[Admitted], registry: Registry, taken: Intake) -> tuple[Card, ...]:
    """Return a card for every encoder and variant that has a part in ``found``, in alphabetical order."""
    parts: dict[str, list[tuple[Admitted, names.Stream, int]]] = {}
    for each in found:
        for index, stream in enumerate(streams_of(each.cell.identity.encoder)):
            parts.setdefault(str(names.Stream(stream.name, stream.variant)), []).append((each, stream, index))
    return tuple(_card(name, parts[name], registry, taken) for name in sorted(parts))


def _card(name: str, parts: Sequence[tuple[Admitted, names.Stream, int]], registry: Registry, taken: Intake) -> Card:
    spec, variant = _known(parts[0][1], registry)
    weights = variant.weights if variant else None
    used: dict[tuple[str, str, str], None] = {}
    parameters: dict[tuple[str, Parameter], None] = {}
    read: dict[str, None] = {}
    precisions, counts = set(), set()
    for each, stream, index in parts:
        identity = each.cell.identity
        alone = "encoder" in identity.parameters
        parameters |= dict.fromkeys(identity.parameters.get("encoder" if alone else f"encoder.{index}", {}).items())
        prefix = "" if alone else f"{stream.name}@"
        read |= dict.fromkeys(tap.removeprefix(prefix) for tap in identity.taps if tap.startswith(prefix))
        precisions.add(identity.precision)
        if alone and each.cell.cost and each.cell.cost.encoder_parameters:
            counts.add(each.cell.cost.encoder_parameters)
        if weights and weights.name in identity.weights and not stream.random:
            source = each.cell.provenance.weights_sources.get(weights.name, "unknown")
            used[weights.name, source, identity.weights[weights.name]] = None
    as_it_is = [
        each for each, stream, _ in parts if not stream.transforms and "encoder" in each.cell.identity.parameters
    ]
    picture, pictured = _picture(as_it_is, taken)
    return Card(
        name,
        plain(spec.description) if spec else "",
        plain((weights.licence if weights else "") or spec.licence) if spec else "",
        tuple(used),
        tuple(parameters),
        tuple(sorted(precisions)),
        tuple(sorted(counts)),
        plain(spec.preprocessing) if spec else "",
        tuple(map(plain, runs(variant.taps))) if variant else (),
        tuple(read),
        tuple(dict.fromkeys(each.cell.id for each in sorted((each for each, _, _ in parts), key=_place))),
        picture,
        pictured,
    )


def rounded(count: int) -> str:
    """Return a number of parameters to three digits: ``22.1 M``."""
    value = float(f"{count:.3g}")
    for factor, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return str(count)


def _place(row: Admitted) -> tuple[str, ...]:
    """Return what rows of one encoder are listed by."""
    i = row.cell.identity
    return i.encoder, i.experiment, i.decoder or "", i.adapter or "", f"{i.seed:09}"


def _known(stream: names.Stream, registry: Registry) -> tuple[EncoderSpec | None, Variant | None]:
    try:
        return registry.encoders[stream.name].spec, registry.variant(stream)
    except ForesightError:
        return None, None


def _picture(rows: Sequence[Admitted], taken: Intake) -> tuple[bytes, str]:
    """Return the first picture of rows of the encoder as it is, and what it shows."""
    for each in rows:
        try:
            small = thumbnail(taken.beside(each.source, ".png"))
        except ForesightError:
            continue
        if small:
            i = each.cell.identity
            return small, " + ".join(part for part in (i.encoder, i.adapter, i.decoder) if part)
    return b"", ""


def thumbnail(data: bytes) -> bytes:
    """Return a picture as WebP of at most ``WIDTH`` pixels across; empty for what is no PNG of a sensible size."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > LARGEST:
                return b""
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    small.thumbnail((WIDTH, LARGEST))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
