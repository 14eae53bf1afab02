"""What `run` and `plan` are asked for: their common options, and the session that comes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from foresight_bench.commands.options import device_option, note, results_option, suite_option
from foresight_bench.errors import DataError, NothingSelected, UsageError

if TYPE_CHECKING:
    from foresight_bench.devices import Device
    from foresight_bench.plan import Plan, Selection
    from foresight_bench.registry import Registry
    from foresight_bench.specs import SuiteSpec
    from foresight_bench.store import Store

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option("--encoder", "-e", "encoders", multiple=True, help="Encoder name, or all; may be repeated."),
    click.option("--experiment", "-x", "experiments", multiple=True, help="Experiment or gate.  [default: all]"),
    click.option("--adapter", "-a", "adapters", multiple=True, help="Adapter, or all.  [default: the suite's]"),
    click.option("--decoder", "-d", "decoders", multiple=True, help="Video decoder, or all.  [default: the suite's]"),
    click.option("--all", "everything", is_flag=True, help="Every encoder, adapter and decoder."),
    click.option("--metric", "metrics", multiple=True, help="Metric to report beside the suite's; may be repeated."),
    suite_option,
    click.option("--seed", "seeds", multiple=True, default=(0,), help="Seed; may be repeated.  [default: 0]"),
    click.option(
        "--limit", type=click.IntRange(min=8), default=None, help="Clips a block at most: a first try, for no table."
    ),
    click.option(
        "--cells", type=click.Path(path_type=Path, dir_okay=False), help="Only the cells in this plan (JSON)."
    ),
    click.option("--shard", metavar="I/N", help="Only part I of N, of every N-th encoder."),
    click.option(
        "--weights", multiple=True, metavar="NAME=PATH", help="Use this file or checkpoint folder for these weights."
    ),
    click.option(
        "--python", "pythons", multiple=True, metavar="ENCODER=PATH", help="Run this encoder with another interpreter."
    ),
    device_option,
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16"]),
        help="Of the encoders.  [default: float32 on the CPU, bfloat16 on a GPU]",
    ),
    click.option(
        "--compile/--no-compile", "compiled", default=None, help="Compile the encoders.  [default: where it pays]"
    ),
    results_option,
)


def selecting(command: F) -> F:
    """Give ``command`` the options that say what is to be computed; it takes them as keyword arguments."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Session:
    """What was asked for, planned."""

    registry: Registry
    selection: Selection
    plan: Plan
    whole: Plan
    """The plan that ``plan`` is a shard of; itself if it is none."""
    shard: tuple[int, int] | None
    devices: tuple[Device, ...]
    store: Store
    pythons: Mapping[str, str]

    @property
    def suite(self) -> SuiteSpec:
        """The suite."""
        return self.registry.suites[self.plan.suite].spec

    @property
    def frames(self) -> int:
        """Frames in the suite."""
        from foresight_bench.jobs import frame_count
        from foresight_bench.registry import suite_data

        data = suite_data(self.suite, self.plan.limit)
        return frame_count({name: data.blocks(name) for name in data.names})


def session(
    *,
    encoders: tuple[str, ...],
    suite: str,
    device: str | None,
    results: Path,
    experiments: tuple[str, ...] = (),
    adapters: tuple[str, ...] = (),
    decoders: tuple[str, ...] = (),
    everything: bool = False,
    seeds: tuple[int, ...] = (0,),
    limit: int | None = None,
    cells: Path | None = None,
    shard: str | None = None,
    weights: Sequence[str] = (),
    pythons: Sequence[str] = (),
    precision: Any = None,
    compiled: bool | None = None,
    metrics: tuple[str, ...] = (),
    find: Callable[[str | None], tuple[Device, ...]] | None = None,
) -> Session:
    """Return the session of the options, on the devices that ``find`` finds; on this machine if it is None.

    Raises:
        UsageError: nothing to run was named, or twice.
        NothingSelected: the selection names no cell.
        ForesightError: what planning raises.
    """
    from foresight_bench.devices import find_devices
    from foresight_bench.plan import ALL, Selection

    if bool(encoders) + everything + (cells is not None) != 1:
        raise UsageError(
            "Nothing, or more than one thing, says what to run.", "Give -e ENCODER, --all or --cells FILE."
        )
    if everything:
        encoders, adapters, decoders = (ALL,), adapters or (ALL,), decoders or (ALL,)
    selection = Selection(
        suite,
        encoders,
        experiments,
        adapters,
        decoders,
        seeds,
        precision=precision,
        compiled=compiled,
        limit=limit or 0,
        metrics=metrics,
    )
    ids = None
    if cells is not None:
        selection, ids = _planned_before(cells)
    return _session(selection, ids, _shard(shard), (find or find_devices)(device), results, weights, pythons, device)


def _session(
    selection: Selection,
    ids: frozenset[str] | None,
    shard: tuple[int, int] | None,
    devices: tuple[Device, ...],
    results: Path,
    weights: Sequence[str],
    pythons: Sequence[str],
    device: str | None,
) -> Session:
    from foresight_bench.interpreters import libraries_of
    from foresight_bench.plan import plan
    from foresight_bench.plugins import shadows
    from foresight_bench.registry import Registry
    from foresight_bench.store import Store
    from foresight_bench.weights import resolve

    registry = Registry.installed()
    for plugin in registry.plugins:
        if plugin.quarantine:
            note(f"Plugin {plugin.name} is quarantined: {plugin.quarantine}")
    for name, shared in shadows(registry.plugins).items():
        for shadow in shared:
            note(f"Plugin {name} is not used for the {shadow}.")
    files = {name: Path(file) for name, file in _assignments(weights, "--weights", "NAME=PATH").items()}
    others = interpreters(pythons)
    for name in others:
        registry.encoders[name]
    selection = replace(selection, device=devices[0].name)
    whole = plan(
        registry,
        selection,
        lambda w, needed: resolve(w, files.get(w.name), notify=note, needed=needed),
        {name: libraries_of(python) for name, python in others.items()},
    )
    if ids is not None:
        whole = whole.keep(ids)
    part = whole.part(*shard) if shard else whole
    if not part.cells:
        raise NothingSelected("The selection names no cell.", "See `foresight-bench list`.")
    if device is None and devices[0].name == "cpu":
        note("No GPU found; running on the CPU.")
    return Session(registry, selection, part, whole, shard, devices, Store(results), others)


def _planned_before(path: Path) -> tuple[Selection, frozenset[str]]:
    """Return the selection and the cell ids in what `plan --json` wrote, or in what is left of it."""
    from pydantic import TypeAdapter

    from foresight_bench.plan import Selection

    try:
        record = json.loads(path.read_bytes())
        selection = TypeAdapter(Selection).validate_python(record["selection"])
        return selection, frozenset(str(cell["id"]) for cell in record["cells"])
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror}.", "Write it with `foresight-bench plan --json`."
        ) from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a plan.", "Write it with `foresight-bench plan --json`.") from error


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, of = text.partition("/")
    if not (index.isdigit() and of.isdigit() and 1 <= int(index) <= int(of)):
        raise UsageError(f"'{text}' is not a shard.", "Write I/N with I from 1 to N, for example 2/4.")
    return int(index), int(of)


def interpreters(texts: Sequence[str]) -> dict[str, str]:
    """Return the interpreter of each encoder that `--python` names."""
    return _assignments(texts, "--python", "ENCODER=PATH")


def _assignments(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise click.BadParameter(f"'{text}' is not {form}.", param_hint=option)
        found[name] = value
    return found
