"""Heads of one structure optimised as one: parameters stacked, the loss of each head its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from foresight_bench.specs import Recipe

Sample = tuple[tuple[Tensor, ...], Tensor]
"""What ``forward`` takes and the latents that it should return, all with N first: a block of clips of equal shape."""


@dataclass(frozen=True)
class Head:
    """What is trained once for each learning rate."""

    module: Any
    """A :class:`foresight_bench.contracts.AdapterModule` with its initial parameters, on the device."""
    train: Sequence[Sample]
    val: Sequence[Sample]
    seed: int
    """Of the order of clips."""


@dataclass(frozen=True)
class Best:
    """The best epoch of all learning rates R and heads G."""

    errors: Tensor
    """[R, G] float64 mean squared error on ``val``, on the CPU; infinite for a head that became non-finite."""
    epochs: Tensor
    """[R, G] int64, on the CPU, the epochs that led to it."""
    parameters: Mapping[str, Tensor]
    """By name, [R, G, ...]."""


def generator(*identity: str | int) -> torch.Generator:
    """Return a generator on the CPU that depends on ``identity`` and on nothing else."""
    return torch.Generator().manual_seed(int.from_bytes(sha256(repr(identity).encode()).digest()[:8], "big"))


def optimise(heads: Sequence[Head], recipe: Recipe, progress: Callable[[int], None] = lambda epoch: None) -> Best:
    """Train ``heads`` at every learning rate of ``recipe`` and return the best epoch of each.

    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) as torch has it, in bfloat16 autocast on a GPU with parameters
    in float32; errors on ``val`` are those of float32. A head is done after ``recipe.patience`` epochs without a new
    least error, or once its loss or error is not finite; the others go on.

    Args:
        heads: of modules with the same class and shapes, and with data of the same shapes.
        recipe: what to do.
        progress: called with the number of each epoch that ended.
    """
    rates = recipe.learning_rates
    parameters = {
        name: torch.stack([dict(head.module.named_parameters())[name].detach() for head in heads])
        .expand(len(rates), *[-1] * (first.ndim + 1))
        .clone()
        .requires_grad_()
        for name, first in heads[0].module.named_parameters()
    }
    buffers = {
        name: torch.stack([dict(head.module.named_buffers())[name] for head in heads])
        for name, _ in heads[0].module.named_buffers()
    }
    device = next(iter(parameters.values())).device

    def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        result: Tensor = functional_call(heads[0].module, (parameters, buffers), inputs)
        return result

    # Heads [R, G]: those of one column differ in the rate alone, and so read the same batch and the same buffers.
    stacked = vmap(vmap(forward, (0, None, None)), (1, 0, 0))

    def errors(inputs: tuple[Tensor, ...], wanted: Tensor) -> Tensor:
        """Return squared errors [R, G, values] for inputs and latents [G, B, ...]."""
        return (stacked(parameters, buffers, inputs).float() - wanted[:, None]).square().flatten(2).transpose(0, 1)

    # One group of the optimiser for each rate; its views share the memory of the stack.
    views = [[parameter.detach()[rate] for parameter in parameters.values()] for rate in range(len(rates))]
    optimiser = torch.optim.AdamW(
        [{"params": some, "lr": rate} for some, rate in zip(views, rates, strict=True)],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    sizes = [len(wanted) for _, wanted in heads[0].train]
    steps = recipe.epochs * sum(-(-size // recipe.batch) for size in sizes)
    best = torch.full((len(rates), len(heads)), float("inf"), dtype=torch.float64, device=device)
    epochs, running = torch.zeros_like(best, dtype=torch.int64), torch.ones_like(best, dtype=torch.bool)
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        finite = torch.ones_like(running)
        for block, order in batches(sizes, recipe.batch, epoch, {head.seed for head in heads}, device):
            samples = [head.train[block] for head in heads]
            inputs, wanted = _gathered(samples, [order[head.seed] for head in heads])
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses = errors(inputs, wanted).mean(2)
            losses.sum().backward()
            finite &= losses.isfinite()
            _update(optimiser, list(parameters.values()), rates, schedule(step, steps, recipe.warmup))
            step += 1
        error = _evaluated(heads, errors, recipe.batch)
        finite &= error.isfinite()
        best = torch.where(running & ~finite, torch.inf, best)
        running &= finite
        better = running & (error < best)
        best, epochs = torch.where(better, error, best), torch.where(better, epoch, epochs)
        for name, values in kept.items():
            mask = better.reshape(*better.shape, *[1] * (values.ndim - 2))
            values.copy_(torch.where(mask, parameters[name].detach(), values))
        running &= epoch - epochs < recipe.patience
        progress(epoch)
        if not bool(running.any()):
            break
    return Best(best.cpu(), epochs.cpu(), kept)


def _update(optimiser: torch.optim.Optimizer, stack: Sequence[Tensor], rates: Sequence[float], factor: float) -> None:
    """Take a step on every rate's views of ``stack``, whose gradients have just been computed, and forget these."""
    for index, (group, rate) in enumerate(zip(optimiser.param_groups, rates, strict=True)):
        group["lr"] = rate * factor
        for view, whole in zip(group["params"], stack, strict=True):
            view.grad = None if whole.grad is None else whole.grad[index]
    optimiser.step()
    for whole in stack:
        whole.grad = None


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate: linear up to 1 at the last step of the warm-up, then a cosine down to 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def batches(
    sizes: Sequence[int], batch: int, epoch: int, seeds: set[int], device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Mapping[int, Tensor]]]:
    """Yield, batch by batch of an epoch, the block and which of its clips [B], by seed.

    Which clips is drawn for each seed; which block is the same for all, so that heads of all seeds fit into a stack.
    """
    orders = {
        seed: [
            torch.randperm(size, generator=generator("clips", seed, epoch, block)).to(device)
            for block, size in enumerate(sizes)
        ]
        for seed in seeds
    }
    parts = [(block, start) for block, size in enumerate(sizes) for start in range(0, size, batch)]
    for place in torch.randperm(len(parts), generator=generator("batches", epoch)).tolist():
        block, start = parts[place]
        yield block, {seed: order[block][start : start + batch] for seed, order in orders.items()}


def _gathered(samples: Sequence[Sample], rows: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return inputs and latents [G, B, ...] of the clips ``rows`` [B] of each sample."""

    def gather(whole: Sequence[Tensor]) -> Tensor:
        batch = whole[0].new_empty(len(whole), len(rows[0]), *whole[0].shape[1:])
        for each, chosen, place in zip(whole, rows, batch, strict=True):
            torch.index_select(each, 0, chosen, out=place)
        return batch

    inputs = zip(*(inputs for inputs, _ in samples), strict=True)
    return tuple(map(gather, inputs)), gather([wanted for _, wanted in samples])


@torch.no_grad()
def _evaluated(heads: Sequence[Head], errors: Callable[[tuple[Tensor, ...], Tensor], Tensor], batch: int) -> Tensor:
    """Return the mean squared error [R, G] over all values of ``val``, float64."""
    total: Tensor | float = 0.0
    count = 0
    for block, (_, wanted) in enumerate(heads[0].val):
        for rows in torch.arange(len(wanted), device=wanted.device).split(batch):
            found = errors(*_gathered([head.val[block] for head in heads], [rows] * len(heads)))
            total = total + found.sum(2, dtype=torch.float64)
            count += found.shape[2]
    assert isinstance(total, Tensor)
    return total / count
