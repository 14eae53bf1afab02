"""What an object holds: the modules and tensors that it can be asked for, and how many parameters they are."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Holdings:
    """What can be reached from an object through attributes and containers."""

    modules: Mapping[str, nn.Module]
    """By where it was found: ``_model.blocks.0``."""
    tensors: Mapping[str, Tensor]

    def digests(self) -> Mapping[str, str]:
        """Return a SHA-256 of each tensor's bytes."""
        return {path: _digest(tensor) for path, tensor in self.tensors.items()}


def holdings(owner: object) -> Holdings:
    """Walk through ``owner``; what only a closure or a slot holds is not found."""
    modules: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque([("", owner)])
    while waiting:
        path, found = waiting.popleft()
        if id(found) in seen or isinstance(found, _LEAVES):
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            tensors[path] = found
            continue
        if isinstance(found, nn.Module):
            modules[path] = found
        waiting += [(f"{path}.{name}".strip("."), each) for name, each in _inside(found)]
    return Holdings(modules, tensors)


def parameter_count(owner: object) -> int:
    """Return how many numbers the parameters of all modules in ``owner`` are; tied ones count once, buffers do not.

    0 where there are none, or where they cannot be counted.
    """
    try:
        modules = holdings(owner).modules.values()
        found = [each for module in modules for each in module.parameters(recurse=False)]
        # By memory, because tied weights may be two objects; what has none of its own, as on meta, by object.
        return sum({(each.data_ptr() or id(each), each.shape): each.numel() for each in found}.values())
    except Exception:  # it may hold what refuses to be looked through: to count it must not end a run
        return 0


_LEAVES = (str, bytes, int, float, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, np.ndarray)
_PLACES = ("_parameters", "_buffers", "_modules")
"""Where a module keeps what one writes as its attributes."""


def _inside(found: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping):
        yield from ((str(key), each) for key, each in list(found.items()))
    elif isinstance(found, list | tuple | set | frozenset):
        yield from ((str(index), each) for index, each in enumerate(found))
    for name, each in list(getattr(found, "__dict__", {}).items()):
        if name in _PLACES and isinstance(found, nn.Module):
            yield from each.items()
        else:
            yield name, each


def _digest(tensor: Tensor) -> str:
    there = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(there.view(torch.uint8).numpy().data).hexdigest() if there.numel() else ""
