"""Makes an exported graph fit an older operator set, or refuses by name what has no equivalent there.

`onnx.version_converter` does not convert these graphs to files that runtimes accept, and TensorRT before 10 ignores the
axes of a ReduceMean that come as an input; hence rules of our own.
Source: the operator changelog, github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from compress.pipeline.errors import InputError

ONLY_MORE_TYPES = frozenset({"Add", "Sub", "Mul", "Div", "Relu", "Identity", "PRelu", "LeakyRelu", "Where", "Pow"})
"""Operators whose versions 14 to 18 take more element types than version 13 and change nothing for floats."""

Array = NDArray[Any]
Shape = Sequence[int | None]


def legalise(model: ModelProto, opset: int, ir_version: int) -> ModelProto:
    """The same computation in another operator set, without annotations and unused constants.

    Global means become GlobalAveragePool and flattening reshapes become Flatten, in every operator set.

    Raises:
        InputError: an operator of the graph does not exist in that operator set, or means something else there.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    _rewrite(graph, _global_average_pool)
    _rewrite(graph, _flatten)
    _rewrite(graph, _without_allow_zero)
    _rewrite(graph, _hard_swish)
    _drop_unused_constants(graph)
    exported = next(entry.version for entry in inferred.opset_import if entry.domain == "")
    for node in graph.node:
        _require_same_meaning(node, exported, opset)
    _drop_annotations(inferred)
    inferred.ir_version = ir_version
    del inferred.opset_import[:]
    inferred.opset_import.append(helper.make_opsetid("", opset))
    return inferred


def constants(graph: GraphProto) -> dict[str, Array]:
    """The values of all initializers."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node that are set in the file."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def tensor_names(graph: GraphProto) -> set[str]:
    """Of all that nodes take and give."""
    return {name for node in graph.node for name in (*node.input, *node.output)}


def unused(name: str, taken: Container[str]) -> str:
    """That name, or the nearest one that nothing has."""
    return name if name not in taken else unused(f"{name}_", taken)


def rename_tensors(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Other names between the nodes; inputs, outputs and constants of the graph keep theirs."""
    for node in graph.node:
        for ends in (node.input, node.output):
            for index, name in enumerate(ends):
                ends[index] = names.get(name, name)


class _Facts:
    """Constants and shapes that the rules look at."""

    def __init__(self, graph: GraphProto) -> None:
        self.constants = constants(graph)
        self.shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}

    def integers(self, name: str) -> list[int] | None:
        values = self.constants.get(name)
        return None if values is None else [int(value) for value in values.ravel()]


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dimensions = value.type.tensor_type.shape.dim
    return [entry.dim_value if entry.HasField("dim_value") else None for entry in dimensions]


def _rewrite(graph: GraphProto, rule: Callable[[NodeProto, _Facts], list[NodeProto]]) -> None:
    facts = _Facts(graph)
    nodes = [replacement for node in graph.node for replacement in rule(node, facts)]
    del graph.node[:]
    graph.node.extend(nodes)


def _global_average_pool(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    """ReduceMean over both spatial axes of `[N, C, H, W]`."""
    axes = facts.integers(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) == 2 else None
    if axes is None or len(facts.shapes.get(node.input[0], ())) != 4 or {axis % 4 for axis in axes} != {2, 3}:
        return [node]
    data, output = node.input[0], node.output[0]
    if attributes(node).get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", [data], [output], name=node.name)]
    pooled = f"{output}_pooled"
    return [
        helper.make_node("GlobalAveragePool", [data], [pooled], name=f"{node.name}_pool"),
        helper.make_node("Flatten", [pooled], [output], name=node.name, axis=1),
    ]


def _flatten(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    """Reshape that keeps the batch and joins all other axes."""
    if node.op_type != "Reshape":
        return [node]
    shape = facts.integers(node.input[1])
    inner = list(facts.shapes.get(node.input[0], ()))[1:]
    if shape is None or len(shape) != 2 or None in inner or shape[1] != prod(size for size in inner if size):
        return [node]
    return [helper.make_node("Flatten", [node.input[0]], [node.output[0]], name=node.name, axis=1)]


def _without_allow_zero(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    """Reshape without `allowzero` (new in 14), which says something only about shapes that contain a zero."""
    if node.op_type == "Reshape" and 0 not in (facts.integers(node.input[1]) or [0]):
        return [helper.make_node("Reshape", list(node.input), list(node.output), name=node.name)]
    return [node]


def _hard_swish(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    """HardSwish (new in 14, and in TensorRT 10): x * max(0, min(1, x / 6 + 1 / 2)), by its own definition."""
    if node.op_type != "HardSwish":
        return [node]
    data, output = node.input[0], node.output[0]
    gate = f"{output}_gate"
    return [
        helper.make_node("HardSigmoid", [data], [gate], name=f"{node.name}_gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", [data, gate], [output], name=node.name),
    ]


def _require_same_meaning(node: NodeProto, exported: int, opset: int) -> None:
    if node.domain or not _means_the_same(node, exported, opset):
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise InputError(
            f"The operator {operator} cannot be expressed in ONNX operator set {opset}.",
            "Choose a target with a newer operator set, or a student without this operator.",
        )


def _means_the_same(node: NodeProto, exported: int, opset: int) -> bool:
    try:
        here = onnx.defs.get_schema(node.op_type, exported).since_version
        there = onnx.defs.get_schema(node.op_type, opset).since_version
    except onnx.defs.SchemaError:
        return False
    return (
        here == there
        or node.op_type in ONLY_MORE_TYPES
        or (node.op_type == "Reshape" and "allowzero" not in attributes(node))
        or (node.op_type == "Pad" and not any(node.input[3:]))  # 18 added axes, the fourth input
    )


def _drop_unused_constants(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _drop_annotations(model: ModelProto) -> None:
    """Source lines, stack traces and shapes of inner tensors, which runtimes infer again."""
    graph = model.graph
    del graph.value_info[:]
    annotated: Iterable[object] = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for item in annotated:
        item.ClearField("doc_string")  # type: ignore[attr-defined]  # all of them are protobuf messages
        item.ClearField("metadata_props")  # type: ignore[attr-defined]
