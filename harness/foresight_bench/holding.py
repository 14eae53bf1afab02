"""The features of one row while they come in, from an encoder or from the cache, in any order."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

from foresight_bench.contracts import Data
from foresight_bench.errors import ContractError
from foresight_bench.grids import Grid

Block = tuple[str, int]
"""Split, and index of one of its blocks."""
Found = Mapping[str, tuple[Tensor, Tensor]]
"""By tap, a batch's values [n, T', H', W', C] in any type and its averages [n, 16 C] in float32."""


@dataclass(frozen=True)
class Gap:
    """Clips of a block that the same taps lack."""

    block: Block
    start: int
    stop: int
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Needs:
    """What filling gaps takes, in bytes."""

    memory: int
    """In float32, for blocks that are not there yet."""
    disk: int
    """In the encoder's own type."""


class Held:
    """One float32 tensor for each tap and block, there from when the first of its clips comes; averages likewise.

    Clips are put in place, because joining the batches of a block at its end would need the memory twice.
    """

    def __init__(self, taps: Sequence[str], data: Data) -> None:
        self.taps, self.dense = tuple(taps), data.dense
        self.shapes: dict[Block, tuple[int, int, int, int]] = {
            (split, index): block.shape for split in data.names for index, block in enumerate(data.split(split).blocks)
        }
        """N, T, H, W of each block."""
        self.values: dict[tuple[str, Block], Tensor] = {}
        """[N, T', H', W', C] of the blocks of dense splits."""
        self.coarse: dict[tuple[str, Block], Tensor] = {}
        """[N, 16 C] of all blocks."""
        self._filled: dict[tuple[str, Block], list[tuple[int, int]]] = {}
        self._lock = threading.Lock()

    @property
    def frames(self) -> int:
        """Frames of all blocks."""
        return sum(n * t for n, t, _, _ in self.shapes.values())

    def put(self, tap: str, block: Block, clips: slice, values: Tensor | None, coarse: Tensor) -> None:
        """Keep what ``tap`` makes of ``clips``; values only of dense splits. Threads may do so at once.

        Raises:
            ContractError: the shape is not that of the block's other clips.
        """
        if block[0] in self.dense and values is not None:
            _fill(self._room(self.values, tap, block, values), clips, values)
        _fill(self._room(self.coarse, tap, block, coarse), clips, coarse)
        with self._lock:
            self._filled.setdefault((tap, block), []).append((clips.start, clips.stop))

    def gaps(self) -> list[Gap]:
        """Return what is lacking: first where most taps do, then the largest frames and the longest clips."""

        def weight(gap: Gap) -> tuple[int, int, int]:
            _, t, height, width = self.shapes[gap.block]
            return len(gap.taps), height * width, t

        return sorted((gap for block in self.shapes for gap in self._gaps(block)), key=weight, reverse=True)

    def needs(self, found: Found, frames: int, gaps: Sequence[Gap]) -> Needs:
        """Return what filling ``gaps`` takes, judged by a batch of clips of ``frames`` frames.

        Shorter and longer clips are taken to have cells in time in proportion to their frames, and one at least.
        """
        memory = disk = 0
        blocks: set[tuple[str, Block]] = set()
        for gap in gaps:
            for tap in gap.taps:
                if tap not in found:
                    continue
                values, coarse = found[tap]
                cells = max(1, ceil(values.shape[1] * self._length(gap.block) / frames))
                tokens = cells * values[0, 0].numel() if gap.block[0] in self.dense else 0
                disk += (gap.stop - gap.start) * (tokens * values.element_size() + coarse[0].nbytes)
                if (tap, gap.block) not in self.coarse and (tap, gap.block) not in blocks:
                    blocks.add((tap, gap.block))
                    memory += self.shapes[gap.block][0] * (4 * tokens + coarse[0].nbytes)
        return Needs(memory, disk)

    def tokens(self) -> dict[tuple[str, str], tuple[Grid, ...]]:
        """Return the grids of each tap and dense split, block by block."""
        found: dict[tuple[str, str], tuple[Grid, ...]] = {}
        for tap in self.taps:
            for block in self.shapes:
                if block[0] in self.dense:
                    found[tap, block[0]] = (*found.get((tap, block[0]), ()), Grid(self.values[tap, block]))
        return found

    def averages(self) -> dict[tuple[str, str], Tensor]:
        """Return the averages of each tap and split: [N, 16 C]."""
        splits = dict.fromkeys(split for split, _ in self.shapes)
        return {
            (tap, split): torch.cat([self.coarse[tap, block] for block in self.shapes if block[0] == split])
            for tap in self.taps
            for split in splits
        }

    def _length(self, block: Block) -> int:
        return self.shapes[block][1]

    def _gaps(self, block: Block) -> list[Gap]:
        ends = {0, self.shapes[block][0]}
        for tap in self.taps:
            ends.update(end for part in self._filled.get((tap, block), ()) for end in part)
        gaps: list[Gap] = []
        for start, stop in pairwise(sorted(ends)):
            taps = tuple(tap for tap in self.taps if not self._has(tap, block, start, stop))
            if gaps and (gaps[-1].taps, gaps[-1].stop) == (taps, start):
                start = gaps.pop().start
            if taps:
                gaps.append(Gap(block, start, stop, taps))
        return gaps

    def _has(self, tap: str, block: Block, start: int, stop: int) -> bool:
        return any(begin <= start and stop <= end for begin, end in self._filled.get((tap, block), ()))

    def _room(self, blocks: dict[tuple[str, Block], Tensor], tap: str, block: Block, like: Tensor) -> Tensor:
        with self._lock:
            if (tap, block) not in blocks:
                shape = (self.shapes[block][0], *like.shape[1:])
                blocks[tap, block] = torch.empty(shape, dtype=torch.float32, device=like.device)
            held = blocks[tap, block]
        if held.shape[1:] != like.shape[1:]:
            was, now = tuple(held.shape[1:]), tuple(like.shape[1:])
            raise ContractError(f"Tap '{tap}' changed shape from {was} to {now} within a block.")
        return held


def _fill(held: Tensor, clips: slice, values: Tensor) -> None:
    held[clips] = values[: clips.stop - clips.start]
