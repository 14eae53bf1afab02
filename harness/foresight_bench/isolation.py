"""Settings of the whole process that a plugin may change: put back once it has run, so that nobody else runs with them.

Random generators are put back too; that one was used is no fault, and is not mentioned.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

COMPILERS = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_")
"""Starts of the environment variables that torch sets for itself when it compiles, and later relies on."""


@contextmanager
def restored(changed: Callable[[str], None]) -> Iterator[None]:
    """Put settings back on leaving, however that is, and call ``changed`` with a sentence for each that differed."""
    before, environment, generators = _settings(), _environment(), _generators()
    try:
        yield
    finally:
        after = _settings()
        for name, value in before.items():
            if after[name] != value:
                changed(f"{name} was changed from {value} to {after[name]} and put back.")
                _SETTERS[name](value)
        for key in sorted({key for key, _ in environment.items() ^ _environment().items()}):
            changed(f"The environment variable {key} was changed and put back.")
            if key in environment:
                os.environ[key] = environment[key]
            else:
                del os.environ[key]
        for put_back in generators:
            put_back()


def _attribute(owner: Any, name: str) -> Callable[[Any], None]:
    return lambda value: setattr(owner, name, value)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""  # removed meanwhile


def _go(folder: str) -> None:
    with suppress(FileNotFoundError):
        os.chdir(folder)


_GETTERS: Mapping[str, Callable[[], Any]] = {
    "torch.get_default_dtype": torch.get_default_dtype,
    "torch.get_default_device": torch.get_default_device,
    "torch.is_grad_enabled": torch.is_grad_enabled,
    "torch.get_num_threads": torch.get_num_threads,
    "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision,
    "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled,
    "torch.backends.cudnn.enabled": lambda: torch.backends.cudnn.enabled,
    "torch.backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "torch.backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "torch.backends.cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "torch.backends.cuda.flash_sdp_enabled": torch.backends.cuda.flash_sdp_enabled,
    "torch.backends.cuda.mem_efficient_sdp_enabled": torch.backends.cuda.mem_efficient_sdp_enabled,
    "torch.backends.cuda.math_sdp_enabled": torch.backends.cuda.math_sdp_enabled,
    "os.getcwd": _folder,
}
_SETTERS: Mapping[str, Callable[[Any], None]] = {
    "torch.get_default_dtype": torch.set_default_dtype,
    # A default of "cpu" by name would send every call of torch through a hook, which no default at all does not.
    "torch.get_default_device": lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    "torch.is_grad_enabled": torch._C._set_grad_enabled,
    "torch.get_num_threads": torch.set_num_threads,
    "torch.get_float32_matmul_precision": torch.set_float32_matmul_precision,
    "torch.are_deterministic_algorithms_enabled": torch.use_deterministic_algorithms,
    "torch.backends.cudnn.enabled": _attribute(torch.backends.cudnn, "enabled"),
    "torch.backends.cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "torch.backends.cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "torch.backends.cudnn.allow_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
    "torch.backends.cuda.flash_sdp_enabled": torch.backends.cuda.enable_flash_sdp,
    "torch.backends.cuda.mem_efficient_sdp_enabled": torch.backends.cuda.enable_mem_efficient_sdp,
    "torch.backends.cuda.math_sdp_enabled": torch.backends.cuda.enable_math_sdp,
    "os.getcwd": _go,
}


def _settings() -> dict[str, Any]:
    return {name: get() for name, get in _GETTERS.items()}


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(COMPILERS)}


def _generators() -> tuple[Callable[[], None], ...]:
    """Return what puts each random generator back as it is now."""
    own, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    put_back = [lambda: random.setstate(own), lambda: np.random.set_state(numpys), lambda: torch.set_rng_state(torchs)]  # noqa: NPY002
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = torch.cuda.get_rng_state_all()
        put_back.append(lambda: torch.cuda.set_rng_state_all(devices))
    return tuple(put_back)
