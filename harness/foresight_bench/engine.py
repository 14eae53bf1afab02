"""The worker's side of a run: features, experiments, judgement, one cell file each.

A failure ends the cells it concerns with a typed status and leaves the others alone.
"""

from __future__ import annotations

import gc
import re
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol

import torch

from foresight_bench import features as feature_pass
from foresight_bench.adapting import Adapting, Wanted
from foresight_bench.batching import is_out_of_memory
from foresight_bench.bench import Bench, Workbench
from foresight_bench.cells import Cell, CellIdentity, Cost, Provenance, Status
from foresight_bench.contracts import Data, Encoder, EncoderSetup, Outcome
from foresight_bench.errors import (
    ContractError,
    DataError,
    EnvironmentFault,
    ForesightError,
    NonFinite,
    PluginError,
    Unsupported,
    WeightsError,
)
from foresight_bench.features import FeatureSet
from foresight_bench.judging import metric_results
from foresight_bench.names import Stream
from foresight_bench.plan import Plan, PlannedCell, Row
from foresight_bench.registry import Registry, target
from foresight_bench.scores import Scores
from foresight_bench.store import Store, keyed, pack
from foresight_bench.verdicts import Verdict, decide

CELL_UNITS = 150
"""Progress units of one cell, in frames through an encoder: on a CPU an experiment takes 5 to 30 s, a frame .1 s."""


COMPILED_FRAMES = 4000
"""Frames of a suite from which compiling an encoder pays on a GPU. On an H200 that takes 2 to 10 s, and saves 2.6 ms
an image in Qwen2.5-VL's tower, .9 in its language model, .1 to .8 in DINOv2, InternVL2 and LLaVA, nothing in SAM, whose
kernel does it all (benchmarks/speed/results, h200.json and h200-eager.json). It pays off by then for the first two."""


class Emit(Protocol):
    """Receives what is going on."""

    def __call__(self, text: str, units: int = 0, total: int | None = None) -> None:
        """Say ``text``, that ``units`` of work just ended, and how many there are in all once that is known."""
        ...


STATUSES: tuple[tuple[type[ForesightError], Status], ...] = (
    (Unsupported, "skipped"),
    (NonFinite, "nonfinite"),
    (ContractError, "contract"),
    (WeightsError, "weights_missing"),
    (DataError, "data_missing"),
    (ForesightError, "error"),
)
"""What becomes of a cell by the error that ended it; the first that fits."""


@dataclass(frozen=True)
class Failure:
    """How something ended that did not end well."""

    status: Status
    reason: str


