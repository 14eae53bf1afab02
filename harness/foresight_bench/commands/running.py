"""Commands that compute: run, calibrate."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from foresight_bench.commands.options import device_option, guarded, json_option, note, results_option, suite_option
from foresight_bench.errors import CELL_FAILED, CheckFailed, NothingSelected
from foresight_bench.specs import Precision


@click.command()
@click.option("--encoder", "-e", "encoders", multiple=True, required=True, help="Encoder name; may be repeated.")
@click.option("--experiment", "-x", "experiments", multiple=True, help="Experiment or gate.  [default: all]")
@click.option("--adapter", "-a", "adapters", multiple=True, help="Adapter, or all.  [default: the suite's]")
@click.option("--decoder", "-d", "decoders", multiple=True, help="Video decoder, or all.  [default: the suite's]")
@suite_option
@click.option("--seed", "seeds", multiple=True, default=(0,), help="Seed; may be repeated.  [default: 0]")
@click.option(
    "--weights", multiple=True, metavar="NAME=PATH", help="Use this file or checkpoint folder for these weights."
)
@device_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the encoders.  [default: float32 on the CPU, bfloat16 on a GPU]",
)
@click.option(
    "--compile/--no-compile", "compiled", default=None, help="Compile the encoders.  [default: where it pays]"
)
@results_option
@click.option("--require-pass", is_flag=True, help="Exit 6 unless every gate passes.")
@json_option
@guarded
def run(
    encoders: tuple[str, ...],
    experiments: tuple[str, ...],
    adapters: tuple[str, ...],
    decoders: tuple[str, ...],
    suite: str,
    seeds: tuple[int, ...],
    weights: tuple[str, ...],
    device: str | None,
    precision: Precision | None,
    compiled: bool | None,
    results: Path,
    require_pass: bool,
    as_json: bool,
) -> None:
    """Score frozen encoders on the gate suite; finished cells are reused.

    An encoder is name[:variant][:option=value][@taps][~transform], for example dinov2, dinov2:large,
    dinov2@block.8~pooled; join two with + for a hybrid.
    """
    from foresight_bench import tables
    from foresight_bench.plan import Selection
    from foresight_bench.verdicts import GateStatus

    selection = Selection(
        suite, encoders, experiments, adapters, decoders, seeds, precision=precision, compiled=compiled
    )
    session = _session(selection, device, results, weights)
    wanted = {session.registry.label(session.registry.resolve(name)) for name in encoders}
    cells = [cell for cell in session.result.cells.values() if cell.identity.encoder in wanted]
    if as_json:
        click.echo(json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1))
    groups = tables.systems(cells)
    if not as_json:
        click.echo("\n" + tables.run_text(session.suite, groups))
    failed = [cell for cell in session.result.cells.values() if cell.status not in ("ok", "skipped")]
    for cell in failed:
        note(f"{cell.identity.encoder} {cell.identity.experiment} {cell.status}: {cell.reason}")
    note(f"{len(session.result.cells)} cells, {session.result.reused} reused, in {results}")
    _end_badly(session.result, failed)
    results_of_gates = [tables.gate_result(gate, group) for gate in session.suite.gates for group in groups.values()]
    if require_pass and any(result.status is not GateStatus.PASSED for result in results_of_gates):
        raise CheckFailed("A gate did not pass.")


def _end_badly(result: Any, failed: Sequence[Any]) -> None:
    """Leave with the exit code that the first fault, or else a failed cell, calls for; return if all is well."""
    if result.faults:
        raise result.faults[0]
    if failed:
        sys.exit(CELL_FAILED)


class _Session:
    """A plan that was executed."""

    def __init__(self, registry: Any, suite: Any, result: Any) -> None:
        self.registry, self.suite, self.result = registry, suite, result


def _session(selection: Any, device: str | None, results: Path, weights: tuple[str, ...]) -> _Session:
    from dataclasses import replace

    from foresight_bench.devices import find_device
    from foresight_bench.execution import execute
    from foresight_bench.plan import plan
    from foresight_bench.registry import Registry
    from foresight_bench.store import Store
    from foresight_bench.weights import resolve

    registry = Registry.installed()
    for plugin in registry.plugins:
        if plugin.quarantine:
            note(f"Plugin {plugin.name} is quarantined: {plugin.quarantine}")
    found = find_device(device)
    files = dict(_assignment(text) for text in weights)
    selection = replace(selection, device=found.name)
    planned = plan(registry, selection, lambda w, needed: resolve(w, files.get(w.name), notify=note, needed=needed))
    if not planned.cells:
        raise NothingSelected("The selection names no cell.", "See `foresight-bench list`.")
    if device is None and found.name == "cpu":
        note("No GPU found; running on the CPU.")
    result = execute(planned, selection, found, Store(results))
    return _Session(registry, registry.suites[selection.suite].spec, result)


def _assignment(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not separator or not name or not file:
        raise click.BadParameter(f"'{text}' is not NAME=PATH.", param_hint="--weights")
    return name, Path(file)


@click.command()
@suite_option
@click.option("--decoder", "-d", "decoders", multiple=True, help="Video decoder.  [default: the suite's]")
@device_option
@results_option
@json_option
@guarded
def calibrate(suite: str, decoders: tuple[str, ...], device: str | None, results: Path, as_json: bool) -> None:
    """Run every control through every experiment; exit 6 unless every ceiling passes and every floor fails."""
    from foresight_bench.calibration import calibration
    from foresight_bench.plan import Selection
    from foresight_bench.registry import Registry
    from foresight_bench.store import Store

    controls = Registry.installed().suites[suite].spec.controls
    session = _session(Selection(suite, controls, decoders=decoders), device, results, ())
    cells = list(session.result.cells.values())
    table = calibration(session.suite, cells, Store(results))
    if as_json:
        click.echo(json.dumps(table.records(), indent=1))
    else:
        click.echo(table.text())
    if not table.separates:
        raise CheckFailed(f"Suite {suite} is not calibrated.", "Change the data or the protocol, never the threshold.")
    note(f"Suite {suite} is calibrated: every ceiling passes and every floor fails, by its whole interval.")
