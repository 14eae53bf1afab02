"""Weights from the Hugging Face hub and from its cache on this machine: one file, or a checkpoint in shards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from foresight_bench.checkpoints import CONFIG, Checkpoint
from foresight_bench.errors import WeightsError
from foresight_bench.specs import HubFile, HubFolder

SECONDS = 3.0
"""How long the hub may take to answer at all; a download that has begun is not limited."""


class Absent(Exception):
    """This source does not hold the weights; the text says why, and the next source is tried."""


def cached(hub: HubFile | HubFolder, needed: Callable[[str], bool]) -> Path:
    """Return the file, or the folder with every shard that holds a needed tensor, from the local cache.

    Raises:
        Absent: it is not there, or not all of it.
        WeightsError: the config or the index of a snapshot cannot be read.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    name = hub.filename if isinstance(hub, HubFile) else _inside(hub, CONFIG)
    try:
        found = try_to_load_from_cache(hub.repo, name, cache_dir=constants.HF_HUB_CACHE, revision=hub.revision)
    except OSError as error:
        raise Absent(f"it cannot be read ({type(error).__name__})") from error
    if not isinstance(found, str):
        raise Absent(f"{hub.repo} is not there")
    if isinstance(hub, HubFile):
        return Path(found)
    folder = Path(found).parent
    checkpoint = Checkpoint(folder)
    if not any((folder / name).is_file() for name in checkpoint.names):
        raise Absent(f"of {hub.repo} no safetensors are there")
    lacking = [file.name for file in checkpoint.files(needed) if not file.is_file()]
    if lacking:
        raise Absent(f"of {hub.repo} {len(lacking)} needed shards are not there, {lacking[0]} for one")
    return folder


def fetched(hub: HubFile | HubFolder, needed: Callable[[str], bool], notify: Callable[[str], None]) -> Path:
    """Return the file, or the folder with every shard that holds a needed tensor, from the hub.

    All of a snapshot is of one commit. What of it is on this machine already is not fetched again.

    Raises:
        Absent: the hub may not be asked, does not answer, or does not give it.
        WeightsError: the checkpoint is not of the type that ``hub`` names; its shards are then not fetched.
    """
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise Absent("HF_HUB_OFFLINE is set")
    name = hub.filename if isinstance(hub, HubFile) else _inside(hub, CONFIG)
    _ask(hub.repo, hf_hub_url(hub.repo, name, revision=hub.revision))
    notify(f"fetching {hub.repo} from the Hugging Face hub")
    found = _fetch(hub.repo, name, hub.revision)
    if found is None:
        raise Absent(f"{hub.repo} holds no {name}")
    if isinstance(hub, HubFile):
        return found
    folder = found.parent
    checkpoint = Checkpoint(folder)
    checkpoint.expect(*hub.expected)
    revision = commit(hub, folder)
    if all(_fetch(hub.repo, _inside(hub, name), revision) is None for name in checkpoint.names):
        raise Absent(f"{hub.repo} holds no safetensors")
    for file in checkpoint.files(needed):
        if _fetch(hub.repo, _inside(hub, file.name), revision) is None:
            raise WeightsError(f"The index of {hub.repo} names {file.name}, which the hub does not hold.")
    return folder


def commit(hub: HubFile | HubFolder, path: Path) -> str:
    """Return the commit that ``revision`` stood for, which is what the snapshot's folder is called."""
    inside = Path(hub.filename if isinstance(hub, HubFile) else hub.subfolder).parts
    snapshot = path.parents[len(inside) - 1] if inside else path
    return snapshot.name if snapshot.parent.name == "snapshots" else hub.revision


def _inside(hub: HubFolder, name: str) -> str:
    return f"{hub.subfolder}/{name}" if hub.subfolder else name


def _fetch(repo: str, filename: str, revision: str) -> Path | None:
    """Return a file of the hub's, None if that has no such file."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename, revision=revision, cache_dir=constants.HF_HUB_CACHE))
    except Exception as error:
        # The local kind means that the hub could not be asked.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise Absent(f"{filename} of {repo} could not be fetched ({type(error).__name__})") from error


def _ask(repo: str, url: str) -> None:
    """Raise :class:`Absent` unless the hub says within seconds that it has ``url``.

    ``hf_hub_download`` alone retries for most of a minute, and warns each time, on a machine without
    network. The thread bounds what the request's own timeout does not: name look-up, several addresses.
    """
    from huggingface_hub import get_hf_file_metadata

    failures: list[str] = []

    def request() -> None:
        try:
            get_hf_file_metadata(url, timeout=SECONDS)
        except Exception as error:  # whichever client library is behind it
            failures.append(type(error).__name__)

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        thread = threading.Thread(target=request, daemon=True)
        thread.start()
        thread.join(SECONDS + 1)
    finally:
        logger.setLevel(level)
    if thread.is_alive():
        raise Absent(f"no answer for {repo} within {SECONDS + 1:.0f} seconds")
    if failures:
        raise Absent(f"{repo} cannot be had ({failures[0]})")
