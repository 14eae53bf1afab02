"""Heads trained together: each learns what it would learn alone, whatever happens to the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench import heads, pairs, stacking
from foresight_bench.adapting import mean_squared_error
from foresight_bench.contracts import Pairing
from foresight_bench.errors import NonFinite, Unsupported
from foresight_bench.grids import Grid, Layout
from foresight_bench.heads import Result, Task, TrainedAdapter, train
from foresight_bench.specs import AdapterSpec, Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(learning_rates=(1e-3, 1e-2), epochs=4, batch=8)
MLP = AdapterSpec("mlp", "foresight_plugins.adapters.mlp:MLPAdapter", "", {"hidden": 16}, RECIPE)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Heads this small run no faster on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blocks(tap: int, clips: Sequence[int] = (20, 12), *, start: int = 0) -> list[tuple[Grid, Grid]]:
    """Return blocks of different shapes, with latents that a bent map makes of the features of a tap."""
    weight = noise(6, 3, seed=99)
    pairs = []
    for index, n in enumerate(clips):
        x = noise(n, 1, 3 + index, 4, 6, seed=1000 * tap + 10 * start + index)
        pairs.append((Grid(5 * x + tap), Grid((x @ weight).abs())))
    return pairs


DATA = {tap: (blocks(tap), blocks(tap, (9, 4), start=1)) for tap in range(4)}


def task(tap: int, seed: int = 0, spec: AdapterSpec = MLP) -> Task:
    return Task(f"mlp at {tap}", spec, *DATA[tap], seed)


def sound(result: Result) -> TrainedAdapter:
    assert isinstance(result, TrainedAdapter), result
    return result


def predictions(result: Result) -> Tensor:
    features, latents = blocks(0, (7,), start=2)[0]
    return sound(result).predict(features, latents.layout).values


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def assert_same(found: Result, wanted: Result, tolerance: float) -> None:
    assert relative(predictions(found), predictions(wanted)) <= tolerance
    assert sound(found).val_error == pytest.approx(sound(wanted).val_error, rel=max(tolerance, 1e-12))
    assert (sound(found).learning_rate, sound(found).epochs) == (sound(wanted).learning_rate, sound(wanted).epochs)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the number of heads of each stack that is trained from here on."""
    found: list[int] = []

    def watched(given: Sequence[stacking.Head], recipe: Recipe, *rest: Any) -> stacking.Best:
        found.append(len(given) * len(recipe.learning_rates))
        return stacking.optimise(given, recipe, *rest)

    monkeypatch.setattr(heads, "optimise", watched)
    return found


def test_a_head_in_a_stack_equals_the_same_head_alone_in_any_order(sizes: list[int]) -> None:
    mixed = [task(tap, seed) for tap, seed in ((0, 0), (1, 0), (2, 1), (3, 1))]  # two rates each: 8 heads
    alone = [train([each], CPU)[0] for each in mixed]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        found = train([mixed[index] for index in order], CPU)
        for index, result in zip(order, found, strict=True):
            assert_same(result, alone[index], 1e-4)
    assert sizes == [2, 2, 2, 2, 8, 8]
    assert relative(predictions(alone[0]), predictions(alone[1])) > 0.1, "different heads must differ"


def test_each_rate_is_trained_as_if_it_were_the_only_one() -> None:
    one, other = (train([task(0, spec=single(rate))], CPU)[0] for rate in RECIPE.learning_rates)
    best = min(map(sound, (one, other)), key=lambda result: result.val_error)
    assert sound(one).val_error != pytest.approx(sound(other).val_error, rel=1e-2)
    assert_same(train([task(0)], CPU)[0], best, 1e-4)


def single(rate: float, **changes: Any) -> AdapterSpec:
    return replace(MLP, recipe=replace(RECIPE, learning_rates=(rate,), **changes))


