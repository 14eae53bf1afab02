"""Q1's comparisons of pairs of pictures as the study made them: distances, neighbours, kernels."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from foresight_bench.registry import Registry
from foresight_bench.studies import Chapter, Figure, Section, Trap
from foresight_bench.tables import number
from foresight_gates.study.drawings import fingerprints
from foresight_gates.study.patterns import CATEGORIES, categories
from foresight_gates.study.q1_spaces import STAND_IN, Spaces, clustered
from foresight_gates.study.scoring import outcome, space_score

K = 10
DRAWS = 20
"""Draws of what is random in recall: one alone may fall on either side of the threshold, so near is chance."""


def pairs(registry: Registry) -> Chapter:
    """Compare spaces pair by pair as the study did (q1/eq1_5.py, q1/eq1_6.py)."""
    smaller, larger = Spaces.of(40), Spaces.of(50)
    n, each = len(larger.labels), len(larger.labels) // len(CATEGORIES)
    distinct = len(set(fingerprints(categories(each)[0])))
    kinds = {
        "the target itself, rotated": "perfect",
        "a constant": "blank",
        "the category, one-hot": "category",
        "the mean picture of the category": "centroid",
    }
    rho = [spearman(getattr(smaller, kind), smaller.target) for kind in kinds.values()]
    recalls = [recall(getattr(larger, kind), larger.target) for kind in kinds.values()]
    drawn = [clustered(larger.labels, seed) for seed in range(2 * DRAWS)]
    twins = float(np.mean([recall(a, b) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]))
    assert rho[3] is not None  # the mean pictures differ
    figures = (
        Figure(
            experiment="Q1",
            metric="spearman",
            title="Spearman correlation",
            reported=0.684,
            perfect=rho[0],
            blank=rho[1],
            trap=Trap(shown="the mean picture of the category", value=rho[3], must="fail"),
        ),
        Figure(
            experiment="Q1",
            metric="recall10",
            title="neighbourhood recall@10",
            reported=0.258,
            perfect=recalls[0],
            blank=recalls[1],
            trap=Trap(shown="a pair of spaces that shares the category alone", value=twins, must="fail"),
        ),
    )
    section = Section(
        title="Nine categories, and nothing else to find",
        protocol=(
            f"Spearman's correlation of the distances of {len(smaller.labels)} pictures, and the share of {K} nearest "
            f"neighbours that two spaces have in common over {n}, of which {distinct} differ. Where both spaces fall "
            f"into {len(CATEGORIES)} clusters, chance recall is {K} of the {each - 1} others of a category, "
            f"{number(K / (each - 1))}; the study compared with {K} of {n - 1}, {number(K / (n - 1))}. The two spaces "
            f"of the last row are cluster centres and normal noise, drawn independently, {DRAWS} times. " + STAND_IN
        ),
        headers=("features", "Spearman", "recall@10"),
        rows=(
            *zip(kinds, rho, recalls, strict=True),
            ("a pair of spaces that shares the category alone", None, twins),
        ),
        meaning=(
            f"The mean picture of the category gives Spearman {outcome('Q1', 'spearman', rho[3])}; two spaces that "
            f"share the category alone gives recall {outcome('Q1', 'recall10', twins)}."
        ),
        instead=(
            "Positions, sizes and colours are continuous and independent, and what mean colour, object area and "
            "count explain is regressed out of both spaces first. Chance stands beside recall; p-values permute "
            "whole clips."
        ),
    )
    return Chapter(figures, (section,))


def alignment(registry: Registry) -> Chapter:
    """Compare kernels as the study did, with more columns than pictures (q1/eq1_7.py)."""
    spaces = Spaces.of(40)
    n = len(spaces.labels)
    generator = torch.Generator().manual_seed(0)
    gauss = [torch.randn(n, width, generator=generator, dtype=torch.float64) for width in (3584, 8192)]
    rows: list[tuple[str, float | None, float]] = []
    for name, (x, y) in {
        "the target itself, rotated": (spaces.perfect, spaces.target),
        "a constant": (spaces.blank, spaces.target),
        "independent normal numbers in both spaces": (gauss[0], gauss[1]),
        "the category, one-hot": (spaces.category, spaces.target),
        "the mean picture of the category": (spaces.centroid, spaces.target),
    }.items():
        rows.append((name, biased_cka(x, y), space_score(registry, "cka", x, y)))
    _, unrelated, debiased = rows[2]
    assert unrelated is not None
    figure = Figure(
        experiment="Q1",
        metric="cka",
        title="CKA",
        reported=0.687,
        perfect=rows[0][1],
        blank=rows[1][1],
        trap=Trap(shown="independent noise", value=unrelated, must="fail"),
    )
    section = Section(
        title="CKA with more columns than pictures",
        protocol=(
            f"Linear CKA by the biased estimator, of {n} pictures in 3,584 and 8,192 dimensions: in spaces as wide as "
            "these unrelated pictures are nearly orthogonal, and each agrees with itself. The largest of 14 values "
            "was reported. The normal numbers have those widths. " + STAND_IN
        ),
        headers=("features", "CKA, the study's", "CKA debiased, this suite's"),
        rows=tuple(rows),
        meaning=(
            f"Independent normal numbers give {outcome('Q1', 'cka', unrelated)}; debiased, {number(debiased)}. The "
            f"category alone gives {number(rows[3][1])}, debiased {number(rows[3][2])}: that takes other data, not "
            "another estimator."
        ),
        instead=(
            "Debiased CKA with a null that permutes whole clips, at a tap chosen on other clips, over scenes without "
            "categories."
        ),
    )
    return Chapter((figure,), (section,))


def spearman(x: Tensor, y: Tensor) -> float | None:
    """Return Spearman's correlation of all distances between rows; None if all are equal in one space."""
    a, b = (torch.pdist(each).numpy() for each in (x, y))
    if a.max() == a.min() or b.max() == b.min():
        return None
    return float(spearmanr(a, b).statistic)


def recall(x: Tensor, y: Tensor) -> float | None:
    """Return the share of ``K`` nearest neighbours in common; None if all distances are equal in one space.

    As in the study, the first of the nearest is taken to be the row itself, which is wrong where pictures are equal.
    The order of equal distances, which it left to the sort, is drawn.
    """
    rng = np.random.default_rng(0)
    named = []
    for each in (x, y):
        distances = torch.cdist(each, each, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        if distances.max() == 0:
            return None
        order = np.lexsort((rng.random(distances.shape), distances), axis=1)
        named.append(order[:, 1 : K + 1])
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(*named, strict=True)]))


def biased_cka(x: Tensor, y: Tensor) -> float | None:
    """Return linear CKA with the biased estimator of HSIC; None if a space is constant."""
    grams = [each @ each.T for each in (x - x.mean(0), y - y.mean(0))]
    norm = float(grams[0].norm() * grams[1].norm())
    return float((grams[0] * grams[1]).sum()) / norm if norm > 0 else None
