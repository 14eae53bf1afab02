"""The adapters of one row: those that the harness trains are trained together, for all cells that want one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from foresight_bench import heads
from foresight_bench.contracts import Adapter
from foresight_bench.features import FeatureSet, Key
from foresight_bench.grids import Grid, Layout
from foresight_bench.heads import Task
from foresight_bench.pairs import Blocks, Pairs
from foresight_bench.registry import Registry, target


class Latents(Protocol):
    """Where the latents of a decoder come from: a :class:`foresight_bench.bench.Workbench`."""

    @property
    def registry(self) -> Registry:
        """The adapters' specs."""
        ...

    @property
    def device(self) -> torch.device:
        """Where features and latents stand."""
        ...

    def latents(self, decoder: str, split: str) -> tuple[Grid, ...]:
        """Return the latents of a split, one grid per block."""
        ...


class Predictor(Protocol):
    """What has been fitted: an adapter of its own, or one that the harness trained."""

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values."""
        ...

    def predict(self, features: Grid, onto: Layout) -> Grid:
        """Return the latent grid for ``features`` with the cells of ``onto``."""
        ...


@dataclass(frozen=True)
class Normal:
    """Latents normalised per channel, as ``train`` has them."""

    mean: Tensor
    """[E]"""
    std: Tensor
    """[E], 1 where a channel is constant."""

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> Normal:
        """Measure ``grids``."""
        rows = torch.cat([grid.values.flatten(0, 3) for grid in grids])
        std = rows.std(0)
        return cls(rows.mean(0), torch.where(std > 0, std, 1.0))

    def forward(self, grid: Grid) -> Grid:
        """Return normalised latents."""
        return replace(grid, values=(grid.values - self.mean) / self.std)

    def backward(self, grid: Grid) -> Grid:
        """Return latents as the decoder made them."""
        return replace(grid, values=grid.values * self.std + self.mean)


@dataclass(frozen=True)
class Adapted:
    """An adapter fitted at one tap."""

    adapter: Predictor
    normal: Normal
    val_error: float
    """Mean squared error over all values of ``val``, of latents normalised per channel."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """How it was trained: ``learning_rate`` (its peak) and ``epochs``; empty where the harness did not."""

    def predict(self, features: Grid, onto: Layout) -> Grid:
        """Return latents as the decoder made them, on the cells of ``onto``."""
        return self.normal.backward(self.adapter.predict(features, onto))


@dataclass(frozen=True)
class Wanted:
    """Which adapter a cell wants."""

    adapter: str
    decoder: str
    seed: int


class Adapting:
    """Fits adapters at the candidate taps of one row.

    Those with a recipe are trained together, for all of ``wanted``, the first time that one of them is asked for. The
    time that this takes is shared evenly by their cells.
    """

    def __init__(self, source: Latents, features: FeatureSet, wanted: Sequence[Wanted]) -> None:
        self._source, self._features, self._wanted = source, features, wanted
        self._trained: dict[Wanted, dict[str, heads.Result] | Exception] = {}
        self._owed: dict[Wanted, float] = {}

    def take(self, wanted: Wanted, progress: Callable[[str], None] = lambda text: None) -> dict[str, Adapted]:
        """Return the adapter at every candidate tap, in order of depth, and forget it.

        Raises:
            Exception: what ended the fit at some tap, which concerns no other cell.
        """
        spec = self._source.registry.adapters[wanted.adapter].spec
        if spec.recipe is None:
            data = _Data.of(self._source, self._features, wanted.decoder)
            return {tap: self._fitted(wanted, tap, data, progress) for tap in self._features.candidates}
        if wanted not in self._trained:
            self._train(wanted, progress)
        found = self._trained.pop(wanted)
        if isinstance(found, Exception):
            raise found
        normal = Normal.of(self._source.latents(wanted.decoder, "train"))
        adapted = {}
        for tap, result in found.items():
            if isinstance(result, Exception):
                raise result
            facts = {"learning_rate": result.learning_rate, "epochs": float(result.epochs)}
            adapted[tap] = Adapted(result, normal, result.val_error, facts)
        return adapted

    def owed(self, wanted: Wanted) -> float:
        """Return the seconds to add to what a cell took by the clock, so that cells trained together bear the same.

        Less than 0 for the one that asked first, in whose time all were trained.
        """
        return self._owed.get(wanted, 0.0)

    def _train(self, asked: Wanted, progress: Callable[[str], None]) -> None:
        started = time.monotonic()
        adapters = self._source.registry.adapters
        together = [each for each in self._wanted if adapters[each.adapter].spec.recipe is not None]
        if asked not in together or asked in self._owed:  # not announced, or asked for again
            together = [asked]
        data: dict[str, _Data] = {}
        tasks: dict[tuple[Wanted, str], Task] = {}
        found: dict[Wanted, dict[str, heads.Result] | Exception] = {wanted: {} for wanted in together}
        for wanted in together:
            try:
                if wanted.decoder not in data:
                    data[wanted.decoder] = _Data.of(self._source, self._features, wanted.decoder)
            except Exception as error:
                found[wanted] = error.with_traceback(None)
                continue
            for tap in self._features.candidates:
                name = f"{wanted.adapter} at {tap} onto {wanted.decoder}"
                spec = adapters[wanted.adapter].spec
                train, val = (data[wanted.decoder].pairs[tap, split] for split in ("train", "val"))
                tasks[wanted, tap] = Task(name, spec, train, val, wanted.seed)
        results = heads.train(list(tasks.values()), self._source.device, progress)
        for (wanted, tap), result in zip(tasks, results, strict=True):
            taps = found[wanted]
            assert isinstance(taps, dict)
            taps[tap] = result
        self._trained.update(found)
        spent = time.monotonic() - started
        served = len({wanted for wanted, _ in tasks})
        for wanted in together:
            self._owed[wanted] = spent / max(1, served) - (spent if wanted == asked else 0)

    def _fitted(self, wanted: Wanted, tap: str, data: _Data, progress: Callable[[str], None]) -> Adapted:
        progress(f"{wanted.adapter} at {tap}")
        spec = self._source.registry.adapters[wanted.adapter].spec
        adapter: Adapter = target(spec.target)(seed=wanted.seed, device=self._source.device, **spec.params)
        val = data.pairs[tap, "val"]
        adapter.fit(data.pairs[tap, "train"], val)
        return Adapted(adapter, data.normal, mean_squared_error(adapter, val))


@dataclass(frozen=True)
class _Data:
    """Features beside the normalised latents of one decoder."""

    normal: Normal
    pairs: Mapping[Key, Blocks]
    """By candidate tap and split; the features are made when they are asked for."""

    @classmethod
    def of(cls, source: Latents, features: FeatureSet, decoder: str) -> _Data:
        normal = Normal.of(source.latents(decoder, "train"))
        pairs: dict[Key, Blocks] = {}
        for split in ("train", "val"):
            latents = [normal.forward(grid) for grid in source.latents(decoder, split)]
            for tap in features.candidates:
                pairs[tap, split] = Pairs(partial(features.tokens.__getitem__, (tap, split)), latents)
        return cls(normal, pairs)


def mean_squared_error(adapter: Predictor, blocks: Blocks) -> float:
    """Return the mean squared error over all values of all blocks."""
    total, count = 0.0, 0
    for features, latents in blocks:
        error = adapter.predict(features, latents.layout).values - latents.values
        total += float(error.square().sum(dtype=torch.float64))
        count += latents.values.numel()
    return total / count
