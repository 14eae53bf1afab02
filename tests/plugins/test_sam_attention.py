"""SAM's attention agrees with segment-anything's, and its CUDA kernel with both: interpreted, compiled, on a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos, window_partition, window_unpartition
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from foresight_plugins.encoders.sam_attention import SMALL, attention, augmented, halves, kernel_takes, products

Shape = tuple[int, int, int, int, int, int]
"""B, H, W, heads, D, side."""

SHAPES: tuple[Shape, ...] = (
    (2, 6, 6, 2, 16, 3),
    (2, 10, 12, 2, 16, 5),
    (1, 17, 20, 1, 80, 14),
    (3, 8, 8, 2, 80, 8),
    (1, 5, 4, 1, 24, 14),
    (1, 32, 32, 1, 80, 32),
)
INTERPRETED: tuple[tuple[Shape, tuple[int, int] | None], ...] = (
    ((2, 10, 12, 1, 16, 5), None),
    ((1, 5, 18, 1, 80, 14), None),
    ((1, 18, 5, 1, 80, 14), (8, 8)),
    ((1, 32, 32, 1, 80, 32), (16, 1)),
)
"""Shapes, and rows of queries and of keys at a time where the usual ones take too long or divide the window."""
FULL: tuple[Shape, ...] = tuple((2, 64, 64, *heads, side) for heads in ((12, 64), (16, 80)) for side in (14, 64))


def inputs(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of tokens and of padding, and relative positions that matter."""
    images, height, width, heads, dim, side = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(images, height, width, 3, heads, dim, generator=generator)
    padding = torch.randn(3, heads, dim, generator=generator)
    relative = torch.randn(2, 2 * side - 1, dim, generator=generator) * dim**-0.5
    return qkv, padding, relative


def reference(qkv: Tensor, padding: Tensor, relative: Tensor, side: int) -> Tensor:
    """segment-anything's windows and bias around a plain softmax."""
    _, height, width, _, heads, dim = qkv.shape
    centred, padded = window_partition((qkv - padding).flatten(3), side)
    windows = centred.unflatten(-1, (3, heads, dim)) + padding
    q, k, v = windows.flatten(1, 2).permute(2, 0, 3, 1, 4).flatten(1, 2)
    scores = (q * dim**-0.5) @ k.transpose(-2, -1)
    scores = add_decomposed_rel_pos(scores, q, *relative, (side, side), (side, side))
    out = (scores.softmax(-1) @ v).unflatten(0, (-1, heads)).permute(0, 2, 1, 3)
    merged: Tensor = window_unpartition(out.reshape(-1, side, side, heads * dim), side, padded, (height, width))
    return merged


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_segment_anything(shape: Shape) -> None:
    values = inputs(shape)
    expected = reference(*(value.double() for value in values), shape[-1])
    assert relative_error(augmented(*values, shape[-1]), expected) < 2e-6
    assert torch.equal(attention(*values, shape[-1]), augmented(*values, shape[-1]))


def test_bias_and_padding_matter() -> None:
    qkv, padding, relative = inputs((1, 5, 5, 2, 16, 4))
    expected = augmented(qkv, padding, relative, 4)
    for other in (
        augmented(qkv, padding, relative * 0, 4),
        augmented(qkv, padding, relative.flip(0), 4),
        augmented(qkv, padding, relative.flip(1), 4),
        augmented(qkv, padding * 0, relative, 4),
    ):
        assert relative_error(other, expected) > 0.05


@pytest.mark.parametrize(
    ("dim", "side", "grid", "takes"),
    [
        (64, 14, (64, 64), True),
        (80, 14, (64, 64), True),
        (80, 64, (64, 64), True),
        (64, 16, (5, 9), True),
        (64, 32, (64, 64), False),
        (64, 24, (24, 24), False),
        (8, 14, (64, 64), False),
        (72, 14, (64, 64), False),
        (112, 14, (64, 64), False),
    ],
)
def test_what_the_kernel_takes(dim: int, side: int, grid: tuple[int, int], takes: bool) -> None:
    assert kernel_takes(dim, side, *grid) is takes


@pytest.mark.parametrize(("dtype", "calls"), [(torch.bfloat16, 1), (torch.float32, 0)])
def test_bfloat16_on_cuda_goes_to_the_kernel(dtype: torch.dtype, calls: int) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        sizes = ((1, 20, 20, 3, 2, 16), (3, 2, 16), (2, 27, 16))
        values = [torch.empty(size, dtype=dtype, device="cuda") for size in sizes]
        assert attention(*values, 14).shape == (1, 20, 20, 32)
        graph = make_fx(lambda *tensors: attention(*tensors, 14))(*values)
    assert str(graph.code).count("foresight.sam_attention") == calls


@pytest.mark.slow
def test_kernel_is_exact_when_interpreted() -> None:
    """In another process, because Triton decides to interpret when it is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == len(INTERPRETED)
    assert max(errors) < 2e-6


def interpret() -> None:
    """Print the kernel's relative error at each of the shapes."""
    from foresight_plugins.encoders.sam_triton import Tiles, attend

    torch.set_num_threads(1)
    for shape, rows in INTERPRETED:
        qkv, padding, relative = inputs(shape)
        tiles = Tiles(*rows, warps=4, stages=2) if rows else None
        got = attend(qkv, padding, products(qkv, relative), shape[-1], tiles)
        print(relative_error(got, reference(qkv, padding, relative, shape[-1])))


@pytest.mark.parametrize("shape", FULL[1:3], ids=str)
def test_kernel_compiles_for_hopper(shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes Python that the compiler does not."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build

    from foresight_plugins.encoders import sam_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    *_, heads, dim, side = shape
    small = side <= SMALL
    tiles = sam_triton.SMALL_TILES if small else sam_triton.LARGE_TILES
    types = {"qkv": "*bf16", "padding": "*bf16", "products": "*bf16", "out": "*bf16"}
    types |= {"images": "i32", "height": "i32", "width": "i32", "scale": "fp32"}
    columns, length = SMALL if small else side, -(-(4 * side - 2) // 8) * 8
    fixed = (heads, *halves(dim), side, columns, length, tiles.query_rows, tiles.key_rows, small)
    names = sam_triton._compiled.arg_names
    source = ASTSource(
        fn=sam_triton._compiled,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(zip(((index,) for index in range(len(types), len(names))), fixed, strict=True)),
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    assert "wgmma" in build(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", FULL, ids=str)
def test_kernel_agrees_on_a_device(shape: Shape) -> None:
    qkv, padding, relative = (value.bfloat16().cuda() for value in inputs(shape))
    got = attention(qkv, padding, relative, shape[-1])
    expected = reference(qkv.float(), padding.float(), relative.float(), shape[-1])
    assert relative_error(got.float(), expected) < 1e-2
    alone = attention(qkv[1:].contiguous(), padding, relative, shape[-1])
    assert relative_error(alone.float(), got[1:].float()) < 1e-3


if __name__ == "__main__":
    interpret()
