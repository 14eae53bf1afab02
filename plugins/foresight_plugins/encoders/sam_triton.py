"""SAM's attention as one CUDA kernel, written in Triton: windows, padding and position bias are pointer arithmetic.

Imported on a CUDA device only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from foresight_plugins.encoders.sam_attention import SMALL, halves


@dataclass(frozen=True)
class Tiles:
    """How the kernel cuts up a window."""

    query_rows: int
    key_rows: int
    warps: int
    stages: int


SMALL_TILES = Tiles(query_rows=8, key_rows=4, warps=4, stages=3)
LARGE_TILES = Tiles(query_rows=1, key_rows=1, warps=4, stages=3)
# The fastest on an H200, 4 images of vit_h: .141 and .976 ms a block, the next best .156 and 1.120 (--tiles of
# benchmarks/speed/sam_attention.py). On vit_b's small windows the first is 3 % behind the best.


def attend(qkv: Tensor, padding: Tensor, products: Tensor, side: int, tiles: Tiles | None = None) -> Tensor:
    """Return the attention's output [B, H, W, heads * D], as :func:`sam_attention.attention` describes it.

    Args:
        qkv: [B, H, W, 3, heads, D], contiguous.
        padding: [3, heads, D], contiguous; queries, keys and values of the tokens that pad a window.
        products: [heads, B * H * W, L], contiguous; each query's products with the relative positions, those of
            rows (2 * side - 1) before those of columns, then whatever fills up L.
        side: of the windows.
        tiles: other than the default ones.
    """
    images, height, width, _, heads, dim = qkv.shape
    small = side <= SMALL
    tiles = tiles or (SMALL_TILES if small else LARGE_TILES)
    out = qkv.new_empty(images, height, width, heads * dim)
    windows = images * triton.cdiv(height, side) * triton.cdiv(width, side)
    _compiled[(windows * heads * triton.cdiv(side, tiles.query_rows),)](
        qkv,
        padding,
        products,
        out,
        images,
        height,
        width,
        dim**-0.5,
        heads,
        *halves(dim),
        side,
        SMALL if small else side,
        products.shape[-1],
        tiles.query_rows,
        tiles.key_rows,
        small,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=True,
    )
    return out


def _attend(
    qkv: tl.tensor,
    padding: tl.tensor,
    products: tl.tensor,
    out: tl.tensor,
    images: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    LENGTH: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    SMALL: tl.constexpr,
) -> None:
    """Attend from some rows of queries to all keys of one head in one window, block by block of keys.

    A head's values are split into LOW + HIGH, since Triton's tiles have powers of two: 80 is 64 + 16. Rows of a
    small window are laid out COLUMNS = 16 apart; its bias is the product of [queries, 2 * COLUMNS] row and
    column biases with a one-hot matrix, and a huge negative bias masks the columns and rows that are none. In
    a large window a block of keys is one row: its row bias is one value a query, its column bias stays the same.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    DIM: tl.constexpr = LOW + HIGH
    TOKEN: tl.constexpr = 3 * HEADS * DIM
    NEXT: tl.constexpr = HEADS * DIM  # from queries to keys, from keys to values
    QUERIES: tl.constexpr = QUERY_ROWS * COLUMNS
    KEYS: tl.constexpr = KEY_ROWS * COLUMNS
    BLOCKS: tl.constexpr = (SIDE + QUERY_ROWS - 1) // QUERY_ROWS
    first = tl.program_id(0) % BLOCKS * QUERY_ROWS
    unit = tl.program_id(0) // BLOCKS
    head, window = unit % HEADS, unit // HEADS
    across, down = tl.cdiv(width, SIDE), tl.cdiv(height, SIDE)
    left, top = window % across * SIDE, window // across % down * SIDE
    image = (window // (across * down)).to(tl.int64)
    if top + first >= height:
        return

    query = tl.arange(0, QUERIES)
    query_row, query_column = first + query // COLUMNS, query % COLUMNS
    real = (query_row < SIDE) & (query_column < SIDE) & (top + query_row < height) & (left + query_column < width)
    token = (top + query_row) * width + left + query_column
    low, high = tl.arange(0, LOW), LOW + tl.arange(0, max(HIGH, 1))
    head_of_image = qkv + image * height * width * TOKEN + head * DIM
    query_pointers = head_of_image + token * TOKEN
    q_low = tl.load(query_pointers[:, None] + low[None, :], mask=real[:, None], other=0.0)
    if HIGH:
        q_high = tl.load(query_pointers[:, None] + high[None, :], mask=real[:, None], other=0.0)

    # Of a query at row r, the product with the position of key row k stands at r - k + SIDE - 1; columns follow.
    product_pointers = products + ((head * images + image) * height * width + token) * LENGTH + SIDE - 1
    key = tl.arange(0, KEYS)
    key_row, key_column = key // COLUMNS, key % COLUMNS
    column_products = product_pointers + 2 * SIDE - 1 + query_column
    if SMALL:
        slot = tl.arange(0, 2 * COLUMNS)
        is_row, place = slot < COLUMNS, slot % COLUMNS
        biases = tl.load(
            tl.where(is_row[None, :], (product_pointers + query_row)[:, None], column_products[:, None])
            - place[None, :],
            mask=real[:, None] & (place < SIDE)[None, :],
            other=-1e9,
        )
    else:
        column_bias = tl.load(column_products[:, None] - key_column[None, :]).to(tl.float32)

    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sum_low = tl.zeros([QUERIES, LOW], tl.float32)
    if HIGH:
        sum_high = tl.zeros([QUERIES, HIGH], tl.float32)
    for start in range(0, SIDE, KEY_ROWS):
        row, column = top + start + key_row, left + key_column
        key_pointers = head_of_image + NEXT + (row * width + column) * TOKEN
        if SMALL:
            inside = (row < height) & (column < width)
            key_pointers = tl.where(inside, key_pointers, padding + NEXT + head * DIM)
        # Values are loaded before the softmax, which hides the time they take.
        k_low = tl.load(key_pointers[:, None] + low[None, :])
        v_low = tl.load(key_pointers[:, None] + NEXT + low[None, :])
        scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
        if HIGH:
            k_high = tl.load(key_pointers[:, None] + high[None, :])
            v_high = tl.load(key_pointers[:, None] + NEXT + high[None, :])
            scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision="ieee")
        if SMALL:
            where = tl.where(is_row[:, None], start + key_row[None, :], key_column[None, :])
            one_hot = (place[:, None] == where).to(biases.dtype)
            scores = scores * scale + tl.dot(biases, one_hot, input_precision="ieee")
            raised = tl.maximum(highest, tl.max(scores, 1))
            offset = raised
        else:
            row_bias = tl.load(product_pointers + query_row - start).to(tl.float32)
            scores = scores * scale + column_bias
            raised = tl.maximum(highest, tl.max(scores, 1) + row_bias)
            offset = raised - row_bias
        weights = tl.exp2(scores * LOG2E - (offset * LOG2E)[:, None])
        fade = tl.exp2((highest - raised) * LOG2E)
        highest = raised
        total = total * fade + tl.sum(weights, 1)
        weights = weights.to(q_low.dtype)
        sum_low = tl.dot(weights, v_low, sum_low * fade[:, None], input_precision="ieee")
        if HIGH:
            sum_high = tl.dot(weights, v_high, sum_high * fade[:, None], input_precision="ieee")

    out_pointers = out + (image * height * width + token) * NEXT + head * DIM
    tl.store(out_pointers[:, None] + low[None, :], (sum_low / total[:, None]).to(q_low.dtype), mask=real[:, None])
    if HIGH:
        values = (sum_high / total[:, None]).to(q_low.dtype)
        tl.store(out_pointers[:, None] + high[None, :], values, mask=real[:, None])


_compiled: Any = triton.jit(_attend)
