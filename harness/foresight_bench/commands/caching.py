"""Commands for the feature cache: cache ls, explain, verify, prune, path."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from foresight_bench.commands.options import guarded, json_option, note
from foresight_bench.errors import CheckFailed, DataError, UsageError

if TYPE_CHECKING:
    from foresight_bench.cache import Entry
    from foresight_bench.keys import FeatureIdentity

SHOWN = 12
"""Digits of a key, and of a digest, that are shown."""


@click.group("cache")
def cache_group() -> None:
    """List, explain, verify and prune the feature cache."""


@cache_group.command("ls")
@json_option
@guarded
def ls(as_json: bool) -> None:
    """List the entries, one a tap, the last used first."""
    from tabulate import tabulate

    from foresight_bench.cache import entries

    found = sorted(entries(), key=lambda each: each.used(), reverse=True)
    if as_json:
        click.echo(json.dumps([_record(each) for each in found], indent=1))
        return
    rows = [_row(each) for each in found]
    if rows:
        headers = ["key", "encoder", "tap", "data", "precision", "size", "last used"]
        click.echo(tabulate(rows, headers, disable_numparse=True))
    note(f"{len(rows)} entries, {human(sum(each.size() for each in found))}")


@cache_group.command()
@click.argument("a")
@click.argument("b")
@json_option
@guarded
def explain(a: str, b: str, as_json: bool) -> None:
    """Say in which parts the keys A and B differ; the first digits of a key will do."""
    from foresight_bench.keys import differences

    found = differences(_identity(a), _identity(b))
    if as_json:
        click.echo(json.dumps([{"part": part, "a": x, "b": y} for part, x, y in found], indent=1))
        return
    for part, x, y in found:
        click.echo(f"{part}: {x} | {y}")
    if not found:
        note("The keys are the same.")


@cache_group.command()
@json_option
@guarded
def verify(as_json: bool) -> None:
    """Read everything and compare it with its digests; exit 6 if something is corrupt."""
    from foresight_bench.cache import entries

    found = entries()
    faults = [(each.key, file, reason) for each in found for file, reason in each.faults()]
    if as_json:
        click.echo(json.dumps([{"key": key, "file": file, "reason": reason} for key, file, reason in faults], indent=1))
    else:
        for key, file, reason in faults:
            click.echo(f"{key[:SHOWN]}/{file}: {reason}")
    if faults:
        raise CheckFailed(
            f"{len(faults)} file{'s' * (len(faults) > 1)} of the feature cache cannot be used.",
            "Nothing need be done: what needs them computes them again.",
        )
    note(f"{len(found)} entries, {human(sum(each.size() for each in found))}, all as they were written.")


@cache_group.command()
@click.option("--all", "everything", is_flag=True, help="Remove every entry.")
@click.option("--to", "gigabytes", type=click.FloatRange(min=0), help="Keep at most so many GB.  [default: the limit]")
@guarded
def prune(everything: bool, gigabytes: float | None) -> None:
    """Remove entries, the least recently used first, and what killed runs left more than a day ago."""
    from foresight_bench import pruning

    if everything and gigabytes is not None:
        raise UsageError("--all and --to contradict each other.", "Give one of them.")
    most = pruning.limit_bytes() if gigabytes is None else int(gigabytes * 1e9)
    count, freed = pruning.prune(0 if everything else most)
    note(f"Removed {count} entries, {human(freed)}.")


@cache_group.command()
@guarded
def path() -> None:
    """Print the folder of the feature cache."""
    from foresight_bench.cache import root

    click.echo(root())


def human(size: int) -> str:
    """Return bytes for people: three significant digits and a unit of a power of 1000."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * amount:
            digits = f"{size / amount:.3g}"
            return f"{float(digits):.0f} {unit}" if "e" in digits else f"{digits} {unit}"
    return f"{size} B"


def _row(entry: Entry) -> list[str]:
    identity = entry.identity()
    used = datetime.fromtimestamp(entry.used(), UTC).strftime("%Y-%m-%d %H:%M")
    size = human(entry.size()) + ("" if entry.is_whole() else ", unfinished")
    if identity is None:
        return [entry.key[:SHOWN], "not readable", "", "", "", size, used]
    data = _data(identity)
    return [entry.key[:SHOWN], identity.encoder, identity.tap, data, identity.precision, size, used]


def _record(entry: Entry) -> dict[str, object]:
    identity, manifest = entry.identity(), entry.manifest()
    return {
        "key": entry.key,
        "whole": manifest is not None,
        "bytes": entry.size(),
        "used": datetime.fromtimestamp(entry.used(), UTC).isoformat(timespec="seconds"),
        "identity": identity and identity.model_dump(mode="json"),
        "made": manifest and manifest.made.model_dump(mode="json"),
    }


def _data(identity: FeatureIdentity) -> str:
    from hashlib import sha256

    digest = sha256(json.dumps(identity.data, sort_keys=True).encode()).hexdigest()[:8]
    return digest + (f" ({identity.limit} clips)" if identity.limit is not None else "")


def _identity(prefix: str) -> FeatureIdentity:
    from foresight_bench.cache import entries

    found = [each for each in entries() if each.key.startswith(prefix)]
    if not found:
        raise UsageError(f"No key starts with '{prefix}'.", "See `foresight-bench cache ls`.")
    if len(found) > 1:
        raise UsageError(f"{len(found)} keys start with '{prefix}'.", "Give more digits.")
    identity = found[0].identity()
    if identity is None:
        raise DataError(f"The entry {found[0].key} does not say what it holds.", "See `foresight-bench cache verify`.")
    return identity
