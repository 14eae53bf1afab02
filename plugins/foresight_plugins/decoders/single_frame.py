"""Single frames through LTX-Video's convolutions at a third of the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SingleFrame(nn.Module):
    """A convolution of LTX-Video, which pads a clip in time with copies of its ends.

    Of a single frame, all taps of the kernel in time then see the same pixels: their sum as a kernel in space gives
    the same answer, and takes a 3 x 3 x 3 kernel 9 products a pixel instead of 27.
    """

    kernel: Tensor

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.convolution = convolution
        self.register_buffer("kernel", convolution.conv.weight.detach().sum(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [N, C, T, H, W] convolved."""
        if x.shape[2] > 1:
            clips: Tensor = self.convolution(x)
            return clips
        conv = self.convolution.conv
        frames = F.conv2d(
            x[:, :, 0], self.kernel, conv.bias, conv.stride[1:], conv.padding[1:], conv.dilation[1:], conv.groups
        )
        return frames.unsqueeze(2)


@torch.no_grad()
def with_single_frames(module: nn.Module) -> nn.Module:
    """Return ``module`` with each such convolution in it replaced; other autoencoders have none."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LTXVideoCausalConv3d) and child.conv.padding_mode == "zeros":
                setattr(parent, name, SingleFrame(child))
    return module
