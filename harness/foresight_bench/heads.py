"""Adapters trained together: every learning rate of every adapter is a head, and alike heads train as one program.

Heads are alike when the class, its parameters, the recipe and the shapes of features and latents are the same. Their
parameters are stacked (:func:`torch.func.vmap`), so a step costs one launch of each kernel instead of one for each
head. What a head learns does not depend on what is beside it: initial parameters follow from the task's name and seed,
the order of clips from the seed, and nothing is summed over heads.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from foresight_bench.batching import is_out_of_memory
from foresight_bench.contracts import Pairing
from foresight_bench.errors import NonFinite
from foresight_bench.grids import Grid, Layout
from foresight_bench.pairs import CLIPS, Blocks, pairing, statistics
from foresight_bench.registry import target
from foresight_bench.specs import AdapterSpec, Recipe
from foresight_bench.stacking import Best, Head, Sample, generator, optimise

CPU_VALUES = 2**19
"""Features that all heads of a stack may read in a step on a CPU. Stacking saves the calls, not the arithmetic: with
two threads, heads that read 16,000 values train twice as fast in a stack, but 96 that read 75,000 each take 1.7 times
as long, because what a step makes of them no longer stays in the cache."""


@dataclass(frozen=True)
class Task:
    """An adapter to train on one tap."""

    name: str
    """Which one it is, in words that hold wherever it is trained: ``mlp at block.11 onto patch-pca``."""
    spec: AdapterSpec
    """With a recipe."""
    train: Blocks
    """Tasks that are given the same object share what is prepared of it."""
    val: Blocks
    """Chooses epoch and learning rate."""
    seed: int
    """Of the initial parameters, together with the name, and of the order of clips."""


@dataclass(frozen=True)
class TrainedAdapter:
    """The best epoch of the best learning rate."""

    module: Any
    """A :class:`foresight_bench.contracts.AdapterModule`."""
    val_error: float
    """Mean squared error over all values of ``val``."""
    learning_rate: float
    """Its peak."""
    epochs: int
    """How many led to it."""

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @torch.no_grad()
    def predict(self, features: Grid, onto: Layout) -> Grid:
        """Return latents [N, t, h, w, E] on the cells of ``onto``, in the type of ``features``."""
        parts = []
        for values in features.values.split(CLIPS):
            parts.append(self.module(*self.module.prepare(replace(features, values=values), onto)))
        return Grid(torch.cat(parts), onto.spans)


Result = TrainedAdapter | Exception
"""What became of a task."""


def train(
    tasks: Sequence[Task], device: torch.device, progress: Callable[[str], None] = lambda text: None
) -> list[Result]:
    """Train ``tasks``, whose grids stand on ``device``; return what became of each, in their order.

    A stack that does not fit into memory is halved and both halves are trained from the start. Otherwise an error
    ends the tasks that it concerns and no others: ``Unsupported`` from a module or its ``prepare``; ``NonFinite`` where
    no learning rate kept the loss finite; whatever a module's ``forward`` raises, for all that are alike.
    """
    known: dict[int, _Known] = {}
    alike: dict[object, dict[int, _Member]] = {}
    for index, task in enumerate(tasks):
        for blocks in (task.train, task.val):
            if id(blocks) not in known:
                known[id(blocks)] = _Known.of(blocks)
        train, val = known[id(task.train)], known[id(task.val)]
        structure = (
            task.spec.target,
            tuple(sorted(task.spec.params.items())),
            task.spec.recipe,
            train.shapes,
            val.shapes,
        )
        alike.setdefault(structure, {})[index] = _Member(task, train)
    results: dict[int, Result] = {}
    for members in alike.values():
        recipe = next(iter(members.values())).task.spec.recipe
        assert recipe is not None
        found = _Trainer(device, progress).train(list(members.values()), recipe)
        results.update(zip(members, found, strict=True))
    return [results[index] for index in range(len(tasks))]


@dataclass(frozen=True)
class _Known:
    """What is kept of blocks whose features may be made anew each time."""

    pairing: Pairing
    shapes: tuple[object, ...]
    """What tasks must share to be stacked, block by block; a module's shapes follow from it."""
    clip_values: int
    """Features of a clip, in the block where it has most."""

    @classmethod
    def of(cls, blocks: Blocks) -> _Known:
        there = list(blocks)
        return cls(
            pairing(there, *statistics([features for features, _ in there])),
            tuple((x.shape, x.streams, y.shape, y.spans) for x, y in there),
            max(prod(x.shape[1:]) for x, _ in there),
        )


