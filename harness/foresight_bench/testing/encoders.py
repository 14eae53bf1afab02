"""All checks of an encoder; the one in this file is of its features' way through the cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch

from foresight_bench.caching import FeatureCache
from foresight_bench.contracts import Data, Encoder, ResolvedWeights, Split
from foresight_bench.extraction import extract
from foresight_bench.features import FeatureSet
from foresight_bench.keys import FeatureIdentity, feature_identities
from foresight_bench.specs import SuiteSpec
from foresight_bench.testing import encoder_grids, encoder_running  # noqa: F401 - they register their checks
from foresight_bench.testing.encoder_specs import ENCODER_CHECKS
from foresight_bench.testing.kit import Broken, NotApplicable, Unverified
from foresight_bench.testing.probing import Size, isolated, noise, square, values
from foresight_bench.testing.subjects import EncoderSubject

__all__ = ["ENCODER_CHECKS"]


@ENCODER_CHECKS.must("Features read from the cache are the ones that were computed, bit by bit.")
@isolated
def cached_equal(subject: EncoderSubject) -> None:
    """Extract features into a cache of their own, and out of it."""
    if subject.variant.weights is None:
        raise NotApplicable("It has no weights, and features of such encoders are not cached.")
    encoder = subject.encoder
    size = square(encoder, subject.taps)
    values(encoder, noise(size, frames=2), subject.taps)  # what is wrong with the grids is for others to say
    data: Any = _NoiseData(size)
    identities = _identities(subject, data)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FORESIGHT_BENCH_CACHE"] = folder  # put back with everything else
        fresh = _extract(subject, data, identities, encoder)
        cached = _extract(subject, data, identities, None)
    for name, ours, theirs in (("averages", fresh.coarse, cached.coarse), ("tokens", _tokens(fresh), _tokens(cached))):
        for (tap, split), each in ours.items():
            if not torch.equal(each, theirs[tap, split]):
                raise Broken(f"The {name} of tap '{tap}' come back from the cache changed, in the split '{split}'.")


class _NoiseData:
    """Three dense clips of one frame, and two of two frames of which averages are kept."""

    names, dense, scored, class_names = ("train", "test"), ("train",), ("test",), ()

    def __init__(self, size: Size) -> None:
        self._splits = {"train": Split((noise(size, 3),)), "test": Split((noise(size, 2, frames=2, seed=1),))}

    def split(self, name: str) -> Split:
        """Return one split."""
        return self._splits[name]


def _identities(subject: EncoderSubject, data: Data) -> Mapping[str, FeatureIdentity]:
    weights = subject.weights if isinstance(subject.weights, ResolvedWeights) else None
    stream = subject.stream if weights else replace(subject.stream, transforms=("random",))
    digests = dict.fromkeys(data.names, "0" * 64)  # nobody else reads this cache
    suite = SuiteSpec("conformance", "1", "", "noise", (), (), digests, "", "", ())
    found = feature_identities(
        subject.registry,
        stream,
        subject.taps,
        suite,
        weights=weights,
        seed=0,
        precision="float32",
        machine="",
        libraries={},
    )
    if found is None:
        raise Broken(
            f"Its features are never cached, because the sources of {subject.spec.target} cannot be found, or the "
            "weights have no digest. Usually the package has no __init__.py."
        )
    return found


def _extract(
    subject: EncoderSubject, data: Data, identities: Mapping[str, FeatureIdentity], encoder: Encoder | None
) -> FeatureSet:
    """Return features by way of the cache; all of them must be there if ``encoder`` is None."""
    ended: list[str] = []
    cache = FeatureCache(identities, "", False, ended.append)

    def load() -> Encoder:
        return encoder if encoder is not None else _absent()

    try:
        return extract(load, subject.taps, data, device=subject.device, batch_frames=2, cache=cache)
    finally:
        cache.close()
        if ended:
            raise Unverified(ended[0])


def _absent() -> NoReturn:
    raise Broken("Features that were put into the cache are not found in it.")


def _tokens(features: FeatureSet) -> Mapping[tuple[str, str], torch.Tensor]:
    return {key: torch.cat([grid.values for grid in blocks]) for key, blocks in features.tokens.items()}
