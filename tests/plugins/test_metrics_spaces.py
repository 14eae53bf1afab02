"""Metrics on pairs of spaces: laws they follow under the null, invariances, and degenerate spaces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from foresight_bench.contracts import SpaceMetric, Spaces
from foresight_bench.errors import DataError
from foresight_bench.scores import Scores, halves
from foresight_plugins.metrics.cka import Cka, cosine, u_centred
from foresight_plugins.metrics.pairwise import gram, permutation_p, permuted_products, squared_distances
from foresight_plugins.metrics.recall import Recall, neighbours
from foresight_plugins.metrics.ridge_r2 import RidgeR2
from foresight_plugins.metrics.spearman import Spearman

ASSOCIATION: dict[str, SpaceMetric] = {
    "ridge_r2": RidgeR2(),
    "spearman": Spearman(permutations=99),
    "recall": Recall(permutations=99),
    "cka": Cka(permutations=99),
}
PAIRWISE = [name for name in ASSOCIATION if name != "ridge_r2"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def spaces(x: Tensor, y: Tensor) -> Spaces:
    """Return the first half of the rows as train clips, the rest as scored ones."""
    m = len(x) // 2
    return Spaces(x[:m], y[:m], x[m:], y[m:])


def related(n: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return two views, of 60 and 40 columns, of the same 12 factors."""
    z = gaussian(n, 12, seed)
    x = z @ gaussian(12, 60, 1001) / 12**0.5 + noise * gaussian(n, 60, seed + 1)
    y = z @ gaussian(12, 40, 1002) / 12**0.5 + noise * gaussian(n, 40, seed + 2)
    return x, y


def debiased(x: Tensor, y: Tensor) -> float:
    return cosine(u_centred(gram(x)), u_centred(gram(y)))


# CKA


def test_cka_terms_equal_the_formula_of_song() -> None:
    """HSIC_1 = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n(n-3)), diagonals zeroed."""
    n = 25
    k, m = gram(gaussian(n, 4, 0)), gram(gaussian(n, 6, 1))
    found = float((u_centred(k) * u_centred(m)).sum()) / (n * (n - 3))
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    expected = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
    assert found == pytest.approx(float(expected) / (n * (n - 3)), rel=1e-10)


def test_products_are_those_with_the_clips_of_one_side_permuted() -> None:
    a, b = gram(gaussian(30, 5, seed=0)), gram(gaussian(30, 5, seed=1)) + gaussian(30, 30, seed=2)
    drawn = torch.Generator().manual_seed(0xA11CE)
    orders = [torch.randperm(30, generator=drawn) for _ in range(3)]
    expected = [float((a * b[order][:, order]).sum()) for order in orders]
    assert permuted_products(a, b, 3).tolist() == pytest.approx(expected, rel=1e-12)


def test_cka_of_independent_gaussians() -> None:
    """Debiased 0; biased follows 1 / sqrt((1 + N/D)(1 + N/E)): .608."""
    plain, biased = [], []
    for seed in range(10):
        x, y = gaussian(200, 3584, 2 * seed), gaussian(200, 128, 2 * seed + 1)
        plain.append(debiased(x, y))
        biased.append(cosine(gram(x), gram(y)))
    law = ((1 + 200 / 3584) * (1 + 200 / 128)) ** -0.5
    assert abs(np.mean(plain)) < 0.01
    assert np.mean(biased) == pytest.approx(law, abs=0.01)


def test_cka_of_independent_gaussians_far_wider_than_the_sample() -> None:
    """What the biased estimator reports as .93."""
    x, y = gaussian(360, 3584, 0), gaussian(360, 8192, 1)
    assert abs(debiased(x, y)) < 0.02
    assert cosine(gram(x), gram(y)) > 0.9


def test_cka_of_a_rotated_scaled_copy_is_1() -> None:
    x = gaussian(120, 30, 0)
    rotation = torch.linalg.qr(gaussian(30, 30, 1)).Q
    scores = Cka(permutations=99).score(spaces(x, 7 * x @ rotation + 3))
    assert scores.value == pytest.approx(1, abs=1e-12)
    assert scores.details["p"] == 0.01


