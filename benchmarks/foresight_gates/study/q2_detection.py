"""Q2's mAP as the study ran it: a probe that is never told what is no object, on tokens that hold the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from foresight_bench.clips import Truth
from foresight_bench.contracts import FrameBoxes
from foresight_bench.grids import Grid
from foresight_bench.registry import Registry, target
from foresight_bench.studies import Chapter, Figure, Section
from foresight_bench.tables import number
from foresight_gates.probes import Heads, Proposals
from foresight_gates.study.drawings import CLASSES, SEED, Scene, detection_scenes
from foresight_gates.study.scoring import outcome, seeded, trained
from foresight_gates.targets import CellTargets, cell_targets

GRID = 16
"""Tokens a side, as Qwen2.5-VL has them at 448 pixels after its merger."""
EPOCHS = 100
QUERIES = 20
CONFIDENT = 0.3
_SIDE = 448

Found = tuple[Tensor, Tensor, Tensor]
"""Of one picture: boxes [M, 4] as shares of the side, classes [M], scores [M]."""


@dataclass(frozen=True)
class Shown:
    """Scenes, and what a token grid shows of them."""

    scenes: Sequence[Scene]
    targets: CellTargets

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Shown:
        """Say of each cell which shape lies on top of it."""
        return cls(scenes, cell_targets(_truth(scenes), GRID, GRID, torch.device("cpu")))

    def tokens(self) -> Tensor:
        """Return [N, H', W', 21]: of the shape on top one-hot class, presence, box, and the distances to its sides."""
        shown = (self.targets.owner >= 0).unsqueeze(-1)
        one_hot = F.one_hot(self.targets.classes + 1, CLASSES + 1)[..., 1:].float()
        boxes = torch.zeros(len(self.scenes), 5, 4)
        for slots, scene in zip(boxes, self.scenes, strict=True):
            slots[: len(scene.boxes)] = torch.from_numpy(scene.boxes)
        owner = self.targets.owner.clamp_min(0).flatten(1)[..., None].expand(-1, -1, 4)
        own = boxes.gather(1, owner).reshape(*shown.shape[:3], 4) * shown
        return torch.cat([one_hot, shown.float(), own, self.targets.distances], -1)


class QueryProbe(nn.Module):
    """The study's probe: 20 learned queries, one cross-attention, one self-attention, no position, no residual."""

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden)
        self.queries = nn.Embedding(QUERIES, hidden)
        self.across = nn.MultiheadAttention(hidden, 4, batch_first=True)
        self.among = nn.MultiheadAttention(hidden, 4, batch_first=True)
        self.box = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 4))
        self.label = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES + 1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes [N, 20, 4] and logits [N, 20, 13], the last of background, for ``tokens`` [N, L, C]."""
        keys = self.project(tokens)
        queries = self.queries.weight.expand(len(tokens), -1, -1)
        queries, _ = self.across(queries, keys, keys, need_weights=False)
        queries, _ = self.among(queries, queries, queries, need_weights=False)
        return self.box(queries).sigmoid(), self.label(queries)


def detection(registry: Registry) -> Chapter:
    """Train the study's detection probe on control tokens, and this suite's on the same ones (q2/e_q2_4.py)."""
    shown = Shown.of(detection_scenes())
    val = Shown.of(detection_scenes(40, SEED + 1))
    train = int(0.8 * len(shown.scenes))
    truth = shown.scenes[train:]
    tokens = shown.tokens()
    answer = [(torch.from_numpy(s.boxes), torch.from_numpy(s.labels), torch.ones(len(s.boxes))) for s in truth]
    rows: list[tuple[str, float, float | None]] = [
        ("no probe: the truth itself", average_precision(answer, truth), None)
    ]
    for name, make in (
        ("class and exact box in every token of a shape", Shown.tokens),
        ("a constant", lambda each: torch.zeros(len(each.scenes), GRID, GRID, 1)),
    ):
        features = make(shown)
        # To attention equal tokens are one token, and of one the probe is trained in seconds.
        read = features[:, :1, :1] if name == "a constant" else features
        found = detections(fitted(read[:train], shown.scenes[:train]), read[train:])
        dense = dense_detections(features, make(val), shown, val, train)
        if name != "a constant":
            confident = float(np.mean([len(scores) for _, _, scores in found]))
        rows.append((name, average_precision(found, truth), coco_map(registry, dense, truth)))
    (_, sound, _), (_, perfect, linear), (_, blank, _) = rows
    assert linear is not None
    figure = Figure(experiment="Q2", metric="map50", title="mAP@0.5", reported=0.001, perfect=perfect, blank=blank)
    objects = float(np.mean([len(scene.boxes) for scene in truth]))
    section = Section(
        title="A detector that is never told what is no object",
        protocol=(
            f"{len(shown.scenes)} scenes of 1 to 5 shapes of {CLASSES} classes, {train} of them to train on. "
            f"{QUERIES} learned queries attend to the tokens, {EPOCHS} epochs of AdamW. Each true box trains the "
            "query whose box overlaps it most, the first if none does; no query is ever told that it shows nothing. "
            f"Tokens hold {tokens.shape[-1]} numbers: one-hot class, presence, the exact box, and its distances from "
            f"the token. The suite's probe is fitted on the same tokens, its penalty chosen on {len(val.scenes)} "
            "further scenes."
        ),
        headers=("tokens", "mAP, the study's probe", "mAP, this suite's probe"),
        rows=tuple(rows),
        meaning=(
            f"The score itself is sound: the truth scores {number(sound)}. On tokens that hold the answer the study's "
            f"probe scores {outcome('Q2', 'map50', perfect)}; it is confident of {confident:.1f} boxes a picture, "
            f"where there are {objects:.1f}. One linear map a token, on the same tokens, scores "
            f"{outcome('Q2', 'map50', linear)}."
        ),
        instead=(
            "One linear map a token, in closed form, to objectness, class and box, then suppression of overlaps, "
            "scored by pycocotools. The probe must pass on such tokens before it is used on any other."
        ),
    )
    return Chapter((figure,), (section,))


def fitted(tokens: Tensor, scenes: Sequence[Scene], epochs: int = EPOCHS) -> QueryProbe:
    """Return the study's probe, trained as it was on ``tokens`` [N, H', W', C]."""
    flat = tokens.flatten(1, 2)
    truth = [(torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)) for scene in scenes]
    with seeded():
        probe = QueryProbe(flat.shape[2])

        def loss(part: slice) -> Tensor:
            boxes, logits = probe(flat[part])
            terms = []
            for mine, classes, (true, labels) in zip(boxes, logits, truth[part], strict=True):
                best = box_iou(mine, true).argmax(0)
                terms.append(F.l1_loss(mine[best], true) + F.cross_entropy(classes[best], labels))
            return torch.stack(terms).sum()

        trained(probe, loss, len(flat), batch=16, epochs=epochs, rate=1e-4, decay=0.01)
    return probe


