"""Checkpoints on disk: a weights file, or a folder with config.json and safetensors in one file or in shards.

Headers of safetensors are read without torch, so that a plan can say what is missing, wrong or too large before
anything is loaded. Tensors are then read one at a time, and only those that are asked for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foresight_bench.errors import ContractError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Shape = tuple[int, ...]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DIFFUSERS = "diffusion_pytorch_"
"""What diffusers puts before either name."""
CONFIG = "config.json"
SUFFIX = ".safetensors"
PICKLES = (".pth", ".pt", ".bin")
"""Read with ``weights_only``; whatever holds more than tensors is refused."""

_WHAT_IT_IS = "A checkpoint is a folder with config.json and safetensors, as on the Hugging Face hub."
_AGAIN = "Fetch the checkpoint again; it is incomplete or damaged."


class Checkpoint:
    """A checkpoint at ``path``, a file or a folder. What has been read of it is kept, tensors apart.

    Raises:
        WeightsError: (any member) there is none, its config or index cannot be read or contradicts its shards, or
            a shard that is read is missing or not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._headers: dict[Path, dict[str, Shape]] = {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json; empty for a single file."""
        if not self.path.is_dir():
            return {}
        found = _json(self.path / CONFIG)
        if not isinstance(found, dict):
            raise WeightsError(f"The folder {self.path} is not a checkpoint: its {CONFIG} holds no mapping.", _AGAIN)
        return found

    @property
    def names(self) -> tuple[str, str]:
        """What a folder's index and its single file are called, by the library that wrote its config.json, if any."""
        prefix = DIFFUSERS if (self.path / CONFIG).is_file() and "_class_name" in self.config else ""
        return prefix + INDEX, prefix + SINGLE

    @cached_property
    def shards(self) -> Mapping[str, Path]:
        """The file of each tensor, by the tensor's name. Shards need not be there; reading them is what fails."""
        if not self.path.is_dir():
            return dict.fromkeys(self._header(self.path), self.path)
        index, single = (self.path / name for name in self.names)
        if index.is_file():
            return {name: self.path / file for name, file in _weight_map(index).items()}
        if single.is_file():
            return dict.fromkeys(self._header(single), single)
        pickles = sorted(file.name for file in self.path.glob("*") if file.suffix in PICKLES)
        if pickles:
            raise WeightsError(
                f"The folder {self.path} holds {pickles[0]}, but a checkpoint folder needs {single.name} "
                f"or {index.name}.",
                "Convert it to safetensors where you trust it, or fetch a revision that has them.",
            )
        raise WeightsError(
            f"The folder {self.path} is not a checkpoint: it holds neither {single.name} nor {index.name}.",
            _WHAT_IT_IS,
        )

    def expect(self, name: str, key: str = "model_type") -> None:
        """Raise :class:`WeightsError` unless config.json says ``name`` under ``key``."""
        found = self.config.get(key)
        if found != name:
            kind = f"is a '{found}' checkpoint" if found else f"names no {key} in its {CONFIG}"
            raise WeightsError(
                f"The folder {self.path} {kind}, not '{name}'.", "Give the checkpoint that these weights are asked for."
            )

    def files(self, keep: Callable[[str], bool]) -> tuple[Path, ...]:
        """Return the files that hold the tensors whose names ``keep`` accepts, sorted; they need not be there."""
        return tuple(dict.fromkeys(file for _, file in self._kept(keep)))

    def shapes(self, keep: Callable[[str], bool]) -> dict[str, Shape]:
        """Return the kept tensors' shapes by name."""
        found = {}
        for name, file in self._kept(keep):
            header = self._header(file)
            if name not in header:
                raise WeightsError(f"The weights file {file} lacks '{name}', which the index puts there.", _AGAIN)
            found[name] = header[name]
        return found

    def values(self, keep: Callable[[str], bool]) -> int:
        """Return how many values the kept tensors hold."""
        return sum(map(prod, self.shapes(keep).values()))

    def tensors(
        self, keep: Callable[[str], bool], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of the kept tensors, on ``device`` and, if floating point, as ``dtype``.

        No more than one is held. All headers are checked before the first is read.
        """
        from safetensors import SafetensorError, safe_open

        self.shapes(keep)
        for file, group in groupby(self._kept(keep), key=lambda entry: entry[1]):
            if file.suffix in PICKLES:
                state = _unpickled(file)
                yield from ((name, _placed(state[name], device, dtype)) for name, _ in group)
                continue
            try:
                opened = safe_open(file, framework="pt", device=str(device))
            except (OSError, SafetensorError) as error:
                raise _unreadable(file, error) from error
            with opened as shard:
                yield from ((name, _placed(shard.get_tensor(name), device, dtype)) for name, _ in group)

    def _kept(self, keep: Callable[[str], bool]) -> list[tuple[str, Path]]:
        """Return name and file of the kept tensors, file after file."""
        return sorted(((name, file) for name, file in self.shards.items() if keep(name)), key=lambda entry: entry[1])

    def _header(self, file: Path) -> dict[str, Shape]:
        if file not in self._headers:
            self._headers[file] = _header(file)
        return self._headers[file]


def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Give each parameter and persistent buffer of ``module`` its tensor; a module on ``meta`` takes them over.

    Tied parameters need one entry each.

    Args:
        module: on ``meta``, or anywhere; its values are replaced.
        tensors: name in the module and value, on the device and in the precision to run in.
        what: what the module is, for messages.

    Raises:
        WeightsError: an entry is missing, unexpected, there twice or of another shape: half a model is never loaded.
        ContractError: something of the module that no checkpoint holds was left on ``meta``.
    """
    state: dict[str, Tensor] = {}
    wrong: dict[str, str] = {}
    for name, value in tensors:
        if name in state:
            wrong[name] = f"{name} is there twice"
        state[name] = value
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in shapes.keys() | state.keys():
        if name not in state:
            wrong[name] = f"{name} is missing"
        elif name not in shapes:
            wrong[name] = f"{name} is not part of it"
        elif shapes[name] != tuple(state[name].shape):
            wrong[name] = f"{name} is {tuple(state[name].shape)} instead of {shapes[name]}"
    if wrong:
        first = [wrong[name] for name in sorted(wrong)[:3]]
        raise WeightsError(
            f"The weights are not those of {what}: {len(wrong)} entries differ ({'; '.join(first)}).",
            "Give weights of this model and of this size.",
        )
    module.load_state_dict(state, strict=True, assign=True)
    adrift = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if adrift:
        raise ContractError(f"No checkpoint holds {', '.join(adrift)} of {what}: it must be built on the device.")


def _placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    # Detached, because a pickle may hold parameters, whose copies would drag a graph along.
    return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor; it names files of the index's own folder and nothing else."""
    try:
        entries = dict(_json(index)["weight_map"].items())
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"The index {index} holds no weight_map.", _AGAIN) from error
    for file in entries.values():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(SUFFIX):
            raise WeightsError(f"The index {index} names {file!r}, which is no {SUFFIX} file beside it.", _AGAIN)
    return entries


def _header(file: Path) -> dict[str, Shape]:
    """Return the shape of each tensor in ``file``, having seen that the file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    if file.suffix in PICKLES:
        return {name: tuple(tensor.shape) for name, tensor in _unpickled(file).items()}
    if file.suffix != SUFFIX:
        raise WeightsError(
            f"The weights file {file} is neither {SUFFIX} nor one of {', '.join(PICKLES)}.", "Convert it first."
        )
    if not file.is_file():
        raise WeightsError(f"The weights file {file} is not there.", _AGAIN)
    try:
        # "numpy" only because a framework must be named: no tensor is read, so none is needed that knows bfloat16.
        with safe_open(file, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"The weights file {file} is not a whole safetensors file: {_brief(error)}.", "Provide it anew."
        ) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle; an archive of today's format is mapped into memory, not read."""
    import pickle

    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"The weights file {file} holds more than tensors and is refused: loading it could run code.",
            "Convert it to safetensors where you trust it.",
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _unreadable(file, error) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise WeightsError(
            f"The weights file {file} is not a mapping from names to tensors.", "Save the model's state_dict alone."
        )
    return state


def _unreadable(file: Path, error: Exception) -> WeightsError:
    return WeightsError(f"The weights file {file} cannot be read: {_brief(error)}.", "Provide it anew.")


def _brief(error: Exception) -> str:
    """Return the first sentence of what went wrong, or at least its kind."""
    lines = str(error).split(". ")[0].splitlines()
    return (lines[0].strip().rstrip(".") if lines else "") or type(error).__name__


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"The folder {file.parent} is not a checkpoint: it holds no {file.name}.", _WHAT_IT_IS
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"The file {file} cannot be read: {_brief(error)}.", "Provide it anew.") from error
