"""The trained adapters on tasks whose answer is known."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from foresight_bench.contracts import Pairing
from foresight_bench.errors import Unsupported
from foresight_bench.grids import Grid, Layout
from foresight_plugins.adapters.attention import FOCUS, Places, keys
from foresight_plugins.adapters.coord import Coord, coordinates
from foresight_plugins.adapters.fusion import Fusion
from foresight_plugins.adapters.layers import Convolution, ResidualBlock, linear
from foresight_plugins.adapters.query import Query
from foresight_plugins.adapters.spatial import Spatial
from foresight_plugins.adapters.upsample import Upsample

Pair = tuple[Grid, Grid]

SIZES: dict[type[nn.Module], dict[str, int]] = {
    Spatial: {"width": 12, "blocks": 2},
    Coord: {"width": 12, "blocks": 2},
    Upsample: {"width": 12, "blocks": 2},
    Query: {"width": 16, "heads": 4, "layers": 2},
    Fusion: {"width": 16, "blocks": 1, "heads": 4},
}
ALL = pytest.mark.parametrize("adapter", SIZES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, streams: tuple[int, ...] = (), spans: tuple[tuple[int, int], ...] = ()) -> Grid:
    return Grid(torch.randn(*shape, generator=seeded(seed)), spans, streams)


def pairing(*pairs: Pair) -> Pairing:
    features, latents = pairs[0]
    rows = torch.cat([x.values.flatten(0, 3) for x, _ in pairs])
    return Pairing(
        tuple((x.layout, y.layout) for x, y in pairs),
        features.shape[4],
        features.streams,
        latents.shape[4],
        rows.mean(0),
        rows.std(0),
    )


def build(adapter: type[nn.Module], *pairs: Pair, seed: int = 0, **params: int) -> Any:
    return adapter(pairing(*pairs), seeded(seed), **{**SIZES[adapter], **params})


def stirred(module: Any, by: float = 0.05) -> Any:
    """Return ``module`` with noise on every parameter, so that no branch of it is silent."""
    generator = seeded(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module


def predicted(module: Any, features: Grid, onto: Layout) -> Tensor:
    with torch.no_grad():
        latents: Tensor = module(*module.prepare(features, onto))
    return latents


def trained(adapter: type[nn.Module], pair: Pair, epochs: int, rate: float = 3e-3, **params: int) -> Any:
    module = build(adapter, pair, **params)
    inputs, wanted = module.prepare(pair[0], pair[1].layout), pair[1].values
    optimiser = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.01)
    steps = epochs * -(-len(wanted) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        for rows in torch.randperm(len(wanted), generator=seeded(epoch)).split(16):
            loss = F.mse_loss(module(*(part[rows] for part in inputs)), wanted[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return module


def error(module: Any, pair: Pair) -> float:
    """Return the mean squared error as a share of the variance."""
    wanted = pair[1].values
    return float((predicted(module, pair[0], pair[1].layout) - wanted).square().mean() / wanted.var())


def sample(adapter: type[nn.Module], t: int, onto_t: int, spans: tuple[tuple[int, int], ...] = ()) -> Pair:
    """Return 3 clips of 5 channels in t cells of 3 x 5, latents of 2 channels on 4 x 6; for `fusion` a hybrid's."""
    streams = (2, 3) if adapter is Fusion else ()
    return noise(3, t, 3, 5, 5, streams=streams), noise(3, onto_t, 4, 6, 2, seed=1, spans=spans)


@ALL
@pytest.mark.parametrize(
    ("t", "onto_t", "spans"),
    [(1, 1, ()), (3, 7, ()), (7, 3, ()), (9, 2, ((0, 1), (1, 9))), (5, 3, ((0, 1), (1, 5), (5, 9)))],
)
def test_any_grid_is_mapped_onto_any_latent_grid(
    adapter: type[nn.Module], t: int, onto_t: int, spans: tuple[tuple[int, int], ...]
) -> None:
    features, latents = sample(adapter, t, onto_t, spans)
    module = stirred(build(adapter, (features, latents)))
    found = predicted(module, features, latents.layout)
    assert found.shape == latents.shape
    assert found.isfinite().all()
    for other in (Layout(4, 4, 6), Layout(2, 4, 6, ((0, 1), (1, 17))), Layout(1, 5, 3)):
        assert predicted(module, noise(2, 2, 3, 5, 5), other).shape == (2, *other.size, 2)


