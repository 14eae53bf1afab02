"""Intrinsic dimension on manifolds of known dimension and against scikit-dimension."""

from __future__ import annotations

import numpy as np
import pytest
import skdim
import torch
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.errors import UsageError
from foresight_plugins.metrics.dimension import ESTIMATORS, Dimension, distinct, mle, pca95, two_nn
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


@pytest.mark.parametrize("name", ESTIMATORS)
def test_both_spaces_and_scales_are_reported(name: str) -> None:
    x, y = manifold(240, 3, 30), manifold(240, 9, 50)
    scores = Dimension(name).score(Spaces(x, y, x, y))
    assert scores.value < scores.details["decoder"]
    assert scores.details["decoder"] == pytest.approx(Dimension(name).score(Spaces(y, x, y, x)).value)
    assert set(scores.details) == {"decoder", "half", "quarter", "decoder_half", "decoder_quarter"}
    assert scores.details["half"] == pytest.approx(scores.value, rel=0.2)
    if name == "mle":  # underestimates more, the fewer the clips
        assert scores.details["decoder_quarter"] < scores.details["decoder_half"] < scores.details["decoder"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_constant_space_has_dimension_zero(name: str) -> None:
    x, y = manifold(1, 3, 10).expand(100, 10), manifold(100, 3, 10)
    scores = Dimension(name).score(Spaces(x, y, x, y))
    assert scores.finite
    assert scores.value == 0
    assert scores.details["decoder"] > 0
    assert all(np.isfinite(v) for v in scores.details.values())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_offset_and_scale_change_nothing(name: str) -> None:
    x = manifold(200, 4, 20)
    a, b = (Dimension(name).score(Spaces(s, s, s, s)).value for s in (x, 9 * x + 50))
    assert a == pytest.approx(b, rel=1e-6)


def test_unknown_estimator() -> None:
    with pytest.raises(UsageError, match="correlation"):
        Dimension("correlation")
