"""The grammar of encoder names.

    encoder    = stream *( "+" stream )                      dinov2+pixels        a hybrid
    stream     = name [ ":" variant ] *( ":" parameter "=" value ) [ "@" taps ] *( "~" transform )
    taps       = "all" | tap-or-range *( "," tap-or-range )
    range      = tap ".." tap                                 block.2..block.8

Examples: ``dinov2``, ``dinov2:large``, ``dinov2@block.8``, ``dinov2:small@block.8~pooled``,
``llava-next:mistral-7b:tiles=true@projector``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foresight_bench.errors import UsageError, unknown

TRANSFORMS = {
    "random": "the architecture with random weights",
    "pooled": "mean over the tokens of a frame, broadcast back",
    "shuffled": "test features of another clip",
}
_STREAM = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]*)"
    r"(?::(?P<variant>[a-z0-9][a-z0-9._-]*)(?=[:@~]|$))?"
    r"(?P<params>(?::[a-z0-9_]+=[a-z0-9._-]+)*)"
    r"(?:@(?P<taps>[a-z0-9._,-]+))?"
    r"(?P<transforms>(?:~[a-z]+)*)"
)


@dataclass(frozen=True)
class Stream:
    """One encoder with its variant, selected taps and feature transforms."""

    name: str
    variant: str = ""
    taps: str = ""
    """The selection as written; empty for the variant's default taps."""
    transforms: tuple[str, ...] = ()
    params: tuple[tuple[str, str], ...] = ()
    """Parameters that differ from the variant's, as written, sorted by name."""

    def __str__(self) -> str:
        variant = f":{self.variant}" if self.variant else ""
        variant += "".join(f":{key}={value}" for key, value in self.params)
        taps = f"@{self.taps}" if self.taps else ""
        return f"{self.name}{variant}{taps}" + "".join(f"~{t}" for t in self.transforms)

    @property
    def random(self) -> bool:
        """Whether the weights are random by request."""
        return "random" in self.transforms

    @property
    def backbone(self) -> Stream:
        """The stream whose forward pass this one's features come from."""
        return replace(self, taps="", transforms=("random",) if self.random else ())


def parse(text: str) -> tuple[Stream, ...]:
    """Parse an encoder name into its streams.

    Raises:
        UsageError: the text does not follow the grammar.
        PluginError: a transform is unknown.
    """
    streams = []
    for part in text.strip().split("+"):
        match = _STREAM.fullmatch(part)
        if match is None:
            raise UsageError(
                f"'{text}' is not an encoder name.",
                "Write name[:variant][:parameter=value][@tap[,tap...]][~transform], for example "
                "dinov2:small@block.8~pooled; "
                "join two with + for a hybrid.",
            )
        transforms = tuple(match["transforms"].split("~")[1:])
        for transform in transforms:
            if transform not in TRANSFORMS:
                raise unknown("transform", transform, TRANSFORMS)
        order = list(TRANSFORMS)
        transforms = tuple(sorted(set(transforms), key=order.index))
        written = [item.partition("=")[::2] for item in match["params"].split(":")[1:]]
        params = dict(written)
        if len(params) < len(written):
            raise UsageError(f"'{part}' sets a parameter twice.", "Leave one of them out.")
        streams.append(
            Stream(
                match["name"], match["variant"] or "", match["taps"] or "", transforms, tuple(sorted(params.items()))
            )
        )
    return tuple(streams)


def select_taps(selection: str, taps: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """Resolve a tap selection against an encoder's ``taps``; the result is in order of depth.

    Raises:
        PluginError: a tap is unknown; names the nearest ones.
    """
    if not selection:
        return tuple(default)
    if selection == "all":
        return tuple(taps)
    chosen: set[str] = set()
    for item in selection.split(","):
        first, dots, last = item.partition("..")
        for tap in (first, last) if dots else (first,):
            if tap not in taps:
                raise unknown("tap", tap, taps)
        start, stop = taps.index(first), taps.index(last if dots else first)
        if stop < start:
            raise UsageError(f"The range '{item}' runs against depth.", f"Write {last}..{first}.")
        chosen.update(taps[start : stop + 1])
    return tuple(tap for tap in taps if tap in chosen)
