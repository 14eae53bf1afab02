"""Adapters and the patch codec on maps whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foresight_bench.clips import ClipBatch
from foresight_bench.errors import ContractError
from foresight_bench.grids import Grid
from foresight_plugins.adapters.linear import LinearAdapter
from foresight_plugins.adapters.mlp import MLPAdapter
from foresight_plugins.decoders.patch_pca import PatchPCA

CPU = torch.device("cpu")


def grids(n: int, seed: int, bend: bool = False) -> tuple[Grid, Grid]:
    """Return features [n, 1, 4, 4, 6] and latents [n, 1, 4, 4, 3], a fixed map of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 4, 4, 6, generator=generator)
    y = x @ torch.randn(6, 3, generator=torch.Generator().manual_seed(99)) + 2
    return Grid(x), Grid((y - 2).abs() if bend else y)


def mlp(seed: int = 0) -> MLPAdapter:
    return MLPAdapter(seed=seed, device=CPU, expansion=16, epochs=20, batch=128, lr=1e-2)


def error(adapter: LinearAdapter | MLPAdapter, pair: tuple[Grid, Grid]) -> float:
    predicted = adapter.predict(pair[0], pair[1].shape[1:4]).values
    return float((predicted - pair[1].values).square().mean() / pair[1].values.var())


def test_linear_recovers_a_linear_map() -> None:
    adapter = LinearAdapter(seed=0, device=CPU)
    adapter.fit([grids(64, 0)], [grids(16, 1)])
    assert error(adapter, grids(16, 2)) < 1e-6
    assert adapter.trainable_parameters == 6 * 3 + 3


def test_mlp_learns_what_no_linear_map_can() -> None:
    linear, bent = LinearAdapter(seed=0, device=CPU), mlp()
    for adapter in (linear, bent):
        adapter.fit([grids(256, 0, bend=True)], [grids(32, 1, bend=True)])
    held_out = grids(32, 2, bend=True)
    assert error(bent, held_out) < 0.3 * error(linear, held_out)
    assert bent.trainable_parameters == 6 * 96 + 96 + 96 * 3 + 3


def test_mlp_depends_on_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    pairs = [grids(32, 0, bend=True)], [grids(8, 1, bend=True)]
    first, again, other = mlp(0), mlp(0), mlp(1)
    for adapter in (first, again, other):
        adapter.fit(*pairs)
    probe = pairs[1][0][0]
    assert torch.equal(first.predict(probe, (1, 4, 4)).values, again.predict(probe, (1, 4, 4)).values)
    assert not torch.equal(first.predict(probe, (1, 4, 4)).values, other.predict(probe, (1, 4, 4)).values)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("make", [lambda: LinearAdapter(seed=0, device=CPU), mlp])
def test_any_grid_is_mapped_onto_the_latent_grid(make: object) -> None:
    adapter = make()  # type: ignore[operator]
    features = Grid(torch.randn(40, 2, 5, 7, 3, generator=torch.Generator().manual_seed(0)))
    latents = Grid(torch.randn(40, 2, 3, 4, 2, generator=torch.Generator().manual_seed(1)))
    adapter.fit([(features, latents)], [(features, latents)])
    assert adapter.predict(Grid(features.values[:6]), (2, 3, 4)).shape == (6, 2, 3, 4, 2)
    assert adapter.predict(Grid(features.values[:6, :1]), (1, 6, 2)).shape == (6, 1, 6, 2, 2)
    assert adapter.predict(Grid(features.values[:6]), (9, 3, 4)).shape == (6, 9, 3, 4, 2)


def paired(n: int, frames: int, seed: int) -> tuple[Grid, Grid]:
    """Return latents [n, frames, 2, 2, 3] and features that hold two frames of them, one after the other."""
    latents = torch.randn(n, frames, 2, 2, 3, generator=torch.Generator().manual_seed(seed))
    even = torch.cat([latents, latents[:, -1:]], 1)[:, : frames + frames % 2]
    features = even.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(4)
    return Grid(features), Grid(latents)


def test_linear_tells_frames_apart_that_share_a_token() -> None:
    adapter = LinearAdapter(seed=0, device=CPU)
    adapter.fit([paired(64, 9, 0)], [paired(16, 9, 1)])
    assert error(adapter, paired(8, 9, 2)) < 1e-6
    assert error(adapter, paired(8, 4, 3)) < 1e-6
    assert adapter.trainable_parameters == 2 * (6 * 3 + 3)


def test_linear_reads_a_slot_it_has_not_seen_as_the_first() -> None:
    adapter = LinearAdapter(seed=0, device=CPU)
    adapter.fit([paired(64, 1, 0)], [paired(16, 1, 1)])
    features, _ = paired(4, 4, 2)
    predicted = adapter.predict(features, (4, 2, 2)).values
    torch.testing.assert_close(predicted[:, 0::2], predicted[:, 1::2])
    # Trained on a frame shown twice, the map gives the mean of the two.
    torch.testing.assert_close(predicted[:, 0], features.values[:, 0].unflatten(-1, (2, 3)).mean(-2), atol=0.02, rtol=0)


def clips(n: int) -> ClipBatch:
    frames = np.random.default_rng(0).integers(0, 256, (n, 2, 8, 12, 3), dtype=np.uint8)
    return ClipBatch(frames, tuple(map(str, range(n))))


def test_all_components_give_the_frames_back_and_fewer_give_less() -> None:
    batch = clips(40)
    wanted = torch.from_numpy(batch.frames).permute(0, 1, 4, 2, 3).float() / 255
    errors = []
    for components in (48, 24, 6):
        codec = PatchPCA(weights=None, device=CPU, patch=4, components=components)
        codec.fit([batch])
        latents = codec.encode(batch)
        assert latents.shape == (40, 2, 2, 3, components)
        errors.append(float((codec.decode(latents) - wanted).square().mean()))
    assert errors[0] < 1e-10
    assert errors[0] < errors[1] < errors[2]


def test_a_latent_cell_is_the_patch_at_its_place() -> None:
    batch = clips(20)
    codec = PatchPCA(weights=None, device=CPU, patch=4, components=48)
    codec.fit([batch])
    latents = codec.encode(batch).values.clone()
    before = codec.decode(Grid(latents))
    latents[3, 1, 0, 2] = 0
    changed = (codec.decode(Grid(latents)) - before).abs().sum(2) > 1e-6
    assert changed[3, 1, :4, 8:].all()
    changed[3, 1, :4, 8:] = False
    assert not changed.any()


def test_sides_that_are_no_multiple_of_the_patch_are_refused() -> None:
    with pytest.raises(ContractError, match="multiples of 5"):
        PatchPCA(weights=None, device=CPU, patch=5, components=3).fit([clips(4)])