def test_training_is_that_of_torch_written_out() -> None:
    """A plain loop over a plain module: AdamW, warm-up, cosine, the best epoch kept."""
    recipe = Recipe((3e-3,), epochs=6, batch=8, weight_decay=0.3, warmup=0.2, patience=6)
    chosen = replace(MLP, recipe=recipe)
    (result,) = train([task(1, 5, chosen)], CPU)

    from foresight_plugins.adapters.mlp import MLPAdapter

    samples, val = DATA[1]
    pairing = pairs.pairing(samples, *pairs.statistics([features for features, _ in samples]))
    module = MLPAdapter(pairing, stacking.generator("mlp at 1", 5), hidden=16)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.3)
    steps, step, errors, states = 6 * (3 + 2), 0, [], []
    for epoch in range(1, 7):
        for block, order in stacking.batches([20, 12], 8, epoch, {5}):
            features, latents = samples[block]
            inputs = module.prepare(Grid(features.values[order[5]]), latents.layout)
            loss = F.mse_loss(module(*inputs), latents.values[order[5]])
            optimiser.zero_grad()
            loss.backward()
            # 30 steps, of which 6 warm up.
            factor = (step + 1) / 6 if step < 6 else 0.5 + 0.5 * math.cos(math.pi * (step - 6) / (steps - 6))
            optimiser.param_groups[0]["lr"] = 3e-3 * factor
            optimiser.step()
            step += 1
        with torch.no_grad():
            found = [(module(*module.prepare(x, y.layout)) - y.values).square() for x, y in val]
        errors.append(float(torch.cat([part.flatten() for part in found]).mean()))
        states.append({name: value.clone() for name, value in module.state_dict().items()})
    assert step == steps
    assert sound(result).epochs == 1 + errors.index(min(errors))
    assert sound(result).val_error == pytest.approx(min(errors), rel=1e-5)
    module.load_state_dict(states[errors.index(min(errors))])
    features, latents = blocks(0, (7,), start=2)[0]
    with torch.no_grad():
        wanted = module(*module.prepare(features, latents.layout))
    assert relative(predictions(result), wanted) < 1e-5


def test_the_error_told_is_that_of_the_predictions() -> None:
    (result,) = train([task(2)], CPU)
    assert mean_squared_error(sound(result), DATA[2][1]) == pytest.approx(sound(result).val_error, rel=1e-5)


def test_predictions_keep_the_spans_and_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = map(sound, train([task(0)], CPU))
    spans = ((0, 1), (1, 9))
    features = Grid(noise(7, 9, 3, 4, 6, seed=3))
    whole = result.predict(features, Layout(2, 3, 4, spans))
    assert whole.spans == spans
    assert whole.shape == (7, 2, 3, 4, 3)
    monkeypatch.setattr(heads, "CLIPS", 2)
    torch.testing.assert_close(result.predict(features, Layout(2, 3, 4, spans)).values, whole.values)


def test_parameters_follow_from_name_and_seed() -> None:
    before = torch.random.get_rng_state()
    first, again, other = train([task(0), task(0), task(0, 1)], CPU)
    assert torch.equal(predictions(first), predictions(again))
    assert relative(predictions(first), predictions(other)) > 1e-2
    renamed = replace(task(0), name="mlp elsewhere")
    assert relative(predictions(first), predictions(train([renamed], CPU)[0])) > 1e-2
    assert torch.equal(before, torch.random.get_rng_state())
    assert sound(first).trainable_parameters == 6 * 16 + 16 + 16 * 3 + 3


def test_batches_hold_every_clip_once_and_seeds_share_the_order_of_blocks() -> None:
    seen: dict[int, list[tuple[int, int]]] = {3: [], 4: []}
    shapes, orders = [], []
    for epoch in (1, 2):
        batches = list(stacking.batches([20, 12], 8, epoch, {3, 4}))
        shapes.append([(block, len(order[3])) for block, order in batches])
        orders.append([order[3].tolist() for _, order in batches])
        if epoch == 1:
            for block, order in batches:
                for seed, clips in order.items():
                    seen[seed] += [(block, clip) for clip in clips.tolist()]
    everything = sorted((block, clip) for block, size in enumerate((20, 12)) for clip in range(size))
    assert sorted(seen[3]) == sorted(seen[4]) == everything
    assert seen[3] != seen[4]
    assert sorted(shapes[0]) == sorted(shapes[1]) == [(0, 4), (0, 8), (0, 8), (1, 4), (1, 8)]
    assert shapes[0] != shapes[1], "the order of batches is drawn anew"
    assert orders[0] != orders[1]
    alone = [order[3].tolist() for _, order in stacking.batches([20, 12], 8, 1, {3})]
    assert alone == orders[0], "another seed beside it changes nothing"


class Constant(nn.Module):
    """Predicts one number, whatever it is given."""

    def __init__(self, pairing: Pairing, generator: torch.Generator, *, fault: str = "") -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.onto = pairing.blocks[0][1]
        self.fault = fault
        if fault == "refuses one tap" and float(pairing.mean[0]) > 2:
            raise Unsupported("Features as large as these are not for this adapter.")

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        if self.fault == "refuses to prepare":
            raise Unsupported("Grids as small as these are not for this adapter.")
        return (features.values,)

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.fault == "raises":
            raise RuntimeError("out of luck")
        return self.value + 0 * inputs[0][..., :3]


