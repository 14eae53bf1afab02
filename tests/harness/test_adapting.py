"""The adapters of a row: fitted together, failing apart, and each cell charged its share of the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foresight_bench import adapting, heads
from foresight_bench.adapting import Adapting, Normal, Wanted
from foresight_bench.bench import Bench, Workbench
from foresight_bench.clips import ClipBatch
from foresight_bench.errors import NonFinite, Unsupported
from foresight_bench.features import FeatureSet
from foresight_bench.grids import Grid
from foresight_bench.specs import AdapterSpec, Recipe
from foresight_plugins.adapters.linear import LinearAdapter

RECIPE = Recipe((1e-2,), epochs=3, batch=8)
MLP = AdapterSpec("mlp", "foresight_plugins.adapters.mlp:MLPAdapter", "", {"hidden": 8}, RECIPE)
SPECS = {
    "mlp": MLP,
    "small": replace(MLP, name="small", params={"hidden": 4}),
    "diverging": replace(MLP, name="diverging", recipe=replace(RECIPE, learning_rates=(1e30,))),
    "linear": AdapterSpec("linear", "foresight_plugins.adapters.linear:LinearAdapter", ""),
}
TAPS = ("stem", "early", "late")
SPLITS = {"train": 24, "val": 8, "test": 4}


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FEATURES = FeatureSet(
    TAPS,
    {
        (tap, split): (Grid(noise(n, 1, 2, 2, 5, seed=10 * index + len(split))),)
        for index, tap in enumerate(TAPS)
        for split, n in SPLITS.items()
    },
    {},
    stem=("stem",),
)


class Source:
    """Latents that are a fixed map of the features of ``late``, far from normal; one decoder takes no clip."""

    def __init__(self) -> None:
        self.registry: Any = SimpleNamespace(
            adapters={name: SimpleNamespace(spec=spec) for name, spec in SPECS.items()}
        )
        self.device = torch.device("cpu")

    def latents(self, decoder: str, split: str) -> tuple[Grid, ...]:
        if decoder == "picky":
            raise Unsupported("picky takes no clip.")
        (grid,) = FEATURES.tokens["late", split]
        answer = grid.values @ noise(5, 3, seed=99) * torch.tensor([1.0, 100.0, 0.01]) + 50
        return (Grid(torch.cat([answer, torch.ones_like(answer[..., :1])], -1), ((0, 1),)),)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the tasks of each training."""
    found: list[int] = []
    train = heads.train

    def counted(tasks: Sequence[heads.Task], *rest: Any) -> list[heads.Result]:
        found.append(len(tasks))
        return train(tasks, *rest)

    monkeypatch.setattr(heads, "train", counted)
    return found


def test_all_that_is_wanted_is_trained_at_once_and_as_if_alone(calls: list[int]) -> None:
    wanted = [
        Wanted("mlp", "plain", 0),
        Wanted("mlp", "plain", 1),
        Wanted("small", "plain", 0),
        Wanted("linear", "plain", 0),
    ]
    row = Adapting(Source(), FEATURES, wanted)
    found = {each: row.take(each) for each in wanted}
    assert calls == [6], "two taps behind the stem, three cells"
    for each in wanted:
        assert list(found[each]) == ["early", "late"]
        alone = Adapting(Source(), FEATURES, []).take(each)
        for tap, adapted in alone.items():
            assert found[each][tap].val_error == pytest.approx(adapted.val_error, rel=1e-4)
            assert found[each][tap].facts == adapted.facts
    assert found[wanted[0]]["late"].facts == {"learning_rate": 1e-2, "epochs": 3.0}
    assert found[wanted[0]]["late"].val_error != found[wanted[1]]["late"].val_error
    assert found[wanted[3]]["late"].facts == {}


