"""What the checks of adapters, decoders and metrics share."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foresight_bench.fitting import KINDS
from foresight_bench.isolation import restored
from foresight_bench.registry import Registry
from foresight_bench.testing.kit import Broken, Unverified
from foresight_bench.testing.subjects import PartSubject

HEAVY = ("torch", "tensorflow", "jax", "transformers", "diffusers", "timm")
"""What no plugin may import before it works: torch alone takes seconds, which every `list` would pay for it."""

Values = Tensor | NDArray[np.generic]


def module_of(registry: Registry, spec: object) -> str:
    """Return the module of the entry point that ``spec`` came from; empty if no plugin of the registry has it."""
    hook = next(hook for hook, kind in KINDS.items() if isinstance(spec, kind))
    for plugin in registry.plugins:
        if any(spec in specs for name, specs in plugin.contributions if name == hook):
            return plugin.module.partition(":")[0]
    return ""


def require_light(subject: PartSubject) -> None:
    """Raise :class:`Broken` if the entry point's module imports a heavy library, as a process of its own finds it."""
    module = module_of(subject.registry, subject.spec)
    if not module:
        raise Unverified("No installed plugin provides this spec, so there is no entry point to import.")
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Broken(f"{module} cannot be imported by itself: {last}")
    found = sorted(set(HEAVY) & set(done.stdout.split()))
    if found:
        raise Broken(
            f"Importing {module} imports {', '.join(found)}, and every command would wait for it. Usually the module "
            "that holds the hooks also holds the class; move the class to a module that only `target` names."
        )


def require_settings_kept(work: Callable[[], object]) -> None:
    """Raise :class:`Broken` if a setting of the process is not what it was before ``work``."""
    found: list[str] = []
    with restored(found.append):
        work()
    if found:
        raise Broken(
            f"{' '.join(found)} Whatever runs next in the process runs with it; usually a global setting was used "
            "where a context manager would do."
        )


@contextmanager
def untouched(values: Mapping[str, Values]) -> Iterator[None]:
    """Raise :class:`Broken` on leaving if any of ``values``, by what they are called, has changed."""
    before = {name: bytes_of(value) for name, value in values.items()}
    yield
    changed = [name for name, value in values.items() if bytes_of(value) != before[name]]
    if changed:
        raise Broken(
            f"{' and '.join(changed)} changed in place, and others read the same memory. Usually an operation with a "
            "trailing underscore, `+=` or `out=` was meant for a copy."
        )


def bytes_of(values: Values) -> bytes:
    """Return the bits of ``values``."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return array.tobytes()


def move_generators(seed: int) -> None:
    """Seed every global random generator, so that what draws from one gives another answer for another ``seed``."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global random generators back on leaving."""
    with restored(lambda text: None):
        yield


def noise(*shape: int, seed: int) -> Tensor:
    """Return standard normal values of ``shape``, float32, the same for everyone."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
