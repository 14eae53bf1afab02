"""The worker's side of a run: features, experiments, judgement, one cell file each.

A failure ends the cells it concerns with a typed status and leaves the others alone.
"""

from __future__ import annotations

import gc
import re
import resource
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import torch

from foresight_bench import transforms
from foresight_bench.adapting import Adapting, Wanted
from foresight_bench.batching import is_out_of_memory
from foresight_bench.bench import Bench, Workbench
from foresight_bench.caching import FeatureCache
from foresight_bench.cells import FINISHED, Cell, Cost, Provenance, Status, outcome_line
from foresight_bench.contracts import Data, Encoder, EncoderSetup, Outcome, ResolvedWeights
from foresight_bench.errors import (
    ContractError,
    DataError,
    EnvironmentFault,
    ForesightError,
    NonFinite,
    OutOfMemory,
    PluginError,
    Unsupported,
    WeightsError,
)
from foresight_bench.extraction import extract
from foresight_bench.features import FeatureSet
from foresight_bench.further import PART, reporting
from foresight_bench.identities import library_versions
from foresight_bench.isolation import restored
from foresight_bench.jobs import CELL_UNITS, Event, Job, frame_count
from foresight_bench.judging import metric_results
from foresight_bench.keys import feature_identities
from foresight_bench.names import Stream
from foresight_bench.packing import keyed, pack
from foresight_bench.plan import PlannedCell, Row
from foresight_bench.registry import Registry, target
from foresight_bench.scores import Scores
from foresight_bench.store import Store
from foresight_bench.verdicts import Verdict, decide

COMPILED_FRAMES = 4000
"""Frames of a suite from which compiling an encoder pays on a GPU. On an H200 that takes 2 to 10 s, and saves 2.6 ms
an image in Qwen2.5-VL's tower, .9 in its language model, .1 to .8 in DINOv2, InternVL2 and LLaVA, nothing in SAM, whose
kernel does it all (benchmarks/speed/results, h200.json and h200-eager.json). It pays off by then for the first two."""


Emit = Callable[[Event], None]
"""Receives what is going on."""

STATUSES: tuple[tuple[type[ForesightError], Status], ...] = (
    (Unsupported, "skipped"),
    (NonFinite, "nonfinite"),
    (ContractError, "contract"),
    (WeightsError, "weights_missing"),
    (DataError, "data_missing"),
    (OutOfMemory, "oom"),
    (ForesightError, "error"),
)
"""What becomes of a cell by the error that ended it; the first that fits."""


@dataclass(frozen=True)
class Failure:
    """How something ended that did not end well."""

    status: Status
    reason: str
    traceback: str = ""


def classify(error: BaseException) -> Failure:
    """Return the typed status and the one sentence for an exception; a cell holds no folder of this machine."""
    failure = _typed(error)
    reason = re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", failure.reason)
    return Failure(failure.status, reason, "".join(traceback.format_exception(error)))


def _typed(error: BaseException) -> Failure:
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return Failure(status, error.message)
    if is_out_of_memory(error):
        return Failure("oom", "Out of memory.")
    return Failure("error", f"{type(error).__name__}: {error}".splitlines()[0])