def test_clip_identity_fakes_alignment_unless_clips_are_permuted() -> None:
    """Independent codes of 125 clips, 8 frames each: frames 'align' and a permutation of frames agrees."""
    false_alarms, alarms = 0, 0
    for seed in range(10):
        x, y = gaussian(125, 256, 2 * seed), gaussian(125, 64, 2 * seed + 1)
        noise_x, noise_y = gaussian(1000, 256, 100 + seed), gaussian(1000, 64, 200 + seed)
        if seed == 0:
            frames_x, frames_y = (a.repeat_interleave(8, 0) for a in (x, y))
            a, b = u_centred(gram(frames_x + 0.1 * noise_x)), u_centred(gram(frames_y + 0.1 * noise_y))
            null = permuted_products(a, b, 49) / float(a.norm() * b.norm())
            assert cosine(a, b) > 0.4
            assert permutation_p(cosine(a, b), null) == 0.02
        a, b = u_centred(gram(x)), u_centred(gram(y))
        null = permuted_products(a, b, 199) / float(a.norm() * b.norm())
        p = permutation_p(cosine(a, b), null)
        alarms += p <= 0.05
        false_alarms += abs(cosine(a, b)) > 0.1
    assert alarms <= 2
    assert false_alarms == 0


def test_resampling_with_replacement_would_break_the_null() -> None:
    """Why pairwise statistics use half-samples: a clip drawn twice is its own twin in both spaces."""
    x, y = gaussian(200, 500, 0), gaussian(200, 300, 1)
    drawn = torch.randint(0, 200, (200,), generator=generator(2))
    assert debiased(x[drawn], y[drawn]) > 0.2
    halved = Cka(permutations=1).score(Spaces(x, y, x, y)).replicates
    assert abs(halved.mean()) < 0.02


# Recall


def test_recall_equals_the_definition() -> None:
    x, y = related(120, 0)
    near = [
        NearestNeighbors(n_neighbors=11).fit(a.numpy()).kneighbors(a.numpy(), return_distance=False)[:, 1:]
        for a in (x, y)
    ]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert Recall(permutations=1).score(Spaces(x, y, x, y)).value == pytest.approx(expected, abs=1e-12)


def test_recall_of_unrelated_spaces_is_chance() -> None:
    values = []
    for seed in range(12):
        x, y = gaussian(250, 50, 2 * seed), gaussian(250, 30, 2 * seed + 1)
        a, b = (neighbours(squared_distances(s), 10) for s in (x, y))
        values.append(float((a * b).sum()) / 2500)
    chance = 10 / 249
    assert np.mean(values) == pytest.approx(chance, abs=2.5 * np.std(values, ddof=1) / 12**0.5)
    x, y = gaussian(250, 50, 0), gaussian(250, 30, 1)
    scores = Recall(permutations=199).score(Spaces(x, y, x, y))
    low, high = scores.interval()
    assert low <= chance <= high
    assert scores.details["chance"] == pytest.approx(chance)
    assert scores.details["null_mean"] == pytest.approx(chance, abs=0.002)
    assert scores.details["p"] > 0.05
    assert scores.replicates.mean() == pytest.approx(chance, abs=0.01), "k must shrink in half-samples"


def test_recall_shares_places_among_ties() -> None:
    d = torch.tensor([[0.0, 1, 2, 2, 2], [1, 0, 3, 4, 5], [2, 3, 0, 6, 7], [2, 4, 6, 0, 8], [2, 5, 7, 8, 0]])
    found = neighbours(d.double(), 2)
    assert found[0].tolist() == pytest.approx([0, 1, 1 / 3, 1 / 3, 1 / 3])
    assert found.sum(1).tolist() == pytest.approx([2] * 5)


# Spearman


def test_spearman_equals_scipy() -> None:
    x, y = related(90, 3)
    y[10:14] = y[10]  # ties
    expected = spearmanr(pdist(x.numpy()), pdist(y.numpy())).statistic
    assert Spearman(permutations=1).score(Spaces(x, y, x, y)).value == pytest.approx(expected, abs=1e-6)


