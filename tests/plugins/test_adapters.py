"""Adapters and the patch codec on maps whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foresight_bench.clips import ClipBatch
from foresight_bench.errors import Unsupported
from foresight_bench.grids import Grid, Layout
from foresight_bench.heads import Task, TrainedAdapter, train
from foresight_bench.specs import AdapterSpec, Recipe
from foresight_plugins import foresight_adapters
from foresight_plugins.adapters.linear import LinearAdapter
from foresight_plugins.decoders.patch_pca import PatchPCA

CPU = torch.device("cpu")
MLP = AdapterSpec("mlp", "foresight_plugins.adapters.mlp:MLPAdapter", "", {"hidden": 96}, Recipe((1e-2,), 20, 8))
Pairs = list[tuple[Grid, Grid]]


def fitted(name: str, train_on: Pairs, val: Pairs, seed: int = 0) -> LinearAdapter | TrainedAdapter:
    """Return ``linear``, or ``mlp`` as the harness trains it."""
    if name == "linear":
        adapter = LinearAdapter(seed=seed, device=CPU)
        adapter.fit(train_on, val)
        return adapter
    (result,) = train([Task("mlp", MLP, train_on, val, seed)], CPU)
    assert isinstance(result, TrainedAdapter), result
    return result


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grids(n: int, seed: int, bend: bool = False) -> tuple[Grid, Grid]:
    """Return features [n, 1, 4, 4, 6] and latents [n, 1, 4, 4, 3], a fixed map of them."""
    x = noise(n, 1, 4, 4, 6, seed=seed)
    y = x @ noise(6, 3, seed=99) + 2
    return Grid(x), Grid((y - 2).abs() if bend else y)


def error(adapter: LinearAdapter | TrainedAdapter, pair: tuple[Grid, Grid]) -> float:
    predicted = adapter.predict(pair[0], pair[1].layout).values
    return float((predicted - pair[1].values).square().mean() / pair[1].values.var())


def test_linear_recovers_a_linear_map() -> None:
    adapter = fitted("linear", [grids(64, 0)], [grids(16, 1)])
    assert error(adapter, grids(16, 2)) < 1e-6
    assert adapter.trainable_parameters == 6 * 3 + 3


def test_mlp_learns_what_no_linear_map_can() -> None:
    pairs = [grids(256, 0, bend=True)], [grids(32, 1, bend=True)]
    linear, bent = (fitted(name, *pairs) for name in ("linear", "mlp"))
    held_out = grids(32, 2, bend=True)
    assert error(bent, held_out) < 0.3 * error(linear, held_out)
    assert bent.trainable_parameters == 6 * 96 + 96 + 96 * 3 + 3


def test_mlp_depends_on_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    pairs = [grids(32, 0, bend=True)], [grids(8, 1, bend=True)]
    first, again, other = (fitted("mlp", *pairs, seed=seed).predict(*probe(pairs[1])).values for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def probe(pairs: Pairs) -> tuple[Grid, Layout]:
    return pairs[0][0], pairs[0][1].layout


def test_a_constant_channel_carries_nothing_into_mlp() -> None:
    x, y = grids(64, 0, bend=True)
    wider = [(Grid(torch.cat([5 * x.values, torch.full_like(x.values[..., :1], 1e3)], -1)), y)]
    adapter = fitted("mlp", wider, wider)
    assert isinstance(adapter, TrainedAdapter)
    (values, _) = adapter.module.prepare(*probe(wider))
    assert not values[..., 6].any()
    assert values[..., :6].std() == pytest.approx(1, abs=0.01)
    assert error(adapter, wider[0]) < 0.5


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_any_grid_is_mapped_onto_the_latent_grid(name: str) -> None:
    pair = Grid(noise(40, 2, 5, 7, 3)), Grid(noise(40, 2, 3, 4, 2, seed=1))
    adapter = fitted(name, [pair], [pair])
    features = pair[0].values[:6]
    assert adapter.predict(Grid(features), Layout(2, 3, 4)).shape == (6, 2, 3, 4, 2)
    assert adapter.predict(Grid(features[:, :1]), Layout(1, 6, 2)).shape == (6, 1, 6, 2, 2)
    assert adapter.predict(Grid(features), Layout(9, 3, 4)).shape == (6, 9, 3, 4, 2)
    spans = ((0, 1), (1, 9))
    found = adapter.predict(Grid(noise(6, 9, 5, 7, 3)), Layout(2, 3, 4, spans))
    assert found.shape == (6, 2, 3, 4, 2)
    assert found.spans == spans


def paired(n: int, frames: int, seed: int) -> tuple[Grid, Grid]:
    """Return latents [n, frames, 2, 2, 3] and features that hold two frames of them, one after the other."""
    latents = noise(n, frames, 2, 2, 3, seed=seed)
    even = torch.cat([latents, latents[:, -1:]], 1)[:, : frames + frames % 2]
    features = even.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(4)
    return Grid(features), Grid(latents)


def test_linear_tells_frames_apart_that_share_a_token() -> None:
    adapter = fitted("linear", [paired(64, 9, 0)], [paired(16, 9, 1)])
    assert error(adapter, paired(8, 9, 2)) < 1e-6
    assert error(adapter, paired(8, 4, 3)) < 1e-6
    assert adapter.trainable_parameters == 2 * (6 * 3 + 3)


def test_mlp_knows_which_of_the_frames_that_share_a_token_it_reads() -> None:
    """Where the answer is the place in the pair, and nothing in the tokens tells it."""

    def placed(n: int, seed: int) -> tuple[Grid, Grid]:
        latents = torch.tensor([-1.0, 1.0]).repeat(4)[:, None, None, None].expand(n, 8, 2, 2, 1)
        return Grid(noise(n, 4, 2, 2, 3, seed=seed)), Grid(latents.clone())

    assert error(fitted("mlp", [placed(64, 0)], [placed(16, 1)]), placed(8, 2)) < 0.01


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_place_unseen_in_training_is_read_as_the_first(name: str) -> None:
    adapter = fitted(name, [paired(64, 1, 0)], [paired(16, 1, 1)])
    features, _ = paired(4, 4, 2)
    predicted = adapter.predict(features, Layout(4, 2, 2)).values
    torch.testing.assert_close(predicted[:, 0::2], predicted[:, 1::2])
    if name == "linear":  # trained on a frame shown twice, the map gives the mean of the two
        mean = features.values[:, 0].unflatten(-1, (2, 3)).mean(-2)
        torch.testing.assert_close(predicted[:, 0], mean, atol=0.02, rtol=0)


SPANS = ((0, 1), (1, 9))


def compressed(n: int, seed: int) -> tuple[Grid, Grid]:
    """Return 9 frames and two latent frames: the first frame, and the slope of the other eight."""
    x = noise(n, 9, 2, 2, 3, seed=seed)
    place = torch.arange(8.0) - 3.5
    slope = torch.einsum("t,nthwc->nhwc", place / place.square().sum(), x[:, 1:])
    return Grid(x), Grid(torch.stack([x[:, 0], slope], 1), SPANS)


def test_linear_reads_the_change_within_a_latent_frame_that_covers_eight() -> None:
    adapter = fitted("linear", [compressed(128, 0)], [compressed(32, 1)])
    assert error(adapter, compressed(16, 2)) < 1e-6
    # The first latent frame covers one frame and has no trend: 3 columns, not 6.
    assert adapter.trainable_parameters == (3 * 3 + 3) + (6 * 3 + 3)


def test_a_kind_that_val_lacks_has_no_map() -> None:
    x, y = compressed(128, 0)
    first = Grid(x.values[:16, :1]), Grid(y.values[:16, :1], ((0, 1),))
    adapter = fitted("linear", [(x, y)], [first])
    assert adapter.trainable_parameters == 3 * 3 + 3
    # The other latent frame is read by the first one's map, which is the identity: the mean of its frames comes out.
    predicted = adapter.predict(x, y.layout).values
    torch.testing.assert_close(predicted[:, 1], x.values[:, 1:].mean(1), atol=1e-3, rtol=0)


def test_four_tokens_of_a_cell_are_kept_apart() -> None:
    """Latents that are the difference of two tokens of a cell, which their mean does not show."""

    def corners(n: int, seed: int) -> tuple[Grid, Grid]:
        x = noise(n, 1, 4, 6, 2, seed=seed)
        return Grid(x), Grid(x[:, :, 0::2, 1::2] - x[:, :, 1::2, 0::2])

    assert error(fitted("linear", [corners(128, 0)], [corners(32, 1)]), corners(16, 2)) < 1e-6


def test_every_adapter_says_how_it_is_trained_or_trains_itself() -> None:
    specs = {spec.name: spec for spec in foresight_adapters()}
    assert specs["linear"].recipe is None
    assert specs["mlp"].recipe == Recipe()
    assert specs["mlp"].params == {"hidden": 512}


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
    with pytest.raises(Unsupported, match="multiples of 5"):
        PatchPCA(weights=None, device=CPU, patch=5, components=3).fit([clips(4)])
