"""Ridge regression against scikit-learn and against residuals computed row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference
from torch import Tensor

from foresight_bench import ridge
from foresight_bench.errors import ContractError, NonFinite

INF = float("inf")


def pairs(n: int, d: int, e: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, e, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scales = torch.logspace(1, -2, d, dtype=torch.float64)
    x = 50 + torch.randn(n, d, generator=rng, dtype=torch.float64) * scales
    y = x @ mix - 7 + noise * torch.randn(n, e, generator=rng, dtype=torch.float64)
    return x, y


def moments(x: Tensor, y: Tensor, chunk: int = 10**9) -> ridge.Moments:
    m = ridge.Moments()
    for start in range(0, len(x), chunk):
        m.accumulate(x[start : start + chunk], y[start : start + chunk])
    return m


def alpha(x: Tensor, penalty: float) -> float:
    """The absolute penalty that a relative one stands for."""
    centred = x - x.mean(0)
    return penalty * float((centred**2).sum()) / min(x.shape)


@pytest.mark.parametrize(("n", "d"), [(200, 30), (40, 90)])
@pytest.mark.parametrize("penalty", [1e-6, 1e-3, 1.0, 1e3])
def test_primal_equals_sklearn(n: int, d: int, penalty: float) -> None:
    x, y = pairs(n, d, 5)
    found = ridge.fit_path(moments(x, y, chunk=17)).coefficients(penalty)
    reference = Reference(alpha=alpha(x, penalty), solver="svd").fit(x.numpy(), y.numpy())
    expected = reference.predict(x.numpy())
    assert np.abs(found.predict(x).numpy() - expected).max() < 1e-8 * np.abs(expected).max()
    weight = found.weight.numpy() - reference.coef_.T
    assert np.abs(weight).max() < 1e-8 * np.abs(reference.coef_).max()


@pytest.mark.parametrize(("n", "d"), [(200, 30), (40, 90)])
@pytest.mark.parametrize("penalty", [1e-6, 1e-3, 1.0, 1e3])
def test_dual_equals_sklearn(n: int, d: int, penalty: float) -> None:
    x, y = pairs(n, d, 5)
    train, test = torch.arange(0, n, 2), torch.arange(1, n, 2)
    shifted_x, shifted_y = x - x[0], y - y[0]
    found = ridge.dual_errors(shifted_x @ shifted_x.T, shifted_y @ shifted_y.T, d, train, test, [penalty, INF])
    reference = Reference(alpha=alpha(x[train], penalty), solver="svd").fit(x[train].numpy(), y[train].numpy())
    expected = ((reference.predict(x[test].numpy()) - y[test].numpy()) ** 2).sum(1)
    total = ((y[test] - y[train].mean(0)) ** 2).sum(1)
    assert np.abs(found[0].numpy() - expected).max() < 1e-8 * float(total.max())
    assert torch.allclose(found[1], total, rtol=1e-9)


def test_validation_error_from_moments_equals_residuals() -> None:
    x, y = pairs(150, 20, 4)
    val_x, val_y = pairs(70, 20, 4, seed=1)
    path = ridge.fit_path(moments(x, y))
    found = path.sse(moments(val_x + 3, val_y, chunk=9))
    expected = [((path.coefficients(p).predict(val_x + 3) - val_y) ** 2).sum(0) for p in path.penalties]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-8)


def test_fit_takes_for_each_target_the_penalty_with_the_least_validation_error() -> None:
    x, y = pairs(40, 30, 3, noise=30)
    val_x, val_y = pairs(500, 30, 3, seed=1, noise=30)
    generator = torch.Generator().manual_seed(9)
    for targets in (y, val_y):  # nothing to learn in the last one
        targets[:, 2] = torch.randn(len(targets), generator=generator, dtype=torch.float64)
    fitted = ridge.fit(moments(x, y), moments(val_x, val_y))
    path = ridge.fit_path(moments(x, y))
    errors = torch.stack([((path.coefficients(p).predict(val_x) - val_y) ** 2).sum(0) for p in ridge.PENALTIES])
    expected = torch.tensor(ridge.PENALTIES, dtype=torch.float64)[errors.argmin(0)]
    assert torch.equal(fitted.penalty, expected)
    assert 1e-6 < fitted.penalty[0] < INF, "the case must have its optimum inside the path"
    assert fitted.penalty[2] > fitted.penalty[0]


def test_float32_rows_far_from_the_origin() -> None:
    x, y = pairs(20000, 10, 2)
    exact = ridge.fit_path(moments(x, y)).coefficients(1e-3)
    found = ridge.fit_path(moments((x + 1000).float(), y.float(), chunk=3000)).coefficients(1e-3)
    assert torch.allclose(found.weight, exact.weight, rtol=2e-3, atol=2e-3)


def test_cross_validation_equals_the_loop_over_folds() -> None:
    x, y = pairs(60, 80, 3, noise=20)
    folds = torch.arange(60) // 3 % 5
    total = dict.fromkeys(ridge.PENALTIES[:-1], 0.0)
    for fold in range(5):
        a, b = folds != fold, folds == fold
        for penalty in total:
            model = Reference(alpha=alpha(x[a], penalty), solver="svd").fit(x[a].numpy(), y[a].numpy())
            total[penalty] += float(((model.predict(x[b].numpy()) - y[b].numpy()) ** 2).sum())
    found = ridge.cross_validate(x @ x.T, y @ y.T, 80, folds, list(total))
    assert found == min(total, key=lambda p: total[p])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_predict_the_train_mean(dtype: torch.dtype) -> None:
    _, y = pairs(100, 8, 3)
    row = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = row.expand(100, 8)  # the mean of equal numbers differs from them by rounding
    train = moments(x[:60], y[:60], chunk=7)
    assert not ridge.fit_path(train).coefficients(1e-6).weight.any(), "rounding must not be a feature"
    fitted = ridge.fit(train, moments(x[60:], y[60:]))
    assert torch.allclose(fitted.predict(x.double() + 5), y[:60].mean(0).expand(100, 3), atol=1e-4)


def test_a_constant_column_changes_nothing() -> None:
    x, y = pairs(100, 8, 3)
    wider = torch.cat([x, torch.full((100, 1), 0.1, dtype=torch.float64)], 1)
    # The scale is trace / columns, so the same absolute penalty is 9/8 of the relative one.
    with_it = ridge.fit_path(moments(wider, y, chunk=7)).coefficients(1e-2 * 9 / 8)
    without = ridge.fit_path(moments(x, y)).coefficients(1e-2)
    assert torch.allclose(with_it.predict(wider), without.predict(x), rtol=1e-9)


def test_noise_is_answered_with_the_mean() -> None:
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(400, 50, generator=rng), torch.randn(400, 5, generator=rng)
    fitted = ridge.fit(moments(x[:200], y[:200]), moments(x[200:300], y[200:300]))
    residual = ((fitted.predict(x[300:]) - y[300:]) ** 2).sum()
    assert 1 - residual / ((y[300:] - y[:200].mean(0)) ** 2).sum() < 0.01


def test_errors() -> None:
    x, y = pairs(10, 3, 2)
    with pytest.raises(ContractError, match="do not pair"):
        ridge.Moments().accumulate(x, y[:5])
    with pytest.raises(ContractError, match="no rows"):
        ridge.fit_path(ridge.Moments())
    begun = moments(x, y)
    with pytest.raises(ContractError, match="Columns"):
        begun.accumulate(x[:, :2], y)
    x[4, 1] = float("nan")
    with pytest.raises(NonFinite):
        ridge.fit_path(moments(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_shared_rows_are_rows_repeated(dtype: torch.dtype, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "_CHUNK", 40)  # several chunks of 3 rows that stand for 12 each
    x, _ = pairs(20, 7, 1)
    rng = torch.Generator().manual_seed(1)
    y = 5 + torch.randn(20, 12, 3, generator=rng, dtype=torch.float64)
    counted = torch.rand(20, 12, generator=rng) < 0.4 if masked else None
    if counted is not None:
        counted[0] = False
    chosen = torch.ones(20, 12, dtype=torch.bool) if counted is None else counted
    shared = ridge.Moments()
    for part in (slice(0, 11), slice(11, 20)):
        shared.accumulate_shared(x[part].to(dtype), y[part].to(dtype), None if counted is None else counted[part])
    repeated = moments(x.unsqueeze(1).expand(-1, 12, -1)[chosen], y[chosen])
    assert shared.n == repeated.n
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        found, expected = getattr(shared, name), getattr(repeated, name)
        assert (found - expected).abs().max() < (1e-12 if dtype == torch.float64 else 1e-6) * expected.abs().max(), name


def test_shared_rows_must_pair() -> None:
    with pytest.raises(ContractError, match="do not pair"):
        ridge.Moments().accumulate_shared(torch.zeros(3, 2), torch.zeros(2, 4, 1))
    with pytest.raises(ContractError, match="do not pair"):
        ridge.Moments().accumulate_shared(torch.zeros(3, 2), torch.zeros(3, 4, 1), torch.ones(3, 5, dtype=torch.bool))
    empty = ridge.Moments()
    empty.accumulate_shared(torch.zeros(3, 2), torch.zeros(3, 4, 1), torch.zeros(3, 4, dtype=torch.bool))
    assert empty.n == 0