def test_spearman_half_samples_are_ranked_anew() -> None:
    x, y = related(60, 4)
    scores = Spearman(permutations=1).score(Spaces(x, y, x, y))
    index = halves(60)[7]
    expected = spearmanr(pdist(x.numpy()[index]), pdist(y.numpy()[index])).statistic
    assert scores.replicates[7] == pytest.approx(expected, abs=1e-9)


def test_mantel_p_is_calibrated() -> None:
    """Nominal 5 % over 100 nulls: between 0 and 12 rejections (binomial, p = .001). Pairs as samples: 41."""
    mantel, naive = 0, 0
    for seed in range(100):
        x, y = gaussian(60, 3, 2 * seed), gaussian(60, 3, 2 * seed + 1)
        dx, dy = (torch.from_numpy(pdist(a.numpy()).argsort().argsort()).double() for a in (x, y))
        upper = torch.triu_indices(60, 60, 1)
        a, b = torch.zeros(2, 60, 60, dtype=torch.float64)
        a[upper[0], upper[1]], b[upper[0], upper[1]] = dx - dx.mean(), dy - dy.mean()
        a, b = a + a.T, b + b.T
        mantel += permutation_p(float((a * b).sum()), permuted_products(a, b, 99)) <= 0.05
        naive += spearmanr(dx.numpy(), dy.numpy(), alternative="greater").pvalue <= 0.05
    assert mantel <= 12
    assert naive >= 20


def test_spearman_reports_mantel_p() -> None:
    x, y = related(80, 5)
    assert Spearman(permutations=199).score(Spaces(x, y, x, y)).details["p"] == pytest.approx(1 / 200)
    p = Spearman(permutations=199).score(Spaces(x, x, x, gaussian(80, 40, 6))).details["p"]
    assert p > 0.05


# Ridge R2


def test_ridge_r2_equals_sklearn_at_the_chosen_penalty() -> None:
    x, y = related(240, 7)
    pair = spaces(x, y)
    scores = RidgeR2().score(pair)
    best = -np.inf
    centred = pair.x_train - pair.x_train.mean(0)
    total = float(((pair.y - pair.y_train.mean(0)) ** 2).sum())
    for exponent in range(-6, 4):
        alpha = 10.0**exponent * float((centred**2).sum()) / 60
        model = Ridge(alpha=alpha, solver="svd").fit(pair.x_train.numpy(), pair.y_train.numpy())
        best = max(best, 1 - ((model.predict(pair.x.numpy()) - pair.y.numpy()) ** 2).sum() / total)
    assert scores.value == pytest.approx(best, abs=0.02)
    assert scores.per_clip is not None
    sse, sst = scores.per_clip.sum(0)
    assert scores.value == pytest.approx(1 - sse / sst)
    assert sst == pytest.approx(total)


def test_the_reverse_of_ridge_r2_is_the_other_direction() -> None:
    x, y = related(240, 7)
    forth, back = RidgeR2().score(spaces(x, y)), RidgeR2(reverse=True).score(spaces(x, y))
    other = RidgeR2().score(spaces(y, x))
    assert back.value == other.value
    assert np.array_equal(back.replicates, other.replicates)
    assert back.value != pytest.approx(forth.value, abs=0.02)


def test_a_lossy_projection_is_predicted_and_does_not_predict() -> None:
    """Of 20 equal dimensions 5 are kept: they are known from the 20, and of the 20 they know a quarter."""
    x = gaussian(800, 20, 30)
    y = x @ torch.linalg.qr(gaussian(20, 5, 31)).Q
    assert RidgeR2().score(spaces(x, y)).value == pytest.approx(1, abs=1e-6)
    back = RidgeR2(reverse=True).score(spaces(x, y))
    low, high = back.interval()
    assert low < 5 / 20 < high
    assert high - low < 0.05


def test_ridge_r2_of_noise_is_at_most_zero_held_out() -> None:
    values = [RidgeR2().score(spaces(gaussian(300, 400, s), gaussian(300, 20, 50 + s))).value for s in range(5)]
    assert max(values) < 0.01
    assert np.mean(values) <= 0.002


