"""Conformance checks of encoders: a sound toy passes all, and each planted fault is found by its own check."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from foresight_bench.clips import ClipBatch
from foresight_bench.contracts import EncoderSetup, ResolvedWeights
from foresight_bench.errors import DataError, WeightsError
from foresight_bench.grids import Grid
from foresight_bench.names import Stream
from foresight_bench.plugins import Plugin
from foresight_bench.registry import Registry
from foresight_bench.specs import EncoderSpec, Part, Variant, Weights
from foresight_bench.testing.encoders import ENCODER_CHECKS
from foresight_bench.testing.kit import Finding, Status, run_check
from foresight_bench.testing.subjects import EncoderSubject

PATCH = 28
TAPS = ("embed", "late")
PASS, FAIL, NOT_APPLICABLE, UNVERIFIED = Status.PASS, Status.FAIL, Status.NOT_APPLICABLE, Status.UNVERIFIED


class Sound:
    """A patch convolution and a layer on top, both random; frames are resized to multiples of the patch."""

    def __init__(self, setup: EncoderSetup) -> None:
        generator = torch.Generator().manual_seed(setup.seed)
        self.model = nn.Sequential(nn.Conv2d(3, 8, PATCH, PATCH), nn.Conv2d(8, 8, 1))
        for parameter in self.model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) / PATCH
        self.model.eval().requires_grad_(False).to(setup.device)
        self.device = setup.device

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        n, t, h, w = clips.shape
        images = torch.tensor(clips.frames, device=self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        size = (round(h / PATCH) * PATCH, round(w / PATCH) * PATCH)
        embedded = self.model[0](F.interpolate(images, size, mode="bilinear", antialias=True))
        found = {"embed": embedded, "late": self.last(embedded)}
        return {tap: Grid(found[tap].permute(0, 2, 3, 1).unflatten(0, (n, t))) for tap in taps}

    def last(self, embedded: Tensor) -> Tensor:
        """[B, 8, h, w] likewise."""
        found: Tensor = self.model[1](embedded)
        return found


def bent(bend: Callable[[Tensor], Tensor]) -> type[Sound]:
    """An encoder whose last tap is ``bend`` of the sound one, [B, 8, h, w]."""

    class Bent(Sound):
        def last(self, embedded: Tensor) -> Tensor:
            return bend(super().last(embedded))

    return Bent


def windows(found: Tensor) -> Tensor:
    b, c, h, w = found.shape
    return found.reshape(b, c, h // 2, 2, w // 2, 2).transpose(3, 4).reshape(b, c, h, w)


def prefixed(found: Tensor) -> Tensor:
    tokens = found.flatten(2)
    cls = tokens.new_ones(*tokens.shape[:2], 1)
    return torch.cat([cls, tokens], 2)[..., :-1].unflatten(2, found.shape[2:])


def cropped(found: Tensor) -> Tensor:
    """The square in the middle, enlarged to the whole."""
    h, w = found.shape[2:]
    middle = found[..., (w - h) // 2 : (w + h) // 2] if w > h else found
    return F.interpolate(middle, (h, w), mode="nearest")


def padded(found: Tensor) -> Tensor:
    h, w = found.shape[2:]
    return F.pad(found, (w // 2, w // 2, h // 2, h // 2))


Transposed = bent(lambda found: found.flatten(2).unflatten(2, (found.shape[3], found.shape[2])))
DownColumns = bent(lambda found: found.transpose(2, 3).reshape(found.shape))
Rolled = bent(lambda found: found.roll(1, 3))
Windows = bent(windows)
Prefixed = bent(prefixed)
UpsideDown = bent(lambda found: found.flip(2))
Mirrored = bent(lambda found: found.flip(3))
Cropped = bent(cropped)
Padded = bent(padded)
Resampled = bent(
    lambda found: F.interpolate(found, (found.shape[2] * 7 // 4, found.shape[3] * 7 // 4), mode="bilinear")
)
Constant = bent(torch.ones_like)
ClipsMixed = bent(lambda found: found.flip(0))
CentredOnBatch = bent(lambda found: found - 0.1 * found.mean(0))
ByPlace = bent(lambda found: found + torch.arange(len(found), device=found.device).reshape(-1, 1, 1, 1))
Noisy = bent(lambda found: found + draw() / 1000)
Draws = bent(lambda found: found + 0 * torch.randn(1, device=found.device))
NaN = bent(lambda found: (found - found.amin((2, 3), True)) / (found.amax((2, 3), True) - found.amin((2, 3), True)))
OnCPU = bent(lambda found: torch.ones(found.shape) if found.is_meta else found)
WideOnSquare = bent(lambda found: found.repeat(1, 1, 1, 40) if found.shape[2] > found.shape[3] else found)

DRAWN: list[int] = []


def draw() -> int:
    DRAWN.append(0)
    return len(DRAWN)


class Layered(Sound):
    """A sound encoder with a further layer, in whatever mode and state ``layer`` is."""

    layer: Callable[[], nn.Module]

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        self.extra = type(self).layer().requires_grad_(False).to(setup.device)

    def last(self, embedded: Tensor) -> Tensor:
        found: Tensor = self.extra(super().last(embedded))
        return found


class Dropout(Layered):
    layer = staticmethod(lambda: nn.Dropout(0.1))


class BatchNorm(Layered):
    layer = staticmethod(lambda: nn.BatchNorm2d(8))


class Trained(Sound):
    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        self.model.requires_grad_(True)

    @torch.no_grad()
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return super().encode(clips, taps)


class GradientOut(Sound):
    def last(self, embedded: Tensor) -> Tensor:
        return super().last(embedded).detach().requires_grad_(True)


class Inference(Sound):
    @torch.inference_mode()
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return super().encode(clips, taps)


class Drifts(Sound):
    """Counts its calls in a buffer that no grid depends on."""

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        self.model.register_buffer("calls", torch.zeros((), device=setup.device))

    def last(self, embedded: Tensor) -> Tensor:
        self.model.calls.add_(1)  # type: ignore[operator]
        return super().last(embedded)


class Blackens(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        clips.frames[..., 0, 0, :] = 0
        return super().encode(clips, taps)


class SetsDtype(Sound):
    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        torch.set_default_dtype(torch.bfloat16)


class Unseeded(Sound):
    """Its weights come from a generator of its own that nobody seeds."""

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(replace(setup, seed=draw()))


class Flattens(Sound):
    """Takes a clip's frames for clips."""

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        found = super().encode(clips, taps)
        return {tap: Grid(grid.values.flatten(0, 1).unsqueeze(1)) for tap, grid in found.items()}


