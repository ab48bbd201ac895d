"""Nodes of an ONNX graph as data: the operator that each one names, its attributes as plain values, its label."""

from collections.abc import Mapping
from typing import Any

import torch
from onnx import AttributeProto, NodeProto, TensorProto
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.file import EXPORT_HINT, OnnxRefusal, quoted
from compress.pipeline.teacher.programs.onnx.operators import Operator, Parameter, find_operator
from compress.pipeline.teacher.programs.onnx.operators.registry import Floats, Ints, OutputCount
from compress.pipeline.teacher.programs.onnx.tensors import TensorReader
from compress.pipeline.teacher.readers.formats import printable

Attributes = Mapping[str, AttributeProto]

_SUBGRAPHS = {"If", "Loop", "Scan", "SequenceMap"}

_FIELDS: dict[int, str] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
}

_TYPES: dict[Any, int] = {
    float: AttributeProto.FLOAT,
    int: AttributeProto.INT,
    Tensor: AttributeProto.TENSOR,
    Floats: AttributeProto.FLOATS,
    Ints: AttributeProto.INTS,
}
"""By the annotation of an attribute; words are strings."""


def label(node: NodeProto) -> str:
    """How messages name a node."""
    name = node.name or next(iter(node.output), "")
    return f"node {quoted(name)} ({printable(node.op_type)})"


def operator_of(node: NodeProto, opset: int) -> Operator:
    """The operator that a node names.

    Raises:
        OnnxRefusal: there is none that is read.
    """
    kind = printable(node.op_type)
    if node.domain not in ("", "ai.onnx"):
        raise OnnxRefusal(f"uses the operator {printable(node.domain)}.{kind} of a custom domain")
    if kind in _SUBGRAPHS:
        raise OnnxRefusal(
            f"uses the operator {kind}, which runs a part of the graph depending on what it computes",
            f"A teacher computes the same for every image. {EXPORT_HINT}",
        )
    if "Quantize" in kind or kind.startswith("QLinear") or kind.endswith("Integer"):
        raise OnnxRefusal(
            f"is quantized: it uses the operator {kind}",
            "A teacher is the network in full precision, before any quantization.",
        )
    found = find_operator(node.op_type, opset)
    if found is None:
        raise OnnxRefusal(f"uses the operator {kind}, which is not read in operator set {opset}")
    return found


def attributes_of(node: NodeProto, outer: Attributes) -> dict[str, AttributeProto]:
    """A node's attributes by their names; inside a function some are those of its call, `outer`."""
    attributes: dict[str, AttributeProto] = {}
    for attribute in node.attribute:
        if attribute.name in attributes:
            raise OnnxRefusal(f"has the attribute {quoted(attribute.name)} twice at {label(node)}")
        if not attribute.ref_attr_name:
            attributes[attribute.name] = attribute
        elif attribute.ref_attr_name in outer:
            attributes[attribute.name] = outer[attribute.ref_attr_name]
    return attributes


def keywords_of(node: NodeProto, operator: Operator, given: Attributes, reader: TensorReader) -> dict[str, Any]:
    """The attributes of a node as keywords of the operator's function.

    Raises:
        OnnxRefusal: one is not the operator's, or not of its type, or there must be one and is not.
    """
    unknown = next((name for name in given if name not in operator.attributes), None)
    if unknown is not None:
        raise OnnxRefusal(f"has an attribute {quoted(unknown)} at {label(node)}, which is not read there")
    keywords = {}
    for name, parameter in operator.attributes.items():
        if parameter.kind is OutputCount:
            keywords[name] = len(node.output)
        elif name in given:
            keywords[name] = _value(name, given[name], parameter, node, reader)
        elif parameter.required:
            raise OnnxRefusal(f"lacks the attribute '{name}' at {label(node)}")
        else:
            keywords[name] = parameter.default
    return keywords


def constant_of(node: NodeProto, given: Attributes, reader: TensorReader) -> Tensor:
    """What a node of the operator Constant holds.

    Source: https://onnx.ai/onnx/operators/onnx__Constant.html.

    Raises:
        OnnxRefusal: it is no tensor of numbers.
    """
    if len(given) != 1:
        raise OnnxRefusal(f"has {len(given)} values at {label(node)} rather than one")
    ((name, attribute),) = given.items()
    value = _plain(name, attribute, node, reader)
    kind = {"value": Tensor, "value_float": float, "value_floats": tuple, "value_int": int, "value_ints": tuple}
    if not isinstance(value, kind.get(name, ())):
        raise OnnxRefusal(f"has an attribute {quoted(name)} at {label(node)}, which is not read there")
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32 if name.startswith("value_float") else torch.int64)


def _value(
    name: str,
    attribute: AttributeProto,
    parameter: Parameter,
    node: NodeProto,
    reader: TensorReader,
) -> Any:
    words = parameter.kind if isinstance(parameter.kind, tuple) else ()
    due = AttributeProto.STRING if words else _TYPES[parameter.kind]
    if attribute.type != due:
        found = AttributeProto.AttributeType.Name(attribute.type)
        due_name = AttributeProto.AttributeType.Name(due)
        raise OnnxRefusal(f"has {found} rather than {due_name} in the attribute '{name}' at {label(node)}")
    value = _plain(name, attribute, node, reader)
    if words and value not in words:
        raise OnnxRefusal(f"has the {name} {quoted(value)} at {label(node)}, which is not read")
    return value


def _plain(name: str, attribute: AttributeProto, node: NodeProto, reader: TensorReader) -> Any:
    if attribute.type not in _FIELDS:
        kind = AttributeProto.AttributeType.Name(attribute.type)
        raise OnnxRefusal(f"has an attribute {quoted(name)} of type {kind} at {label(node)}")
    value = getattr(attribute, _FIELDS[attribute.type])
    if isinstance(value, TensorProto):
        return reader.read([value])[0]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, int | float) else tuple(value)
