"""What the trained adapters are made of. Channels stand last everywhere, as on the grids."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def linear(fan_in: int, fan_out: int, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """Return a linear layer drawn from ``generator`` alone."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=bias)
    return drawn(layer, generator)


def drawn(layer: Layer, generator: torch.Generator) -> Layer:
    """Return ``layer`` with weights and biases drawn by torch's default law, uniform within 1 / sqrt(fan in)."""
    bound = layer.weight[0].numel() ** -0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
    return layer


def zeroed(layer: Layer) -> Layer:
    """Return ``layer`` with all its parameters 0: a branch that ends in it starts as no branch at all."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer


class Standardise(nn.Module):
    """Channels [..., D] to mean 0 and deviation 1 on ``train``; no parameter has a part in it."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [..., D] standardised."""
        return (x - self.mean) / self.std


class Convolution(nn.Module):
    """A 3 x 3 convolution, [B, h, w, C] to the same; beyond the border the outermost cells repeat.

    With zeros there instead, a network reads its distance to the border off them and so knows where it is (Islam et
    al. 2020, arXiv:2001.08248); here only those adapters know that are told.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel = drawn(nn.utils.skip_init(nn.Conv2d, width, width, 3), generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [B, h, w, C] convolved, of the same shape."""
        x = torch.cat([x[:, :1], x, x[:, -1:]], 1)
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        y: Tensor = self.kernel(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two 3 x 3 convolutions (He et al. 2016, arXiv:1603.05027, figure 4e).

    Without normalisation between them: a branch whose last layer starts at 0 trains without (Zhang et al. 2019,
    arXiv:1901.09321), and statistics over a batch would let its clips see each other.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = Convolution(width, generator)
        self.second = Convolution(width, generator)
        zeroed(self.second.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [B, h, w, C] and what the block adds to it."""
        branch: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + branch


class Output(nn.Module):
    """A linear map to the latent channels for each kind of latent frame (:class:`foresight_bench.gathering.Kind`).

    Frames that share their tokens differ in nothing but their kind, and so get different answers.
    """

    def __init__(self, width: int, kinds: int, latent_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kinds = kinds
        self.maps = linear(width, kinds * latent_channels, generator)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        """Return [..., E] for ``x`` [..., width] of frames of ``kinds`` [..., K], one-hot."""
        latents: Tensor = self.maps(x).unflatten(-1, (self.kinds, -1))
        return (latents * kinds.unsqueeze(-1)).sum(-2)


class Trunk(nn.Module):
    """``blocks`` residual blocks on the latent grid, frame by frame, and the output.

    No activation stands between the two, so an adapter starts as a linear map of each cell's tokens.
    """

    def __init__(self, width: int, blocks: int, kinds: int, latent_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(width, generator) for _ in range(blocks)))
        self.output = Output(width, kinds, latent_channels, generator)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E] of ``x`` [N, t, h, w, width] of frames of ``kinds`` [N, t, h, w, K]."""
        latents: Tensor = self.output(self.blocks(x.flatten(0, 1)).unflatten(0, x.shape[:2]), kinds)
        return latents
