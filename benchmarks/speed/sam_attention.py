"""Print how long SAM's attention takes on a CUDA device, by every way of adding its position bias.

Usage: ``PYTHONPATH=harness:plugins python benchmarks/speed/sam_attention.py [--tiles]``

Rows: the kernel with the products it needs, the kernel alone, the augmentation through SDPA, SDPA with the bias as a
mask, SDPA without any bias. Arithmetic counts what the softmax needs, padding of windows included, without the
bias. ``--tiles`` tries other tiles of the kernel instead, at the middle batch size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from foresight_plugins.encoders.sam_attention import attention, augmented, products
from foresight_plugins.encoders.sam_triton import Tiles, attend

GRID = 64
HEADS = {"vit_b": (12, 64), "vit_h": (16, 80)}
BATCHES = (1, 4, 16)
TILES = {
    14: [
        Tiles(*rows, warps, stages) for rows in ((4, 4), (4, 8), (8, 4)) for warps, stages in ((4, 2), (4, 3), (8, 2))
    ],
    64: [Tiles(rows, 1, warps, stages) for rows, warps in ((1, 4), (2, 4), (2, 8)) for stages in (2, 3)],
}


def milliseconds(run: Callable[[], Tensor], repeats: int = 30) -> float:
    """Return the median time of ``run``."""
    for _ in range(5):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return float(median(start.elapsed_time(end) for start, end in events))


def inputs(batch: int, heads: int, dim: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random arguments of :func:`attention`."""
    torch.manual_seed(0)
    sizes = ((batch, GRID, GRID, 3, heads, dim), (3, heads, dim), (2, 2 * side - 1, dim))
    qkv, padding, relative = (torch.randn(size, dtype=torch.bfloat16, device="cuda") for size in sizes)
    return qkv, padding, relative * dim**-0.5


def windows(side: int) -> int:
    """Return how many windows the grid has."""
    return (-(-GRID // side)) ** 2


def ways(qkv: Tensor, padding: Tensor, relative: Tensor, side: int) -> dict[str, Callable[[], Tensor]]:
    """Return every way to attend; the last two start from windows that are already laid out."""
    heads, dim = qkv.shape[-2:]
    shape = (len(qkv) * windows(side), heads, side * side)
    q, k, v = (torch.randn(*shape, dim, dtype=qkv.dtype, device="cuda") for _ in range(3))
    mask = torch.randn(*shape, side * side, dtype=qkv.dtype, device="cuda")
    found = products(qkv, relative)
    torch.compiler.reset()
    compiled = torch.compile(augmented)
    return {
        "kernel and products": lambda: attention(qkv, padding, relative, side),
        "kernel": lambda: attend(qkv, padding, found, side),
        "augmented": lambda: augmented(qkv, padding, relative, side),
        "augmented, compiled": lambda: compiled(qkv, padding, relative, side),
        "mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "no bias": lambda: F.scaled_dot_product_attention(q, k, v),
    }


def compare(name: str, batch: int, side: int) -> None:
    """Print one line a way."""
    heads, dim = HEADS[name]
    qkv, padding, relative = inputs(batch, heads, dim, side)
    exact = augmented(qkv[:1].float(), padding.float(), relative.float(), side)
    error = (attention(qkv, padding, relative, side)[:1].float() - exact).norm() / exact.norm()
    print(f"{name}, windows of {side}, batch {batch}: kernel off by {error:.1e}")
    operations = 4 * batch * windows(side) * side**4 * heads * dim
    times = {way: milliseconds(run) for way, run in ways(qkv, padding, relative, side).items()}
    for way, time in times.items():
        rate = operations / time / 1e9
        print(f"  {way:20} {time:8.3f} ms {rate:6.0f} TFLOP/s {time / times['no bias']:6.2f} x no bias", flush=True)


def try_tiles(name: str, batch: int, side: int) -> None:
    """Print one line a tile size, fastest first."""
    qkv, padding, relative = inputs(batch, *HEADS[name], side)
    found = products(qkv, relative)
    times = {}
    for tiles in TILES[side]:
        try:
            times[tiles] = milliseconds(partial(attend, qkv, padding, found, side, tiles))
        except Exception as error:
            # Triton's exceptions differ between versions; tiles that do not fit are no failure here.
            print(f"  {tiles}: {type(error).__name__}")
    print(f"{name}, windows of {side}, batch {batch}:")
    for tiles, time in sorted(times.items(), key=lambda pair: pair[1])[:6]:
        print(f"  {tiles} {time:8.3f} ms", flush=True)


def main() -> None:
    """Run all shapes."""
    for name, side in product(HEADS, (64, 14)):
        if "--tiles" in sys.argv:
            try_tiles(name, BATCHES[1], side)
            continue
        for batch in BATCHES:
            compare(name, batch, side)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