def test_latents_are_normalised_for_the_fit_and_come_back_as_they_were() -> None:
    row = Adapting(Source(), FEATURES, [])
    (truth,) = Source().latents("plain", "test")
    adapted = row.take(Wanted("linear", "plain", 0))["late"]
    predicted = adapted.predict(FEATURES.tokens["late", "test"][0], truth.layout)
    torch.testing.assert_close(predicted.values, truth.values, rtol=1e-3, atol=1e-3)
    assert predicted.spans == ((0, 1),)
    assert adapted.val_error < 1e-6
    normal = Normal.of(Source().latents("plain", "train"))
    scaled = normal.forward(Source().latents("plain", "train")[0])
    assert scaled.spans == ((0, 1),)
    deviations = scaled.values.flatten(0, 3).std(0)
    torch.testing.assert_close(deviations, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_an_adapter_that_fits_itself_learns_from_train() -> None:
    normal = Normal.of(Source().latents("plain", "train"))
    pairs = {
        split: [(FEATURES.tokens["early", split][0], normal.forward(Source().latents("plain", split)[0]))]
        for split in ("train", "val")
    }
    adapter = LinearAdapter(seed=0, device=torch.device("cpu"))
    adapter.fit(pairs["train"], pairs["val"])
    (features, latents) = pairs["val"][0]
    expected = float((adapter.predict(features, latents.layout).values - latents.values).square().mean())
    found = Adapting(Source(), FEATURES, []).take(Wanted("linear", "plain", 0))["early"]
    assert found.val_error == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.75, abs=0.35), "nothing to learn, and one of four channels is constant"


def test_what_fails_fails_alone() -> None:
    wanted = [Wanted("mlp", "picky", 0), Wanted("diverging", "plain", 0), Wanted("mlp", "plain", 0)]
    row = Adapting(Source(), FEATURES, wanted)
    with pytest.raises(Unsupported, match="picky takes no clip"):
        row.take(wanted[0])
    with pytest.raises(NonFinite, match="The loss of diverging at early onto plain is not finite"):
        row.take(wanted[1])
    alone = Adapting(Source(), FEATURES, []).take(wanted[2])
    assert row.take(wanted[2])["late"].val_error == pytest.approx(alone["late"].val_error, rel=1e-6)
    with pytest.raises(Unsupported):
        row.take(Wanted("linear", "picky", 0))


def test_time_is_shared_by_the_cells_that_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(adapting.time, "monotonic", lambda: next(clock))
    wanted = [Wanted("mlp", "plain", seed) for seed in range(3)]
    row = Adapting(Source(), FEATURES, [*wanted, Wanted("linear", "plain", 0)])
    row.take(wanted[1])
    assert [row.owed(each) for each in wanted] == [10.0, -20.0, 10.0]
    row.take(Wanted("linear", "plain", 0))
    assert row.owed(Wanted("linear", "plain", 0)) == 0


def test_what_was_taken_is_forgotten_and_can_be_had_again(calls: list[int]) -> None:
    wanted = [Wanted("mlp", "plain", 0), Wanted("mlp", "plain", 1)]
    row = Adapting(Source(), FEATURES, wanted)
    first, again = row.take(wanted[0]), row.take(wanted[0])
    assert calls == [4, 2]
    assert again["late"].val_error == pytest.approx(first["late"].val_error, rel=1e-4)
    row.take(wanted[1])
    assert calls == [4, 2]


class Causal:
    """A decoder that wants its spans back."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, int], ...]] = []

    def encode(self, clips: ClipBatch) -> Grid:
        return Grid(torch.zeros(len(clips), 2, 1, 1, 3), ((0, 1), (1, 9)))

    def decode(self, latents: Grid) -> torch.Tensor:
        self.seen.append(latents.spans)
        return torch.zeros(len(latents.values), 9, 3, 8, 8)


def test_spans_reach_the_bench_and_the_decoder() -> None:
    clips = ClipBatch(np.zeros((40, 9, 8, 8, 3), np.uint8), tuple(map(str, range(40))))
    data: Any = SimpleNamespace(split=lambda name: SimpleNamespace(blocks=(clips,)))
    registry: Any = SimpleNamespace()
    shared = Workbench(registry, data, "cpu", {})
    decoder: Any = Causal()
    shared._decoders["causal"] = decoder
    bench = Bench(shared, FEATURES, 0, "mlp", "causal")
    (grid,) = bench.latents("test")
    assert (grid.shape, grid.spans) == ((40, 2, 1, 1, 3), ((0, 1), (1, 9)))
    assert bench.decoded(grid).shape == (360, 3, 8, 8)
    assert decoder.seen == [((0, 1), (1, 9))] * 2
