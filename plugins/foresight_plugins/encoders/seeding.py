"""Random weights that follow a seed and leave every global generator as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: str, seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside, on the CPU and on ``device``; afterwards their generators are as before."""
    # Not torch.manual_seed: it seeds every device there is, and only these are put back.
    cuda = [torch.empty(0, device=device).get_device()] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
