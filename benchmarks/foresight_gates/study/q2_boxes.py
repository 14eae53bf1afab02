"""Q2's box IoU as the study ran it: one vector an image, boxes in the order in which they were drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from foresight_bench.registry import Registry
from foresight_bench.studies import Chapter, Figure, Section
from foresight_bench.tables import number
from foresight_gates.study.drawings import Scene, box_scenes
from foresight_gates.study.scoring import outcome, seeded, trained

SLOTS = 3
STEPS = 100
"""Full-batch steps of the study's probe."""
CONVERGED = 10_000
"""Steps after which the probe on exact boxes gains no more: twice as many change its IoU by .001."""


def boxes(registry: Registry) -> Chapter:
    """Train the study's slot regression on control features (q2/e_q2_2.py)."""
    scenes = box_scenes()
    target, counts = _slots(scenes)
    exact = target.flatten(1)
    rows: list[tuple[str, float, float]] = []
    for name, features in (
        ("the exact boxes, in the order drawn", exact),
        ("the exact boxes, from left to right", leftmost_first(target, counts).flatten(1)),
        ("tokens that hold the box they show, averaged", pooled(scenes)),
        ("a constant", torch.ones(len(scenes), 1)),
    ):
        short, long = (slot_iou(features, target, counts, steps) for steps in (STEPS, CONVERGED))
        rows.append((name, short, long))
    ceiling = [ceiling_iou(scenes, n) for n in (1, 2, 3)]
    known = ceiling_iou(scenes)
    rows.append(("no probe: every scene known, but not the order drawn", known, known))
    figure = Figure(
        experiment="Q2",
        metric="box_iou",
        title="bounding-box IoU",
        reported=0.104,
        perfect=rows[0][1],
        blank=rows[3][1],
    )
    section = Section(
        title="Boxes in an order that no picture shows",
        protocol=(
            f"{len(scenes)} scenes of 1 to {SLOTS} shapes. All tokens were averaged to one vector; one linear map and "
            "a sigmoid answer with three boxes, trained by smooth L1 slot by slot against the order in which the "
            f"shapes were drawn, which a picture does not show, for {STEPS} full-batch steps of Adam. 80% of the "
            "scenes scored are those trained on. The features called pre-merge and post-merge were the same ones. "
            "Whoever knows a scene but not that order errs least with the mean box of the scene in every slot: the "
            "last row, a ceiling for any representation."
        ),
        headers=("features", f"IoU, {STEPS} steps", f"IoU, {CONVERGED:,} steps"),
        rows=tuple(rows),
        meaning=(
            f"Fed the very boxes that it is to answer with, the probe scores {outcome('Q2', 'box_iou', rows[0][1])}; "
            f"perfect knowledge of the scene scores {outcome('Q2', 'box_iou', known)}: {_listed(ceiling)} on scenes "
            "of 1, 2 and 3 shapes."
        ),
        instead=(
            "One linear map a token, on tokens that are not averaged, and boxes matched one to one with those of the "
            "truth; an unmatched box counts 0. The averaged readout is reported beside it and never gates."
        ),
    )
    return Chapter((figure,), (section,))


def slot_iou(features: Tensor, target: Tensor, counts: Tensor, steps: int) -> float:
    """Return the study's IoU, over all scenes, of its probe trained on the first 80 %."""
    shown = torch.arange(SLOTS) < counts[:, None]
    train = int(0.8 * len(features))
    with seeded():
        head = nn.Linear(features.shape[1], 4 * SLOTS)

        def answers(part: slice) -> Tensor:
            boxes: Tensor = head(features[part]).reshape(-1, SLOTS, 4).sigmoid()
            return boxes

        def loss(part: slice) -> Tensor:
            return F.smooth_l1_loss(answers(part)[shown[part]], target[part][shown[part]])

        trained(head, loss, train, batch=train, epochs=steps, rate=1e-3)
    with torch.no_grad():
        found = answers(slice(None))
    return _best_iou([boxes[:n] for boxes, n in zip(found, counts, strict=True)], target, counts)


def leftmost_first(target: Tensor, counts: Tensor) -> Tensor:
    """Return boxes [N, 3, 4] in the order of their left sides: what a picture shows, and no order of drawing."""
    left = target[..., 0].masked_fill(torch.arange(SLOTS) >= counts[:, None], torch.inf)
    return target.gather(1, left.argsort(dim=1, stable=True)[..., None].expand_as(target))


def ceiling_iou(scenes: Sequence[Scene], only: int = 0) -> float:
    """Return the study's IoU of answering with the mean box of the scene, which is best where the order is not known.

    Args:
        scenes: all of them.
        only: those of so many shapes; 0 for all.
    """
    kept = [scene for scene in scenes if only in (0, len(scene.boxes))]
    target, counts = _slots(kept)
    means = [boxes[:n].mean(0, keepdim=True).expand(int(n), 4) for boxes, n in zip(target, counts, strict=True)]
    return _best_iou(means, target, counts)


def pooled(scenes: Sequence[Scene], side: int = 16) -> Tensor:
    """Return [N, 5] the mean over ``side`` x ``side`` tokens that hold presence and box of the shape on top of them."""
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    vectors = []
    for scene in scenes:
        tokens = torch.zeros(side, side, 5)
        for box in torch.from_numpy(scene.boxes):
            inside = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
            tokens[inside] = torch.cat([torch.ones(1), box])
        vectors.append(tokens.mean((0, 1)))
    return torch.stack(vectors)


def _best_iou(found: Sequence[Tensor], target: Tensor, counts: Tensor) -> float:
    """Return the mean over all answers of the best IoU with any true box: one box may be claimed by several."""
    best = [box_iou(f, t[:n]).amax(1) for f, t, n in zip(found, target, counts, strict=True)]
    return float(torch.cat(best).mean())


def _slots(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return boxes [N, 3, 4], zeros in empty slots, and how many there are [N]."""
    target = torch.zeros(len(scenes), SLOTS, 4)
    for slots, scene in zip(target, scenes, strict=True):
        slots[: len(scene.boxes)] = torch.from_numpy(scene.boxes)
    return target, torch.tensor([len(scene.boxes) for scene in scenes])


def _listed(values: Sequence[float]) -> str:
    *first, last = (number(value) for value in values)
    return f"{', '.join(first)} and {last}"