@ALL
@pytest.mark.parametrize("sizes", [((9, 11), (3, 4)), ((4, 4), (4, 4)), ((2, 9), (4, 3))])
def test_finer_and_coarser_grids_are_served_or_refused(
    adapter: type[nn.Module], sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    (h, w), (onto_h, onto_w) = sizes
    features, latents = noise(2, 2, h, w, 4, streams=(3, 1)), noise(2, 3, onto_h, onto_w, 5)
    if adapter is Upsample and h >= onto_h and w >= onto_w:
        with pytest.raises(Unsupported, match=f"{h} x {w} tokens .* {onto_h} x {onto_w} cells") as refused:
            build(adapter, (features, latents))
        assert "spatial" in refused.value.hint
    else:
        module = stirred(build(adapter, (features, latents)))
        assert predicted(module, features, latents.layout).shape == latents.shape


@pytest.mark.parametrize("streams", [(), (5,)])
def test_fusion_refuses_what_is_no_hybrid(streams: tuple[int, ...]) -> None:
    with pytest.raises(Unsupported, match="one encoder") as refused:
        build(Fusion, (noise(2, 1, 3, 3, 5, streams=streams), noise(2, 1, 3, 3, 2)))
    assert "qwen2.5-vl+dinov2" in refused.value.hint


@ALL
def test_a_stack_computes_what_each_module_does(adapter: type[nn.Module]) -> None:
    features, latents = sample(adapter, 9, 2, ((0, 1), (1, 9)))
    modules = [stirred(build(adapter, (features, latents), seed=seed)) for seed in range(4)]
    inputs = modules[0].prepare(features, latents.layout)
    assert all(len(part) == len(features.values) for part in inputs)
    parameters = {
        name: torch.stack([dict(module.named_parameters())[name].detach() for module in modules]).unflatten(0, (2, 2))
        for name, _ in modules[0].named_parameters()
    }
    buffers = dict(modules[0].named_buffers())

    def forward(some: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        result: Tensor = functional_call(modules[0], (some, buffers), inputs)
        return result

    def loss(some: dict[str, Tensor]) -> Tensor:
        return vmap(vmap(forward, (0, None)), (0, None))(some, inputs).square().mean((2, 3, 4, 5, 6)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as the one that an operation has no rule for stacks
        stacked = vmap(vmap(forward, (0, None)), (0, None))(parameters, inputs).flatten(0, 1)
        slopes = torch.func.grad(loss)(parameters)
    for index, module in enumerate(modules):
        alone = module(*inputs)
        torch.testing.assert_close(stacked[index], alone, atol=1e-5, rtol=1e-5)
        alone.square().mean().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(slopes[name].flatten(0, 1)[index], parameter.grad, atol=1e-5, rtol=1e-4)


@ALL
def test_parameters_come_from_the_generator_alone(adapter: type[nn.Module]) -> None:
    pair = sample(adapter, 1, 1)
    before = torch.random.get_rng_state()
    first, again, other = build(adapter, pair), build(adapter, pair), build(adapter, pair, seed=1)
    found = [predicted(module, pair[0], pair[1].layout) for module in (first, again, other)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=0.1)


def test_linear_layers_follow_the_law_of_torch() -> None:
    ours = linear(64, 500, seeded(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = nn.Linear(64, 500)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.abs().max(), b.abs().max(), atol=0, rtol=0.02)
        torch.testing.assert_close(a.std(), b.std(), atol=0, rtol=0.1)


@ALL
def test_clips_do_not_see_each_other(adapter: type[nn.Module]) -> None:
    features, latents = sample(adapter, 3, 3)
    module = stirred(build(adapter, (features, latents)))
    together = predicted(module, features, latents.layout)
    for clip in range(3):
        alone = predicted(module, Grid(features.values[clip : clip + 1]), latents.layout)
        torch.testing.assert_close(alone[0], together[clip], atol=1e-5, rtol=1e-5)


@ALL
def test_every_parameter_has_a_part(adapter: type[nn.Module]) -> None:
    features, latents = sample(adapter, 9, 2, ((0, 1), (1, 9)))
    module = stirred(build(adapter, (features, latents)))
    module(*module.prepare(features, latents.layout)).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-7, name


@ALL
def test_dtype_is_kept(adapter: type[nn.Module]) -> None:
    features, latents = sample(adapter, 3, 2)
    module = stirred(build(adapter, (features, latents)))
    single = predicted(module, features, latents.layout)
    inputs = module.prepare(features, latents.layout)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = module(*inputs)
    torch.testing.assert_close(half.float(), single, atol=0.05, rtol=0.05)
    double = predicted(module.double(), Grid(features.values.double(), streams=features.streams), latents.layout)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-5)


@ALL
def test_features_are_standardised(adapter: type[nn.Module]) -> None:
    features, latents = sample(adapter, 9, 2, ((0, 1), (1, 9)))
    scale, shift = torch.tensor([1e-2, 1.0, 30.0, 2.0, 0.1]), torch.tensor([3.0, -50.0, 0.0, 7.0, 1.0])
    moved = Grid(features.values * scale + shift, streams=features.streams)
    found = [predicted(stirred(build(adapter, (x, latents))), x, latents.layout) for x in (features, moved)]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


def test_parameters_are_those_of_the_architecture() -> None:
    def count(adapter: type[nn.Module], features: tuple[int, int], streams: tuple[int, ...] = ()) -> int:
        pair = noise(2, 9, *features, 5, streams=streams), noise(2, 2, 4, 6, 3, spans=((0, 1), (1, 9)))
        return sum(parameter.numel() for parameter in build(adapter, pair).parameters())

    def trunk(width: int, blocks: int) -> int:
        return blocks * 2 * (9 * width**2 + width) + (width + 1) * 2 * 3  # two kinds of frame, three channels

    def attention(width: int, places: int) -> int:
        return 4 * width**2 + 3 * width + 4 * places**2

    assert count(Spatial, (8, 12)) == (2 * 4 * 5 + 1) * 12 + trunk(12, 2)  # mean and trend of 2 x 2 tokens
    assert count(Spatial, (4, 6)) == (2 * 5 + 1) * 12 + trunk(12, 2)
    assert count(Coord, (4, 6)) == (2 * 5 + 1) * 12 + 4 * 12 + trunk(12, 2)
    assert count(Upsample, (2, 3)) == (2 * 5 + 1) * 12 * 4 + trunk(12, 2)
    assert count(Upsample, (1, 3)) == (2 * 5 + 1) * 12 * 16 + trunk(12, 2)
    places = 2 * (2 + 8 + 12)
    block = attention(16, places) + 2 * 2 * 16 + 2 * 4 * 16**2 + 5 * 16
    assert count(Query, (16, 30)) == 6 * 16 + (places + 1) * 16 + 2 * block + 17 * 2 * 3
    assert count(Fusion, (8, 12), (2, 3)) == (
        (2 * 4 * 3 + 1) * 16 + trunk(16, 1) + 3 * 16 + 2 * 16 + attention(16, places)
    )


@ALL
@pytest.mark.parametrize("onto", [(6, 6), (4, 8), (9, 3)])
def test_a_token_changes_the_cell_that_covers_it_most(adapter: type[nn.Module], onto: tuple[int, int]) -> None:
    h, w = onto
    # Tokens are half the side of a cell, or for `upsample` (and `spatial` once more) twice.
    for size in ((2 * h, 2 * w), (-(-h // 2), -(-w // 2))):
        if adapter is Upsample and size[0] > h:
            continue
        features = noise(1, 1, *size, 6, streams=(3, 3))
        latents = noise(1, 1, h, w, 4)
        module = build(adapter, (features, latents))
        if adapter is Fusion:
            module.attention.output = linear(16, 16, seeded(1))  # it starts at 0
        before = predicted(module, features, latents.layout)
        for part in (slice(0, 3), slice(3, 6)):  # of a hybrid: the semantic stream, the spatial one
            for row, column in ((0, 0), (0, size[1] - 1), (size[0] - 1, 0), (size[0] // 2, size[1] // 3)):
                values = features.values.clone()
                values[0, 0, row, column, part] += 3
                moved = (predicted(module, Grid(values), latents.layout) - before)[0, 0].square().sum(-1)
                most = divmod(int(moved.argmax()), w)
                place = ((row + 0.5) * h / size[0], (column + 0.5) * w / size[1])
                assert max(abs(most[0] + 0.5 - place[0]), abs(most[1] + 0.5 - place[1])) <= 0.75, (size, row, column)


@ALL
def test_a_latent_frame_reads_the_frames_of_its_span_alone(adapter: type[nn.Module]) -> None:
    features, latents = sample(adapter, 9, 3, ((0, 1), (1, 5), (5, 9)))
    module = stirred(build(adapter, (features, latents)))
    before = predicted(module, features, latents.layout)
    for frame, covering in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2)):
        values = features.values.clone()
        values[:, frame] += noise(3, 3, 5, 5, 1).values.movedim(4, 0)[0].mean() + torch.linspace(1, 2, 5)
        moved = (predicted(module, Grid(values), latents.layout) - before).abs().amax((0, 2, 3, 4))
        assert moved[covering] > 1e-3
        moved[covering] = 0
        assert moved.max() < 1e-5


@ALL
def test_clips_are_read_as_the_single_frames_of_train(adapter: type[nn.Module]) -> None:
    features, latents = noise(32, 1, 3, 3, 4, streams=(2, 2)), noise(32, 1, 4, 4, 2)
    module = trained(adapter, (features, latents), epochs=2, rate=1e-2)
    clips = noise(2, 5, 3, 3, 4, seed=3)
    together = predicted(module, clips, Layout(5, 4, 4))
    for frame in range(5):
        alone = predicted(module, Grid(clips.values[:, frame : frame + 1]), Layout(1, 4, 4))
        torch.testing.assert_close(together[:, frame], alone[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", [Spatial, Query])
def test_frames_that_share_a_token_are_told_apart(adapter: type[nn.Module]) -> None:
    def paired(n: int, seed: int) -> Pair:
        """Return latents of 4 frames, and features that hold two of them, one after the other."""
        latents = noise(n, 4, 4, 4, 3, seed=seed)
        return Grid(latents.values.unflatten(1, (2, 2)).permute(0, 1, 3, 4, 2, 5).flatten(4)), latents

    assert error(trained(adapter, paired(192, 0), epochs=6, rate=1e-2), paired(32, 1)) < 0.15


def test_a_convolution_is_torchs_with_replicated_borders() -> None:
    ours = Convolution(4, seeded(0))
    theirs = nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")
    theirs.load_state_dict(ours.kernel.state_dict())
    x = noise(2, 1, 5, 3, 4).values[:, 0]
    torch.testing.assert_close(ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_a_residual_block_activates_before_each_convolution() -> None:
    block = stirred(ResidualBlock(4, seeded(0)), 0.3)
    x = noise(2, 1, 5, 3, 4).values[:, 0]
    torch.testing.assert_close(block(x), x + block.second(block.first(x.clamp(min=0)).clamp(min=0)))
    torch.testing.assert_close(ResidualBlock(4, seeded(0))(x), x)


@pytest.mark.parametrize(("size", "factor"), [((9, 17), 2), ((4, 16), 4), ((3, 20), 8), ((20, 8), 4)])
def test_upsample_doubles_until_features_are_as_fine_as_latents(size: tuple[int, int], factor: int) -> None:
    assert build(Upsample, (noise(1, 1, *size, 2), noise(1, 1, 16, 17, 2))).factor == factor


def test_spatial_reads_neighbours() -> None:
    def task(n: int, seed: int) -> Pair:
        """Return latents that are the token above and the token to the right."""
        x = noise(n, 1, 6, 8, 3, seed=seed)
        above, right = x.values.roll(1, 2), x.values.roll(-1, 3)
        above[:, :, 0], right[:, :, :, -1] = 0, 0
        return x, Grid(torch.cat([above, right], -1))

    neighbours = error(trained(Spatial, task(128, 0), epochs=10, rate=1e-2), task(32, 1))
    cells = error(trained(Spatial, task(128, 0), epochs=10, rate=1e-2, blocks=0), task(32, 1))
    assert neighbours < 0.15
    assert cells > 0.95


def test_coord_knows_where_a_cell_is_and_spatial_does_not() -> None:
    def task(n: int, seed: int) -> Pair:
        """Return latents that are a token's value and twice its x, its y or its time: 64% of the variance."""
        x = noise(n, 4, 6, 8, 1, seed=seed)
        ramps = [torch.linspace(-1, 1, size) for size in (8, 6, 4)]
        places = torch.stack(torch.meshgrid(ramps[2], ramps[1], ramps[0], indexing="ij"), -1)
        return x, Grid(x.values + 2 * places)

    assert error(trained(Coord, task(96, 0), epochs=10, rate=2e-2), task(16, 1)) < 0.05
    assert error(trained(Spatial, task(96, 0), epochs=5, rate=1e-2), task(16, 1)) > 0.6


def test_coordinates_are_those_of_the_centres() -> None:
    found = coordinates(Layout(2, 1, 4, ((0, 1), (1, 9))))
    assert found[0, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert found[0, 0, :, 1].tolist() == [0, 0, 0, 0]
    assert found[0, 0, :, 2].tolist() == [0.75, 0.25, 0.25, 0.75]
    torch.testing.assert_close(found[:, 0, 0, 3], torch.tensor([1 / 9 - 1, 10 / 9 - 1]))
    assert coordinates(Layout(1, 3, 1))[0, :, 0, 1].tolist() == pytest.approx([-2 / 3, 0, 2 / 3])
    assert coordinates(Layout(1, 1, 1)).tolist() == [[[[0, 0, 0, 0]]]]


def test_upsample_recovers_what_a_token_holds_of_its_parts() -> None:
    mix = torch.linalg.qr(torch.randn(4, 4, generator=seeded(5))).Q

    def task(n: int, seed: int) -> Pair:
        """Return tokens that each hold, mixed, the 2 x 2 cells of latents that it covers."""
        fine = noise(n, 1, 6, 8, 1, seed=seed)
        parts = fine.values.unflatten(3, (4, 2)).unflatten(2, (3, 2)).transpose(3, 4).flatten(4)
        return Grid(parts @ mix), fine

    assert error(trained(Upsample, task(128, 0), epochs=8, rate=1e-2), task(32, 1)) < 0.05
    assert error(trained(Spatial, task(128, 0), epochs=8, rate=1e-2), task(32, 1)) > 0.3


@pytest.mark.parametrize(("size", "axis"), [((5, 4), 2), ((4, 5), 3)])
def test_query_finds_tokens_elsewhere(size: tuple[int, int], axis: int) -> None:
    def task(n: int, seed: int) -> Pair:
        """Return latents that are the tokens of other cells, round the border."""
        x = noise(n, 1, *size, 4, seed=seed)
        return x, Grid(x.values.roll(2, axis))

    assert error(trained(Query, task(192, 0), epochs=14, rate=2e-2, layers=1), task(32, 1)) < 0.3


def test_fusion_joins_both_streams_by_place() -> None:
    def task(n: int, seed: int) -> Pair:
        """Return latents that are the product of a semantic channel and a spatial one, and the semantic one itself."""
        x = noise(n, 1, 4, 4, 4, seed=seed, streams=(2, 2))
        semantic, spatial = x.values.chunk(2, -1)
        return x, Grid(torch.cat([semantic * spatial, semantic], -1))

    module = trained(Fusion, task(256, 0), epochs=12, rate=1e-2)
    x, y = task(32, 1)
    semantic, spatial = x.values.chunk(2, -1)
    turned = Grid(torch.cat([semantic.transpose(2, 3), spatial], -1))
    assert error(module, (x, y)) < 0.35
    assert error(module, (turned, y)) > 0.9


def test_each_head_starts_at_a_part_of_the_cell() -> None:
    pair = noise(1, 1, 6, 8, 1), noise(1, 1, 3, 4, 1)
    places = Places(pairing(pair))
    at, tokens_at = places((1, 3, 4), pair[0].values), places((1, 6, 8), pair[0].values)
    for part in range(4):
        logits = at @ places.shift(part) @ tokens_at.T
        for row in range(3):
            for column in range(4):
                found = logits[row * 4 + column]
                assert divmod(int(found.argmax()), 8) == (2 * row + part // 2, 2 * column + part % 2)
                assert float(found.max()) == pytest.approx(3 * FOCUS, rel=1e-4)  # along time, rows and columns


def test_branches_start_as_none() -> None:
    pair = noise(1, 1, 4, 4, 5, streams=(2, 3)), noise(1, 1, 4, 4, 2)
    fusion, block = build(Fusion, pair), build(Query, pair).layers[0]
    changed = Grid(torch.cat([pair[0].values[..., :2] + 1, pair[0].values[..., 2:]], -1))
    before, after = (predicted(fusion, features, pair[1].layout) for features in (pair[0], changed))
    assert torch.equal(before, after)
    at = Places(pairing(pair))((1, 4, 4), pair[0].values)
    x, tokens = noise(1, 1, 1, 16, 16).values[0], noise(1, 1, 1, 16, 16, seed=1).values[0]
    torch.testing.assert_close(block(x, tokens, at, at), x + block.attention(block.norm(x), tokens, at, at))


def test_keys_are_averaged_down_to_two_a_cell() -> None:
    ramp = torch.arange(4.0)[:, None, None, None] * 100 + torch.arange(12.0)[:, None, None] * 10 + torch.ones(7, 1)
    found = keys(Grid(ramp[None]), Layout(2, 3, 4, ((0, 1), (1, 4))))
    assert found.shape == (1, 2, 2, 6, 7, 1)
    # Frame 0, shown twice; then frames 1 and 2, 2 and 3. Rows 4 and 5 of 12 are averaged, with their neighbours.
    assert found[0, :, :, 2, 3, 0].flatten().tolist() == pytest.approx([46, 46, 196, 296], abs=1e-3)
