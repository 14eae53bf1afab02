"""The checks of adapters, both those that the harness trains and those that fit themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foresight_bench import heads
from foresight_bench.adapting import Predictor, mean_squared_error
from foresight_bench.contracts import Adapter
from foresight_bench.errors import Unsupported
from foresight_bench.grids import Grid, Layout
from foresight_bench.heads import Task
from foresight_bench.pairs import Blocks, pairing, statistics
from foresight_bench.registry import target
from foresight_bench.specs import AdapterSpec
from foresight_bench.stacking import generator
from foresight_bench.testing.kit import Broken, Checks, NotApplicable, Unverified
from foresight_bench.testing.parts import (
    bytes_of,
    generators_kept,
    move_generators,
    noise,
    require_light,
    require_settings_kept,
    untouched,
)
from foresight_bench.testing.subjects import PartSubject

ADAPTER_CHECKS: Checks[PartSubject] = Checks()

CHANNELS, LATENTS = 12, 5

LEARNT = 0.5
"""Most validation error, as a share of the mean predictor's, of latents that are a linear function of the features. The
built-in adapters leave .09 to .15, one that learns nothing 1."""

ALONE = 1e-2
"""Most that predictions may move in one epoch, relative to their deviation, when others train beside. Round-off
moves the built-in adapters by up to .0007: a ReLU doubts which side of 0 it is on, and training multiplies that."""

Cells = tuple[Layout, Layout]
"""Of features and latents."""

SPANS = ((0, 1), (1, 9))
PAIRS: tuple[Cells, ...] = (
    (Layout(1, 4, 6), Layout(1, 3, 4)),
    (Layout(1, 3, 4), Layout(1, 6, 8)),
    (Layout(1, 5, 5), Layout(1, 2, 7)),
    (Layout(5, 4, 6), Layout(2, 4, 4, SPANS)),
)
"""Latents that are coarser, finer, of another aspect, and in time two cells for five."""


@ADAPTER_CHECKS.must("The module of the entry point imports no torch.")
def import_light(subject: PartSubject) -> None:
    """See :func:`foresight_bench.testing.parts.require_light`."""
    require_light(subject)


@ADAPTER_CHECKS.must("No setting of the process is left changed.")
def no_global_state(subject: PartSubject) -> None:
    """Building, fitting and predicting."""
    require_settings_kept(lambda: _briefly(replace(subject, cache={})))


@ADAPTER_CHECKS.must("Any feature grid is mapped onto any latent grid, or refused with Unsupported.")
def any_grid(subject: PartSubject) -> None:
    """Coarser, finer, not square, longer; a channel is constant, as a dead unit's is."""
    served, reason = 0, ""
    for cells in PAIRS:
        try:
            fit = _fitted(subject, _toy(subject, 8, cells), _toy(subject, 4, cells, seed=1), brief=True)
            for others in (cells, *_others(cells)):
                _require_on(fit, _toy(subject, 3, others)[0], cells[0])
                served += 1
        except Unsupported as refusal:
            reason = refusal.message
    if not served:
        raise Broken(
            f"No pair of grids is served: {reason} Usually the sizes of one encoder are written into the code."
        )


def _others(cells: Cells) -> Iterator[Cells]:
    """Yield what an adapter that was fitted on ``cells`` meets as well: larger frames and, after single ones, clips."""
    x, y = cells
    yield replace(x, h=x.h * 2, w=x.w * 2), replace(y, h=y.h * 2, w=y.w * 2)
    if x.t == 1:
        yield replace(x, t=5), replace(y, t=2, spans=SPANS)


def _require_on(fit: Predictor, pair: tuple[Grid, Grid], trained: Layout) -> None:
    features, latents = pair
    onto = latents.layout
    found = fit.predict(features, onto)
    what = f"Features on {features.layout.size} cells (fitted on {trained.size}) predicted onto {onto.size}"
    if found.shape != latents.shape or found.layout != onto:
        raise Broken(
            f"{what} come out as {found.shape} with spans {found.spans}, not {latents.shape} with {onto.spans}. "
            "Usually the grid seen in training or the features' own is returned, h and w are swapped, or "
            "`onto.spans` is not passed on."
        )
    if not torch.isfinite(found.values).all():
        raise Broken(f"{what} hold NaN or infinity; usually a constant channel was divided by its deviation of 0.")


@ADAPTER_CHECKS.must("Latents that are a smooth linear function of the features are learnt.")
def trains(subject: PartSubject) -> None:
    """The validation error is well below that of the mean of ``train``."""
    train, val = _learnable(subject)
    error = mean_squared_error(_trained(subject), val) / _mean_error(train, val)
    if not error <= LEARNT:
        raise Broken(
            f"The error on `val` is {error:.2f} of what the mean of `train` leaves, where {LEARNT} is asked: it hardly "
            "learns. Usually the learning rate is off by decades, the features are not standardised, a ReLU or a "
            "normalisation stands after the last layer, or tokens and cells are paired in different orders."
        )


