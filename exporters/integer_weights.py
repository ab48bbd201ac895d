"""Stores quantized weights as the integers that they are: a quarter of the bytes, for runtimes that read them so."""

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from compress.exporters.legalise import Array, attributes, constants


def store_integer_weights(model: ModelProto) -> ModelProto:
    """A copy in which every QuantizeLinear of a constant is its result, a constant of integers.

    The DequantizeLinear behind it stays. ONNX Runtime reads such files, and TensorRT from 10 on; older ones refuse them.
    """
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    graph = rewritten.graph
    values = constants(graph)
    weights = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in values]
    integers = [numpy_helper.from_array(_quantize(node, values), node.output[0]) for node in weights]
    for node in weights:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*integers, *kept])
    return rewritten


def _quantize(node: NodeProto, values: dict[str, Array]) -> Array:
    """What the node would compute: x / scale, rounded half to even, plus the zero point, saturated.

    Source: github.com/onnx/onnx/blob/main/docs/Operators.md#QuantizeLinear
    """
    data, scale, zero_point = (values[name] for name in node.input)
    axis = attributes(node).get("axis", 1)
    along = [-1 if index == axis else 1 for index in range(data.ndim)] if scale.ndim else ()
    kind = zero_point.dtype
    limits = np.iinfo(kind)
    data, scale, zero_point = (
        array.astype(np.float32) for array in (data, scale.reshape(along), zero_point.reshape(along))
    )
    levels = np.rint(data / scale) + zero_point
    integers: Array = levels.clip(limits.min, limits.max).astype(kind)
    return integers