@dataclass(frozen=True)
class _Member:
    """A task in a stack."""

    task: Task
    known: _Known
    """Of its ``train``."""


@dataclass(frozen=True)
class _Trainer:
    device: torch.device
    progress: Callable[[str], None]

    def train(self, members: Sequence[_Member], recipe: Recipe) -> list[Result]:
        """Train alike tasks in one stack or, where that is too large, in halves: of the tasks, then of the rates."""
        rates = recipe.learning_rates
        heads = len(members) * len(rates)
        if heads == 1 or self._fits(members[0].known.clip_values, heads, recipe.batch):
            found = self._unless_out_of_memory(members, recipe, heads)
            if found is not None:
                return found
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if len(members) > 1:
            half = len(members) // 2
            return self.train(members[:half], recipe) + self.train(members[half:], recipe)
        half = len(rates) // 2
        parts = [replace(recipe, learning_rates=some) for some in (rates[:half], rates[half:])]
        return [min((self.train(members, part)[0] for part in parts), key=_error)]

    def _fits(self, clip_values: int, heads: int, batch: int) -> bool:
        return self.device.type != "cpu" or heads * batch * clip_values <= CPU_VALUES

    def _unless_out_of_memory(self, members: Sequence[_Member], recipe: Recipe, heads: int) -> list[Result] | None:
        """Return the results, or None if memory ran out on more than one head.

        A function of its own, so that on its return the exception no longer holds the tensors of what it went through.
        """
        try:
            return self._stacked(members, recipe)
        except Exception as error:
            if heads > 1 and is_out_of_memory(error):
                return None
            return [error.with_traceback(None)] * len(members)

    def _stacked(self, members: Sequence[_Member], recipe: Recipe) -> list[Result]:
        results: list[Result | Head] = []
        prepared: dict[int, list[Sample]] = {}
        for member in members:
            try:
                results.append(self._head(member, prepared))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                results.append(error.with_traceback(None))
        heads = [head for head in results if isinstance(head, Head)]
        if heads:
            name, count = members[0].task.spec.name, len(heads) * len(recipe.learning_rates)
            best = optimise(heads, recipe, lambda epoch: self.progress(f"{name}: {count} heads, epoch {epoch}"))
        columns = iter(range(len(heads)))
        return [
            _chosen(member.task, result.module, best, next(columns), recipe) if isinstance(result, Head) else result
            for member, result in zip(members, results, strict=True)
        ]

    def _head(self, member: _Member, prepared: dict[int, list[Sample]]) -> Head:
        """Return the head of a task; what is prepared of the same blocks is shared."""
        task, spec = member.task, member.task.spec
        module: Any = target(spec.target)(member.known.pairing, generator(task.name, task.seed), **spec.params)
        module.to(self.device)
        for blocks in (task.train, task.val):
            if id(blocks) not in prepared:
                prepared[id(blocks)] = [(_prepared(module, *pair), pair[1].values) for pair in blocks]
        return Head(module, prepared[id(task.train)], prepared[id(task.val)], task.seed)


@torch.no_grad()
def _prepared(module: Any, features: Grid, latents: Grid) -> tuple[Tensor, ...]:
    parts = features.values.split(CLIPS)
    found = [module.prepare(replace(features, values=values), latents.layout) for values in parts]
    return tuple(torch.cat(same) for same in zip(*found, strict=True))


@torch.no_grad()
def _chosen(task: Task, module: Any, best: Best, column: int, recipe: Recipe) -> Result:
    """Return ``module`` with the parameters of the best learning rate."""
    row = int(best.errors[:, column].argmin())
    error = float(best.errors[row, column])
    if error == float("inf"):
        return NonFinite(f"The loss of {task.name} is not finite at any learning rate.")
    for name, parameter in module.named_parameters():
        parameter.copy_(best.parameters[name][row, column])
    module.requires_grad_(False)
    return TrainedAdapter(module, error, recipe.learning_rates[row], int(best.epochs[row, column]))


def _error(result: Result) -> float:
    return result.val_error if isinstance(result, TrainedAdapter) else float("inf")