def test_ridge_r2_of_shuffled_targets_is_at_the_floor() -> None:
    x, y = related(300, 8)
    order = torch.randperm(150, generator=generator(9))
    y[:150] = y[:150][order]
    assert RidgeR2().score(spaces(x, y)).value < 0.02


def test_ridge_r2_does_not_explode_on_a_near_constant_target() -> None:
    """sklearn's uniform average answered -37,926 to this."""
    x, y = related(300, 10)
    flat = torch.cat([y, 1e-9 * gaussian(300, 5, 11)], 1)
    assert RidgeR2().score(spaces(x, flat)).value == pytest.approx(RidgeR2().score(spaces(x, y)).value, abs=1e-6)


# All of them


@pytest.mark.parametrize("name", ASSOCIATION)
def test_related_spaces_score_and_wrongly_paired_ones_do_not(name: str) -> None:
    x, y = related(300, 12, noise=0.5)
    metric = ASSOCIATION[name]
    paired = metric.score(spaces(x, y))
    shuffled = metric.score(spaces(x, torch.cat([y[:150], y[150:].roll(1, 0)])))
    floor = 10 / 149 if name == "recall" else 0.0
    assert paired.interval()[0] > 0.25
    assert shuffled.value < floor + 0.05
    low, high = paired.minus(shuffled).interval()
    assert 0 < low < paired.value - shuffled.value < high


@pytest.mark.parametrize("name", ASSOCIATION)
@pytest.mark.parametrize("which", ["x", "y", "both"])
def test_constant_spaces(name: str, which: str) -> None:
    x, y = related(120, 13)
    # The mean of equal numbers differs from them by rounding, which must not count as structure.
    x = x[:1].expand_as(x) if which in ("x", "both") else x
    y = y[:1].expand_as(y) if which in ("y", "both") else y
    scores = ASSOCIATION[name].score(spaces(x, y))
    assert scores.finite
    assert all(np.isfinite(v) for v in scores.details.values())
    assert scores.value == pytest.approx(10 / 59 if name == "recall" else 0, abs=1e-12)
    assert scores.details.get("p", 1.0) == pytest.approx(1.0) or name == "recall"


@pytest.mark.parametrize("name", ASSOCIATION)
def test_offset_rotation_and_scale_change_nothing(name: str) -> None:
    x, y = related(160, 14)
    expected = ASSOCIATION[name].score(spaces(x, y)).value
    rotation = torch.linalg.qr(gaussian(60, 60, 15)).Q
    assert ASSOCIATION[name].score(spaces(3 * x @ rotation + 50, y + 50)).value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ASSOCIATION)
def test_order_of_clips_does_not_matter(name: str) -> None:
    x, y = related(160, 16)
    order = torch.cat([torch.arange(80), 80 + torch.randperm(80, generator=generator(17))])
    a, b = (ASSOCIATION[name].score(s) for s in (spaces(x, y), spaces(x[order], y[order])))
    assert a.value == pytest.approx(b.value, abs=1e-9)
    assert a.standard_error() == pytest.approx(b.standard_error(), rel=0.35)


@pytest.mark.parametrize("name", PAIRWISE)
def test_half_sample_error_is_the_error_of_fresh_samples(name: str) -> None:
    build: dict[str, Callable[[], SpaceMetric]] = {
        "spearman": lambda: Spearman(permutations=1),
        "recall": lambda: Recall(permutations=1),
        "cka": lambda: Cka(permutations=1),
    }
    found: list[Scores] = []
    for seed in range(20):
        x, y = related(100, 10 * seed)
        found.append(build[name]().score(Spaces(x, y, x, y)))
    fresh = np.std([s.value for s in found], ddof=1)
    estimate = np.mean([s.standard_error() for s in found])
    assert fresh / 2 < estimate < 2 * fresh


@pytest.mark.parametrize("name", PAIRWISE)
def test_too_few_clips(name: str) -> None:
    x, y = related(20, 18)
    with pytest.raises(DataError, match="at least 16"):
        ASSOCIATION[name].score(spaces(x, y))


def test_recall_needs_more_clips_than_neighbours() -> None:
    x, y = related(20, 19)
    with pytest.raises(DataError, match="more than 20"):
        Recall(k=20).score(Spaces(x, y, x, y))
