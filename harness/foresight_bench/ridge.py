"""Closed-form ridge regression over a whole penalty path from one eigendecomposition (Hoerl & Kennard 1970).

Two forms, for two shapes of problem:

- *primal*: :class:`Moments` takes rows chunk by chunk, so that a million tokens never stand in one matrix;
  :func:`fit` chooses the penalty by the squared error on other moments, without touching rows again.
- *dual*: :func:`dual_errors` and :func:`cross_validate` work on the Gram matrices of x and y alone, so the
  widths of both spaces (tens of thousands of columns) cost nothing beyond the Grams.

Penalties are relative to the mean non-zero eigenvalue of the centred scatter, ``trace / min(rows, columns)``,
hence free of the features' scale. The intercept is never penalised. All solves are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foresight_bench.errors import ContractError, NonFinite

PENALTIES: tuple[float, ...] = (*(10.0**e for e in range(-6, 4)), float("inf"))
"""The default path. At infinity the fit is the mean of the training targets, so features that carry nothing
score exactly nothing instead of a little noise."""

_CHUNK = 8192  # rows a float32 partial product sums before it is added in float64: relative error about 1e-6


class Moments:
    """Running first and second moments of paired rows x [., D] and y [., E], kept in float64 about a pivot.

    The pivot (the mean of the first rows) takes a large common offset out before anything is squared.
    Rows in float64, and rows on CUDA, are multiplied in float64, which no TF32 setting can touch; float32
    rows on a CPU are multiplied in float32 by chunks that are summed in float64.
    """

    def __init__(self) -> None:
        self.n = 0

    def accumulate(self, x: Tensor, y: Tensor) -> None:
        """Add rows ``x`` [B, D] and ``y`` [B, E], floating point, on one device.

        Raises:
            ContractError: x or y is not a matrix, or their rows or columns do not fit.
        """
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
            raise ContractError(f"Rows do not pair: x {tuple(x.shape)}, y {tuple(y.shape)}.")
        if len(x) == 0:
            return
        work = self._begin(x, y)
        for start in range(0, len(x), _CHUNK):
            a = x[start : start + _CHUNK].to(work) - self._pivot_x.to(work)
            b = y[start : start + _CHUNK].to(work) - self._pivot_y.to(work)
            self._add(a, a, b, b)
        self.n += len(x)

    def accumulate_shared(self, x: Tensor, y: Tensor, counted: Tensor | None = None) -> None:
        """Add rows ``x`` [B, D], each beside K rows of ``y`` [B, K, E]; of these only the ``counted`` [B, K], if given.

        The moments of each row of x repeated beside those of y, for a Kth of the products.

        Raises:
            ContractError: shapes do not fit.
        """
        if x.ndim != 2 or y.ndim != 3 or len(x) != len(y) or (counted is not None and counted.shape != y.shape[:2]):
            raise ContractError(f"Rows do not pair: x {tuple(x.shape)}, y {tuple(y.shape)}.")
        rows = y.flatten(0, 1) if counted is None else y[counted]
        if len(rows) == 0:
            return
        work = self._begin(x, rows)
        step = max(1, _CHUNK // y.shape[1])
        for start in range(0, len(x), step):
            a = x[start : start + step].to(work) - self._pivot_x.to(work)
            b = y[start : start + step].to(work) - self._pivot_y.to(work)
            if counted is None:
                repeated = a * y.shape[1]
            else:
                mask = counted[start : start + step].to(work)
                b, repeated = b * mask.unsqueeze(2), a * mask.sum(1, keepdim=True)
            self._add(a, repeated, b.sum(1), b.flatten(0, 1))
        self.n += len(rows)

    def _begin(self, x: Tensor, y: Tensor) -> torch.dtype:
        """Return the type to multiply in; with the first rows, set all up."""
        if self.n == 0:
            self._pivot_x, self._pivot_y = _pivot(x[:_CHUNK]), _pivot(y[:_CHUNK])
            width, targets = x.shape[1], y.shape[1]
            self._sum_x = x.new_zeros(width, dtype=torch.float64)
            self._sum_y = x.new_zeros(targets, dtype=torch.float64)
            self._xx = x.new_zeros(width, width, dtype=torch.float64)
            self._xy = x.new_zeros(width, targets, dtype=torch.float64)
            self._yy = x.new_zeros(targets, dtype=torch.float64)
        if x.shape[1] != len(self._pivot_x) or y.shape[1] != len(self._pivot_y):
            raise ContractError(f"Columns changed to x {x.shape[1]}, y {y.shape[1]} between chunks.")
        return torch.float64 if x.is_cuda or torch.float64 in (x.dtype, y.dtype) else torch.float32

    def _add(self, a: Tensor, repeated: Tensor, summed: Tensor, b: Tensor) -> None:
        """Add rows about the pivot: of x, once each and as often as they count; of y, summed for each of x, and all."""
        self._xx += repeated.T @ a
        self._xy += a.T @ summed
        self._yy += (b * b).sum(0, dtype=torch.float64)
        self._sum_x += repeated.sum(0, dtype=torch.float64)
        self._sum_y += b.sum(0, dtype=torch.float64)

    @property
    def mean_x(self) -> Tensor:
        """[D] float64."""
        return self._pivot_x + self._sum_x / self.n

    @property
    def mean_y(self) -> Tensor:
        """[E] float64."""
        return self._pivot_y + self._sum_y / self.n

    @property
    def xx(self) -> Tensor:
        """[D, D] float64 scatter of x about its mean."""
        return self._xx - torch.outer(self._sum_x, self._sum_x) / self.n

    @property
    def xy(self) -> Tensor:
        """[D, E] float64 cross-scatter about the means."""
        return self._xy - torch.outer(self._sum_x, self._sum_y) / self.n

    @property
    def yy(self) -> Tensor:
        """[E] float64 sums of squares of y about its mean."""
        return self._yy - self._sum_y.square() / self.n


@dataclass(frozen=True)
class Ridge:
    """A fitted linear map."""

    weight: Tensor
    """[D, E] float64."""
    intercept: Tensor
    """[E] float64."""
    penalty: Tensor
    """[E] float64, the relative penalty each target was fitted with."""

    def predict(self, x: Tensor) -> Tensor:
        """Return ``x`` [B, D] mapped to [B, E], in the type of ``x``."""
        return x @ self.weight.to(x) + self.intercept.to(x)


@dataclass(frozen=True)
class RidgePath:
    """The fits for all penalties, in the eigenbasis of the scatter of x."""

    penalties: tuple[float, ...]
    scale: float
    """What a relative penalty is multiplied with."""
    eigenvalues: Tensor
    """[D] float64, not negative."""
    basis: Tensor
    """[D, D] float64, eigenvectors in columns."""
    rotated: Tensor
    """[D, E] float64, ``basis.T @ xy``."""
    mean_x: Tensor
    mean_y: Tensor

    def coefficients(self, penalty: float | Tensor) -> Ridge:
        """Return the fit for a relative ``penalty``, one for all targets or [E] one for each."""
        penalties = torch.as_tensor(penalty, dtype=torch.float64).to(self.rotated).expand(self.rotated.shape[1])
        shrink = 1 / (self.eigenvalues[:, None] + penalties * self.scale)
        weight = self.basis @ (shrink * self.rotated)
        return Ridge(weight, self.mean_y - self.mean_x @ weight, penalties)

    def sse(self, moments: Moments) -> Tensor:
        """Return [P, E] the squared error of each penalty's fit, by target, on the rows behind ``moments``.

        With W = V B the error is a quadratic form in B, so each penalty costs O(D^2 E) whatever the number
        of rows.
        """
        quadratic = self.basis.T @ moments.xx @ self.basis
        linear = self.basis.T @ moments.xy
        offset = self.basis.T @ (moments.mean_x - self.mean_x)
        errors = []
        for penalty in self.penalties:
            shrunk = _shrink(self.eigenvalues, penalty * self.scale)[:, None] * self.rotated
            bias = moments.mean_y - self.mean_y - offset @ shrunk
            fitted = (shrunk * (quadratic @ shrunk - 2 * linear)).sum(0)
            errors.append(moments.yy + fitted + moments.n * bias.square())
        return torch.stack(errors)


def fit_path(moments: Moments, penalties: Sequence[float] = PENALTIES) -> RidgePath:
    """Return the fits to ``moments`` for relative ``penalties`` (each > 0, infinity allowed).

    Raises:
        ContractError: there are no rows.
        NonFinite: some row held NaN or infinity.
    """
    if moments.n == 0:
        raise ContractError("Ridge regression was given no rows.")
    scatter = moments.xx
    if not bool(torch.isfinite(scatter).all() and torch.isfinite(moments.xy).all()):
        raise NonFinite("Rows for ridge regression hold NaN or infinite values.")
    eigenvalues, basis = torch.linalg.eigh(scatter)
    return RidgePath(
        tuple(penalties),
        _scale(float(scatter.trace()), moments.n, len(scatter)),
        eigenvalues.clamp(min=0),
        basis,
        basis.T @ moments.xy,
        moments.mean_x,
        moments.mean_y,
    )


def fit(train: Moments, val: Moments, penalties: Sequence[float] = PENALTIES) -> Ridge:
    """Return the fit to ``train`` with, for each target, the penalty whose squared error on ``val`` is least.

    One penalty for all would be a compromise between targets that can be predicted and targets that cannot,
    and it would depend on the targets' scales.
    """
    path = fit_path(train, penalties)
    choices = torch.tensor(path.penalties, dtype=torch.float64, device=path.rotated.device)
    return path.coefficients(choices[path.sse(val).argmin(0)])


def dual_errors(
    gram_x: Tensor,
    gram_y: Tensor,
    columns: int,
    train: Tensor,
    test: Tensor,
    penalties: Sequence[float] = PENALTIES,
) -> Tensor:
    """Return [P, len(test)] squared errors, summed over targets, of fits on ``train`` applied to ``test``.

    Args:
        gram_x: [N, N] float64 inner products of the rows of x, about any origin near the data.
        gram_y: [N, N] the same for y.
        columns: Number of columns of x; sets the scale of the penalty as in the primal form.
        train: Indices of the rows to fit.
        test: Indices of the rows to predict.
        penalties: Relative penalties; the error at infinity is that of the training mean.
    """
    tt_x, vt_x, _ = _about_train_mean(gram_x, train, test)
    tt_y, vt_y, vv_y = _about_train_mean(gram_y, train, test)
    eigenvalues, basis = torch.linalg.eigh(tt_x)
    eigenvalues = eigenvalues.clamp(min=0)
    scale = _scale(float(tt_x.trace()), len(train), columns)
    query, target, inner = vt_x @ basis, vt_y @ basis, basis.T @ tt_y @ basis
    errors = []
    for penalty in penalties:
        weighted = query * _shrink(eigenvalues, penalty * scale)
        errors.append(vv_y - 2 * (weighted * target).sum(1) + ((weighted @ inner) * weighted).sum(1))
    return torch.stack(errors)


def cross_validate(
    gram_x: Tensor, gram_y: Tensor, columns: int, folds: Tensor, penalties: Sequence[float] = PENALTIES
) -> float:
    """Return the relative penalty with the least squared error over held-out folds.

    Args:
        gram_x: [N, N] as in :func:`dual_errors`.
        gram_y: [N, N] the same for y.
        columns: Number of columns of x.
        folds: [N] the fold that holds each row out; rows of one group (clip) MUST share a fold.
        penalties: Candidates.
    """
    total = torch.zeros(len(penalties), dtype=torch.float64, device=gram_x.device)
    for fold in sorted(set(folds.tolist())):
        inside, outside = (folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]
        total += dual_errors(gram_x, gram_y, columns, inside, outside, penalties).sum(1)
    return float(penalties[int(total.argmin())])


def _pivot(rows: Tensor) -> Tensor:
    """Return a value near the mean of ``rows``, equal to the value itself in a constant column.

    A mean is only close to the constant; the difference would survive as variance of pure rounding.
    """
    mean = rows.to(torch.float64).mean(0).to(rows.dtype)
    return torch.where((rows == rows[0]).all(0), rows[0], mean).to(torch.float64)


def _scale(trace: float, rows: int, columns: int) -> float:
    """Return the mean non-zero eigenvalue; 1 if there is no variance, where any penalty gives the mean."""
    return trace / min(rows, columns) if trace > 0 else 1.0


def _shrink(eigenvalues: Tensor, penalty: float) -> Tensor:
    return 1 / (eigenvalues + penalty)


def _about_train_mean(gram: Tensor, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return train x train, test x train and the diagonal of test x test, about the mean of ``train``."""
    tt, vt, vv = gram[train][:, train], gram[test][:, train], gram.diagonal()[test]
    row, grand = tt.mean(0), tt.mean()
    return (
        tt - row - row[:, None] + grand,
        vt - row - vt.mean(1, keepdim=True) + grand,
        vv - 2 * vt.mean(1) + grand,
    )
