"""What `show` says about an encoder: variants, taps, options, weights. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from foresight_bench.specs import EncoderSpec, HubFile, Variant, Weights


def encoder_record(spec: EncoderSpec, variants: Sequence[Variant]) -> dict[str, Any]:
    """Return the facts about ``variants`` of an encoder, ready for JSON."""
    return {
        "name": spec.name,
        "description": spec.description,
        "licence": spec.licence,
        "options": dict(spec.options),
        "preprocessing": spec.preprocessing,
        "variants": [
            {
                "name": variant.name,
                "taps": list(variant.taps),
                "default_taps": list(variant.default_taps),
                "output": variant.output or variant.taps[-1],
                "weights": variant.weights.name if variant.weights else None,
                "sources": sources(variant.weights),
                "licence": variant.weights.licence if variant.weights else "",
            }
            for variant in variants
        ],
    }


def encoder_text(spec: EncoderSpec, variants: Sequence[Variant]) -> str:
    """Return the same as a few lines to read."""
    lines = [f"{spec.name}: {spec.description}"]
    lines.append(f"  preprocessing: {spec.preprocessing or 'not stated'}")
    lines += [f"  option {key}={str(value).lower()}" for key, value in spec.options.items()]
    for variant, facts in zip(variants, encoder_record(spec, variants)["variants"], strict=True):
        lines.append(f"{spec.name}:{variant.name}" + ("  (default)" if variant == spec.variants[0] else ""))
        lines.append(f"  taps     {', '.join(runs(variant.taps))}")
        lines.append(f"  default  {', '.join(variant.default_taps)}; in a hybrid {facts['output']}")
        if variant.weights is not None:
            where = "; ".join(facts["sources"]) or "a file of yours"
            lines.append(f"  weights  {facts['weights']}: {where} ({facts['licence'] or 'licence unknown'})")
    return "\n".join(lines)


def sources(weights: Weights | None) -> list[str]:
    """Return where weights can be had, in the order in which it is tried."""
    if weights is None:
        return []
    found = []
    if weights.package is not None:
        found.append(f"package {weights.package.package}")
    if weights.hub is not None:
        file = f" {weights.hub.filename}" if isinstance(weights.hub, HubFile) else ""
        found.append(f"hub {weights.hub.repo}@{weights.hub.revision}{file}")
    if weights.archive is not None:
        found.append(f"archive {weights.archive.distribution} {weights.archive.version}")
    return found


def runs(taps: Sequence[str]) -> list[str]:
    """Return ``taps`` with numbered runs as ranges: block.0, block.1, block.2 as block.0..block.2."""
    found: list[list[str]] = []
    for tap in taps:
        if found and _follows(found[-1][-1], tap):
            found[-1].append(tap)
        else:
            found.append([tap])
    return [run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in found]


def _follows(one: str, other: str) -> bool:
    a, b = (re.fullmatch(r"(.+\.)(\d+)", tap) for tap in (one, other))
    return a is not None and b is not None and a[1] == b[1] and int(a[2]) + 1 == int(b[2])
