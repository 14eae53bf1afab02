"""Measure heads trained together against one after another, and ridge paths against scikit-learn.

    python benchmarks/speed/heads.py [--device cuda] [--json FILE]

The heads are ``mlp`` adapters. One after another, each is a plain module in a plain loop with the same initial
parameters, batches and schedule, on inputs prepared beforehand; together, everything from features on counts. Both
must reach the same errors, and both ridges the same coefficients, or there is no number.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import RidgeCV
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from foresight_bench import heads, pairs, ridge, stacking
from foresight_bench.grids import Grid
from foresight_bench.specs import AdapterSpec, Recipe
from foresight_plugins.adapters.mlp import MLPAdapter


@dataclass(frozen=True)
class Size:
    """What is trained and fitted."""

    clips: int
    """To train on; a quarter as many are held out."""
    side: int
    """Of the feature grid and of the latent grid."""
    channels: int
    hidden: int
    latents: int
    """Channels of the latents."""
    epochs: int
    taps: int
    seeds: int
    rates: int
    rows: int
    """Of each tap's ridge; a quarter as many choose the penalty."""
    paths: int
    """Taps that a ridge path is fitted for."""
    columns: int = 384
    targets: int = 128
    penalties: int = 20


# On a CPU a large head keeps both cores busy by itself, and nothing is to be gained: these are small.
SIZES = {
    "cuda": Size(256, 16, 384, 512, 96, 6, taps=4, seeds=3, rates=8, rows=4096, paths=32),
    "cpu": Size(64, 4, 64, 128, 32, 6, taps=4, seeds=3, rates=8, rows=4096, paths=32),
}


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return what ``call`` returns, and its seconds until the device is done."""
    _wait(device)
    started = time.perf_counter()
    result = call()
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tasks(size: Size, device: torch.device) -> list[heads.Task]:
    """Return one task for each tap and seed: latents are a bent linear map of the features, and noise."""
    recipe = Recipe(tuple(1e-4 * 100 ** (i / max(1, size.rates - 1)) for i in range(size.rates)), epochs=size.epochs)
    spec = AdapterSpec("mlp", "foresight_plugins.adapters.mlp:MLPAdapter", "", {"hidden": size.hidden}, recipe)
    rng = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device)

    found = []
    for tap in range(size.taps):
        weight = normal(size.channels, size.latents) / size.channels**0.5
        splits = []
        for clips in (size.clips, size.clips // 4):
            values = normal(clips, 1, size.side, size.side, size.channels)
            answer = (values @ weight).abs() + 0.1 * normal(clips, 1, size.side, size.side, size.latents)
            splits.append([(Grid(values), Grid(answer))])
        found += [heads.Task(f"mlp at {tap}", spec, *splits, seed) for seed in range(size.seeds)]
    return found


def one_after_another(given: Sequence[heads.Task], device: torch.device) -> list[float]:
    """Return the least error on ``val`` of each task over its learning rates, each trained by itself."""
    errors = []
    prepared: dict[int, list[tuple[tuple[Tensor, ...], Tensor]]] = {}
    for task in given:
        recipe = task.spec.recipe
        assert recipe is not None
        pairing = pairs.pairing(task.train, *pairs.statistics([features for features, _ in task.train]))
        first = MLPAdapter(pairing, stacking.generator(task.name, task.seed), hidden=int(task.spec.params["hidden"]))
        first.to(device)
        key = id(task.train[0][0].values)
        if key not in prepared:
            prepared[key] = [(first.prepare(x, y.layout), y.values) for x, y in (task.train[0], task.val[0])]
        errors.append(
            min(_alone(copy.deepcopy(first), *prepared[key], recipe, rate, task.seed) for rate in recipe.learning_rates)
        )
    return errors


def _alone(
    module: MLPAdapter,
    train: tuple[tuple[Tensor, ...], Tensor],
    val: tuple[tuple[Tensor, ...], Tensor],
    recipe: Recipe,
    rate: float,
    seed: int,
) -> float:
    """Return the least error on ``val`` of one module at one learning rate."""
    device = train[1].device
    optimiser = torch.optim.AdamW(module.parameters(), rate, weight_decay=recipe.weight_decay, fused=True)
    steps, step, best = recipe.epochs * -(-len(train[1]) // recipe.batch), 0, float("inf")
    for epoch in range(1, recipe.epochs + 1):
        for _, order in stacking.batches([len(train[1])], recipe.batch, epoch, {seed}, device):
            rows = order[seed]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                predicted = module(*(part[rows] for part in train[0]))
            optimiser.zero_grad()
            F.mse_loss(predicted.float(), train[1][rows]).backward()
            optimiser.param_groups[0]["lr"] = rate * stacking.schedule(step, steps, recipe.warmup)
            optimiser.step()
            step += 1
        with torch.no_grad():
            best = min(best, float(F.mse_loss(module(*val[0]), val[1])))
    return best


def measure_heads(size: Size, device: torch.device) -> dict[str, float]:
    """Return the seconds of both ways, and by how much their errors differ."""
    given = tasks(size, device)
    recipe = given[0].spec.recipe
    assert recipe is not None
    brief = replace(given[0].spec, recipe=replace(recipe, epochs=1))
    warm = [replace(task, spec=brief) for task in given]
    heads.train(warm, device)
    one_after_another(warm[:1], device)
    together, ours = timed(lambda: heads.train(given, device), device)
    alone, theirs = timed(lambda: one_after_another(given, device), device)
    found = [result.val_error for result in together if isinstance(result, heads.TrainedAdapter)]
    apart = max(abs(a / b - 1) for a, b in zip(found, alone, strict=True))
    # In bfloat16 the two ways round differently at each step; in float32 only the order of sums differs.
    if apart > (0.02 if device.type == "cuda" else 1e-3):
        raise RuntimeError(f"Heads trained together differ from heads trained alone: {apart:.1e} of their errors.")
    return {"together": ours, "one after another": theirs, "difference": apart}


def measure_paths(size: Size, device: torch.device) -> dict[str, float]:
    """Return the seconds of both ways, and by how much their coefficients differ at the penalty that RidgeCV chose."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, size.columns, dtype=torch.float64)
    mix = torch.randn(size.columns, size.targets, generator=rng, dtype=torch.float64)
    penalties = tuple(10.0 ** (-6 + 9 * i / (size.penalties - 1)) for i in range(size.penalties))

    def rows(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, size.columns, generator=rng, dtype=torch.float64) * spread
        return x, x @ mix + torch.randn(count, size.targets, generator=rng, dtype=torch.float64)

    ours = theirs = apart = 0.0
    for tap in range(size.paths + 1):  # the first warms the device and the libraries up
        train, val = rows(size.rows), rows(size.rows // 4)
        here = [tuple(part.to(device) for part in split) for split in (train, val)]

        def ours_once(here: Sequence[tuple[Tensor, ...]] = here) -> ridge.RidgePath:
            moments = [ridge.Moments(), ridge.Moments()]
            for each, (x, y) in zip(moments, here, strict=True):
                each.accumulate(x, y)
            path = ridge.fit_path(moments[0], penalties)
            path.coefficients(torch.tensor(penalties, device=device)[path.sse(moments[1]).argmin(0)])
            return path

        path, seconds = timed(ours_once, device)
        reference = RidgeCV(alphas=[penalty * path.scale for penalty in penalties])
        _, reference_seconds = timed(lambda: reference.fit(train[0].numpy(), train[1].numpy()), device)  # noqa: B023
        found = path.coefficients(reference.alpha_ / path.scale).weight.T.cpu().numpy()
        apart = max(apart, abs(found - reference.coef_).max() / abs(reference.coef_).max())
        if tap:
            ours, theirs = ours + seconds, theirs + reference_seconds
    if apart > 1e-6:
        raise RuntimeError(f"Coefficients differ from those of RidgeCV: {apart:.1e} of the largest.")
    return {"ours": ours, "RidgeCV": theirs, "difference": apart}


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    size, trained, paths = results["size"], results["heads"], results["ridge"]
    count = size["taps"] * size["seeds"] * size["rates"]
    rows = [
        [
            f"{count} heads ({size['taps']} taps x {size['seeds']} seeds x {size['rates']} rates), {size['clips']} "
            f"clips of {size['side']} x {size['side']} tokens, {size['channels']} -> {size['hidden']} -> "
            f"{size['latents']}, {size['epochs']} epochs",
            trained["together"],
            trained["one after another"],
            trained["one after another"] / trained["together"],
            trained["difference"],
        ],
        [
            f"{size['paths']} ridge paths of {size['penalties']} penalties, {size['rows']} x {size['columns']} -> "
            f"{size['targets']}, float64; RidgeCV on the CPU",
            paths["ours"],
            paths["RidgeCV"],
            paths["RidgeCV"] / paths["ours"],
            paths["difference"],
        ],
    ]
    about = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    header = ["what", "ours, s", "reference, s", "speed-up", "largest difference"]
    return f"{about}.\n\n" + tabulate(rows, header, "github", floatfmt=("", ".3f", ".2f", ".1f", ".0e"))


def environment(device: torch.device) -> dict[str, str]:
    """Return the hardware and the versions that the numbers belong to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version(), "device": name}
    libraries = {library: metadata.version(library) for library in ("torch", "scikit-learn")}
    return {**found, "CPU threads": str(torch.get_num_threads()), **libraries}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    size = SIZES[device.type]
    results = {
        "environment": environment(device),
        "size": asdict(size),
        "heads": measure_heads(size, device),
        "ridge": measure_paths(size, device),
    }
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
