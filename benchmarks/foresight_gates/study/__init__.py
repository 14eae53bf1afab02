"""The study that this project grew from, rerun on control features: what its protocols give where the answer is known.

The study is Gate 1 of "Foresight", the public repository a1j9o94/foresight at revision 0053cf9; ``c1/e1_5.py`` and the
like are files below its ``infra/modal/handlers``. It set no seed for what it trained; here everything is seeded.
"""

from __future__ import annotations

from foresight_bench.studies import Protocol
from foresight_gates.study import c1, q1_pairs, q1_probe, q2_boxes, q2_detection, q2_pictures, verdict

PROTOCOLS = (
    Protocol("C1: pictures", c1.pictures),
    Protocol("C1: boxes", c1.boxes),
    Protocol("Q1: linear probe", q1_probe.probe),
    Protocol("Q1: distances and neighbours", q1_pairs.pairs),
    Protocol("Q1: CKA", q1_pairs.alignment),
    Protocol("Q2: boxes", q2_boxes.boxes),
    Protocol("Q2: pictures", q2_pictures.pictures),
    Protocol("Q2: detection", q2_detection.detection),
    Protocol("verdict", verdict.verdicts),
)
"""In the order of the page."""