def constant(tap: int, fault: str = "", **recipe: Any) -> Task:
    spec = AdapterSpec("constant", f"{__name__}:Constant", "", {"fault": fault}, replace(RECIPE, **recipe))
    return Task(f"constant at {tap}", spec, *DATA[tap], 0)


def test_a_head_that_has_ended_cannot_improve(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([[3.0, 3.0], [2.0, 4.0], [2.5, 5.0], [2.6, 1.0], [0.5, 0.5], [0.4, 0.4]])
    told: list[str] = []
    monkeypatch.setattr(stacking, "_evaluated", lambda *rest: torch.tensor([next(errors)], dtype=torch.float64))
    recipe: dict[str, Any] = {"learning_rates": (0.1,), "patience": 2, "epochs": 6}
    results = train([constant(0, **recipe), constant(0, **recipe)], CPU, told.append)
    # The first ends at epoch 4, the second at 3: what they would have reached later does not count.
    assert [sound(result).val_error for result in results] == [2.0, 3.0]
    assert [sound(result).epochs for result in results] == [2, 1]
    assert told == [f"constant: 2 heads, epoch {epoch}" for epoch in (1, 2, 3, 4)]
    first, second = (float(sound(result).module.value) for result in results)
    assert first > second > 0, "parameters are those of the best epoch, and the first had twice as many steps"


def test_gradients_do_not_depend_on_how_many_heads_there_are() -> None:
    """AdamW forgives another scale of the gradients, except where they are as small as its epsilon of 1e-8."""
    recipe: dict[str, Any] = {"learning_rates": (1e-9,)}
    tiny = [[(x, Grid(1e-8 * y.values)) for x, y in split] for split in DATA[0]]
    tasks = [replace(constant(0, **recipe), train=tiny[0], val=tiny[1], seed=seed) for seed in range(4)]
    (alone,) = train(tasks[:1], CPU)
    found = float(sound(train(tasks, CPU)[0]).module.value)
    assert found == pytest.approx(float(sound(alone).module.value), rel=1e-4)
    assert 1e-10 < found < 4 * 5e-9, "so small are the gradients that a step is less than the rate"


def test_what_is_not_finite_ends_its_own_task_alone() -> None:
    beyond = [[(Grid(x.values * torch.inf), y) for x, y in split] for split in DATA[1]]
    diverging = replace(MLP, recipe=replace(RECIPE, learning_rates=(1e30, 1e-2)))
    without = train([task(0, spec=diverging), task(2, spec=diverging)], CPU)
    middle = Task("huge", diverging, beyond[0], beyond[1], 0)
    found = train([task(0, spec=diverging), middle, task(2, spec=diverging)], CPU)
    assert isinstance(found[1], NonFinite)
    assert found[1].message == "The loss of huge is not finite at any learning rate."
    for result, wanted in ((found[0], without[0]), (found[2], without[1])):
        assert_same(result, wanted, 1e-6)
        assert sound(result).learning_rate == 1e-2
    both = replace(MLP, recipe=replace(RECIPE, learning_rates=(1e30, 1e35)))
    assert isinstance(train([task(0, spec=both)], CPU)[0], NonFinite)


def test_a_loss_that_is_not_finite_ends_a_head_though_its_error_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip of ``train`` is infinite; ``val`` is sound, and so is what the script says of it."""
    (x, y), val = DATA[0][0][0], DATA[0][1][:1]
    spoilt = y.values.clone()
    spoilt[3] = torch.inf
    errors = iter([[1.0, 1.0], [0.9, 0.9], [0.8, 0.8], [0.7, 0.7]])
    monkeypatch.setattr(stacking, "_evaluated", lambda *rest: torch.tensor([next(errors)], dtype=torch.float64))
    tasks = [
        Task(name, single(1e-3), [(x, latents)], val, 0) for name, latents in (("spoilt", Grid(spoilt)), ("sound", y))
    ]
    result, beside = train(tasks, CPU)
    assert isinstance(result, NonFinite)
    assert sound(beside).val_error == 0.7


def test_a_head_that_has_ended_cannot_fail_either(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([[1.0, 5.0], [2.0, 4.0], [math.nan, 3.0], [math.nan, 2.0]])
    monkeypatch.setattr(stacking, "_evaluated", lambda *rest: torch.tensor([next(errors)], dtype=torch.float64))
    recipe: dict[str, Any] = {"learning_rates": (0.1,), "patience": 1, "epochs": 4}
    results = train([constant(0, **recipe), constant(1, **recipe)], CPU)
    assert [sound(result).val_error for result in results] == [1.0, 2.0]


@pytest.mark.parametrize("most", [3, 1])
def test_a_stack_that_does_not_fit_is_halved_and_gives_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task(tap) for tap in range(4)]
    whole = train(tasks, CPU)
    sizes = []

    def limited(given: Sequence[stacking.Head], recipe: Recipe, *rest: Any) -> stacking.Best:
        sizes.append(len(given) * len(recipe.learning_rates))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return stacking.optimise(given, recipe, *rest)

    monkeypatch.setattr(heads, "optimise", limited)
    for found, wanted in zip(train(tasks, CPU), whole, strict=True):
        assert_same(found, wanted, 1e-4)
    assert sizes[:2] == [8, 4]
    assert sum(size for size in sizes if size <= most) == 8


def test_memory_too_small_for_one_head_ends_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(given: Sequence[stacking.Head], recipe: Recipe, *rest: Any) -> stacking.Best:
        if any(head.seed == 7 for head in given):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return stacking.optimise(given, recipe, *rest)

    monkeypatch.setattr(heads, "optimise", starved)
    found = train([task(0), task(1, 7), task(2)], CPU)
    assert isinstance(found[1], torch.OutOfMemoryError)
    assert_same(found[0], train([task(0)], CPU)[0], 1e-4)
    assert_same(found[2], train([task(2)], CPU)[0], 1e-4)


def test_what_a_module_refuses_or_raises_ends_its_own_tasks() -> None:
    kinds = [constant(3, "refuses one tap"), constant(1, "refuses one tap"), constant(0, "refuses to prepare")]
    refused, served, unprepared, broken, beside = train([*kinds, constant(0, "raises"), task(0)], CPU)
    assert isinstance(refused, Unsupported)
    assert isinstance(unprepared, Unsupported)
    assert str(broken) == "out of luck"
    assert_same(served, train([constant(1)], CPU)[0], 1e-6)
    assert_same(beside, train([task(0)], CPU)[0], 1e-6)


def test_heads_that_read_the_same_features_share_what_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[stacking.Head] = []

    def watched(given: Sequence[stacking.Head], *rest: Any) -> stacking.Best:
        seen.extend(given)
        return stacking.optimise(given, *rest)

    monkeypatch.setattr(heads, "optimise", watched)
    train([task(0), task(1), task(0, 1)], CPU)
    assert len(seen) == 3, "all in one stack"
    (first, _), (other, _), (again, _) = (head.train[0] for head in seen)
    assert again[0].data_ptr() == first[0].data_ptr()
    assert other[0].data_ptr() != first[0].data_ptr()


def test_on_a_cpu_large_heads_are_not_stacked(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    tasks = [task(tap) for tap in range(4)]
    whole = train(tasks, CPU)
    monkeypatch.setattr(heads, "CPU_VALUES", 4 * 8 * 4 * 4 * 6)  # four heads, eight clips, the larger block's features
    for found, wanted in zip(train(tasks, CPU), whole, strict=True):
        assert_same(found, wanted, 1e-4)
    assert sizes == [8, 4, 4]


def test_a_constant_channel_is_given_a_deviation_of_one() -> None:
    values = 1e4 + noise(50, 1, 2, 2, 3, seed=0)
    values[..., 1] = 0.1
    mean, std = pairs.statistics([Grid(values[:20]), Grid(values[20:])])
    rows = values.flatten(0, 3).double()
    assert mean.tolist() == pytest.approx(rows.mean(0).tolist(), rel=1e-6)
    assert mean[1] == values[0, 0, 0, 0, 1]
    assert std.tolist() == pytest.approx(
        [float(rows[:, 0].std(correction=0)), 1.0, float(rows[:, 2].std(correction=0))], rel=1e-5
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_stays_near_float32_and_keeps_parameters_in_float32() -> None:
    device = torch.device("cuda")

    def moved(pairs: Sequence[tuple[Grid, Grid]]) -> list[tuple[Grid, Grid]]:
        return [(Grid(x.values.to(device)), Grid(y.values.to(device))) for x, y in pairs]

    tasks = [replace(task(tap), train=moved(DATA[tap][0]), val=moved(DATA[tap][1])) for tap in range(4)]
    for found, wanted in zip(train(tasks, device), train([task(tap) for tap in range(4)], CPU), strict=True):
        assert sound(found).val_error == pytest.approx(sound(wanted).val_error, rel=0.05)
        assert {parameter.dtype for parameter in sound(found).module.parameters()} == {torch.float32}
