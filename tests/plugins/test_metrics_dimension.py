"""Intrinsic dimension on manifolds of known dimension and against scikit-dimension."""

from __future__ import annotations

import numpy as np
import pytest
import skdim
import torch
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.errors import UsageError
from foresight_bench.scores import Scores
from foresight_plugins.metrics.dimension import ESTIMATORS, SPACES, Dimension, distinct, mle, pca95, two_nn
from foresight_plugins.metrics.pairwise import squared_distances


def manifold(n: int, dimension: int, width: int, seed: int = 0) -> Tensor:
    """Return points of a flat cube in ``width`` dimensions."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.rand(n, dimension, generator=rng, dtype=torch.float64)
    frame = torch.linalg.qr(torch.randn(width, dimension, generator=rng, dtype=torch.float64)).Q
    return z @ frame.T


@pytest.mark.parametrize("estimate", [two_nn, mle])
def test_five_dimensions_in_five_hundred(estimate: object) -> None:
    assert callable(estimate)
    assert estimate(squared_distances(manifold(2000, 5, 500))) == pytest.approx(5, rel=0.1)


def test_pca95_counts_components() -> None:
    x = torch.randn(400, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * torch.tensor([10.0] * 4 + [0.1] * 16)
    assert pca95(squared_distances(x)) == 4
    even = torch.linalg.qr(torch.randn(400, 20, dtype=torch.float64)).Q
    assert pca95(squared_distances(even - even.mean(0))) in (19, 20)


@pytest.mark.parametrize("dimension", [2, 6, 12])
def test_agrees_with_scikit_dimension(dimension: int) -> None:
    x = manifold(600, dimension, 40, seed=dimension) + 0.01
    d, array = squared_distances(x), x.numpy()
    assert two_nn(d) == pytest.approx(skdim.id.TwoNN(discard_fraction=0.1).fit(array).dimension_, abs=0.5)
    reference = skdim.id.MLE(K=10, neighborhood_based=True).fit(array, n_neighbors=10)
    harmonic = 1 / np.mean(1 / np.asarray(reference.dimension_pw_))
    assert mle(d) == pytest.approx(harmonic, abs=0.2)
    with np.errstate(all="ignore"):
        expected = skdim.id.lPCA(ver="ratio", alphaRatio=0.95).fit(array).dimension_
    assert pca95(d) == expected


@pytest.mark.parametrize("name", ESTIMATORS)
def test_duplicates_are_removed(name: str) -> None:
    x = manifold(150, 4, 30)
    doubled = torch.cat([x, x[:75], x[:75]])
    keep = distinct(squared_distances(doubled))
    assert keep.sum() == 150
    assert keep[:150].all()
    plain, found = (Dimension(name).score(Spaces(s, s, s, s)) for s in (x, doubled))
    assert found.value == pytest.approx(plain.value, rel=1e-6)
    assert found.finite


def both(name: str, x: Tensor, y: Tensor) -> dict[str, Scores]:
    """Return the scores of each space and of the ratio."""
    return {space: Dimension(name, space).score(Spaces(x, y, x, y)) for space in SPACES}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_both_spaces_and_scales_are_reported(name: str) -> None:
    x, y = manifold(240, 3, 30), manifold(240, 9, 50)
    found = both(name, x, y)
    assert found["encoder"].value < found["decoder"].value
    assert found["decoder"].value == both(name, y, x)["encoder"].value
    assert found["encoder"].details["half"] == pytest.approx(found["encoder"].value, rel=0.2)
    for scores in found.values():
        assert set(scores.details) == {"half", "quarter"}
        assert scores.details["half"] == pytest.approx(scores.replicates.mean())
    if name == "mle":  # underestimates more, the fewer the clips
        scale = found["decoder"]
        assert scale.details["quarter"] < scale.details["half"] < scale.value


@pytest.mark.parametrize("name", ["two_nn", "mle"])
def test_the_gap_between_three_and_twelve_dimensions(name: str) -> None:
    """By 600 points, 3 reads 2.9 and 12 reads 9 to 10: the gap of 4 reads 3.4."""
    found = both(name, manifold(600, 3, 30), manifold(600, 12, 50, seed=1))
    assert found["encoder"].value == pytest.approx(3, rel=0.1)
    assert 8.5 < found["decoder"].value < 12
    assert found["ratio"].value == found["decoder"].value / found["encoder"].value
    low, high = found["ratio"].interval()
    assert 2.5 < low < found["ratio"].value < high < 4.5
    assert found["ratio"].replicates == pytest.approx(found["decoder"].replicates / found["encoder"].replicates)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_space_seen_twice_has_no_gap(name: str) -> None:
    """Both estimates come from the same clips, half-sample by half-sample, so not one of them departs from 1."""
    x = manifold(200, 5, 20)
    turned = 7 * x @ torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q + 3
    ratio = both(name, x, turned)["ratio"]
    assert ratio.value == pytest.approx(1, abs=1e-6)
    assert ratio.replicates == pytest.approx(np.ones(len(ratio.replicates)), abs=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_constant_space_has_dimension_zero(name: str) -> None:
    x, y = manifold(1, 3, 10).expand(100, 10), manifold(100, 3, 10)
    found = both(name, x, y)
    assert found["encoder"].finite
    assert found["encoder"].value == 0
    assert found["decoder"].value > 0
    assert not found["ratio"].finite, "nothing is so many times 0"
    assert both(name, y, x)["ratio"].value == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_offset_and_scale_change_nothing(name: str) -> None:
    x = manifold(200, 4, 20)
    a, b = (Dimension(name).score(Spaces(s, s, s, s)).value for s in (x, 9 * x + 50))
    assert a == pytest.approx(b, rel=1e-6)


def test_unknown_estimator_or_space() -> None:
    with pytest.raises(UsageError, match="correlation"):
        Dimension("correlation")
    with pytest.raises(UsageError, match="pixels"):
        Dimension("mle", "pixels")
