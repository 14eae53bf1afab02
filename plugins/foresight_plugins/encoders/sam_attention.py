"""SAM's attention: within windows of a grid of tokens, with a position bias that is one of rows plus one of columns."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 16
"""Windows up to this side are one kind to the CUDA kernel, larger ones another."""


def attention(qkv: Tensor, padding: Tensor, relative: Tensor, side: int) -> Tensor:
    """Return softmax(q k / sqrt(D) + bias) v within windows of ``side`` x ``side`` tokens: [B, H, W, heads * D].

    The bias of a query at (r, c) for a key at (r', c') is q . rows[r - r' + side - 1] + q . columns[c - c' + side
    - 1] (MViTv2, Li et al., arXiv:2112.01526, section 4.1), the query not scaled. Windows start at the top left;
    one that sticks out at the bottom or right is padded, and its padding takes part as keys, as in the original.

    On a CUDA device in bfloat16 one kernel does it all (see :mod:`sam_triton`), else :func:`augmented`.

    Args:
        qkv: [B, H, W, 3, heads, D] queries, keys and values of the tokens.
        padding: [3, heads, D] the same of a token that pads.
        relative: [2, 2 * side - 1, D] vectors of the relative positions, ``rows`` and ``columns``.
        side: of the windows; that of the grid for attention between all tokens.
    """
    _, height, width, _, _, dim = qkv.shape
    if qkv.is_cuda and qkv.dtype == torch.bfloat16 and kernel_takes(dim, side, height, width):
        kernel: Tensor = torch.ops.foresight.sam_attention(qkv, padding, products(qkv, relative), side)
        return kernel
    return augmented(qkv, padding, relative, side)


def augmented(qkv: Tensor, padding: Tensor, relative: Tensor, side: int) -> Tensor:
    """Return the same through plain attention on longer vectors, without any [tokens, tokens] bias.

    A query is followed by its biases for each row and column, a key by the one-hot codes of its row and column:
    their product is the bias.
    """
    _, height, width, _, heads, dim = qkv.shape
    q, k, v = _windows(qkv, padding, side).permute(3, 0, 4, 1, 2, 5)
    distance = torch.arange(side, device=qkv.device)
    rows, columns = relative[:, distance[:, None] - distance + side - 1]
    # Flash attention wants a multiple of 8.
    fill = -(dim + 2 * side) % 8
    biases = (torch.einsum("nhrcd,rkd->nhrck", q, rows), torch.einsum("nhrcd,ckd->nhrck", q, columns))
    code = torch.eye(side, dtype=qkv.dtype, device=qkv.device)
    codes = (code[:, None].expand(*k.shape[:-1], -1), code.expand(*k.shape[:-1], -1))
    q = F.pad(torch.cat((q * dim**-0.5, *biases), -1), (0, fill))
    k = F.pad(torch.cat((k, *codes), -1), (0, fill))
    v = F.pad(v, (0, 2 * side + fill))
    out = F.scaled_dot_product_attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), scale=1.0)
    down, across = -(-height // side), -(-width // side)
    out = out[..., :dim].reshape(-1, down, across, heads, side, side, dim).permute(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(-1, down * side, across * side, heads * dim)[:, :height, :width]


def products(qkv: Tensor, relative: Tensor) -> Tensor:
    """Return each query's products with all relative positions: [heads, B * H * W, L], L a multiple of 8."""
    query = qkv[..., 0, :, :].flatten(0, 2).transpose(0, 1)
    vectors = relative.flatten(0, 1)
    vectors = F.pad(vectors, (0, 0, 0, -len(vectors) % 8))
    return torch.bmm(query, vectors.t().expand(len(query), -1, -1))


def kernel_takes(dim: int, side: int, height: int, width: int) -> bool:
    """Return whether the CUDA kernel can: heads of a sum of two powers of two, a small window or a square grid."""
    low, high = halves(dim)
    heads = low >= 16 and (high == 0 or (high >= 16 and halves(high) == (high, 0)))
    return heads and (side <= SMALL or (halves(side) == (side, 0) and (height, width) == (side, side)))


def halves(size: int) -> tuple[int, int]:
    """Return the largest power of two up to ``size``, and what is left."""
    low = 1 << (size.bit_length() - 1)
    return low, size - low


def _windows(qkv: Tensor, padding: Tensor, side: int) -> Tensor:
    """Return the windows [B', side, side, 3, heads, D] of [B, H, W, 3, heads, D]."""
    _, height, width, *rest = qkv.shape
    below, right = -height % side, -width % side
    if below:
        qkv = torch.cat((qkv, padding.expand(len(qkv), below, width, -1, -1, -1)), 1)
    if right:
        qkv = torch.cat((qkv, padding.expand(len(qkv), height + below, right, -1, -1, -1)), 2)
    split = qkv.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    windows: Tensor = split.transpose(2, 3).reshape(-1, side, side, *rest)
    return windows


@torch.library.custom_op(
    "foresight::sam_attention",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor qkv, Tensor padding, Tensor products, int side) -> Tensor",
)
def _kernel(qkv: Tensor, padding: Tensor, products: Tensor, side: int) -> Tensor:
    from foresight_plugins.encoders.sam_triton import attend

    return attend(qkv, padding, products, side)


@_kernel.register_fake
def _(qkv: Tensor, padding: Tensor, products: Tensor, side: int) -> Tensor:
    images, height, width, _, heads, dim = qkv.shape
    return qkv.new_empty(images, height, width, heads * dim)
