"""The picture of Q1: how far two clips lie apart in one space, against how far they do in the other."""

from __future__ import annotations

import io
from textwrap import fill

import numpy as np
import torch
from numpy.typing import NDArray

from foresight_bench.contracts import Spaces

PAIRS = 2000
"""Pairs of clips that are drawn: more hide one another. All 79,800 of `quick` count in the metrics."""
LINE = 64
"""Characters of the title that stand in one line."""
_SEED = 0x9A1


def picture(spaces: Spaces, title: str) -> bytes:
    """Return a PNG: the distances of up to 2,000 pairs of clips in both spaces, each in units of its median.

    Args:
        spaces: the clips that are scored.
        title: first line.
    """
    from matplotlib import rc_context  # half a second, which only a worker that draws should take
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    one, other = sampled_pairs(len(spaces.x))
    with rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(4.6, 4.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        x, y = (relative_distances(part, one, other) for part in (spaces.x, spaces.y))
        axes.scatter(x, y, s=7, color="#0072b2", alpha=0.35, linewidths=0)
        most = 1.05 * max(float(x.max(initial=0)), float(y.max(initial=0)), 1.0)
        axes.plot([0, most], [0, most], color="#4d4d4d", linewidth=1, linestyle="--")
        axes.set(xlim=(0, most), ylim=(0, most), aspect="equal")
        axes.set_xlabel("distance in the encoder's space / median")
        axes.set_ylabel("distance in the decoder's space / median")
        axes.set_title(fill(title, LINE), fontsize=9)  # its own wrapping reads formulas
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def sampled_pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return up to 2,000 different pairs of ``n`` clips, the same in every call with equal ``n``."""
    rows, columns = np.triu_indices(n, 1)
    chosen = np.random.default_rng([_SEED, n]).permutation(len(rows))[:PAIRS]
    return rows[chosen].astype(np.int64), columns[chosen].astype(np.int64)


def relative_distances(vectors: torch.Tensor, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the distance of each pair of rows of ``vectors`` [N, D] over the median distance; zeros if that is 0."""
    found = torch.stack([(vectors[i] - vectors[j]).norm() for i, j in zip(one, other, strict=True)])
    distances: NDArray[np.float64] = found.double().cpu().numpy()
    median = float(np.median(distances))
    return distances / median if median > 0 else np.zeros_like(distances)
