"""Commands that compute: run, plan, calibrate."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foresight_bench.commands.options import device_option, guarded, json_option, note, results_option, suite_option
from foresight_bench.commands.selecting import Session, interpreters, selecting, session
from foresight_bench.errors import CELL_FAILED, CheckFailed, UsageError

if TYPE_CHECKING:
    from foresight_bench.cells import Cell
    from foresight_bench.execution import RunResult
    from foresight_bench.ray_executor import RayExecutor

TIMEOUT = 1800.0
"""Seconds of silence after which a worker is taken to hang. Workers speak at every batch and every training step;
the longest pause known is the compilation of a model, some 100 s."""


@click.command()
@selecting
@click.option("--dry-run", is_flag=True, help="Print the plan and compute nothing.")
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--ray-address", help="Of the cluster's head, host:port.  [default: the one that is found, or a new one]")
@click.option(
    "--timeout", default=TIMEOUT, show_default=True, help="Seconds of silence after which a worker is killed."
)
@click.option("--require-pass", is_flag=True, help="Exit 6 unless every gate passes.")
@json_option
@guarded
def run(
    dry_run: bool,
    executor: str,
    ray_address: str | None,
    timeout: float,
    require_pass: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Score frozen encoders on the gate suite; finished cells are reused.

    An encoder is name[:variant][:option=value][@taps][~transform], for example dinov2, dinov2:large,
    dinov2@block.8~pooled; join two with + for a hybrid.
    """
    from foresight_bench import tables
    from foresight_bench.verdicts import GateStatus

    if ray_address and executor != "ray":
        raise UsageError("--ray-address says where a Ray cluster is.", "Add --executor ray.")
    cluster = _cluster(ray_address, timeout, chosen["pythons"]) if executor == "ray" else None
    asked = session(**chosen, find=cluster.find_devices if cluster else None)
    if dry_run:
        _show_plan(asked, as_json)
        return
    done = _execute(asked, timeout, cluster)
    wanted = {row.label for row in asked.plan.rows if row.wanted}
    cells = [cell for cell in done.cells.values() if cell.identity.encoder in wanted]
    if as_json:
        click.echo(json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1))
    groups = tables.systems(cells)
    if not as_json:
        click.echo("\n" + tables.run_text(asked.suite, groups))
    failed = [cell for cell in done.cells.values() if cell.status not in ("ok", "skipped")]
    for cell in failed:
        note(f"{cell.identity.encoder} {cell.identity.experiment} {cell.status}: {cell.reason}")
    note(f"{len(done.cells)} cells, {done.reused} reused, in {asked.store.root}")
    _end_badly(done, failed)
    gates = [tables.gate_result(gate, group) for gate in asked.suite.gates for group in groups.values()]
    if require_pass and any(result.status is not GateStatus.PASSED for result in gates):
        raise CheckFailed("A gate did not pass.")


@click.command()
@selecting
@json_option
@guarded
def plan(as_json: bool, **chosen: Any) -> None:
    """Say what `run` would compute, reuse and leave out, and about what it would take.

    The JSON is what `run --cells` reads; cells may be taken out of it before.
    """
    _show_plan(session(**chosen), as_json)


def _show_plan(asked: Session, as_json: bool) -> None:
    from foresight_bench.forecast import forecast

    found = forecast(asked.registry, asked.plan, asked.selection, asked.devices, asked.store, asked.frames)
    click.echo(json.dumps(found.record(), indent=1) if as_json else found.text())


def _cluster(address: str | None, timeout: float, pythons: Sequence[str]) -> RayExecutor:
    from foresight_bench.execution import usable_threads
    from foresight_bench.ray_executor import RayExecutor

    return RayExecutor(address, usable_threads(), timeout, interpreters(pythons))


def _execute(asked: Session, timeout: float, cluster: RayExecutor | None = None) -> RunResult:
    from foresight_bench.execution import current_provenance, execute, refusals, usable_threads
    from foresight_bench.executors import LocalExecutor
    from foresight_bench.jobs import Settings
    from foresight_bench.pruning import limit_bytes
    from foresight_bench.sharding import ShardRecord, plan_digest, write_shard

    device = asked.devices[0]
    sources = {name: weights.source for name, weights in asked.plan.weights.items()}
    settings = Settings(
        results=asked.store.root.resolve(),
        provenance=current_provenance(device, sources),
        device=device.name,
        compiled=asked.selection.compiled,
        threads=usable_threads(),
    )
    limit_bytes()  # a bad limit of the cache is said now, not by a worker
    refused = {} if cluster else refusals(asked.plan, device)
    logs = asked.store.folder(asked.plan.cohort, device.machine)
    executor = cluster or LocalExecutor(asked.devices, logs, timeout, asked.pythons)
    done = execute(asked.plan, settings, executor, asked.store, asked.frames, refused, asked.registry.plugins)
    if asked.shard:
        digest = plan_digest(cell.id for cell in asked.whole.cells)
        mine = tuple(dict.fromkeys(cell.id for cell in asked.plan.cells))
        record = ShardRecord(plan=digest, shard=asked.shard[0], of=asked.shard[1], cells=mine)
        write_shard(asked.store.folder(asked.plan.cohort, device.machine), record)
    return done


def _end_badly(result: RunResult, failed: Sequence[Cell]) -> None:
    """Leave with the exit code that the first fault, or else a failed cell, calls for; return if all is well."""
    if result.faults:
        raise result.faults[0]
    if failed:
        sys.exit(CELL_FAILED)


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
    from foresight_bench.registry import Registry

    controls = Registry.installed().suites[suite].spec.controls
    asked = session(encoders=controls, suite=suite, decoders=decoders, device=device, results=results)
    done = _execute(asked, TIMEOUT)
    table = calibration(asked.suite, list(done.cells.values()), asked.store)
    if as_json:
        click.echo(json.dumps(table.records(), indent=1))
    else:
        click.echo(table.text())
    if not table.separates:
        raise CheckFailed(f"Suite {suite} is not calibrated.", "Change the data or the protocol, never the threshold.")
    note(f"Suite {suite} is calibrated: every ceiling passes and every floor fails, by its whole interval.")