def detections(probe: QueryProbe, tokens: Tensor) -> list[Found]:
    """Return what the probe is confident of in each picture, by query."""
    with torch.no_grad():
        boxes, logits = probe(tokens.flatten(1, 2))
    scores, classes = logits.softmax(-1)[..., :-1].max(-1)
    return [
        (b[s > CONFIDENT], c[s > CONFIDENT], s[s > CONFIDENT]) for b, c, s in zip(boxes, classes, scores, strict=True)
    ]


def average_precision(found: Sequence[Found], truth: Sequence[Scene]) -> float:
    """Return the study's mAP at IoU .5: matched in the order given, ranked by score, at 11 points of recall."""
    hits: list[list[tuple[float, bool]]] = [[] for _ in range(CLASSES)]
    for (boxes, classes, scores), scene in zip(found, truth, strict=True):
        free = np.ones(len(scene.boxes), dtype=bool)
        overlap = box_iou(boxes, torch.from_numpy(scene.boxes)).numpy()
        for row, label, score in zip(overlap, classes.tolist(), scores.tolist(), strict=True):
            allowed = np.where(free & (scene.labels == label), row, 0.0)
            best = int(allowed.argmax())
            hit = bool(allowed[best] >= 0.5)
            free[best] &= not hit
            hits[label].append((score, hit))
    totals = np.bincount(np.concatenate([scene.labels for scene in truth]), minlength=CLASSES)
    return float(np.mean([_eleven_points(hits[label], total) for label, total in enumerate(totals) if total]))


def dense_detections(tokens: Tensor, tokens_val: Tensor, shown: Shown, val: Shown, train: int) -> list[Proposals]:
    """Return what this suite's dense probe finds in the scenes after the first ``train``, fitted on those."""
    blocks = []
    for features, each, count in ((tokens, shown, train), (tokens_val, val, len(val.scenes))):
        frames = torch.zeros(count, 3, GRID, GRID)  # the probe can also decode pixels; nothing here asks it to
        blocks.append((Grid(features[:count, None]), each.targets.at(range(count)), frames))
    heads = Heads.fitted(blocks[:1], blocks[1:], CLASSES)
    return list(heads.read(Grid(tokens[train:, None]), _SIDE, _SIDE).proposals)


def coco_map(registry: Registry, found: Sequence[Proposals], truth: Sequence[Scene]) -> float:
    """Return the registry's mAP at IoU .5."""
    spec = registry.metrics["map50"].spec
    ones = [FrameBoxes(_SIDE * s.boxes, s.labels, np.ones(len(s.boxes), dtype=np.float32)) for s in truth]
    scores = target(spec.target)(**spec.params).score([each.ranked() for each in found], ones, np.arange(len(ones)))
    return float(scores.value)


def _eleven_points(hits: Sequence[tuple[float, bool]], total: int) -> float:
    true = np.cumsum([hit for _, hit in sorted(hits, key=lambda each: each[0], reverse=True)])
    precision, recall = true / np.arange(1, len(true) + 1), true / total
    return float(np.mean([precision[recall >= level].max(initial=0) for level in np.arange(0, 1.1, 0.1)]))


def _truth(scenes: Sequence[Scene]) -> Truth:
    """Return the scenes' truth: which shape lies on top of each pixel of its box, and all boxes."""
    count = len(scenes)
    boxes = np.zeros((count, 1, 5, 4), dtype=np.int16)
    classes = np.full((count, 5), -1, dtype=np.int8)
    labels = np.zeros((count, 1, _SIDE, _SIDE), dtype=np.uint8)
    for i, scene in enumerate(scenes):
        for k, (x0, y0, x1, y1) in enumerate((_SIDE * scene.boxes).round().astype(np.int16)):
            boxes[i, 0, k] = x0, y0, x1, y1
            classes[i, k] = scene.labels[k]
            labels[i, 0, y0:y1, x0:x1] = k + 1
    return Truth(boxes, classes, labels, np.zeros((count, 1, 1, 1, 3), dtype=np.uint8))