class Integers(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return {tap: Grid(grid.values.int()) for tap, grid in super().encode(clips, taps).items()}


class Bare(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        found: Any = {tap: grid.values for tap, grid in super().encode(clips, taps).items()}
        return found


class Forgets(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return {"embed": super().encode(clips, TAPS)["embed"]}


class AllTaps(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        return super().encode(clips, TAPS)


class Picky(Sound):
    """Takes frames of 256 x 256 alone."""

    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        if clips.shape[2:] != (256, 256):
            raise DataError("Only 256 x 256.")
        return super().encode(clips, taps)


class Unpadded(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        if clips.shape[2] % PATCH:
            raise RuntimeError("shape '[2, 8]' is invalid for input of size 17")
        return super().encode(clips, taps)


class Hoards(Sound):
    """Keeps the grids of every call."""

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        self.kept: list[Tensor] = []

    def last(self, embedded: Tensor) -> Tensor:
        found = super().last(embedded)
        self.kept += [embedded, found.clone()]
        return found


class Immortal(Sound):
    """Its model is in a cache of the module."""

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        KEPT.append(self.model)


class Remembered(Sound):
    """It is in a cache of the module itself."""

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        KEPT.append(self)


KEPT: list[object] = []


class Refuses(Sound):
    def encode(self, clips: ClipBatch, taps: Sequence[str]) -> Mapping[str, Grid]:
        raise DataError("No frame is good enough.")


class Numpy(Sound):
    def last(self, embedded: Tensor) -> Tensor:
        return torch.from_numpy(super().last(embedded).numpy())


class Smears(Sound):
    """Moves everything by one cell, in a direction that is drawn with the weights."""

    def __init__(self, setup: EncoderSetup) -> None:
        super().__init__(setup)
        self.step = 1 if setup.seed % 2 else -1

    def last(self, embedded: Tensor) -> Tensor:
        return super().last(embedded).roll(self.step, 2)


@pytest.fixture(autouse=True, scope="module")
def _importable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Let targets name this module, and write entry modules: a light one, and two that are not."""
    folder = tmp_path_factory.mktemp("plugins")
    hook = "from foresight_bench import hookimpl\n@hookimpl\ndef foresight_encoders():\n    return ()\n"
    (folder / "light_entry.py").write_text(hook)
    (folder / "heavy_entry.py").write_text(f"\nimport jax\n{hook}")
    (folder / "jax.py").write_text("")
    (folder / "broken_entry.py").write_text("raise OSError('no such library')")
    (folder / "bare_package").mkdir()
    (folder / "bare_package" / "model.py").write_text(f"from {Path(__file__).stem} import Sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.syspath_prepend(str(folder))
        patch.setitem(sys.modules, Path(__file__).stem, sys.modules[__name__])
        yield


@dataclass(frozen=True)
class Offline(EncoderSubject):
    """A subject whose weights are as the test says, and not looked for."""

    found: ResolvedWeights | WeightsError | None = None

    @property
    def weights(self) -> ResolvedWeights | WeightsError | None:  # type: ignore[override]
        return self.found


VARIANT = Variant("default", TAPS, TAPS, weights=Weights("toy"))
SPEC = EncoderSpec("toy", f"{Path(__file__).stem}:Sound", "a toy", (VARIANT,), "MIT")


def subject(
    made: str | EncoderSpec = SPEC,
    *,
    entry: str = "light_entry",
    found: ResolvedWeights | WeightsError | None = None,
    transforms: tuple[str, ...] = ("random",),
) -> Offline:
    spec = made if isinstance(made, EncoderSpec) else replace(SPEC, target=f"{Path(__file__).stem}:{made}")
    plugin = Plugin("toys", "toys", "1", entry, contributions=(("foresight_encoders", (spec,)),))
    stream = Stream(spec.name, spec.variants[0].name, transforms=transforms)
    return Offline(Registry([plugin]), stream, found=found)


def findings(of: EncoderSubject, *only: str) -> dict[str, Finding]:
    return {check.name: run_check(check, of) for check in ENCODER_CHECKS if not only or check.name in only}


RUNNING = tuple(name for name in ENCODER_CHECKS.names() if name != "import-light")  # which takes a process each


def test_every_check_has_a_name_of_its_own() -> None:
    assert ENCODER_CHECKS.names() == [
        *("import-light", "spec-valid", "licence", "weights"),
        *("shapes", "finite", "layout", "deterministic", "batch-invariant", "odd-sizes"),
        *("frozen", "input-untouched", "no-global-state", "device-honoured", "memory-released"),
        "cached-equal",
    ]


def test_a_sound_encoder_passes_all() -> None:
    found = findings(subject())
    others = {name: finding.message for name, finding in found.items() if finding.status is not PASS}
    assert others == {"weights": "Its name asks for random weights."}
    assert found["weights"].status is NOT_APPLICABLE


def test_of_an_encoder_without_weights_two_checks_do_not_apply() -> None:
    found = findings(subject(replace(SPEC, variants=(replace(VARIANT, weights=None),)), transforms=()), *RUNNING)
    assert {name for name, each in found.items() if each.status is NOT_APPLICABLE} == {"weights", "cached-equal"}
    assert {each.status for each in found.values()} == {PASS, NOT_APPLICABLE}


FAULTS: Sequence[tuple[str, str, str]] = (
    ("Transposed", "layout", "transposed: 12 x 8 cells"),
    ("DownColumns", "layout", "run down the columns"),
    ("Rolled", "layout", "rolled by 0 rows and 1 columns"),
    ("Windows", "layout", "windows of 2 x 2"),
    ("Prefixed", "layout", "1 prefix token"),
    ("UpsideDown", "layout", "upside down"),
    ("Mirrored", "layout", "mirrored"),
    ("Cropped", "layout", "cropped"),
    ("Padded", "layout", "padded"),
    ("Resampled", "layout", "resampled"),
    ("Constant", "layout", "does not depend on the image"),
    ("CentredOnBatch", "batch-invariant", "batch norm"),
    ("ByPlace", "batch-invariant", "order of the batch"),
    ("Noisy", "deterministic", "encoded again"),
    ("Unseeded", "deterministic", "built anew"),
    ("Trained", "frozen", "4 tensors require a gradient, model.0.weight"),
    ("GradientOut", "frozen", "grid of tap 'late' requires a gradient"),
    ("Inference", "frozen", "inference tensor"),
    ("Drifts", "frozen", "changes 1 tensors of the encoder, model.calls"),
    ("Blackens", "input-untouched", "shares their memory"),
    ("SetsDtype", "no-global-state", "torch.get_default_dtype was changed from torch.float32 to torch.bfloat16"),
    ("Draws", "no-global-state", "generator of torch"),
    ("Flattens", "shapes", "holds 4 clips; 2 of 2 frames were given"),
    ("Integers", "shapes", "must be floating point; got torch.int32"),
    ("Bare", "shapes", "is a Tensor; wrap it"),
    ("Forgets", "shapes", "No grid for late"),
    ("AllTaps", "shapes", "A grid for late, when only embed was asked for"),
    ("NaN", "finite", "of a black frame holds NaN"),
    ("Unpadded", "odd-sizes", "227 x 173 end in RuntimeError: shape '[2, 8]' is invalid"),
    ("WideOnSquare", "odd-sizes", "cells, more than pixels"),
    ("OnCPU", "device-honoured", "its grids stand on the CPU"),
    ("Hoards", "memory-released", "5 calls leave"),
    ("Remembered", "memory-released", "the encoder is still there"),
    ("Immortal", "memory-released", "still there after the encoder was dropped"),
)


@pytest.mark.parametrize(("made", "check", "message"), FAULTS, ids=[each[0] for each in FAULTS])
def test_a_planted_fault_is_found_by_its_own_check_alone(made: str, check: str, message: str) -> None:
    found = findings(subject(made), *RUNNING)
    failed = {name: each.message for name, each in found.items() if each.status is FAIL}
    assert list(failed) == [check], failed
    assert message in failed[check]
    assert not found[check].traceback


@pytest.mark.parametrize(
    ("made", "checks"),
    [
        # What is wrong with the one cause is wrong in several ways.
        ("Dropout", {"deterministic", "frozen", "no-global-state"}),
        ("BatchNorm", {"batch-invariant", "frozen"}),
    ],
)
def test_layers_in_training_mode_are_found(made: str, checks: set[str]) -> None:
    found = findings(subject(made), *RUNNING)
    assert checks <= {name for name, each in found.items() if each.status is FAIL} <= {*checks, "layout"}
    assert "1 modules are in training mode, extra among them" in found["frozen"].message
    assert made != "Dropout" or found["batch-invariant"].status is UNVERIFIED


def test_what_is_wrong_with_the_form_of_grids_leaves_other_checks_unverified() -> None:
    found = findings(subject("Forgets"), *RUNNING)
    about = {each.message for each in found.values() if each.status is UNVERIFIED}
    assert about == {"The grids are not as they must be; see the check 'shapes'."}
    assert {name for name, each in found.items() if each.status is PASS} == {"spec-valid", "licence"}


def test_sizes_are_tried_until_the_encoder_takes_one() -> None:
    found = findings(subject("Picky"), *RUNNING)
    assert {each.status for each in found.values()} == {PASS, NOT_APPLICABLE}


def test_of_an_encoder_that_takes_no_size_nothing_can_be_told() -> None:
    found = findings(subject("Refuses"), *RUNNING)
    assert found["shapes"].status is UNVERIFIED
    assert "224 x 224, 448 x 448, 256 x 256, 1024 x 1024" in found["shapes"].message


def test_with_random_weights_a_smear_that_changes_with_the_draw_is_no_fault() -> None:
    (found,) = findings(subject("Smears"), "layout").values()
    assert found.status is UNVERIFIED
    assert "a matter of the draw" in found.message
    real = ResolvedWeights(Path("toy.safetensors"), "0" * 64, "file")
    (found,) = findings(subject("Smears", found=real, transforms=()), "layout").values()
    assert found.status is FAIL


def test_no_token_of_a_floor_need_be_anywhere() -> None:
    (found,) = findings(subject(replace(SPEC, control="floor")), "layout").values()
    assert found.status is NOT_APPLICABLE


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_cannot_be_told_about() -> None:
    (found,) = findings(replace(subject(), device="cuda"), "device-honoured").values()
    assert found.status is UNVERIFIED


def test_an_encoder_that_no_device_but_the_cpu_can_run_is_unverified_without_one() -> None:
    (found,) = findings(subject("Numpy"), "device-honoured").values()
    assert found.status is UNVERIFIED
    assert "takes a GPU to tell" in found.message


def test_weights_that_cannot_be_had_are_unverified_with_the_hint() -> None:
    (found,) = findings(subject(found=WeightsError("None.", "Ask Ada."), transforms=()), "weights").values()
    assert (found.status, found.message[:14]) == (UNVERIFIED, "None. Ask Ada.")


@pytest.mark.parametrize(("prefix", "status"), [("visual.", PASS), ("vision.", FAIL)])
def test_some_part_of_the_weights_must_be_needed(prefix: str, status: Status, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {"visual.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    sha = sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    real = ResolvedWeights(tmp_path, sha, "file", {"config.json": sha, "model.safetensors": sha})
    spec = replace(SPEC, variants=(replace(VARIANT, parts=(Part(prefix, "embed"),)),))
    (found,) = findings(subject(spec, found=real, transforms=()), "weights").values()
    assert found.status is status, found
    (found,) = findings(subject(spec, found=replace(real, sha256="", files={}), transforms=()), "weights").values()
    assert "have no digest" in found.message


def test_a_licence_is_asked_of_all_but_controls() -> None:
    (found,) = findings(subject(replace(SPEC, licence=" ")), "licence").values()
    assert found.status is FAIL
    (found,) = findings(subject(replace(SPEC, licence="", control="floor")), "licence").values()
    assert found.status is NOT_APPLICABLE


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("heavy_entry", "imports jax (from heavy_entry, line 2)"),
        ("broken_entry", "OSError: no such library"),
    ],
)
def test_what_an_entry_module_imports_is_seen_in_a_new_process(entry: str, message: str) -> None:
    (found,) = findings(subject(entry=entry), "import-light").values()
    assert found.status is FAIL
    assert message in found.message


def test_features_of_a_package_whose_sources_cannot_be_found_are_never_cached() -> None:
    (found,) = findings(subject(replace(SPEC, target="bare_package.model:Sound")), "cached-equal").values()
    assert found.status is FAIL
    assert "no __init__.py" in found.message


def of_variant(**changes: Any) -> dict[str, Any]:
    return {"variants": (replace(VARIANT, **changes),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Toy"}, "The name 'Toy' does not follow the grammar"),
        ({"name": "toy:x"}, "The name 'toy:x' does not follow the grammar"),
        ({"options": {"Tiles": True}}, "The option 'Tiles' cannot be written"),
        ({"options": {"tiles": [1]}}, "The option 'tiles' is a list"),
        ({"options": {"tiles": True}}, "does not take its parameters and options: got an unexpected keyword argument"),
        ({"variants": (VARIANT, VARIANT)}, "The variant 'default' is there twice"),
        ({"target": "nowhere:Sound"}, "Cannot import nowhere:Sound"),
        ({"target": "math:pi"}, "The target math:pi cannot be called"),
        (of_variant(name="Big"), "its name does not follow the grammar"),
        (of_variant(taps=("embed", "late", "late")), "The tap 'late' is there twice"),
        (of_variant(taps=("embed", "late", "a..b")), "the tap 'a..b' cannot be selected"),
        (of_variant(taps=("embed", "late", "all")), "the tap 'all' cannot be selected"),
        (of_variant(taps=("embed", "late", "Neck")), "the tap 'Neck' cannot be selected"),
        (of_variant(default_taps=()), "it has no default taps"),
        (of_variant(default_taps=("late", "embed")), "default_taps is not in order of depth"),
        (of_variant(default_taps=("embed", "lat")), "default_taps names lat, which is not among its taps"),
        (of_variant(stem=("stem",)), "stem names stem"),
        (of_variant(output="out"), "output names out"),
        (of_variant(parts=(Part("visual.", "tower"),)), "parts names tower"),
        (of_variant(params={"size": None}), "The parameter 'size' is a NoneType"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(changes: dict[str, Any], message: str) -> None:
    (found,) = findings(subject(replace(SPEC, **changes)), "spec-valid").values()
    assert found.status is FAIL
    assert message in found.message


def test_an_encoder_without_variants_is_said_to_have_none() -> None:
    of = subject()
    entry = replace(SPEC, variants=())
    registry = Registry([Plugin("toys", "toys", "1", "", contributions=(("foresight_encoders", (entry,)),))])
    (found,) = findings(replace(of, registry=registry), "spec-valid").values()
    assert "It has no variant" in found.message


def test_nothing_an_encoder_changes_outlives_its_check() -> None:
    findings(subject("SetsDtype"), *RUNNING)
    assert torch.get_default_dtype() is torch.float32
