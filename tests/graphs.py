"""Tiny ONNX graphs, built node by node, with ramp-filled weights."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[np.generic]


def ramp(*shape: int) -> NDArray[np.float32]:
    """-0.5 to 0.5 in equal steps."""
    return np.linspace(-0.5, 0.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def model(
    nodes: Sequence[NodeProto],
    weights: dict[str, Array],
    *,
    image: Sequence[int],
    classes: int,
    batch: int | str = "batch",
    opset: int = 17,
    ir_version: int = 8,
) -> ModelProto:
    """A checked model from `images` `[batch, *image]` to `logits` `[batch, classes]`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *image])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(built)
    return built


def linear_model(batch: int | str = "batch", dtype: type[np.floating] = np.float32) -> ModelProto:
    """Logits = the four pixels of a 1x2x2 image times a 4x3 ramp; with half weights behind two casts."""
    cast = [helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT)]
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["typed"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        helper.make_node("MatMul", ["typed", "weight"], ["product"]),
        *cast,
    ]
    return model(nodes, {"weight": ramp(4, 3).astype(dtype)}, image=(1, 2, 2), classes=3, batch=batch)


def fake_quantize(
    name: str, taken: str, given: str, scale: Array, axis: int = 1
) -> tuple[list[NodeProto], dict[str, Array]]:
    """A Q/DQ pair from `taken` to `given`, and the arrays that it needs."""
    inputs = [f"{name}.scale", f"{name}.zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [taken, *inputs], [f"{name}.int8"], f"{name}.quantize", axis=axis),
        helper.make_node("DequantizeLinear", [f"{name}.int8", *inputs], [given], f"{name}.dequantize", axis=axis),
    ]
    return nodes, {inputs[0]: scale, inputs[1]: np.zeros_like(scale, dtype=np.int8)}


def quantized_model(opset: int = 17, ir_version: int = 8) -> ModelProto:
    """A residual block as TensorRT likes it: 1x4x4 image, two quantized convolutions, the skip quantized, float head."""
    scalar, channels = np.array(0.01, np.float32), np.full(2, 0.004, np.float32)
    pairs = [
        fake_quantize("input", "images", "input.q", scalar),
        fake_quantize("first.weight", "first.w", "first.w.q", channels, axis=0),
        fake_quantize("first", "first.relu", "first.q", scalar),
        fake_quantize("second.weight", "second.w", "second.w.q", channels, axis=0),
        fake_quantize("sum", "sum.relu", "sum.q", scalar),
    ]
    (input, first_weight, first, second_weight, total) = (nodes for nodes, _ in pairs)
    nodes = [
        *input,
        *first_weight,
        helper.make_node("Conv", ["input.q", "first.w.q", "first.b"], ["first.y"], "first.conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first.y"], ["first.relu"], "first.activation"),
        *first,
        *second_weight,
        helper.make_node("Conv", ["first.q", "second.w.q", "second.b"], ["second.y"], "second.conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["second.y", "first.q"], ["sum.y"], "sum.add"),
        helper.make_node("Relu", ["sum.y"], ["sum.relu"], "sum.activation"),
        *total,
        helper.make_node("GlobalAveragePool", ["sum.q"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["logits"], "head", transB=1),
    ]
    weights: dict[str, Array] = {
        "first.w": ramp(2, 1, 3, 3),
        "first.b": ramp(2),
        "second.w": ramp(2, 2, 3, 3),
        "second.b": ramp(2),
        "head.w": ramp(3, 2),
        "head.b": ramp(3),
    }
    for _, arrays in pairs:
        weights |= arrays
    return model(nodes, weights, image=(1, 4, 4), classes=3, opset=opset, ir_version=ir_version)
