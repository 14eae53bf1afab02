"""The feature pass: every selected tap of one encoder over the whole suite, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from foresight_bench.batching import Batching, device_memory, device_room, free_memory
from foresight_bench.cache import Pass
from foresight_bench.caching import FeatureCache
from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import Data, Encoder
from foresight_bench.errors import ContractError, OutOfMemory
from foresight_bench.features import COARSE_SIDE, FeatureSet
from foresight_bench.grids import Grid
from foresight_bench.holding import Found, Gap, Held
from foresight_bench.inventory import parameter_count
from foresight_bench.layout import Values, refuse_scrambled


def extract(
    load: Callable[[], Encoder],
    taps: Sequence[str],
    data: Data,
    *,
    control: str = "",
    stem: Sequence[str] = (),
    device: torch.device | str = "cpu",
    batch_frames: int | None = None,
    progress: Callable[[int], None] = lambda frames: None,
    cache: FeatureCache | None = None,
    probed: bool = False,
) -> FeatureSet:
    """Run an encoder once over every split, or over what ``cache`` does not hold of it.

    Tokens are kept for ``data.dense`` splits; of the others only the coarse averages are. :class:`Held` says how and
    where. Whatever the encoder's precision, heads and experiments get float32, which is what they compute in.

    Args:
        load: returns the encoder, which runs on ``device``; not called if nothing is to be computed.
        taps: in order of depth.
        data: the suite's.
        control: the encoder spec's.
        stem: the variant's.
        device: whose memory says how many frames go through at once.
        batch_frames: that number instead; like the one found, it is halved when memory runs out.
        progress: called with the frames of each batch once it is through; with those of the cache at once.
        cache: where features are looked for and put. What is put is written while others work on; it is all there
            after ``cache.close()``.
        probed: whether a few images that are not the suite's go through first, to prove that no tap is scrambled.

    Raises:
        ContractError: a tap is missing, its tokens are scrambled, or its grid changes shape or clip count between
            batches.
        NonFinite: a grid holds NaN or infinity.
        OutOfMemory: all features together fit neither on the device nor in the host's memory; found by the first
            batch.
    """
    held, device = Held(taps, data), torch.device(device)
    held.room = device_room(device_memory(device))
    if cache:
        cache.recall(held, device)
    gaps = held.gaps()
    recalled = held.frames - sum((gap.stop - gap.start) * held.shapes[gap.block][1] for gap in gaps)
    if recalled:
        progress(recalled)
    made = _compute(load(), held, gaps, data, device, batch_frames, progress, cache, probed) if gaps else None
    if cache:
        made = cache.finish(made)
    assert made is not None  # without a cache, there were gaps
    return FeatureSet(
        tuple(taps),
        held.tokens(),
        held.averages(),
        control,
        tuple(stem),
        made.seconds,
        made.frames,
        made.batch_frames,
        cached=not gaps,
        parameters=made.parameters,
    )


def _compute(
    encoder: Encoder,
    held: Held,
    gaps: Sequence[Gap],
    data: Data,
    device: torch.device,
    batch_frames: int | None,
    progress: Callable[[int], None],
    cache: FeatureCache | None,
    probed: bool,
) -> Pass:
    """Fill the gaps, and return what that took."""
    memory = device_memory(device)
    batching, parameters = Batching(memory, batch_frames), parameter_count(encoder)
    started, done = time.monotonic(), 0

    def encode(clips: ClipBatch, taps: Sequence[str]) -> Found:
        grids = encoder.encode(clips, taps)
        return {tap: _checked(grids.get(tap), tap, len(clips)) for tap in taps}

    held.room = device_room(memory)

    def weigh(found: Found, frames: int) -> int:
        needs = held.needs(found, frames, gaps)
        for needed, free, where in (
            (needs.device, free_memory(memory), str(device)),
            (needs.host, free_memory(None), "the host"),
        ):
            if free is not None and needed > free:
                raise OutOfMemory(
                    f"The features of {len(held.taps)} taps need {needed / 1e9:.3g} GB of {where}'s memory, which has "
                    f"{free / 1e9:.3g} GB free; select fewer taps."
                )
        if cache:
            cache.begin(needs.disk)
        return needs.device

    def clips_of(gap: Gap) -> ClipBatch:
        split, index = gap.block
        return data.split(split).blocks[index][gap.start : gap.stop]

    def frames_of(gap: Gap) -> int:
        return held.shapes[gap.block][1]

    first = gaps[0]
    weighed = batching.settle(
        clips_of(first), lambda clips: encode(clips, first.taps), lambda found: weigh(found, frames_of(first))
    )
    if probed:
        taps = [tap for tap in held.taps if any(tap in gap.taps for gap in gaps)]

        def shown(clips: ClipBatch) -> Iterator[tuple[slice, Values]]:
            for part, found in batching.run(clips, lambda clips: encode(clips, taps)):
                yield part, {tap: each for tap, (each, _) in found.items()}
                progress(0)  # a sign of life

        # Of the shortest clips: in batches that the pass will have too, and of the fewest frames.
        refuse_scrambled(shown, clips_of(min(gaps, key=frames_of))[:1])
    for gap in gaps:
        for part, found in batching.run(clips_of(gap), lambda clips: encode(clips, gap.taps)):  # noqa: B023 - run here
            if not weighed:
                weigh(found, frames_of(gap))
                weighed = True
            clips = slice(gap.start + part.start, gap.start + part.stop)
            for tap, (values, coarse) in found.items():
                held.put(tap, gap.block, clips, values, coarse)
                if cache:
                    cache.add(held, tap, gap.block, clips)
            del found, values, coarse  # before the next batch runs
            done += (clips.stop - clips.start) * frames_of(gap)
            progress((clips.stop - clips.start) * frames_of(gap))
        if cache:
            cache.cut(held)
    seconds = time.monotonic() - started
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Pass(parameters=parameters, batch_frames=batching.frames, frames=done, seconds=seconds, created=now)


def _checked(grid: Grid | None, tap: str, clips: int) -> tuple[Tensor, Tensor]:
    if grid is None:
        raise ContractError(f"The encoder returned no grid for tap '{tap}'.")
    if len(grid.values) != clips:
        raise ContractError(f"Tap '{tap}' returned {len(grid.values)} clips for a batch of {clips}.")
    grid.check_finite(f"Tap '{tap}'")
    return grid.values, replace(grid, values=grid.values.float()).coarse(COARSE_SIDE)
