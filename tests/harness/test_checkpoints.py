"""Checkpoints: what is read is what was saved, and what is wrong with them is said before anything is loaded."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foresight_bench import checkpoints
from foresight_bench.checkpoints import Checkpoint, fill
from foresight_bench.errors import ENVIRONMENT, ContractError, WeightsError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def everything(name: str) -> bool:
    return True


def values(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """By shard and name; the names of the two shards interleave."""
    draw = torch.Generator().manual_seed(seed)
    return {
        FIRST: {"a.weight": torch.randn(2, 3, generator=draw), "c.ids": torch.arange(5)},
        SECOND: {
            "b.weight": torch.randn(4, generator=draw).to(torch.bfloat16),
            "d.scale": torch.randn((), generator=draw),
            "e.mask": torch.tensor([True, False]),
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in two shards."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "toy", "depth": 2}))
    index = {}
    for file, tensors in values().items():
        save_file(tensors, path / file)
        index |= dict.fromkeys(tensors, file)
    (path / checkpoints.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(sorted(index.items()))}))
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "single"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "toy"}')
    save_file(values()[FIRST], path / "model.safetensors")
    return path


def put(folder: Path, name: str, file: Any) -> None:
    index = json.loads((folder / checkpoints.INDEX).read_text())
    index["weight_map"][name] = file
    (folder / checkpoints.INDEX).write_text(json.dumps(index))


def fault(path: Path, match: str, keep: Any = everything) -> WeightsError:
    """What reading says, the same from every member: one sentence, a hint, the exit code for the environment."""
    for read in ("shapes", "values", "tensors"):
        with pytest.raises(WeightsError, match=match) as caught:
            list([getattr(Checkpoint(path), read)(keep)] if read != "tensors" else Checkpoint(path).tensors(keep))
        error = caught.value
        assert error.exit_code == ENVIRONMENT
        assert error.hint
        assert error.message.endswith(".")
        assert "\n" not in error.message
        assert ". " not in error.message
    return error


def test_headers_need_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from foresight_bench.checkpoints import Checkpoint;"
        f"c = Checkpoint(Path({str(folder)!r})); c.expect('toy');"
        "print(c.values(lambda name: True), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["18", "False"]


def test_reads_what_was_saved(folder: Path, single: Path) -> None:
    expected = {name: value for shard in values().values() for name, value in shard.items()}
    read = dict(Checkpoint(folder).tensors(everything))
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    assert Checkpoint(folder).config == {"model_type": "toy", "depth": 2}
    for path in (single, single / "model.safetensors"):
        read, oracle = dict(Checkpoint(path).tensors(everything)), load_file(single / "model.safetensors")
        assert read.keys() == oracle.keys()
        assert all(torch.equal(read[name], oracle[name]) for name in oracle)
    assert Checkpoint(single / "model.safetensors").config == {}


def test_only_what_is_kept(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    (folder / SECOND).unlink()
    assert checkpoint.files(lambda name: name[0] in "ac") == (folder / FIRST,)
    assert checkpoint.shapes(lambda name: name[0] == "a") == {"a.weight": (2, 3)}
    assert checkpoint.values(lambda name: name[0] in "ac") == 11
    assert [name for name, _ in checkpoint.tensors(lambda name: name[0] == "c")] == ["c.ids"]
    assert checkpoint.files(everything) == (folder / FIRST, folder / SECOND)
    assert checkpoint.values(lambda name: False) == 0
    assert list(checkpoint.tensors(lambda name: False)) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_only_floating_point_changes_type(folder: Path, dtype: torch.dtype) -> None:
    expected = {name: value for shard in values().values() for name, value in shard.items()}
    for name, value in Checkpoint(folder).tensors(everything, torch.device("cpu"), dtype):
        assert value.dtype == (expected[name].dtype if name in ("c.ids", "e.mask") else dtype)
        assert torch.equal(value, expected[name].to(value.dtype))


def test_each_header_and_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    opened = []
    real = safetensors.safe_open

    def counting(file: Path, framework: str, **rest: Any) -> Any:
        opened.append((Path(file).name, framework))
        return real(file, framework=framework, **rest)

    monkeypatch.setattr(safetensors, "safe_open", counting)
    checkpoint = Checkpoint(folder)
    for _ in range(3):
        checkpoint.values(everything)
    assert sorted(opened) == [(FIRST, "numpy"), (SECOND, "numpy")]
    list(checkpoint.tensors(everything))
    assert sorted(opened) == [(FIRST, "numpy"), (FIRST, "pt"), (SECOND, "numpy"), (SECOND, "pt")]


def test_one_tensor_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Tensor] = []
    monkeypatch.setattr(checkpoints, "_placed", lambda tensor, device, dtype: placed.append(tensor) or tensor)
    stream = Checkpoint(folder).tensors(everything)
    for count in (1, 2, 3):
        next(stream)
        assert len(placed) == count


@pytest.mark.parametrize("cut", [1, 16, 150])
def test_truncated_shard(folder: Path, cut: int) -> None:
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[:-cut])
    fault(folder, rf"{SECOND} is not a whole safetensors file")
    assert Checkpoint(folder).values(lambda name: name[0] == "a") == 6


def test_nothing_is_read_before_every_shard_was_checked(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])
    with pytest.raises(WeightsError):
        next(Checkpoint(folder).tensors(everything))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000,
    ],
)
def test_damaged_header(folder: Path, data: bytes) -> None:
    (folder / FIRST).write_bytes(data)
    fault(folder, rf"{FIRST} is not a whole safetensors file")


def test_header_that_contradicts_its_data(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    assert data.count(b"[2,3]") == 1
    (folder / FIRST).write_bytes(data.replace(b"[2,3]", b"[2,4]"))
    fault(folder, "not a whole safetensors file")


def test_missing_shard(folder: Path) -> None:
    (folder / FIRST).unlink()
    fault(folder, rf"{FIRST} is not there")


def test_index_that_puts_a_tensor_elsewhere(folder: Path) -> None:
    put(folder, "d.scale", FIRST)
    fault(folder, rf"{FIRST} lacks 'd.scale', which the index puts there")
    assert Checkpoint(folder).values(lambda name: name[0] in "abc") == 15


def test_tensor_that_the_index_does_not_name_is_not_there(folder: Path) -> None:
    index = json.loads((folder / checkpoints.INDEX).read_text())
    del index["weight_map"]["a.weight"]
    (folder / checkpoints.INDEX).write_text(json.dumps(index))
    module = nn.ParameterDict({"weight": torch.zeros(2, 3)})
    with pytest.raises(WeightsError, match="weight is missing"):
        fill(module, Checkpoint(folder).tensors(lambda name: name.startswith("a.")), "a")


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "sub\\inside.safetensors",
        "..",
        "",
        ".safetensors/",
        "model.bin",
        "model.gguf",
        7,
        None,
    ],
)
def test_index_names_files_beside_it_and_nothing_else(folder: Path, file: Any) -> None:
    save_file({"x": torch.zeros(1)}, folder.parent / "outside.safetensors")
    put(folder, "x", file)
    fault(folder, "which is no .safetensors file beside it", lambda name: name == "x")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "[" * 99_999])
def test_damaged_index(folder: Path, text: str) -> None:
    (folder / checkpoints.INDEX).write_text(text)
    fault(folder, "cannot be read|holds no weight_map")


@pytest.mark.parametrize("data", [None, b"", b"[1]", b"\xff", b"[" * 99_999])
def test_damaged_config(folder: Path, data: bytes | None) -> None:
    (folder / "config.json").unlink()
    if data is not None:
        (folder / "config.json").write_bytes(data)
    with pytest.raises(WeightsError, match=r"config\.json") as caught:
        Checkpoint(folder).expect("toy")
    assert caught.value.hint


def test_another_model_type(folder: Path) -> None:
    Checkpoint(folder).expect("toy")
    with pytest.raises(WeightsError, match="is a 'toy' checkpoint, not 'qwen2_5_vl'"):
        Checkpoint(folder).expect("qwen2_5_vl")
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"names no model_type in its config\.json, not 'toy'"):
        Checkpoint(folder).expect("toy")


@pytest.mark.parametrize("sharded", [True, False])
def test_checkpoint_of_diffusers(folder: Path, single: Path, sharded: bool) -> None:
    path = folder if sharded else single
    (path / "config.json").write_text('{"_class_name": "Toy"}')
    fault(path, r"neither diffusion_pytorch_model\.safetensors nor diffusion_pytorch_model\.safetensors\.index\.json")
    name = checkpoints.INDEX if sharded else checkpoints.SINGLE
    (path / name).rename(path / f"diffusion_pytorch_{name}")
    Checkpoint(path).expect("Toy", "_class_name")
    assert Checkpoint(path).shapes(everything)["a.weight"] == (2, 3)
    with pytest.raises(WeightsError, match="is a 'Toy' checkpoint, not 'Other'"):
        Checkpoint(path).expect("Other", "_class_name")
    with pytest.raises(WeightsError, match="names no model_type in its config"):
        Checkpoint(path).expect("toy")


def test_folder_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    fault(tmp_path, "holds neither model.safetensors nor model.safetensors.index.json")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    error = fault(tmp_path, "holds pytorch_model.bin, but a checkpoint folder needs model.safetensors")
    assert error.hint.startswith("Convert it to safetensors")


def test_unrelated_suffix(single: Path, tmp_path: Path) -> None:
    fault((single / "model.safetensors").rename(tmp_path / "model.onnx"), "neither .safetensors nor one of .pth")


@pytest.mark.parametrize("suffix", checkpoints.PICKLES)
@pytest.mark.parametrize("today", [True, False])
def test_pickle_of_tensors(tmp_path: Path, suffix: str, today: bool) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": nn.Parameter(torch.ones(2)), "i": torch.arange(3)}, path,
               _use_new_zipfile_serialization=today)  # fmt: skip
    checkpoint = Checkpoint(path)
    assert checkpoint.values(everything) == 11
    assert checkpoint.values(lambda name: name == "a") == 6
    read = dict(checkpoint.tensors(lambda name: name != "a", dtype=torch.float64))
    assert {name: value.dtype for name, value in read.items()} == {"b": torch.float64, "i": torch.int64}
    assert not read["b"].requires_grad
    assert torch.equal(dict(checkpoint.tensors(everything))["a"], torch.arange(6.0).reshape(2, 3))


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["today", "old", "bare"])
def test_pickle_with_code_does_not_run(tmp_path: Path, form: str) -> None:
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    content = {"a": torch.zeros(1), "b": _Payload(ran)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "today")
    fault(path, "holds more than tensors and is refused")
    assert not ran.exists()
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())
    assert ran.exists()  # so the payload is one


@pytest.mark.parametrize("content", [[1], {"model": {"a": torch.zeros(1)}}, {"a": 1}, {1: torch.zeros(1)}])
def test_pickle_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    fault(tmp_path / "other.pt", "is not a mapping from names to tensors")


@pytest.mark.parametrize("cut", [None, 0, 5, 1000, -1])
def test_damaged_pickle(tmp_path: Path, cut: int | None) -> None:
    path = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(3000)}, path)
    path.write_bytes(b"junk, not weights" if cut is None else path.read_bytes()[:cut])
    fault(path, "cannot be read|is refused")


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {**_Toy().state_dict(), "steps": torch.tensor(7)}


@pytest.mark.parametrize("where", ["meta", "cpu"])
def test_fill(state: dict[str, Tensor], where: str) -> None:
    with torch.device(where):
        module = _Toy()
    fill(module, state.items(), "a toy")
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert module.steps.dtype == torch.int64
    oracle = _Toy()
    oracle.load_state_dict(state)
    torch.testing.assert_close(module.first(torch.ones(3)), oracle.first(torch.ones(3)), rtol=0, atol=0)


def test_fill_takes_the_precision_it_is_given(state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        module = _Toy()
    fill(module, ((n, v.to(torch.bfloat16) if v.is_floating_point() else v) for n, v in state.items()), "a toy")
    assert {value.dtype for value in module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first.bias": None}, "first.bias is missing"),
        ({"third.bias": torch.zeros(3)}, "third.bias is not part of it"),
        ({"second.weight": torch.zeros(3, 2)}, r"second.weight is \(3, 2\) instead of \(2, 3\)"),
        ({"steps": torch.zeros(1)}, r"steps is \(1,\) instead of \(\)"),
    ],
)
def test_half_a_model_is_never_loaded(state: dict[str, Tensor], change: dict[str, Tensor | None], said: str) -> None:
    module = _Toy()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    given = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(WeightsError, match=f"not those of a toy: 1 entries differ .{said}") as caught:
        fill(module, given.items(), "a toy")
    assert caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_entry_given_twice(state: dict[str, Tensor]) -> None:
    def twice() -> Iterator[tuple[str, Tensor]]:
        yield from state.items()
        yield "first.bias", torch.zeros(3)

    with pytest.raises(WeightsError, match=r"first\.bias is there twice"):
        fill(_Toy(), twice(), "a toy")


def test_leftovers_on_meta(state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        module = _Toy()
        module.register_buffer("table", torch.zeros(3), persistent=False)
    with pytest.raises(ContractError, match="No checkpoint holds table of a toy"):
        fill(module, state.items(), "a toy")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(folder: Path) -> None:
    expected = dict(Checkpoint(folder).tensors(everything))
    for device in ("cuda:0", torch.device("cuda:0")):
        for name, value in Checkpoint(folder).tensors(everything, device, torch.float32):
            assert value.device == torch.device("cuda:0")
            assert torch.equal(value.cpu(), expected[name].to(value.dtype))
