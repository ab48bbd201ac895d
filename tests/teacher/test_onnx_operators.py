"""Every operator that is read, against ONNX Runtime on random input, in each form that it had."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.pipeline.teacher.programs.meter import Meter
from compress.pipeline.teacher.programs.onnx.dry_run import DryRun
from compress.pipeline.teacher.programs.onnx.operators import find_operator
from compress.pipeline.teacher.programs.onnx.operators.elementwise import mul
from compress.pipeline.teacher.programs.onnx.operators.registry import VERSIONS
from compress.pipeline.teacher.programs.onnx.tensors import TensorReader
from compress.pipeline.teacher.programs.onnx.translator import translate
from tests.graphs import Array, ramp

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Case:
    """A node that takes `x`, and perhaps more."""

    operator: str
    opset: int
    shape: tuple[int, ...] = (2, 3, 8, 7)
    """Of `x`, random numbers from -1 to 1."""
    others: tuple[Array | None, ...] = ()
    """Inputs after x, which are constants; None is left out."""
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    element_type: int = FLOAT
    """Of the outputs."""
    reference: bool = False
    """Whether ONNX's own evaluator is asked instead: ONNX Runtime does not have it."""

    def __str__(self) -> str:
        """As the test is called."""
        given = "-".join(f"{name}={value}" for name, value in self.attributes.items())
        shapes = "-".join("none" if other is None else "x".join(map(str, other.shape)) for other in self.others)
        return f"{self.operator}-{self.opset}-{'x'.join(map(str, self.shape))}-{given}-{shapes}".replace(" ", "")


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def scalar(number: float) -> Array:
    return np.array(number, np.float32)


def case(operator: str, opset: int, *others: Array | None, shape: Sequence[int] = (2, 3, 8, 7), **rest: Any) -> Case:
    """Keywords that are no fields of a case are attributes."""
    kept = {name: rest.pop(name) for name in ("outputs", "element_type", "reference") if name in rest}
    return Case(operator, opset, tuple(shape), others, rest, **kept)


WEIGHT, DEPTHWISE = ramp(4, 3, 3, 3), ramp(6, 1, 3, 3)
STATISTICS = (floats(0.5, 1, 2), floats(-1, 0, 1), floats(0.1, 0.2, -0.3), floats(0.5, 1, 2))

