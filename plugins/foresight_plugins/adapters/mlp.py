"""``mlp``: a dimension-expanding perceptron from each token to the latent cell it covers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foresight_bench.grids import Grid
from foresight_plugins.adapters.linear import cells


class MLPAdapter:
    """Linear C -> ``expansion`` * C, GELU, linear to the latent channels; inputs standardised on train.

    AdamW at ``lr`` with a cosine schedule over ``epochs``, batches of ``batch`` cells, weight decay .01; the
    epoch with the least error on val is kept.
    """

    def __init__(self, *, seed: int, device: torch.device, expansion: int, epochs: int, batch: int, lr: float) -> None:
        self.seed, self.device = seed, device
        self.expansion, self.epochs, self.batch, self.lr = expansion, epochs, batch, lr
        self.net: nn.Module = nn.Identity()

    @property
    def trainable_parameters(self) -> int:
        """Weights and biases."""
        return sum(p.numel() for p in self.net.parameters())

    def fit(self, train: Sequence[tuple[Grid, Grid]], val: Sequence[tuple[Grid, Grid]]) -> None:
        """Train on every cell of ``train``; ``val`` picks the epoch."""
        x, y = (torch.cat(parts) for parts in zip(*cells(train), strict=True))
        x_val, y_val = (torch.cat(parts) for parts in zip(*cells(val), strict=True))

        generator = torch.Generator().manual_seed(self.seed)
        width = self.expansion * x.shape[1]
        std = x.std(0)
        self.net = nn.Sequential(
            _Standardise(x.mean(0), torch.where(std > 0, std, 1.0)),
            _linear(x.shape[1], width, generator),
            nn.GELU(),
            _linear(width, y.shape[1], generator),
        ).to(self.device)
        optimiser = torch.optim.AdamW(self.net.parameters(), self.lr, weight_decay=0.01)
        steps = self.epochs * -(-len(x) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        best, kept = float("inf"), copy.deepcopy(self.net.state_dict())
        for _ in range(self.epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for rows in order.split(self.batch):
                loss = nn.functional.mse_loss(self.net(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            error = self._error(x_val, y_val)
            if error < best:
                best, kept = error, copy.deepcopy(self.net.state_dict())
        self.net.load_state_dict(kept)

    @torch.no_grad()
    def predict(self, features: Grid, size: tuple[int, int, int]) -> Grid:
        """Return latents of ``size`` T', H', W'; latent frames that share a token are one answer."""
        values = features.resampled(*size).values
        rows = torch.cat([self.net(part) for part in values.flatten(0, 3).split(65536)])
        return Grid(rows.unflatten(0, values.shape[:4]))

    @torch.no_grad()
    def _error(self, x: Tensor, y: Tensor) -> float:
        total = 0.0
        for a, b in zip(x.split(65536), y.split(65536), strict=True):
            total += float((self.net(a) - b).square().sum(dtype=torch.float64))
        return total / y.numel()


class _Standardise(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer initialised from ``generator`` alone (torch's default law, no global state)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
    bound = fan_in**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
    return layer