class Engine:
    """Computes the cells of a job in this process."""

    def __init__(
        self, registry: Registry, job: Job, weights: Mapping[str, ResolvedWeights], data: Data, emit: Emit
    ) -> None:
        self.registry, self.job, self.weights, self.emit = registry, job, weights, emit
        self.store = Store(Path(job.results))
        self.rows = [row.planned(registry) for row in job.rows]
        self._faults: list[ForesightError] = []
        self._warnings: list[str] = []
        self.suite = registry.suites[job.suite].spec
        self.experiments = {spec.name: spec for spec in self.suite.experiments}
        self.shared = Workbench(registry, data, job.device, weights)
        self._backbones: dict[object, FeatureSet] = {}
        self._cache: FeatureCache | None = None

    def run(self) -> Sequence[ForesightError]:
        """Compute every cell; one file each, written the moment the cell ends.

        Returns:
            What a user must mend before some encoder can run at all: its weights, its plugin, the size of the
            frames. Its cells have failed; those of the others are there.

        Raises:
            DataError: the data is not the suite's, or a split shares a frame with another.
        """
        torch.set_num_threads(self.job.threads)
        self._check_data()
        try:
            for row in self.rows:
                gc.freeze()  # what was imported stays: to look through it after each row took .25 s
                self._run_row(row)
                gc.collect()
        finally:
            self._close_cache()
        return self._faults

    def _check_data(self) -> None:
        for name in self.shared.data.names:
            self.emit(Event(f"rendering {name}"))
            self.shared.split(name)  # into memory, where the digest then finds it
            found = "" if self.job.limit else self.shared.data.digest(name)
            if found and found != self.suite.digests.get(name):
                raise DataError(
                    f"Split '{name}' of suite {self.suite.name} is not the one its digest names ({found[:12]}).",
                    "Run `foresight-bench scenes verify`; a changed generator needs a new suite version.",
                )
        self.shared.data.check_disjoint()

    def _run_row(self, row: Row) -> None:
        self.emit(Event(began=row.label))
        self._warnings = []
        try:
            with restored(self._warnings.append):
                features = self._features(row)
        except Exception as error:
            failure = classify(error)
            for cell in row.cells:
                self._write_failed(cell, failure)
            if isinstance(error, EnvironmentFault | PluginError):
                self._faults.append(error)
            return
        adapting = Adapting(
            self.shared,
            features,
            [
                Wanted(identity.adapter, identity.decoder, identity.seed)
                for identity in (cell.identity for cell in row.cells)
                if identity.adapter is not None and identity.decoder is not None
            ],
        )
        for cell in row.cells:
            self.emit(Event(began=cell.id))
            started = time.monotonic()
            try:
                with restored(self._warnings.append):
                    self._run_cell(cell, features, adapting, started)
            except Exception as error:
                if isinstance(error, EnvironmentFault) and not isinstance(error, WeightsError | DataError):
                    raise  # the disk is full: every further cell would fail alike
                self._write_failed(cell, classify(error))

    def _features(self, row: Row) -> FeatureSet:
        seed = row.cells[0].identity.seed
        parts = [self._stream_features(stream, seed) for stream in row.streams]
        if len(parts) == 1:
            return parts[0]
        joined = transforms.hybrid(parts, [stream.name for stream in row.streams])
        return replace(joined, parameters=transforms.parameters(parts, [stream.backbone for stream in row.streams]))

    def _stream_features(self, stream: Stream, seed: int) -> FeatureSet:
        # Random weights are drawn for the deepest tap asked for: what else is selected must not change them.
        taps = self.registry.taps(stream) if stream.random else self._all_taps(stream)
        key = stream.backbone, taps, seed if stream.random else 0
        if key not in self._backbones:
            self._backbones.clear()  # one encoder's features at a time: they are the largest thing in memory
            self._close_cache()
            self._backbones[key] = self._extract(stream, taps, seed)
        features = self._backbones[key].at(self.registry.taps(stream))
        if "pooled" in stream.transforms:
            features = transforms.pooled(features)
        if "shuffled" in stream.transforms:
            features = transforms.shuffled(features, self.shared.data.scored)
        return features

    def _all_taps(self, stream: Stream) -> tuple[str, ...]:
        """Return, in order of depth, the taps of a stream's model that any row of the job reads."""
        streams = [other for row in self.rows for other in row.streams if other.backbone == stream.backbone]
        wanted = {tap for other in streams for tap in self.registry.taps(other)}
        return tuple(tap for tap in self.registry.variant(stream).taps if tap in wanted)

    def _extract(self, stream: Stream, taps: tuple[str, ...], seed: int) -> FeatureSet:
        spec, variant = self.registry.encoders[stream.name].spec, self.registry.variant(stream)
        weights = None
        if variant.weights is not None and not stream.random:
            weights = self.weights[variant.weights.name]
        name = self.registry.label((stream.backbone,))

        def load() -> Encoder:
            self.emit(Event(f"{name}: loading"))
            setup = EncoderSetup(
                weights=weights,
                taps=taps,
                device=str(self.shared.device),
                precision=self.job.precision,
                compiled=self._compiles(),
                seed=seed,
            )
            encoder: Encoder = target(spec.target)(setup, **self.registry.params(stream))
            return encoder

        identities = feature_identities(
            self.registry,
            stream,
            taps,
            self.suite,
            weights=weights,
            seed=seed,
            precision=self.job.precision,
            machine=self.job.provenance.machine,
            libraries=library_versions(minor=True),
            limit=self.job.limit or None,
        )
        if identities:
            model = self.job.provenance.device
            self._cache = FeatureCache(identities, model, self._compiles(), lambda text: self.emit(Event(text)))
        return extract(
            load,
            taps,
            self.shared.data,
            control=spec.control,
            stem=variant.stem,
            device=self.shared.device,
            progress=lambda frames: self.emit(Event(f"{name}: features", frames)),
            cache=self._cache,
            probed=not spec.control,  # a control may describe no region, and shows what it is by what it scores
        )

    def _close_cache(self) -> None:
        """Wait until the features that are kept are written; only then can their memory be had for others."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _compiles(self) -> bool:
        if self.job.compiled is not None:
            return self.job.compiled
        data = self.shared.data
        frames = frame_count({name: data.blocks(name) for name in data.names})
        return self.shared.device.type == "cuda" and frames >= COMPILED_FRAMES

    def _run_cell(self, cell: PlannedCell, features: FeatureSet, adapting: Adapting, started: float) -> None:
        identity = cell.identity
        own = self.experiments[identity.experiment]
        (spec,) = reporting(self.registry, [own], identity.parameters.get(PART, ()))
        controls = self._control_scores(cell) if cell.controls else None
        names = identity.adapter or "", identity.decoder or ""
        bench = Bench(self.shared, features, identity.seed, *names, adapting, identity.encoder)
        self.emit(Event(f"{identity.encoder}: {spec.name}"))
        outcome: Outcome = target(spec.target)(spec).run(
            bench, lambda text: self.emit(Event(f"{identity.encoder}: {spec.name} {text}"))
        )
        results = metric_results(spec, outcome, self.registry, controls)
        judged = [Verdict(result.verdict) for result in results if result.verdict is not None]
        scores = pack({**keyed(outcome.measurements, "score"), **keyed(outcome.shuffled, "shuffled")})
        self._write(
            Cell(
                id=cell.id,
                identity=identity,
                status="ok",
                warnings=tuple(dict.fromkeys(self._warnings)),
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
                    encoder_parameters=features.parameters,
                ),
                provenance=self._provenance(),
            ),
            scores,
            outcome.picture,
        )

    def _control_scores(self, cell: PlannedCell) -> dict[str, dict[str, Scores]]:
        """Return the gating scores of the control rows that stand beside ``cell``.

        Raises:
            ForesightError: one of them failed. A verdict without it would stand for good.
        """
        controls = {}
        for name, cell_id in cell.controls.items():
            control = self.store.find(cell.identity.cohort, self.job.provenance.machine, name, cell_id)
            if control is None or control.status not in FINISHED:
                raise ForesightError(f"The control {name}, which it is judged beside, is not finished.")
            if control.status == "ok":
                controls[name] = {
                    key.metric: scores
                    for key, scores in self.store.scores(control).items()
                    if (key.row, key.tap, key.readout) == ("score", control.tap, control.readout)
                }
        return controls

    def _write_failed(self, cell: PlannedCell, failure: Failure) -> None:
        failed = Cell(
            id=cell.id,
            identity=cell.identity,
            status=failure.status,
            reason=failure.reason,
            warnings=tuple(dict.fromkeys(self._warnings)),
            provenance=self._provenance(),
        )
        self._write(failed, failure="" if failure.status in FINISHED else failure.traceback)  # a skip is no failure

    def _write(self, cell: Cell, scores: bytes = b"", picture: bytes = b"", failure: str = "") -> None:
        self.store.write(cell, scores, picture, failure)
        self.emit(Event(outcome_line(cell), CELL_UNITS, ended=cell.id))

    def _provenance(self) -> Provenance:
        return self.job.provenance.model_copy(update={"finished": datetime.now(UTC).isoformat(timespec="seconds")})

    def _peak_memory(self) -> int:
        if self.shared.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.shared.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