@ADAPTER_CHECKS.must("What is random follows from the seed alone.")
def seeds_respected(subject: PartSubject) -> None:
    """Equal bits for an equal seed, whatever the global generators hold; others for another, if anything is drawn."""
    with generators_kept(), _Draws() as draws:
        found = []
        for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
            move_generators(elsewhere)
            found.append(b"".join(map(bytes_of, _start(subject, seed))))
    if found[0] != found[1]:
        raise Broken(
            "The same seed gives different values when the global random generators stand elsewhere. Usually layers "
            "are built by torch's own initialisation; draw from the generator or the seed that is passed in."
        )
    if draws.drawn and found[0] == found[2]:
        raise Broken(
            "Two seeds give the same values, though values are drawn; usually a seed is written into the code."
        )


@ADAPTER_CHECKS.must("The number of trained values that is told is the number that is trained.")
def parameter_count(subject: PartSubject) -> None:
    """Of a module: every parameter takes part. Of others: as many values change with the latents."""
    told = _trained(subject).trainable_parameters
    if not isinstance(told, int) or told < 1:
        raise Broken(f"`trainable_parameters` is {told!r} after a fit, not a positive whole number.")
    if _spec(subject).recipe is not None:
        _require_parameters(_module(subject, 0), _learnable(subject)[0][0])
        return
    train, val = _learnable(subject)
    others = [(x, replace(y, values=y.values.flip(0))) for x, y in train]
    first, second = (list(_held(fit, set())) for fit in (_trained(subject), _fitted(subject, others, val)))
    pairs = zip(first, second, strict=False)
    changed = sum(int((a != b).sum()) for a, b in pairs if a.shape == b.shape)
    if not changed:
        raise Unverified("It keeps no tensor or array that depends on the latents, so the count cannot be compared.")
    # A copy of the best state, or a mean of the latents, beside the weights is no fault: hence the room.
    if not changed / 2 <= told <= changed * 1.01:
        raise Broken(
            f"`trainable_parameters` is {told}, but {changed} values that it keeps depend on the latents. Usually "
            "intercepts or a second map are left out, or values that are only computed with are counted."
        )


