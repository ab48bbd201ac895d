"""An ONNX graph to a torch.fx graph: every node one call of a function from the table, or a batch norm module.

What depends on no image is computed here, once. Names from the file are keys of dictionaries and never reach code.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from onnx import FunctionProto, ModelProto, NodeProto
from torch import Tensor, fx, nn

from compress.pipeline.teacher.programs.graph import batch_norm_module
from compress.pipeline.teacher.programs.meter import Meter
from compress.pipeline.teacher.programs.onnx.dry_run import KeptOnCpu, evaluate, refusal
from compress.pipeline.teacher.programs.onnx.file import OnnxRefusal, opset_of, quoted
from compress.pipeline.teacher.programs.onnx.nodes import (
    Attributes,
    attributes_of,
    constant_of,
    keywords_of,
    label,
    operator_of,
)
from compress.pipeline.teacher.programs.onnx.operators import Operator, Parameter
from compress.pipeline.teacher.programs.onnx.operators.layers import channelwise
from compress.pipeline.teacher.programs.onnx.operators.registry import READERS, OutputCount
from compress.pipeline.teacher.programs.onnx.tensors import TensorReader
from compress.pipeline.teacher.readers.files import DAMAGED_HINT

MOST_NODES = 10_000
"""Those of functions counted at every call; the largest image classifiers have a few thousand."""

MOST_DEPTH = 16
"""Calls of functions inside functions."""

Keywords = Mapping[str, Any]

Value = fx.Node | Tensor
"""What is computed when the network runs, or a constant."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a node's names are looked up: in the graph, or in the body of a function for one call."""

    opset: int
    values: dict[str, Value] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)
    depth: int = 0

    def look_up(self, name: str, node: NodeProto) -> Value | None:
        """The value of that name; None for the empty one, which stands for an input left out."""
        if name and name not in self.values:
            raise OnnxRefusal(f"takes {quoted(name)} at {label(node)}, but nothing before it makes that")
        return self.values[name] if name else None

    def define(self, name: str, value: Value | None) -> None:
        """Gives a value its name."""
        if name in self.values:
            raise OnnxRefusal(f"makes {quoted(name)} twice")
        if name and value is not None:
            self.values[name] = value


def translate(
    model: ModelProto, input_name: str, tensors: Mapping[str, Tensor], reader: TensorReader
) -> fx.GraphModule:
    """The network of a model, frozen and in evaluation mode, from images to the first output.

    Args:
        model: as parsed.
        input_name: of the images.
        tensors: the initializers by name.
        reader: reads the tensors that nodes hold.

    Raises:
        OnnxRefusal: a node is none that is read, or refers to something that is not there.
    """
    builder = _Builder(model.functions, reader)
    scope = _Scope(opset_of(model.opset_import))
    for name, tensor in tensors.items():
        scope.define(name, tensor)
    scope.define(input_name, builder.images)
    builder.add_nodes(model.graph.node, scope)
    output = model.graph.output[0].name
    if output not in scope.values:
        raise OnnxRefusal(f"has the output {quoted(output)}, which nothing makes")
    return builder.finish(scope.values[output])


