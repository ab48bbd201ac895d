"""Writes fp16 into a graph, as builders demand that take its types as they stand: TensorRT 11, and 10 where it is asked to.

The interface stays fp32. Q/DQ pairs get fp16 scales, which operator set 19 brought.
Source: TensorRT developer guide, "Strongly Typed Networks"; github.com/onnx/onnx/blob/main/docs/Changelog.md,
QuantizeLinear-19 and DequantizeLinear-19.
"""

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compress.exporters.legalise import Array, rename_tensors, tensor_names, unused
from compress.pipeline.errors import InputError

SMALLEST_SCALE = float(np.finfo(np.float16).smallest_subnormal)
"""Of a Q/DQ pair, which must be above zero."""

_SHAPES = {"Resize": (1, 2, 3)}
"""Inputs that stay fp32 by the definition of the operator: regions and scales, not values."""


def with_half_scales(model: ModelProto) -> ModelProto:
    """A copy whose Q/DQ scales are numbers that fp16 has, still in fp32: weights become integers by the scales they get."""
    rounded = ModelProto()
    rounded.CopyFrom(model)
    scales = _scales(rounded.graph)
    for tensor in rounded.graph.initializer:
        if tensor.name in scales:
            values = numpy_helper.to_array(_half(tensor, least=SMALLEST_SCALE)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return rounded


def in_half_precision(model: ModelProto) -> ModelProto:
    """A copy that computes in fp16 between an fp32 input and an fp32 output.

    Raises:
        InputError: a constant is too large for fp16.
    """
    typed = ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    kept = {name for node in graph.node for name in _fp32_inputs(node)}
    scales = _scales(graph)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half(tensor, least=SMALLEST_SCALE if tensor.name in scales else None))
    for node in graph.node:
        _retype(node, kept)
    _cast_interface(graph)
    return typed


def _scales(graph: GraphProto) -> set[str]:
    return {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}


def _fp32_inputs(node: NodeProto) -> list[str]:
    return [node.input[index] for index in _SHAPES.get(node.op_type, ()) if index < len(node.input)]


def _half(tensor: TensorProto, least: float | None = None) -> TensorProto:
    values: Array = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):  # what overflows is refused below, by name
        halves = np.asarray(values if least is None else np.maximum(values, least), dtype=np.float16)
    finite = np.isfinite(values)
    if not np.isfinite(halves[finite]).all():
        raise InputError(
            f"The constant '{tensor.name}' has values up to {np.abs(values[finite]).max():.3g}, too large for fp16.",
            "Choose a target without typed graphs; `compress targets` says which have them.",
        )
    return numpy_helper.from_array(halves, tensor.name)


def _retype(node: NodeProto, kept: set[str]) -> None:
    """Constants and casts to fp32 inside the graph are of fp16, too."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        is_constant = node.op_type in ("Constant", "ConstantOfShape") and node.output[0] not in kept
        if is_constant and attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(attribute.t))
        elif is_constant and attribute.name in ("value_float", "value_floats"):
            floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = _half(numpy_helper.from_array(np.array(floats, np.float32), node.output[0]))
            attribute.CopyFrom(helper.make_attribute("value", tensor))


def _cast_interface(graph: GraphProto) -> None:
    """A cast behind every fp32 input and in front of every fp32 output; the names of both stay."""
    inputs = [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    taken = tensor_names(graph)
    inner = {name: unused(f"{name}_fp16", taken) for name in (*inputs, *outputs)}
    rename_tensors(graph, inner)
    first = [_cast(name, inner[name], TensorProto.FLOAT16) for name in inputs]
    last = [_cast(inner[name], name, TensorProto.FLOAT) for name in outputs]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(taken: str, given: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [taken], [given], name=f"{given}_cast", to=to)