ACTIVATIONS = [
    *(case(name, 7) for name in ("Abs", "Ceil", "Exp", "Floor", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh")),
    *(case(name, 7) for name in ("Cos", "Sin", "Softsign", "Reciprocal", "Identity", "Dropout", "Elu", "Selu")),
    *(case(name, 7) for name in ("LeakyRelu", "HardSigmoid")),
    case("Erf", 9),
    case("Round", 11),
    case("HardSwish", 14),
    case("Mish", 18),
    case("Gelu", 20),
    case("Gelu", 20, approximate="tanh"),
    case("LeakyRelu", 16, alpha=0.3),
    case("Elu", 7, alpha=0.3),
    case("Selu", 7, alpha=1.5, gamma=1.1),
    case("Celu", 12, alpha=0.7),
    case("HardSigmoid", 7, alpha=0.4, beta=0.3),
    case("PRelu", 7, ramp(3, 1, 1)),
    case("PRelu", 16, ramp(1)),
    case("Dropout", 10, ratio=0.3),
    case("Dropout", 13, scalar(0.3)),
    case("Clip", 7, min=-0.5, max=0.25),
    case("Clip", 7, max=0.25),
    case("Clip", 11, scalar(-0.5), scalar(0.25)),
    case("Clip", 13, None, scalar(0.25)),
    case("Clip", 13, scalar(-0.5)),
    case("Softmax", 7),
    case("Softmax", 7, axis=2),
    case("Softmax", 11, axis=-1),
    case("Softmax", 13),
    case("Softmax", 13, axis=1),
    case("LogSoftmax", 7),
    case("LogSoftmax", 12, axis=3),
    case("LogSoftmax", 13),
]

ARITHMETIC = [
    *(case(name, opset, ramp(3, 1, 7) + 2) for name in ("Add", "Sub", "Mul", "Div") for opset in (7, 14)),
    case("Pow", 7, scalar(2)),
    case("Pow", 13, floats(3)),
    case("Pow", 15, ints(2)),
    case("Min", 8, ramp(7), ramp(3, 1, 1)),
    case("Max", 13, ramp(7), ramp(3, 1, 1)),
    case("Sum", 8, ramp(7), ramp(3, 1, 1)),
    case("Mod", 10, scalar(0.3), fmod=1),
    case("Equal", 11, scalar(0), element_type=BOOL),
    case("Greater", 9, ramp(7), element_type=BOOL),
    case("GreaterOrEqual", 12, ramp(7), element_type=BOOL),
    case("Less", 9, ramp(7), element_type=BOOL),
    case("LessOrEqual", 16, ramp(7), element_type=BOOL),
    case("Cast", 9, to=INT64, element_type=INT64),
    case("Cast", 13, to=BOOL, element_type=BOOL),
    case("CastLike", 15, ints(1), element_type=INT64),
]

LAYERS = [
    case("Conv", 7, WEIGHT, ramp(4)),
    case("Conv", 11, WEIGHT, pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
    case("Conv", 11, WEIGHT, pads=[0, 1, 2, 1], dilations=[2, 1]),
    case("Conv", 11, WEIGHT, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", 11, WEIGHT, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", 11, WEIGHT, auto_pad="VALID"),
    case("Conv", 11, DEPTHWISE, ramp(6), group=3),
    case("Conv", 11, ramp(4, 3, 3), shape=(2, 3, 9), pads=[1, 2]),
    case("Conv", 11, ramp(2, 3, 2, 2, 2), shape=(1, 3, 4, 4, 4), strides=[2, 2, 2]),
    case("ConvTranspose", 11, ramp(3, 4, 3, 3), ramp(4), strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 1]),
    case("ConvTranspose", 11, ramp(3, 2, 2, 2), group=3, dilations=[2, 2]),
    case("MatMul", 13, ramp(7, 5)),
    case("MatMul", 9, ramp(3, 7, 2)),
    case("Gemm", 7, ramp(5, 4), ramp(4), shape=(2, 5)),
    case("Gemm", 11, ramp(4, 5), shape=(2, 5), transB=1),
    case("Gemm", 13, ramp(2, 4), ramp(3, 4), shape=(2, 3), transA=1, alpha=0.5, beta=2.0),
    case("BatchNormalization", 7, *STATISTICS),
    case("BatchNormalization", 9, *STATISTICS, epsilon=1e-3),
    case("BatchNormalization", 14, *STATISTICS),
    case("BatchNormalization", 15, *STATISTICS, shape=(2, 3)),
    case("LayerNormalization", 17, ramp(7) + 1, ramp(7)),
    case("LayerNormalization", 17, ramp(8, 7), axis=2, epsilon=1e-3),
    case("InstanceNormalization", 7, ramp(3) + 1, ramp(3)),
    case("GroupNormalization", 21, ramp(6) + 1, ramp(6), shape=(2, 6, 4, 4), num_groups=3),
    case("GroupNormalization", 18, ramp(3) + 1, ramp(3), shape=(2, 6, 4, 4), num_groups=3, reference=True),
    case("LRN", 13, size=3, alpha=0.1),
    case("LRN", 13, size=2, alpha=0.5, beta=0.5, bias=2.0, shape=(5, 5, 4, 4), reference=True),
]

POOLING = [
    case("MaxPool", 8, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", 11, kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    case("MaxPool", 11, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", 11, kernel_shape=[2, 2], dilations=[2, 2]),
    case("MaxPool", 12, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("MaxPool", 12, kernel_shape=[3], strides=[2], shape=(2, 3, 9)),
    case("AveragePool", 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", 11, kernel_shape=[3, 2], pads=[0, 0, 1, 1]),
    case("AveragePool", 11, kernel_shape=[3, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    case("AveragePool", 11, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("AveragePool", 19, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("GlobalAveragePool", 7),
    case("GlobalMaxPool", 7),
]

REDUCTIONS = [
    *(
        case(name, opset, *axes, **attributes)
        for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceSumSquare")
        for opset, axes, attributes in (
            (13, (), {"axes": [2, -1], "keepdims": 0}),
            (18, (ints(2, 3),), {}),
            (18, (), {"keepdims": 0}),
        )
    ),
    case("ReduceSum", 11, axes=[1]),
    case("ReduceSum", 13, ints(-1), keepdims=0),
    case("ReduceSum", 13, noop_with_empty_axes=1),
]

REARRANGING = [
    case("Reshape", 7, ints(0, -1)),
    case("Reshape", 14, ints(2, 0, 56)),
    case("Reshape", 14, ints(0, 3), shape=(0, 3), allowzero=0),
    case("Reshape", 14, ints(0, 5, 3), shape=(0, 3), allowzero=1),
    case("Flatten", 9),
    case("Flatten", 11, axis=-2),
    case("Flatten", 11, axis=0),
    case("Transpose", 7),
    case("Transpose", 7, perm=[0, 2, 3, 1]),
    case("Squeeze", 7, axes=[2], shape=(2, 3, 1, 1)),
    case("Squeeze", 13, ints(-1), shape=(2, 3, 1, 1)),
    case("Squeeze", 13, shape=(2, 3, 1, 1)),
    case("Unsqueeze", 7, axes=[0, 3]),
    case("Unsqueeze", 13, ints(-1, 1)),
    case("Concat", 7, ramp(2, 1, 8, 7), axis=1),
    case("Concat", 11, ramp(2, 3, 8, 2), ramp(2, 3, 8, 1), axis=-1),
    case("Split", 7, outputs=2, axis=2),
    case("Split", 11, outputs=2, axis=-1, split=[3, 4]),
    case("Split", 13, ints(3, 4), outputs=2, axis=3),
    case("Split", 18, outputs=3, axis=3, num_outputs=3),
    case("Slice", 9, starts=[1, -3], ends=[1000, -1], axes=[1, 3]),
    case("Slice", 9, starts=[0, 1], ends=[1, 3]),
    case("Slice", 10, ints(1, -3), ints(2**31, -1), ints(1, -1)),
    case("Slice", 13, ints(-1, 0), ints(-(2**31), 7), ints(2, 3), ints(-2, 3)),
    case("Slice", 13, ints(5), ints(2), ints(3)),
    case("Slice", 13, ints(1), ints(7), ints(3), ints(2**62)),
    case("Gather", 7, ints(1, 0, 1), axis=1),
    case("Gather", 11, np.array([[0, -1], [2, 1]]), axis=2),
    case("Gather", 13, np.array(0), axis=1),
    case("GatherND", 12, np.array([[0, 1], [1, -1]])),
    case("GatherND", 13, np.array([[[0], [1]]])),
    case("Expand", 8, ints(2, 1, 3, 1, 7), shape=(3, 8, 1)),
    case("Tile", 7, ints(1, 2, 1, 3)),
    case("DepthToSpace", 9, blocksize=2, shape=(2, 8, 3, 2)),
    case("DepthToSpace", 11, blocksize=2, mode="CRD", shape=(2, 8, 3, 2)),
    case("SpaceToDepth", 7, blocksize=2, shape=(2, 3, 4, 6)),
    case("Pad", 7, pads=[0, 0, 1, 2, 0, 1, 0, 3], value=0.5),
    case("Pad", 7, pads=[0, 0, 1, 2, 0, 0, 3, 3], mode="reflect"),
    case("Pad", 11, ints(0, 0, 1, -2, 0, 0, -1, 3), scalar(0.5)),
    case("Pad", 13, ints(0, 0, 2, 9, 0, 0, 1, 3), mode="edge"),
    case("Pad", 18, ints(1, 2, 3, 0), None, ints(3, -2), mode="reflect"),
    case("Pad", 19, ints(0, 0, 1, 3, 0, 0, 2, 3), mode="wrap"),
    case("Shape", 7, element_type=INT64),
    case("Shape", 15, start=1, end=-1, element_type=INT64),
    case("Size", 7, element_type=INT64),
]

RESIZING = [
    case("Upsample", 7, scales=[1.0, 1.0, 2.0, 2.0]),
    case("Upsample", 9, floats(1, 1, 2, 1.5), mode="linear"),
    case("Resize", 10, floats(1, 1, 2, 3)),
    case("Resize", 10, floats(1, 1, 2, 0.6), mode="linear"),
    case("Resize", 11, floats(), floats(1, 1, 2, 2), coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    case("Resize", 13, None, None, ints(2, 3, 5, 13)),
    case("Resize", 13, None, floats(1, 1, 1.5, 2), nearest_mode="round_prefer_ceil"),
    case("Resize", 13, None, floats(1, 1, 1.5, 0.5), mode="linear"),
    case("Resize", 13, None, None, ints(2, 3, 5, 13), mode="linear", coordinate_transformation_mode="align_corners"),
    case(
        "Resize", 13, None, None, ints(2, 3, 1, 9), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    case("Resize", 18, None, floats(2, 1.5), axes=[2, 3], mode="linear"),
    case("Resize", 19, None, None, ints(16, 14), axes=[2, 3], nearest_mode="ceil"),
]

CASES = [*ACTIVATIONS, *ARITHMETIC, *LAYERS, *POOLING, *REDUCTIONS, *REARRANGING, *RESIZING]


def model_of(case: Case) -> ModelProto:
    names = ["x", *("" if other is None else f"other{index}" for index, other in enumerate(case.others))]
    outputs = [f"y{index}" for index in range(case.outputs)]
    return model(
        [helper.make_node(case.operator, names, outputs, "the node", **case.attributes)],
        {name: other for name, other in zip(names[1:], case.others, strict=True) if other is not None},
        outputs,
        case.shape,
        case.opset,
        case.element_type,
    )


def model(
    nodes: Sequence[Any],
    constants: dict[str, Array],
    outputs: Sequence[str],
    shape: Sequence[int],
    opset: int,
    element_type: int = FLOAT,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, element_type, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def translated(built: ModelProto) -> torch.fx.GraphModule:
    data = built.SerializeToString()
    reader = TensorReader(data, None)
    stored = built.graph.initializer
    tensors = dict(zip([tensor.name for tensor in stored], reader.read(stored), strict=True))
    return translate(built, "x", tensors, reader)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def expected(built: ModelProto, x: Array, *, reference: bool = False) -> list[Any]:
    if reference:
        return list(ReferenceEvaluator(built).run(None, {"x": x}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def assert_same(built: ModelProto, shape: Sequence[int], *, reference: bool = False, moved: bool = True) -> None:
    """Every output, and its shape as a dry run foretells it, and as another device gives it."""
    x = numbers(*shape)
    wanted = expected(built, x, reference=reference)
    names = [output.name for output in built.graph.output]
    for name, answer in zip(names, wanted, strict=True):
        built.graph.output[0].name = name
        network = translated(built)
        found = network(torch.from_numpy(x)).numpy()
        blank = torch.empty(x.shape, device="meta")
        assert tuple(DryRun(network, Meter()).run(blank).shape) == found.shape == answer.shape
        assert found.dtype == answer.dtype
        np.testing.assert_allclose(found, answer, rtol=1e-5, atol=1e-5)
        if moved:
            assert tuple(network.to("meta")(blank).shape) == answer.shape


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_answers_as_in_onnx_runtime(case: Case) -> None:
    assert_same(model_of(case), case.shape, reference=case.reference)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """Inputs separated by spaces."""
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def constant(output: str, **value: Any) -> NodeProto:
    """One of the values that the operator Constant may have."""
    return helper.make_node("Constant", [], [output], **value)


CHAINS: dict[str, tuple[int, list[NodeProto], dict[str, Array]]] = {
    # operator set, nodes from x [2, 3, 8, 7] to y0, constants
    "sizes by arithmetic": (
        11,
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "images"),
            node("Unsqueeze", "images", "first", axes=[0]),
            constant("rest", value=numpy_helper.from_array(ints(-1))),
            node("Concat", "first rest", "sizes", axis=0),
            node("Reshape", "x sizes", "y0"),
        ],
        {"zero": np.array(0)},
    ),
    "part of the channels": (
        13,
        [
            node("Shape", "x", "shape"),
            node("Slice", "shape one two", "channels"),
            node("Div", "channels two", "half"),
            node("Slice", "x zero half one", "y0"),
        ],
        {"zero": ints(0), "one": ints(1), "two": ints(2)},
    ),
    "masked": (
        13,
        [
            node("Less", "x zero", "negative"),
            node("Greater", "x half", "large"),
            node("Or", "negative large", "either"),
            node("Not", "either", "middle"),
            node("And", "middle mask", "both"),
            node("Where", "both x minus", "picked"),
            node("Abs", "picked", "positive"),
            node("Sqrt", "positive", "root"),
            node("Log", "root", "y0"),
        ],
        {"zero": scalar(0), "half": scalar(0.5), "minus": scalar(-9), "mask": np.arange(7) % 2 == 0},
    ),
    "filled": (
        9,
        [
            node("Shape", "x", "shape"),
            node("ConstantOfShape", "shape", "twos", value=numpy_helper.from_array(floats(2))),
            node("ConstantOfShape", "shape", "zeros"),
            node("Mul", "x twos", "doubled"),
            node("Add", "doubled zeros", "y0"),
        ],
        {},
    ),
    "numbered": (
        13,
        [
            constant("start", value_int=0),
            constant("step", value_int=1),
            node("Shape", "x", "shape"),
            node("Gather", "shape axis", "width"),
            node("Range", "start width step", "positions"),
            node("Cast", "positions", "numbers", to=FLOAT),
            node("Mul", "x numbers", "y0"),
        ],
        {"axis": np.array(3)},
    ),
    "constants of every kind": (
        13,
        [
            constant("a", value_float=2.0),
            constant("b", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
            constant("c", value_ints=[1, 1]),
            constant("d", value=numpy_helper.from_array(ramp(2))),
            node("Range", "a limit a", "e"),
            node("Reshape", "d c_and_more", "f"),
            node("Expand", "f c", "g"),
            node("Mul", "x a", "xa"),
            node("Add", "xa b", "xab"),
            node("Concat", "e e", "ee", axis=0),
            node("Mul", "xab g", "y0"),
        ],
        {"limit": scalar(5), "c_and_more": ints(2, 1, 1, 1)},
    ),
    "batch norm whose scale is computed": (
        15,
        [
            node("Shape", "x", "channels", start=1, end=2),
            node("Expand", "one channels", "scale"),
            node("CastLike", "zero x", "cast"),
            node("Expand", "cast channels", "bias"),
            node("BatchNormalization", "x scale bias mean variance", "y0"),
        ],
        {"one": floats(1), "zero": ints(0), "mean": floats(1, 2, 3), "variance": floats(3, 2, 1)},
    ),
    "parts in a sequence": (
        13,
        [
            node("SplitToSequence", "x sizes", "parts", axis=3),
            node("SequenceAt", "parts first", "left"),
            node("SequenceAt", "parts last", "right"),
            node("Concat", "right left", "y0", axis=3),
        ],
        {"sizes": ints(3, 4), "first": np.array(0), "last": np.array(-1)},
    ),
    "parts of one size": (
        11,
        [
            node("SplitToSequence", "x size", "parts", axis=3),
            node("SequenceAt", "parts last", "y0"),
        ],
        {"size": np.array(3), "last": np.array(2)},
    ),
    "parts that lose their axis": (
        11,
        [
            node("SplitToSequence", "x", "parts", axis=1, keepdims=0),
            node("SequenceAt", "parts last", "y0"),
        ],
        {"last": np.array(2)},
    ),
    "parts of a constant": (
        11,
        [
            node("SplitToSequence", "constant", "parts"),
            node("SequenceAt", "parts last", "row"),
            node("Mul", "x row", "y0"),
        ],
        {"constant": ramp(3, 7), "last": np.array(-1)},
    ),
    "not a number": (
        13,
        [
            node("Log", "x", "log"),
            node("IsNaN", "log", "undefined"),
            node("Where", "undefined x log", "y0"),
        ],
        {},
    ),
    "resized by half": (
        13,
        [
            node("Shape", "x", "shape"),
            node("Cast", "shape", "sizes", to=FLOAT),
            node("Mul", "sizes scales", "scaled"),
            node("Floor", "scaled", "floored"),
            node("Cast", "floored", "whole", to=INT64),
            helper.make_node("Resize", ["x", "", "", "whole"], ["y0"], mode="linear"),
        ],
        {"scales": floats(1, 1, 0.5, 0.5)},
    ),
}


def chain(name: str) -> ModelProto:
    opset, nodes, constants = CHAINS[name]
    return model(nodes, constants, ["y0"], (2, 3, 8, 7), opset)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_operators_answers_as_in_onnx_runtime(name: str) -> None:
    # Sizes that are computed with several numbers of the file have to be read back from the device.
    assert_same(chain(name), (2, 3, 8, 7), moved=name != "resized by half")


def test_every_version_of_every_operator_is_compared() -> None:
    compared = {(one.operator, one.opset) for one in CASES}
    compared |= {(one.op_type, opset) for opset, nodes, _ in CHAINS.values() for one in nodes}
    functions = {found.function for name, opset in compared if (found := find_operator(name, opset)) is not None}
    assert {one.function for versions in VERSIONS.values() for one in versions.values()} == functions


@pytest.mark.parametrize(
    "name", ["Relu", "Conv", "MaxPool", "Softmax", "ReduceMean", "Gather", "Pad", "BatchNormalization"]
)
def test_what_depends_on_no_image_is_computed_once(name: str) -> None:
    case = next(one for one in CASES if one.operator == name)
    built = model_of(case)
    built.graph.initializer.append(numpy_helper.from_array(numbers(*case.shape), "constant"))
    built.graph.node[0].input[0] = "constant"
    built.graph.node.append(helper.make_node("Flatten", ["y0"], ["flat"], axis=0))
    built.graph.node.append(helper.make_node("ReduceSum", ["flat"], ["one"]))
    built.graph.node.append(helper.make_node("Mul", ["x", "one"], ["y"]))
    built.graph.output[0].name = "y"
    assert_same(built, case.shape)
    calls = [one.target for one in translated(built).graph.nodes if one.op == "call_function"]
    assert calls == [mul]
