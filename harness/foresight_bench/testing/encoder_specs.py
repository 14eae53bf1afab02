"""The checks of what an encoder says about itself; nothing of it runs. ``encoders`` has the whole set."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from foresight_bench import names
from foresight_bench.checkpoints import Checkpoint
from foresight_bench.contracts import EncoderSetup
from foresight_bench.errors import ForesightError, PluginError, WeightsError
from foresight_bench.registry import target
from foresight_bench.specs import EncoderSpec, Variant
from foresight_bench.testing.kit import Broken, Checks, NotApplicable, Unverified
from foresight_bench.testing.subjects import EncoderSubject
from foresight_bench.weights import digest

ENCODER_CHECKS: Checks[EncoderSubject] = Checks()

HEAVY = ("torch", "torchvision", "transformers", "timm", "diffusers", "tensorflow", "jax", "cv2", "scipy.stats")
"""What takes from a third of a second to many seconds to import."""
IMPORT_SECONDS = 60
"""After which the process is given up, should what loads plugins not have given up before."""

_IMPORT = """
import json, os, sys
from importlib.metadata import EntryPoint
from foresight_bench.plugins import load_one

class Watch:
    found = {}

    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame.f_back and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        self.found.setdefault(name, f"{frame.f_globals.get('__name__')}, line {frame.f_lineno}")

