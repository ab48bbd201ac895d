"""The rules that TensorRT demands of a graph, checked on the file itself, without a GPU.

Source: the ONNX parser of TensorRT 8.6 and 10 (onnx/onnx-tensorrt, `docs/operators.md` and the Q/DQ importers) and the
developer guide, "Working with Quantized Types". The rules:

    R1   operators that the oldest TensorRT of the target has, in the standard domain, no local functions; an input of bytes
         from 8.5 on
    R2   zero points are there, int8, zero, and as many as scales
    R3   scales are constants of floats, finite and above zero
    R4   activations are quantized per tensor, weights per output channel
    R5   weights are fp32 constants in front of their Q/DQ pair, not folded into int8, for TensorRT before 10
    R6   biases are plain fp32, or fp16 where the graph is typed or the weight is of fp16, too
    R7   no batch normalisation in a quantized graph, no dropout in any
    R8   data and weight of a convolution are quantized together; nothing stands between it and its Relu; one input of a
         residual sum stays free, so that convolution, sum and Relu become one
    R9   one Q/DQ pair a tensor, shared by all that take it
    R10  operator set and file format are no newer than the target reads
    R11  Q/DQ pairs of fp16, which make a graph a typed one, need operator set 19 and a target that takes typed graphs
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from compress.exporters.legalise import attributes, constants
from compress.exporters.operators import lacking
from compress.exporters.targets import Target, version_numbers
from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.records import Record

_PAIR = ("QuantizeLinear", "DequantizeLinear")

FIRST_WITH_INTEGER_WEIGHTS = (10,)
"""The first TensorRT that dequantizes weights which are stored in int8."""

FIRST_HALF_PAIRS = 19
"""The first operator set whose Q/DQ pairs may be of fp16."""

_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}


class Finding(Record):
    """One rule that one node breaks."""

    rule: str
    node: str
    message: str
    cure: str


def lint(onnx_path: Path, target: Target) -> list[Finding]:
    """What the target would refuse, or run badly, in this file; empty when it is fine.

    ONNX Runtime takes more than TensorRT, so that for its targets only R10 is checked.

    Raises:
        UsageError: the file cannot be read.
        InputError: it is no ONNX file, or a malformed one.
    """
    model = _read(onnx_path)
    try:
        return _findings(_Graph(model), target)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # nodes without inputs, weights without bytes
        raise _no_model(onnx_path) from error


def _findings(graph: "_Graph", target: Target) -> list[Finding]:
    checks = [_newer_than_target(graph, target)]
    if target.runtime == "tensorrt":
        checks += [
            _operators(graph, target),
            _bytes(graph, target),
            *(check(graph) for check in (_zero_points, _scales, _granularity, _biases, _training_layers)),
            _weights(graph, target),
            *(check(graph) for check in (_convolutions, _sums, _one_pair)),
            _half_pairs(graph, target),
        ]
    return [finding for check in checks for finding in check]


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.", "Name an ONNX file.") from error
    except Exception as error:  # the parser has its own types
        raise _no_model(path) from error
    if not model.HasField("graph"):  # The parser takes much that is no model for an empty one.
        raise _no_model(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # a missing file, one out of the folder, one too short: onnx has a type for each
        raise InputError(
            f"'{path}' keeps weights in other files, which cannot be read.", "Keep them in the model's folder."
        ) from error
    return model


def _no_model(path: Path) -> InputError:
    return InputError(f"'{path}' is not a whole ONNX file.", "Name an ONNX file, such as student.int8.onnx.")


class _Graph:
    """A model with the look-ups that the rules need."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        self.constants = constants(model.graph)
        for node in self.of("Constant"):
            value = attributes(node).get("value")
            if value is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.takers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)

    @property
    def typed(self) -> bool:
        """Whether its Q/DQ pairs are of fp16, in part at least."""
        return np.dtype(np.float16) in self.scale_types

    @property
    def scale_types(self) -> set[np.dtype[np.generic]]:
        """Of all Q/DQ pairs whose scales are constants."""
        scales = (self.constants.get(node.input[1]) for node in self.of(*_PAIR) if not self.is_bias(node))
        return {scale.dtype for scale in scales if scale is not None}

    def of(self, *operators: str) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]

    def made_by(self, name: str, operator: str) -> NodeProto | None:
        """The node that makes the tensor, if it is of that kind."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == operator else None

    def quantized(self, name: str) -> bool:
        return self.made_by(name, "DequantizeLinear") is not None

    def weight_of(self, pair_end: NodeProto) -> NDArray[np.generic] | None:
        """The constant that this Q or DQ node takes, directly or through its partner."""
        name = pair_end.input[0]
        quantize = self.made_by(name, "QuantizeLinear")
        return self.constants.get(quantize.input[0] if quantize else name)

    def is_bias(self, dequantize: NodeProto) -> bool:
        """Whether what the node makes is the third input of a convolution or matrix product."""
        return any(
            len(taker.input) > 2 and taker.input[2] == dequantize.output[0]
            for taker in self.takers[dequantize.output[0]]
            if taker.op_type in _WEIGHT_AXIS
        )


def _finding(rule: str, node: NodeProto, message: str, cure: str) -> Finding:
    return Finding(rule=rule, node=node.name or node.output[0], message=message, cure=cure)


def _operators(graph: _Graph, target: Target) -> Iterator[Finding]:
    for function in graph.model.functions:
        yield Finding(rule="R1", node=function.name, message="This is a local function.", cure="Inline functions.")
    for node in graph.nodes:
        cure = "Express it by other standard operators."
        if node.domain not in ("", "ai.onnx"):
            told = f"TensorRT has no operator {node.domain}.{node.op_type}."
        elif node.op_type in _PAIR and target.int8 is None:
            told = f"{target.name} has no int8 arithmetic, and so no {node.op_type}."
            cure = "Take the file in fp32; its engine is built in fp16."
        else:
            told = lacking(node.op_type, target) or ""
        if told:
            yield _finding("R1", node, told, cure)


def _bytes(graph: _Graph, target: Target) -> Iterator[Finding]:
    for value in graph.model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.UINT8 and not target.takes_bytes:
            message = f"The input is uint8: {target.name} may have TensorRT {target.tensorrt[0]}, which takes no bytes."
            yield Finding(rule="R1", node=value.name, message=message, cure="Export with input_form=float32-nchw.")


def _zero_points(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*_PAIR):
        if graph.is_bias(node):
            continue
        zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        scale = graph.constants.get(node.input[1])
        cure = "Write an int8 zero point of zeros, in the shape of the scale."
        if zero is None:
            yield _finding("R2", node, "The zero point is missing or not constant.", cure)
        elif zero.dtype != np.int8:
            yield _finding("R2", node, f"The zero point is {zero.dtype}, not int8.", cure)
        elif zero.any():
            yield _finding("R2", node, "The zero point is not zero: quantization must be symmetric.", cure)
        elif scale is not None and zero.size != scale.size:
            yield _finding("R2", node, f"There are {zero.size} zero points for {scale.size} scales.", cure)


def _scales(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*_PAIR):
        scale = graph.constants.get(node.input[1])
        cure = "Write fp32 scales above zero; clamp those of dead channels."
        if scale is None:
            yield _finding("R3", node, "The scale is not constant.", cure)
        elif scale.dtype not in (np.float32, np.float16):
            yield _finding("R3", node, f"The scale is {scale.dtype}, not float32.", cure)
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield _finding("R3", node, "A scale is zero, negative or not finite.", cure)


def _granularity(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is None or scale.size == 1:
            continue
        weight = graph.weight_of(node)
        if weight is None:
            yield _finding("R4", node, "An activation has a scale a channel.", "Quantize activations per tensor.")
            continue
        axis = attributes(node).get("axis", 1)
        for taker in graph.takers[node.output[0]]:
            expected = _weight_axis(taker)
            if expected is not None and axis != expected and not graph.is_bias(node):
                yield _finding(
                    "R4", node, f"The weight of {taker.op_type} has its scales on axis {axis}.", f"Use axis {expected}."
                )


def _weights(graph: _Graph, target: Target) -> Iterator[Finding]:
    if graph.typed or version_numbers(target.tensorrt[0]) >= FIRST_WITH_INTEGER_WEIGHTS:
        return
    for node in graph.of("DequantizeLinear"):
        if node.input[0] in graph.constants and not graph.is_bias(node):
            yield _finding(
                "R5",
                node,
                "The weight is stored in int8, which TensorRT before 10 does not take.",
                "Keep the fp32 weight in front of QuantizeLinear; do not fold constants.",
            )


def _biases(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*_WEIGHT_AXIS):
        if len(node.input) > 2 and node.input[2]:
            bias, weight = (graph.constants.get(name) for name in (node.input[2], node.input[1]))
            in_half = graph.typed or (weight is not None and weight.dtype == np.float16)
            plain = (np.float32, np.float16) if in_half else (np.float32,)
            if bias is None or bias.dtype not in plain:
                yield _finding("R6", node, "The bias is not a plain fp32 constant.", "Leave biases unquantized.")


def _training_layers(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Dropout"):
        yield _finding("R7", node, "Dropout is for training.", "Export in eval mode.")
    if graph.of(*_PAIR):
        for node in graph.of("BatchNormalization"):
            yield _finding("R7", node, "A quantized graph has batch normalisation.", "Fold it before quantizing.")


def _convolutions(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Conv", "ConvTranspose"):
        data, weight = graph.quantized(node.input[0]), graph.quantized(node.input[1])
        if data != weight:
            which = "data" if data else "weight"
            yield _finding("R8", node, f"Only the {which} is quantized.", "Quantize data and weight, or neither.")
        for dequantize in _through_a_pair(graph, node.output[0]):
            if any(taker.op_type == "Relu" for taker in graph.takers[dequantize.output[0]]):
                yield _finding("R8", node, "A Q/DQ pair parts it from its Relu.", "Quantize behind the Relu.")


def _sums(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Add"):
        if all(graph.quantized(name) for name in node.input):
            yield _finding(
                "R8",
                node,
                "Both inputs of the sum are quantized, so that it cannot be fused with a convolution.",
                "Quantize the skip input only.",
            )


def _one_pair(graph: _Graph) -> Iterator[Finding]:
    cure = "Let all takers share one Q/DQ pair."
    pairs = Counter(node.input[0] for node in graph.of("QuantizeLinear"))
    for node in graph.of("QuantizeLinear"):
        if pairs.pop(node.input[0], 1) > 1:
            yield _finding("R9", node, f"The tensor {node.input[0]} is quantized more than once.", cure)
        if len(graph.takers[node.output[0]]) > 1:
            yield _finding("R9", node, "What it makes is dequantized more than once.", cure)


def _half_pairs(graph: _Graph, target: Target) -> Iterator[Finding]:
    if not graph.typed:
        return
    if target.typed is None:
        cure = "Keep Q/DQ pairs in fp32; the builder runs the rest in fp16 where --fp16 lets it."
        yield Finding(
            rule="R11", node="", message=f"The Q/DQ pairs are of fp16: {target.name} takes no typed graphs.", cure=cure
        )
    elif len(graph.scale_types) > 1:
        message = "Some Q/DQ pairs are of fp16 and some are not, which no typed graph can join."
        yield Finding(rule="R11", node="", message=message, cure="Give all pairs scales of fp16.")
    elif graph.opset < FIRST_HALF_PAIRS:
        message = f"The Q/DQ pairs are of fp16, which the operator set {graph.opset} does not have."
        yield Finding(rule="R11", node="", message=message, cure=f"Export for opset {FIRST_HALF_PAIRS} or later.")


def _newer_than_target(graph: _Graph, target: Target) -> Iterator[Finding]:
    limits = target.typed if target.typed is not None and graph.typed else target
    cure = f"Export for opset {limits.opset} and IR version {limits.ir_version}."
    if graph.opset > limits.opset:
        message = f"The operator set is {graph.opset}; {target.name} reads up to {limits.opset}."
        yield Finding(rule="R10", node="", message=message, cure=cure)
    if graph.model.ir_version > limits.ir_version:
        message = f"The file format is IR {graph.model.ir_version}; {target.name} reads up to {limits.ir_version}."
        yield Finding(rule="R10", node="", message=message, cure=cure)


def _through_a_pair(graph: _Graph, name: str) -> Iterator[NodeProto]:
    """The DequantizeLinear nodes of the Q/DQ pairs that take the tensor."""
    for quantize in graph.takers[name]:
        if quantize.op_type == "QuantizeLinear":
            yield from (node for node in graph.takers[quantize.output[0]] if node.op_type == "DequantizeLinear")


def _weight_axis(node: NodeProto) -> int | None:
    """Axis of the output channels in the weight of that node."""
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return _WEIGHT_AXIS.get(node.op_type)