class _Builder:
    """The graph under construction."""

    def __init__(self, functions: Sequence[FunctionProto], reader: TensorReader) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.images = self.graph.placeholder("images")
        self._functions = {(one.domain, one.name): one for one in functions}
        self._reader = reader
        self._meter = Meter(most_in_all=reader.memory_limit // torch.float32.itemsize)
        self._placed: dict[int, tuple[Tensor, fx.Node]] = {}
        """Constants by their identity, and the nodes that stand for them."""
        self._names = (f"part{number}" for number in itertools.count())
        self._nodes = 0
        if len(self._functions) < len(functions):
            raise OnnxRefusal("defines a function twice")

    def finish(self, output: Value) -> fx.GraphModule:
        """The network that puts out this value, without what it does not need."""
        result = self.graph.output(self._place(output))
        for node in reversed(self.graph.nodes):
            if not node.users and node not in (self.images, result):
                self.graph.erase_node(node)
        return fx.GraphModule(self.root, self.graph).eval().requires_grad_(False)

    def add_nodes(self, nodes: Sequence[NodeProto], scope: _Scope) -> None:
        """Nodes in order of execution."""
        for node in nodes:
            self._nodes += 1
            if self._nodes > MOST_NODES:
                raise OnnxRefusal(f"has more than {MOST_NODES:,} nodes")
            self._add(node, scope)

    def _add(self, node: NodeProto, scope: _Scope) -> None:
        given = attributes_of(node, scope.attributes)
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            results: Sequence[Value | None] = self._call(function, node, given, scope)
        elif node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            results = [constant_of(node, given, self._reader)]
        else:
            results = self._operate(node, given, scope)
        for name, result in zip(node.output, results, strict=False):
            scope.define(name, result)

    def _call(
        self, function: FunctionProto, node: NodeProto, given: Attributes, scope: _Scope
    ) -> Sequence[Value | None]:
        """The body of a function in place of its call."""
        if scope.depth >= MOST_DEPTH:
            raise OnnxRefusal(f"calls functions inside functions, more than {MOST_DEPTH} deep")
        defaults = {attribute.name: attribute for attribute in function.attribute_proto}
        inner = _Scope(opset_of(function.opset_import), {}, {**defaults, **given}, scope.depth + 1)
        for name, argument in zip(function.input, node.input, strict=False):
            inner.define(name, scope.look_up(argument, node))
        self.add_nodes(function.node, inner)
        return [inner.look_up(name, node) for name in function.output]

    def _operate(self, node: NodeProto, given: Attributes, scope: _Scope) -> Sequence[Value | None]:
        """What an operator of the table puts out: computed now where all it takes is known, else by the network."""
        operator = operator_of(node, scope.opset)
        keywords = keywords_of(node, operator, given, self._reader)
        arguments = self._arguments(node, operator, [scope.look_up(name, node) for name in node.input])
        several = any(parameter.kind is OutputCount for parameter in operator.attributes.values())
        if not any(isinstance(argument, fx.Node) for argument in arguments):
            result = self._computed(node, operator.function, arguments, keywords)
            return result if several else [result]
        if node.op_type == "BatchNormalization":
            return [self._batch_norm(node, arguments, keywords)]
        called = self._emit(node, operator.function, arguments, keywords)
        if not several:
            return [called]
        return [self._emit(node, getitem, (called, index), {}) for index in range(len(node.output))]

    def _arguments(self, node: NodeProto, operator: Operator, inputs: Sequence[Value | None]) -> list[Any]:
        """The inputs as arguments of the operator's function; those that steer it as plain numbers."""
        parameters = operator.inputs
        if parameters and parameters[-1].variadic:
            parameters = (*parameters[:-1], *parameters[-1:] * (len(inputs) - len(parameters) + 1))
        if len(inputs) > len(parameters):
            raise OnnxRefusal(f"has {len(inputs)} inputs at {label(node)}, which takes {len(parameters)}")
        given = [*inputs, *[None] * (len(parameters) - len(inputs))]
        if any(one is None and parameter.required for one, parameter in zip(given, parameters, strict=True)):
            raise OnnxRefusal(f"lacks an input at {label(node)}")
        return [
            parameter.default if one is None else self._read(node, one, parameter)
            for one, parameter in zip(given, parameters, strict=True)
        ]

    def _read(self, node: NodeProto, value: Value, parameter: Parameter) -> Any:
        read = READERS.get(parameter.kind)
        if read is None:
            return value
        if isinstance(value, fx.Node):
            return self._emit(node, read, (value,), {})
        return self._computed(node, read, (value,), {})

    def _computed(
        self, node: NodeProto, function: Callable[..., Any], arguments: Sequence[Any], keywords: Keywords
    ) -> Any:
        try:
            return evaluate(function, arguments, keywords, self._meter)
        except Exception as error:  # torch has many types for arguments that do not fit
            raise refusal(error, label(node)) from error

    def _emit(
        self, node: NodeProto, function: Callable[..., Any], arguments: Sequence[Any], keywords: Keywords
    ) -> fx.Node:
        placed = {name: self._place(keyword) for name, keyword in keywords.items()}
        call = self.graph.call_function(function, tuple(self._place(argument) for argument in arguments), placed)
        call.meta["label"] = label(node)
        return call

    def _place(self, value: Any) -> Any:
        """A constant as a node of the graph, whatever else as it is."""
        if isinstance(value, tuple) and any(isinstance(one, Tensor) for one in value):
            raise OnnxRefusal("computes with a sequence of tensors")
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._placed:
            name = next(self._names)
            if value.numel() == 1 or value.dtype == torch.int64:
                self.root.add_module(name, KeptOnCpu(value))
                placed = self.graph.call_module(name)
            else:
                self.root.register_buffer(name, value)
                placed = self.graph.get_attr(name)
            self._placed[id(value)] = value, placed
        return self._placed[id(value)][1]

    def _batch_norm(self, node: NodeProto, arguments: Sequence[Any], keywords: Keywords) -> fx.Node:
        """A module with the recorded statistics, and its scale and bias unless these are computed."""
        entering, scale, bias, mean, variance = arguments
        if not (isinstance(mean, Tensor) and isinstance(variance, Tensor) and keywords.get("spatial", 1)):
            raise OnnxRefusal(f"has no recorded statistics of channels at {label(node)}")
        if bool((variance < 0).any()):
            raise OnnxRefusal(f"has a negative variance at {label(node)}", DAMAGED_HINT)
        inside = isinstance(scale, Tensor) and isinstance(bias, Tensor)
        weight, shift = (scale, bias) if inside else (None, None)
        try:
            norm = batch_norm_module(mean, variance, weight, shift, keywords["epsilon"])
        except Exception as error:  # sizes that differ
            raise refusal(error, label(node)) from error
        name = next(self._names)
        self.root.add_module(name, norm)
        normalised = self.graph.call_module(name, (self._place(entering),))
        normalised.meta["label"] = label(node)
        return normalised if inside else self._emit(node, channelwise, (normalised, scale, bias), {})
