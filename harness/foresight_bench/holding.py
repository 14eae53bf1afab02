"""The features of one row as they come in, from an encoder or from the cache, in any order, and where they stand.

A tap's values are kept in the encoder's own type, which is half of float32 on a GPU, and on the device as long as there
is room: those of taps that find none go to the host's memory. What heads read is float32 on the device either
way, converted from either exactly, so scores do not depend on where features stood.
"""

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
from foresight_bench.features import Grids, Key, Tokens
from foresight_bench.grids import Grid

KEPT = (torch.float32, torch.bfloat16, torch.float16)
"""Types that values are kept in; whatever is wider is narrowed to float32, which heads and experiments compute in."""
HOST = torch.device("cpu")

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

    device: int
    """For what is not there yet and goes to the device."""
    host: int
    """For what is not there yet and goes to the host's memory, because the device has no room."""
    disk: int
    """Of all that is computed."""


class Held:
    """One tensor for each tap and block, there from when the first of its clips comes; averages likewise.

    Clips are put in place, because joining the batches of a block at its end would need the memory twice.
    """

    def __init__(self, taps: Sequence[str], data: Data) -> None:
        self.taps, self.dense = tuple(taps), data.dense
        self.room: int | None = None
        """Bytes of values that may yet be placed on the device; None for any number. A tap is placed as a whole."""
        self.shapes: dict[Block, tuple[int, int, int, int]] = {
            (split, index): block.shape for split in data.names for index, block in enumerate(data.split(split).blocks)
        }
        """N, T, H, W of each block."""
        self.values: dict[tuple[str, Block], Tensor] = {}
        """[N, T', H', W', C] of the blocks of dense splits, in one of the types ``KEPT``."""
        self.coarse: dict[tuple[str, Block], Tensor] = {}
        """[N, 16 C] of all blocks, float32 on the device."""
        self._filled: dict[tuple[str, Block], list[tuple[int, int]]] = {}
        self._spilled: dict[str, bool] = {}
        self._lock = threading.Lock()

    @property
    def frames(self) -> int:
        """Frames of all blocks."""
        return sum(n * t for n, t, _, _ in self.shapes.values())

    def put(self, tap: str, block: Block, clips: slice, values: Tensor | None, coarse: Tensor) -> None:
        """Keep what ``tap`` makes of ``clips``; values only of dense splits. Threads may do so at once.

        Raises:
            ContractError: shape or type is not that of the block's other clips.
        """
        if block[0] in self.dense and values is not None:
            values = values.to(kept_type(values.dtype))
            place = HOST if self._spills(tap, values, self.shapes[block][1]) else values.device
            _fill(self._block(self.values, tap, block, values, place), clips, values)
        _fill(self._block(self.coarse, tap, block, coarse, coarse.device), clips, coarse)
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

        Taps that have no place yet find it.
        """
        device = host = disk = 0
        blocks: set[tuple[str, Block]] = set()
        for gap in gaps:
            clips = self.shapes[gap.block][0]
            for tap in gap.taps:
                if tap not in found:
                    continue
                values, coarse = found[tap]
                clip = self._clip_bytes(gap.block, values, frames)
                disk += (gap.stop - gap.start) * (clip + coarse[0].nbytes)
                if (tap, gap.block) not in self.coarse and (tap, gap.block) not in blocks:
                    blocks.add((tap, gap.block))
                    device += clips * coarse[0].nbytes
                    if self._spills(tap, values, frames):
                        host += clips * clip
                    else:
                        device += clips * clip
        return Needs(device, host, disk)

    def tokens(self) -> Mapping[Key, Grids]:
        """Return the grids of each tap and dense split, block by block, float32 where the averages stand."""
        splits = dict.fromkeys(split for split, _ in self.shapes if split in self.dense)

        def made(key: Key) -> Grids:
            tap, split = key
            blocks = [(tap, block) for block in self.shapes if block[0] == split]
            return tuple(Grid(self.values[each].to(self.coarse[each].device, torch.float32)) for each in blocks)

        return Tokens([(tap, split) for tap in self.taps for split in splits], made)

    def averages(self) -> dict[Key, Tensor]:
        """Return the averages of each tap and split: [N, 16 C]."""
        splits = dict.fromkeys(split for split, _ in self.shapes)
        return {
            (tap, split): torch.cat([self.coarse[tap, block] for block in self.shapes if block[0] == split])
            for tap in self.taps
            for split in splits
        }

    def _spills(self, tap: str, values: Tensor, frames: int) -> bool:
        """Return whether the values of ``tap`` go to the host's memory; found when the first clips of it come.

        Args:
            values: of some clips of ``frames`` frames.
        """
        with self._lock:
            if tap not in self._spilled:
                size = sum(shape[0] * self._clip_bytes(block, values, frames) for block, shape in self.shapes.items())
                self._spilled[tap] = self.room is not None and size > self.room
                if self.room is not None and not self._spilled[tap]:
                    self.room -= size
            return self._spilled[tap]

    def _clip_bytes(self, block: Block, values: Tensor, frames: int) -> int:
        """Return the bytes of one clip's values in ``block``, judged by the ``values`` of clips of ``frames`` frames.

        Shorter and longer clips are taken to have cells in time in proportion to their frames, and one at least.
        """
        if block[0] not in self.dense:
            return 0
        cells = max(1, ceil(values.shape[1] * self.shapes[block][1] / frames))
        return cells * values[0, 0].numel() * kept_type(values.dtype).itemsize

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

    def _block(
        self, blocks: dict[tuple[str, Block], Tensor], tap: str, block: Block, like: Tensor, place: torch.device
    ) -> Tensor:
        """Return the tensor for a block, made at ``place`` if there is none, for parts that are ``like`` this one."""
        with self._lock:
            if (tap, block) not in blocks:
                shape = (self.shapes[block][0], *like.shape[1:])
                blocks[tap, block] = torch.empty(shape, dtype=like.dtype, device=place)
            held = blocks[tap, block]
        for what, was, now in (
            ("shape", tuple(held.shape[1:]), tuple(like.shape[1:])),
            ("type", held.dtype, like.dtype),
        ):
            if was != now:
                raise ContractError(f"Tap '{tap}' changed {what} from {was} to {now} within a block.")
        return held


def kept_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type that values of ``dtype`` are kept in."""
    return dtype if dtype in KEPT else torch.float32


def _fill(held: Tensor, clips: slice, values: Tensor) -> None:
    held[clips] = values[: clips.stop - clips.start]
