"""Linear predictability of one space from the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foresight_bench.contracts import Spaces
from foresight_bench.ridge import cross_validate, dual_errors
from foresight_bench.scores import FloatArray, Scores, weighted_scores
from foresight_plugins.metrics.pairwise import gram

_FOLDS = 5


class RidgeR2:
    """R2 = 1 - SSE / SST of a ridge map from x to y (``reverse``: from y to x), fitted on the train clips and scored
    on the others.

    SSE and SST are summed over all target dimensions (variance-weighted; no dimension of near zero variance
    can explode) and SST is about the *train* mean, so that predicting that mean scores 0. The penalty comes
    from 5-fold cross-validation inside train, whole clips held out. Targets are never reduced: keeping k
    principal components moves R2 between 1.0 and .35 as k is chosen.

    A map that loses something scores 1 in its own direction and less in the other, so the two directions are two
    metrics and the better of them is none. ``per_clip`` [N, 2] holds SSE and SST.
    """

    def __init__(self, reverse: bool = False) -> None:
        self._reverse = reverse

    def score(self, spaces: Spaces) -> Scores:
        """Return scores over the N clips, bootstrapped as a ratio; at most 1."""
        if self._reverse:
            errors = _errors(spaces.y_train, spaces.x_train, spaces.y, spaces.x)
        else:
            errors = _errors(spaces.x_train, spaces.y_train, spaces.x, spaces.y)

        def r2(weights: FloatArray) -> float:
            return _r2(weights @ errors)

        return weighted_scores(r2, len(errors), errors)


def _errors(x_train: Tensor, y_train: Tensor, x: Tensor, y: Tensor) -> FloatArray:
    """Return [N, 2] squared error of the ridge map and of the train mean, for each scored clip."""
    gram_x, gram_y = gram(torch.cat([x_train, x])), gram(torch.cat([y_train, y]))
    rows = torch.arange(len(gram_x), device=gram_x.device)
    train, test = rows[: len(x_train)], rows[len(x_train) :]
    columns = x_train.shape[1]
    penalty = cross_validate(gram_x[train][:, train], gram_y[train][:, train], columns, train % _FOLDS)
    found = dual_errors(gram_x, gram_y, columns, train, test, (penalty, float("inf")))
    return np.asarray(found.T.cpu().numpy(), dtype=np.float64)


def _r2(errors: FloatArray) -> float:
    """Return R2 from total ``errors`` [2]; 0 if the target does not vary."""
    sse, sst = errors
    return float(1 - sse / sst) if sst > 0 else 0.0