def classify(error: BaseException) -> Failure:
    """Return the typed status and the one sentence for an exception; a cell holds no folder of this machine."""
    failure = _typed(error)
    return Failure(failure.status, re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", failure.reason))


def _typed(error: BaseException) -> Failure:
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return Failure(status, error.message)
    if is_out_of_memory(error):
        return Failure("oom", "Out of memory.")
    return Failure("error", f"{type(error).__name__}: {error}".splitlines()[0])


class Engine:
    """Runs the missing cells of a plan in this process."""

    def __init__(
        self,
        registry: Registry,
        plan: Plan,
        store: Store,
        provenance: Provenance,
        emit: Emit,
        compiled: bool | None = None,
    ) -> None:
        self.registry, self.plan, self.store, self.emit = registry, plan, store, emit
        self.provenance, self.compiled = provenance, compiled
        self._faults: list[ForesightError] = []
        self.suite = registry.suites[plan.suite].spec
        self.experiments = {spec.name: spec for spec in self.suite.experiments}
        data: Data = target(self.suite.target)(**self.suite.params)
        self.shared = Workbench(registry, data, plan.device, plan.weights)
        self._backbones: dict[tuple[Stream, tuple[str, ...], int], FeatureSet] = {}

    def run(self, missing: frozenset[str]) -> Sequence[ForesightError]:
        """Run every cell whose id is in ``missing``; one file each, written the moment the cell ends.

        Returns:
            What a user must mend before some encoder can run at all: its weights, its plugin, the size of the
            frames. Its cells have failed; those of the others are there.

        Raises:
            DataError: the data is not the suite's, or a split shares a frame with another.
        """
        self._check_data()
        self.emit("starting", total=self._units(missing))
        for row in self.plan.rows:
            cells = [cell for cell in row.cells if cell.id in missing]
            if cells:
                self._run_row(row, cells)
                gc.collect()
        return self._faults

    def _check_data(self) -> None:
        for name in self.shared.data.names:
            self.emit(f"rendering {name}")
            self.shared.split(name)  # into memory, where the digest then finds it
            found = self.shared.data.digest(name)
            if found != self.suite.digests.get(name):
                raise DataError(
                    f"Split '{name}' of suite {self.suite.name} is not the one its digest names ({found[:12]}).",
                    "Run `foresight-bench scenes verify`; a changed generator needs a new suite version.",
                )
        self.shared.data.check_disjoint()

    def _units(self, missing: frozenset[str]) -> int:
        passes: set[object] = set()
        cells = 0
        for row in self.plan.rows:
            wanted = sum(cell.id in missing for cell in row.cells)
            cells += wanted
            if wanted:
                seed = row.cells[0].identity.seed
                passes.update((stream.backbone, seed if stream.random else 0) for stream in row.streams)
        return CELL_UNITS * cells + self._frames() * len(passes)

    def _run_row(self, row: Row, cells: Sequence[PlannedCell]) -> None:
        try:
            features = self._features(row, cells[0].identity)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            failure = classify(error)
            for cell in cells:
                self._write_failed(cell, failure)
            if isinstance(error, EnvironmentFault | PluginError):
                self._faults.append(error)
            return
        adapting = Adapting(
            self.shared,
            features,
            [
                Wanted(identity.adapter, identity.decoder, identity.seed)
                for identity in (cell.identity for cell in cells)
                if identity.adapter is not None and identity.decoder is not None
            ],
        )
        for cell in cells:
            started = time.monotonic()
            try:
                self._run_cell(cell, features, adapting, started)
            except Exception as error:
                if isinstance(error, ForesightError) and not isinstance(error, ContractError | Unsupported):
                    raise  # the disk is full, the data is gone: every further cell would fail alike
                traceback.print_exc(file=sys.stderr)
                self._write_failed(cell, classify(error))

    def _features(self, row: Row, identity: CellIdentity) -> FeatureSet:
        parts = [self._stream_features(stream, identity.seed) for stream in row.streams]
        if len(parts) == 1:
            return parts[0]
        return feature_pass.hybrid(parts, [stream.name for stream in row.streams])

    def _stream_features(self, stream: Stream, seed: int) -> FeatureSet:
        taps = self.registry.taps(stream)
        key = stream.backbone, taps, seed if stream.random else 0
        if key not in self._backbones:
            self._backbones.clear()  # one encoder's features at a time: they are the largest thing in memory
            spec = self.registry.encoders[stream.name].spec
            variant = self.registry.variant(stream)
            weights = None
            if variant.weights is not None and not stream.random:
                weights = self.plan.weights[variant.weights.name]
            name = self.registry.label((stream,))
            self.emit(f"{name}: loading")
            setup = EncoderSetup(
                weights=weights,
                taps=taps,
                device=str(self.shared.device),
                precision=self.plan.precision,
                compiled=self._compiles(),
                seed=seed,
            )
            encoder: Encoder = target(spec.target)(setup, **self.registry.params(stream))
            self._backbones[key] = feature_pass.extract(
                encoder,
                taps,
                self.shared.data,
                control=spec.control,
                stem=variant.stem,
                device=self.shared.device,
                progress=lambda frames: self.emit(f"{name}: features", frames),
            )
        features = self._backbones[key]
        if "pooled" in stream.transforms:
            features = feature_pass.pooled(features)
        if "shuffled" in stream.transforms:
            features = feature_pass.shuffled(features, self.shared.data.scored)
        return features

    def _compiles(self) -> bool:
        if self.compiled is not None:
            return self.compiled
        return self.shared.device.type == "cuda" and self._frames() >= COMPILED_FRAMES

    def _frames(self) -> int:
        splits = map(self.shared.split, self.shared.data.names)
        return sum(n * t for split in splits for n, t, _, _ in (block.shape for block in split.blocks))

    def _run_cell(self, cell: PlannedCell, features: FeatureSet, adapting: Adapting, started: float) -> None:
        identity = cell.identity
        spec = self.experiments[identity.experiment]
        names = identity.adapter or "", identity.decoder or ""
        bench = Bench(self.shared, features, identity.seed, *names, adapting, identity.encoder)
        self.emit(f"{identity.encoder}: {spec.name}")
        outcome: Outcome = target(spec.target)(spec).run(
            bench, lambda text: self.emit(f"{identity.encoder}: {spec.name} {text}")
        )
        results = metric_results(
            spec, outcome, self.registry, None if not cell.controls else self._control_scores(cell)
        )
        judged = [Verdict(result.verdict) for result in results if result.verdict is not None]
        scores = pack({**keyed(outcome.measurements, "score"), **keyed(outcome.shuffled, "shuffled")})
        self._write(
            Cell(
                id=cell.id,
                identity=identity,
                status="ok",
                decision=decide(judged) if judged else None,
                tap=outcome.tap,
                readout=outcome.readout,
                metrics=results,
                details=dict(outcome.details),
                scores_sha256=sha256(scores).hexdigest(),
                picture_sha256=sha256(outcome.picture).hexdigest() if outcome.picture else "",
                cost=Cost(
                    wall_seconds=time.monotonic() - started + adapting.owed(bench.wanted),
                    feature_seconds=features.seconds,
                    frames_per_second=features.frames / features.seconds if features.seconds else 0.0,
                    batch_frames=features.batch_frames,
                    peak_memory_bytes=self._peak_memory(),
                    trainable_parameters=outcome.trainable_parameters,
                    compiled=self._compiles(),
                ),
                provenance=self._provenance(),
            ),
            scores,
            outcome.picture,
        )

    def _control_scores(self, cell: PlannedCell) -> dict[str, dict[str, Scores]]:
        """Return the gating scores of the control rows that stand beside ``cell``."""
        found = self.store.finished(cell.identity.cohort, self.provenance.machine)
        controls = {}
        for name, cell_id in cell.controls.items():
            control = found.get(cell_id)
            if control is not None and control.status == "ok":
                controls[name] = {
                    key.metric: scores
                    for key, scores in self.store.scores(control).items()
                    if (key.row, key.tap, key.readout) == ("score", control.tap, control.readout)
                }
        return controls

    def _write_failed(self, cell: PlannedCell, failure: Failure) -> None:
        self._write(
            Cell(
                id=cell.id,
                identity=cell.identity,
                status=failure.status,
                reason=failure.reason,
                provenance=self._provenance(),
            )
        )

    def _write(self, cell: Cell, scores: bytes = b"", picture: bytes = b"") -> None:
        self.store.write(cell, scores, picture)
        self.emit(f"{cell.identity.encoder}: {cell.identity.experiment} {cell.status}", CELL_UNITS)

    def _provenance(self) -> Provenance:
        return self.provenance.model_copy(update={"finished": datetime.now(UTC).isoformat(timespec="seconds")})

    def _peak_memory(self) -> int:
        if self.shared.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.shared.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
