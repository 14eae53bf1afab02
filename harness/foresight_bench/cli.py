"""The command line. Results go to standard output, progress to standard error. No torch is imported here."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from foresight_bench.errors import CELL_FAILED, INTERRUPTED, CheckFailed, ForesightError, NothingSelected
from foresight_bench.specs import Precision

F = TypeVar("F", bound=Callable[..., Any])


def guarded(command: F) -> F:
    """Turn expected errors into one sentence and a hint, and an interrupt into its exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ForesightError as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(error.hint, err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted; finished cells are kept, the same command resumes.", err=True)
            sys.exit(INTERRUPTED)

    return wrapper  # type: ignore[return-value]


def note(text: str) -> None:
    """Say what is going on, on standard error."""
    click.echo(text, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="foresight-bench")
def main() -> None:
    """Decide whether a frozen visual representation can drive a video decoder, and where in the encoder spatial
    information gets lost."""


suite_option = click.option("--suite", default="quick", show_default=True, help="Gate suite.")
results_option = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder of result cells.",
)
device_option = click.option("--device", help="cpu, cuda or cuda:N.  [default: the first GPU, else the CPU]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@main.command()
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


@main.command()
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


@main.command("list")
@click.argument("kind", required=False, type=click.Choice(["encoders", "adapters", "decoders", "metrics", "suites"]))
@json_option
@guarded
def list_command(kind: str | None, as_json: bool) -> None:
    """List what the installed plugins provide."""
    from foresight_bench.registry import Registry

    registry = Registry.installed()
    shelves = {
        "encoders": registry.encoders,
        "adapters": registry.adapters,
        "decoders": registry.decoders,
        "metrics": registry.metrics,
        "suites": registry.suites,
    }
    chosen: dict[str, Any] = {name: shelf for name, shelf in shelves.items() if kind in (None, name)}
    if as_json:
        records = {
            name: [{"name": e.spec.name, "plugin": e.plugin.name, "description": e.spec.description} for e in shelf]
            for name, shelf in chosen.items()
        }
        click.echo(json.dumps(records, indent=1))
        return
    for name, shelf in chosen.items():
        click.echo(f"{name}:")
        for entry in shelf:
            variants = [v.name for v in getattr(entry.spec, "variants", ())]
            suffix = f" [{', '.join(variants)}]" if len(variants) > 1 else ""
            click.echo(f"  {entry.spec.name}{suffix}: {entry.spec.description}")


@main.command()
@click.argument("encoder")
@json_option
@guarded
def show(encoder: str, as_json: bool) -> None:
    """Show an encoder's variants, taps, options and weights, or one variant's (dinov2:large)."""
    from foresight_bench import names, showing
    from foresight_bench.registry import Registry

    registry = Registry.installed()
    stream = names.parse(encoder)[0]
    spec = registry.encoders[stream.name].spec
    variants = [registry.variant(stream)] if stream.variant else spec.variants
    if as_json:
        click.echo(json.dumps(showing.encoder_record(spec, variants), indent=1))
    else:
        click.echo(showing.encoder_text(spec, variants))


@main.command()
@json_option
@guarded
def plugins(as_json: bool) -> None:
    """List the plugins, the quarantined ones with their reason."""
    from foresight_bench.registry import Registry

    found = Registry.installed().plugins
    if as_json:
        records = [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "hooks": list(p.hooks),
                "status": "quarantined" if p.quarantine else "ok",
                "reason": p.quarantine,
                "traceback": p.traceback if p.quarantine else "",
            }
            for p in found
        ]
        click.echo(json.dumps(records, indent=1))
        return
    for p in found:
        click.echo(f"{p.name} ({p.distribution} {p.version}): {p.quarantine or ', '.join(p.hooks)}")
        if p.quarantine:
            click.echo(p.traceback.rstrip())


@main.command()
@click.option("--check", is_flag=True, help="Exit 6 if the page differs from what the results give.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder of committed result cells.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("BENCHMARKS.md"),
    show_default=True,
)
@guarded
def leaderboard(check: bool, results: Path, output: Path) -> None:
    """Write the leaderboard from committed results."""
    from foresight_bench.leaderboard import page
    from foresight_bench.registry import Registry
    from foresight_bench.store import Store, write_atomically

    text = page(Registry.installed(), Store(results))
    if check:
        if not output.exists() or output.read_text("utf-8") != text:
            raise CheckFailed(f"{output} is not what {results} gives.", "Run `foresight-bench leaderboard`.")
        note(f"{output} is what {results} gives.")
        return
    write_atomically(output, text.encode())
    note(f"Wrote {output}.")


@main.group()
def scenes() -> None:
    """Render, preview and verify a suite's clips."""


def _data(suite: str) -> tuple[Any, Any]:
    from foresight_bench.registry import Registry, target

    spec = Registry.installed().suites[suite].spec
    return spec, target(spec.target)(**spec.params)


@scenes.command()
@suite_option
@json_option
@guarded
def verify(suite: str, as_json: bool) -> None:
    """Render every split and compare its bytes with the suite's digests."""
    spec, data = _data(suite)
    found = {}
    for name in data.names:
        note(f"rendering {name}")
        found[name] = data.digest(name)
    data.check_disjoint()
    wrong = [name for name in data.names if spec.digests.get(name) != found[name]]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for name, digest in found.items():
            click.echo(f'{name} = "{digest}"' + ("  # differs" if name in wrong else ""))
    if wrong:
        raise CheckFailed(
            f"Split {', '.join(wrong)} of suite {suite} is not what its digest names.",
            "A changed generator needs a new suite version.",
        )


@scenes.command()
@suite_option
@click.option("--split", default="test", show_default=True)
@click.option("--clips", default=10, show_default=True, help="Clips to show of each length.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), default=Path("scenes.png"))
@guarded
def preview(suite: str, split: str, clips: int, output: Path) -> None:
    """Write a contact sheet with boxes, classes and mask outlines drawn."""
    from foresight_bench.pictures import contact_sheet

    _, data = _data(suite)
    contact_sheet(data.split(split).blocks, data.class_names, clips).save(output)
    note(f"Wrote {output}.")


@scenes.command()
@suite_option
@click.option("--split", default="test", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), required=True)
@guarded
def render(suite: str, split: str, output: Path) -> None:
    """Write a split's frames as PNG files, and its truth as one NPZ file a block."""
    from foresight_bench.pictures import export

    _, data = _data(suite)
    count = export(data.split(split).blocks, output)
    note(f"Wrote {count} frames to {output}.")