sys.meta_path.insert(0, Watch())
name, value, *heavy = sys.argv[1:]
plugin = load_one(EntryPoint(name, value, "foresight_bench"))
imported = {each: Watch.found.get(each, "?") for each in heavy if each in sys.modules}
print()
print(json.dumps([plugin.quarantine, imported]), flush=True)
os._exit(0)  # an import that was given up may still be under way
"""


@ENCODER_CHECKS.must("Importing the plugin's entry module and asking it for its specs imports no heavy library.")
def import_light(subject: EncoderSubject) -> None:
    """Import the entry module in a process of its own, and see what came along."""
    plugin = subject.registry.encoders[subject.spec.name].plugin
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _IMPORT, plugin.name, plugin.module, *HEAVY]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=IMPORT_SECONDS, text=True)
    except subprocess.TimeoutExpired as error:
        raise Broken(f"Importing {plugin.module} takes over {IMPORT_SECONDS} s; it must only define specs.") from error
    if done.returncode:
        raise Broken(f"Importing {plugin.module} in a new process ends it: {_last(done.stderr)}.")
    quarantine, imported = json.loads(_last(done.stdout))
    if imported:
        found = "; ".join(f"{name} (from {place})" for name, place in imported.items())
        raise Broken(
            f"Importing {plugin.module} imports {found}: every `list` and `plan` pays for it. Usually the spec stands "
            "in the module of the class that its target names; put it in one of its own."
        )
    if quarantine:
        raise Broken(f"{plugin.module} cannot be loaded in a new process: {quarantine.rstrip('.')}.")


@ENCODER_CHECKS.must("The spec follows the grammar of names, its taps agree, and its target takes its parameters.")
def spec_valid(subject: EncoderSubject) -> None:
    """Collect everything that is wrong, of all variants."""
    faults = [*_faults(subject.spec), *_target_faults(subject.spec)]
    if faults:
        raise Broken(" ".join(faults))


@ENCODER_CHECKS.must("The spec names the licence under which the encoder may be used.")
def licence(subject: EncoderSubject) -> None:
    """See that there is one."""
    if subject.spec.control:
        raise NotApplicable("It is a control, which comes under its suite's licence.")
    if not subject.spec.licence.strip():
        raise Broken("The spec has no licence: set EncoderSpec.licence to that of the weights, e.g. 'Apache-2.0'.")


@ENCODER_CHECKS.must("The weights can be had, and have a digest.")
def weights(subject: EncoderSubject) -> None:
    """Resolve them."""
    if subject.variant.weights is None:
        raise NotApplicable("It has no weights.")
    found = subject.weights
    if found is None:
        raise NotApplicable("Its name asks for random weights.")
    if isinstance(found, WeightsError):
        raise Unverified(f"{found.message} {found.hint} Everything else is checked with random weights.")
    if not digest(found, subject.registry.needs(subject.stream)):
        raise Broken(f"The weights from {found.source} have no digest, so no result could say what it was made with.")
    if not Checkpoint(found.path).files(subject.variant.needs(subject.variant.taps)):
        raise Broken(
            "No tap needs any tensor of the weights. Usually the prefixes of Variant.parts do not match the names of "
            "the checkpoint's tensors."
        )


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].rstrip(".") if lines else "it says nothing"


def _faults(spec: EncoderSpec) -> Iterator[str]:
    if not _reads(spec.name, lambda stream: stream.name == spec.name):
        yield f"The name '{spec.name}' does not follow the grammar: lower case letters, digits, '.', '_' and '-'."
    variants = [variant.name for variant in spec.variants]
    if not variants:
        yield "It has no variant; one called 'default' will do."
    yield from _twice("variant", variants)
    for key, value in spec.options.items():
        if not _reads(f"x:{key}=1", lambda stream: bool(stream.params)):
            yield f"The option '{key}' cannot be written in a name: use lower case letters, digits and '_'."
        yield from _plain(f"option '{key}'", value)
    for variant in spec.variants:
        yield from (f"Variant '{variant.name}': {fault}" for fault in _variant_faults(variant))


def _variant_faults(variant: Variant) -> Iterator[str]:
    if not _reads(f"x:{variant.name}", lambda stream: stream.variant == variant.name):
        yield "its name does not follow the grammar: lower case letters, digits, '.', '_' and '-'."
    for tap in variant.taps:
        if tap == "all" or "," in tap or ".." in tap or not _reads(f"x@{tap}", lambda stream: bool(stream.taps)):
            yield f"the tap '{tap}' cannot be selected by that name: lower case letters, digits, '.', '_' and '-'."
    if not variant.default_taps:
        yield "it has no default taps, so that a run without a selection would read none."
    yield from _twice("tap", variant.taps)
    for field, taps in (("default_taps", variant.default_taps), ("stem", variant.stem)):
        strange = [tap for tap in taps if tap not in variant.taps]
        if strange:
            yield f"{field} names {', '.join(strange)}, which is not among its taps."
        elif list(taps) != sorted(set(taps), key=variant.taps.index):
            yield f"{field} is not in order of depth, as the taps are."
    if variant.output and variant.output not in variant.taps:
        yield f"output names {variant.output}, which is not among its taps."
    strange = sorted({part.tap for part in variant.parts} - set(variant.taps))
    if strange:
        yield f"parts names {', '.join(strange)}, which is not among its taps."
    for key, value in variant.params.items():
        yield from _plain(f"parameter '{key}'", value)


def _target_faults(spec: EncoderSpec) -> Iterator[str]:
    try:
        made: Any = target(spec.target)
        signature = inspect.signature(made)
    except PluginError as error:
        yield f"{error.message} {error.hint}"
        return
    except (TypeError, ValueError):
        yield f"The target {spec.target} cannot be called."
        return
    for variant in spec.variants:
        try:
            signature.bind(EncoderSetup(), **{**variant.params, **spec.options})
        except TypeError as error:
            yield f"Variant '{variant.name}': {spec.target} does not take its parameters and options: {error}."


def _reads(text: str, holds: Callable[[names.Stream], bool]) -> bool:
    """Return whether ``text`` is one stream of which ``holds`` is true."""
    try:
        streams = names.parse(text)
    except ForesightError:
        return False
    return len(streams) == 1 and str(streams[0]) == text and holds(streams[0])


def _twice(what: str, found: Sequence[str]) -> Iterator[str]:
    for name in sorted({name for name in found if found.count(name) > 1}):
        yield f"The {what} '{name}' is there twice."


def _plain(what: str, value: object) -> Iterator[str]:
    if type(value) not in (str, int, float, bool):
        yield f"The {what} is a {type(value).__name__}; only str, int, float and bool can stand in a name or a result."
