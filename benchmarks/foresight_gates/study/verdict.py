"""The study's verdict: criteria looked up by name among whatever its experiments returned."""

from __future__ import annotations

from collections.abc import Mapping

from foresight_bench.registry import Registry
from foresight_bench.studies import Chapter, Section
from foresight_bench.verdicts import Verdict, decide, judge
from foresight_gates.suites import THRESHOLDS

_METRICS = {
    "C1": {"lpips": "lpips", "ssim": "ssim", "spatial_iou": "spatial_iou"},
    "Q1": {
        "ridge_r2": "linear_probe_r2",
        "spearman": "spearman_correlation",
        "recall10": "neighborhood_recall_at_10",
        "cka": "cka",
    },
    "Q2": {"box_iou": "bbox_iou", "lpips": "lpips", "edge_f1": "edge_f1", "map50": "mAP"},
}
"""What the study's registry of experiments called each metric (runner/config.py)."""
RETURNED = {
    "C1": {"lpips", "ssim", "psnr", "mse", "spatial_iou", "center_error", "size_error"},
    "Q1": {
        *("vlm_to_ltx_r2", "ltx_to_vlm_r2", "average_r2", "best_r2", "spearman_euclidean", "spearman_cosine"),
        *(
            "average_spearman",
            "mantel_r",
            "recall_at_5",
            "recall_at_10",
            "recall_at_20",
            "max_cka",
            "best_layer_cka_flat",
        ),
    },
    "Q2": {"bbox_iou", "lpips", "edge_f1", "ssim", "irs", "best_map_05"},
}
"""Names under which its experiments returned numbers, those that concern a criterion among them (handlers/)."""


def verdicts(registry: Registry) -> Chapter:
    """Judge each experiment by the study's rule, every number at its worst (runner/runner.py)."""
    rows = []
    matched = {}
    for name, criteria in THRESHOLDS.items():
        asked = {_METRICS[name][metric]: (threshold, metric == "lpips") for metric, threshold in criteria.items()}
        worst = {each: 1.0 if asked.get(each, (0.0, False))[1] else 0.0 for each in RETURNED[name]}
        matched[name] = len(asked.keys() & worst.keys())
        nothing = decide([judge(None, threshold, "higher", {}, None).verdict for threshold in criteria.values()])
        failed = decide([Verdict.FAIL] * len(criteria))
        found = f"{matched[name]} of {len(asked)}"
        rows.append((f"{name}, every number at its worst", found, assessed(asked, worst), str(failed)))
        rows.append((f"{name}, no number at all", f"0 of {len(asked)}", assessed(asked, {}), str(nothing)))
    passed = [row[0] for row in rows if row[2] == "PROCEED" and row[3] != "PROCEED"]
    section = Section(
        title="A verdict on metrics that were not there",
        protocol=(
            "The runner looked each criterion up by name among the numbers that the experiments had returned, and a "
            "criterion whose name is not there counted as met. Q1 returned its four under other names (best_r2, "
            f"spearman_euclidean, recall_at_10, max_cka): {matched['Q1']} of {len(THRESHOLDS['Q1'])} criteria were "
            "looked at, and Q1 was recorded as PROCEED."
        ),
        headers=("what was returned", "criteria found", "the study's rule", "this suite's rule"),
        rows=tuple(rows),
        meaning=f"The study's rule says PROCEED of {len(passed)} of these {len(rows)}: {'; '.join(passed)}.",
        instead=(
            "A metric that is absent, not finite or without its controls is NOT RUN, and an experiment of which one "
            "is not run cannot PROCEED."
        ),
    )
    return Chapter((), (section,))


def assessed(asked: Mapping[str, tuple[float, bool]], returned: Mapping[str, float]) -> str:
    """Return the study's verdict, in capitals.

    Args:
        asked: by the study's name, the threshold, and whether lower is better.
        returned: what the experiments returned.
    """
    found = {name: returned[name] for name in asked if name in returned}
    met = [found[name] <= asked[name][0] if asked[name][1] else found[name] >= asked[name][0] for name in found]
    if all(met):
        return "PROCEED"
    return "INVESTIGATE" if len(found) < len(asked) / 2 else "PIVOT"