def _require_parameters(module: Any, pair: tuple[Grid, Grid]) -> None:
    for owner in module.modules():
        for name, value in vars(owner).items():
            items = value if isinstance(value, list | tuple) else [value]
            if not name.startswith("_") and any(isinstance(item, nn.Module | nn.Parameter) for item in items):
                raise Broken(
                    f"`{name}` holds layers in a plain list, which are neither trained nor counted: use nn.ModuleList."
                )
    features, latents = pair
    parameters = dict(module.named_parameters())
    loss = (module(*module.prepare(features, latents.layout)) - latents.values).square().mean()
    wanted = [parameter for parameter in parameters.values() if parameter.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    idle = [name for name, parameter in parameters.items() if not parameter.requires_grad or next(found) is None]
    if idle:
        raise Broken(
            f"{', '.join(idle)} counted as trained, but the loss does not depend on it. Usually a constant is a "
            "parameter where it should be a buffer, or a layer is left that `forward` no longer calls."
        )


@ADAPTER_CHECKS.must("Trained beside others in one stack it learns what it learns alone.")
def stack_alone(subject: PartSubject) -> None:
    """Beside two of its kind on other features and latents."""
    if _spec(subject).recipe is None:
        raise NotApplicable("It fits itself, and so is never trained in a stack.")
    train, val = _learnable(subject)
    other_train, other_val = (
        [(replace(x, values=-2 * x.values), replace(y, values=-y.values)) for x, y in blocks] for blocks in (train, val)
    )
    tasks = [_task(subject, other_train, other_val, seed, brief=True) for seed in (1, 2)]
    tasks.insert(1, _task(subject, train, val, brief=True))
    fits = heads.train(tasks, torch.device(subject.device))
    together, single = _sound(fits[1]), _fitted(subject, train, val, brief=True)
    alone, beside = (each.predict(val[0][0], val[0][1].layout).values for each in (single, together))
    moved = float((alone - beside).square().mean().sqrt()) / (float(alone.std()) or 1.0)
    if not moved <= ALONE:
        raise Broken(
            f"Predictions move by {moved:.1e} of their deviation when two others train beside. Usually something is "
            "kept on the class or in the module's file and shared by all that are built, or a buffer changes in place."
        )


@ADAPTER_CHECKS.must("Features and latents are left as they are.")
def input_untouched(subject: PartSubject) -> None:
    """In ``fit`` or training, and in ``predict``."""
    train, val = _few(subject)
    named: dict[str, Tensor] = {}
    for name, (features, latents) in (("train", train[0]), ("val", val[0])):
        named |= {f"the features of {name}": features.values, f"the latents of {name}": latents.values}
    with untouched(named):
        _fitted(subject, train, val, brief=True).predict(val[0][0], val[0][1].layout)


class _Draws(TorchDispatchMode):
    """Notes whether torch draws anything at random."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _spec(subject: PartSubject) -> AdapterSpec:
    assert isinstance(subject.spec, AdapterSpec)
    return subject.spec


def _start(subject: PartSubject, seed: int) -> list[Tensor]:
    """Return what a seed decides: of a module the initial parameters, of others the predictions."""
    if _spec(subject).recipe is None:
        return [_briefly(subject, seed).values]
    return [*_module(subject, seed).state_dict().values()]


def _module(subject: PartSubject, seed: int) -> Any:
    """Return the module, built for the learnable toy and not trained."""
    train, spec = _learnable(subject)[0], _spec(subject)
    found = pairing(train, *statistics([x for x, _ in train]))
    return target(spec.target)(found, generator("check", seed), **spec.params)


def _briefly(subject: PartSubject, seed: int = 0) -> Grid:
    """Return predictions after a fit on little."""
    train, val = _few(subject)
    return _fitted(subject, train, val, seed, brief=True).predict(val[0][0], val[0][1].layout)


def _trained(subject: PartSubject) -> Predictor:
    """Return the adapter fitted on the learnable toy."""
    if "trained" not in subject.cache:
        subject.cache["trained"] = _fitted(subject, *_learnable(subject))
    fit: Predictor = subject.cache["trained"]
    return fit


def _fitted(subject: PartSubject, train: Blocks, val: Blocks, seed: int = 0, brief: bool = False) -> Predictor:
    """Return the adapter fitted as a run fits it; ``brief`` for one epoch."""
    spec, device = _spec(subject), torch.device(subject.device)
    if spec.recipe is not None:
        return _sound(heads.train([_task(subject, train, val, seed, brief)], device)[0])
    adapter: Adapter = target(spec.target)(seed=seed, device=device, **spec.params)
    adapter.fit(train, val)
    return adapter


def _task(subject: PartSubject, train: Blocks, val: Blocks, seed: int = 0, brief: bool = False) -> Task:
    spec = _spec(subject)
    if brief and spec.recipe is not None:
        spec = replace(spec, recipe=replace(spec.recipe, epochs=1))
    return Task("check", spec, train, val, seed)


def _sound(result: heads.Result) -> heads.TrainedAdapter:
    if isinstance(result, Exception):
        raise result
    return result


def _learnable(subject: PartSubject) -> tuple[Blocks, Blocks]:
    """Return train and val of which the adapter can learn all; the same objects each time."""
    if "learnable" not in subject.cache:
        cells = _served(subject)[1]
        subject.cache["learnable"] = _toy(subject, 192, cells), _toy(subject, 48, cells, seed=1)
    found: tuple[Blocks, Blocks] = subject.cache["learnable"]
    return found


def _few(subject: PartSubject) -> tuple[Blocks, Blocks]:
    """Return train and val of a few clips, new ones each time."""
    cells = _served(subject)[1]
    return _toy(subject, 8, cells), _toy(subject, 4, cells, seed=1)


def _toy(subject: PartSubject, clips: int, cells: Cells, seed: int = 0) -> Blocks:
    """Return a block of smooth features, the last channel constant, and latents that are linear in them."""
    return _block(subject, clips, cells, _served(subject)[0], seed)


def _block(subject: PartSubject, clips: int, cells: Cells, streams: tuple[int, ...], seed: int) -> Blocks:
    x, y = cells
    smooth = Grid(noise(clips, 1, 3, 3, CHANNELS, seed=seed))
    features = smooth.resampled(*x.size).values.clone()
    features[..., -1] = 1
    values = smooth.resampled(*y.size).values @ noise(CHANNELS, LATENTS, seed=99) / CHANNELS**0.5
    device = torch.device(subject.device)
    return [(Grid(features.to(device), x.spans, streams), Grid(values.to(device), y.spans))]


def _served(subject: PartSubject) -> tuple[tuple[int, ...], Cells]:
    """Return streams and cells that the adapter takes: preferably those of a single encoder, and coarser latents."""
    if "served" not in subject.cache:
        choices = [(streams, cells) for streams in ((), (CHANNELS // 2, CHANNELS // 2)) for cells in PAIRS]
        subject.cache["served"] = choices[0]
        for streams, cells in choices:
            train, val = (_block(subject, clips, cells, streams, clips) for clips in (8, 4))
            try:
                _fitted(subject, train, val, brief=True)
            except Unsupported:
                continue
            except Exception:  # the checks will tell, each on its own
                pass
            subject.cache["served"] = streams, cells
            break
    found: tuple[tuple[int, ...], Cells] = subject.cache["served"]
    return found


def _mean_error(train: Blocks, val: Blocks) -> float:
    """Return the error on ``val`` of the mean latents of ``train``."""
    mean = torch.cat([y.values.flatten(0, 3) for _, y in train]).mean(0)
    return float(torch.cat([y.values.flatten(0, 3) - mean for _, y in val]).square().mean())


def _held(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield every floating-point tensor and array that can be reached from ``value``, once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        yield torch.from_numpy(value)
    elif isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _held(item, seen)
    elif isinstance(value, Sequence | set) and not isinstance(value, str | bytes):
        for item in value:
            yield from _held(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _held(vars(value), seen)
