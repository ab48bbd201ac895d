"""Operators that treat every number of a tensor alike: activations, arithmetic, comparisons, types."""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.operators.registry import Number, operator, together, unary

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
INTEGERS = frozenset(
    {
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)

for _name, _since, _function in (
    ("Abs", 6, torch.abs),
    ("Ceil", 6, torch.ceil),
    ("Cos", 7, torch.cos),
    ("Erf", 9, torch.erf),
    ("Exp", 6, torch.exp),
    ("Floor", 6, torch.floor),
    ("HardSwish", 14, F.hardswish),
    ("IsNaN", 9, torch.isnan),
    ("Log", 6, torch.log),
    ("Mish", 18, F.mish),
    ("Neg", 6, torch.neg),
    ("Not", 1, torch.logical_not),
    ("Reciprocal", 6, torch.reciprocal),
    ("Relu", 6, F.relu),
    ("Round", 11, torch.round),
    ("Sigmoid", 6, torch.sigmoid),
    ("Sin", 7, torch.sin),
    ("Softplus", 1, F.softplus),
    ("Softsign", 1, F.softsign),
    ("Sqrt", 6, torch.sqrt),
    ("Tanh", 6, torch.tanh),
):
    unary(_name, _since, _function)


@operator("Identity", since=1)
def identity(x: Tensor) -> Tensor:
    """The input itself."""
    return x


@operator("Dropout", since=12)
def dropout(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """The input itself, as in evaluation mode."""
    return x


@operator("Dropout", since=7)
def dropout_7(x: Tensor, *, ratio: float = 0.5) -> Tensor:
    """The input itself, as in evaluation mode."""
    return x


@operator("LeakyRelu", since=6)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """x where it is not negative, else alpha x."""
    return F.leaky_relu(x, alpha)


@operator("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """As LeakyRelu, with a slope that broadcasts to x, usually `[C, 1, 1]`."""
    x, slope = together(x, slope)
    return torch.where(x < 0, slope * x, x)


@operator("Elu", since=6)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x where it is positive, else alpha (e^x - 1)."""
    return F.elu(x, alpha)


@operator("Selu", since=6)
def selu(x: Tensor, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> Tensor:
    """gamma times Elu; the defaults are the operator's, in single precision."""
    return gamma * F.elu(x, alpha)


@operator("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    return F.celu(x, alpha)


@operator("HardSigmoid", since=6)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha x + beta, within [0, 1]."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Gelu", since=20)
def gelu(x: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x times the normal distribution function of x."""
    return F.gelu(x, approximate=approximate)


@operator("Clip", since=11)
def clip(x: Tensor, least: Number | None = None, most: Number | None = None) -> Tensor:
    """x within bounds; where they cross, the upper one counts."""
    return x if least is None and most is None else torch.clamp(x, least, most)


@operator("Clip", since=6)
def clip_6(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:
    """Before 11 the bounds were attributes."""
    return clip(x, min, max)


@operator("Add", since=7)
def add(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise, broadcast as in NumPy since 7."""
    return torch.add(*together(a, b))


@operator("Sub", since=7)
def sub(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.sub(*together(a, b))


@operator("Mul", since=7)
def mul(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.mul(*together(a, b))


@operator("Div", since=7)
def div(a: Tensor, b: Tensor) -> Tensor:
    """Likewise; integers are divided without remainder, towards zero."""
    a, b = together(a, b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod", since=10)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder, with the sign of the divisor or, for `fmod`, of the dividend."""
    return (torch.fmod if fmod else torch.remainder)(*together(a, b))


@operator("Pow", since=7)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Of the base's type."""
    base, exponent = together(base, exponent)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Sum", since=6)
def total(*tensors: Tensor) -> Tensor:
    """Elementwise, of any number of tensors."""
    return functools.reduce(torch.add, together(*tensors))


@operator("Min", since=6)
def minimum(*tensors: Tensor) -> Tensor:
    """Likewise."""
    return functools.reduce(torch.minimum, together(*tensors))


@operator("Max", since=6)
def maximum(*tensors: Tensor) -> Tensor:
    """Likewise."""
    return functools.reduce(torch.maximum, together(*tensors))


@operator("Equal", since=7)
def equal(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise, broadcast."""
    return torch.eq(*together(a, b))


@operator("Greater", since=7)
def greater(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.gt(*together(a, b))


@operator("GreaterOrEqual", since=12)
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.ge(*together(a, b))


@operator("Less", since=7)
def less(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.lt(*together(a, b))


@operator("LessOrEqual", since=12)
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.le(*together(a, b))


@operator("And", since=7)
def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.logical_and(*together(a, b))


@operator("Or", since=7)
def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """Likewise."""
    return torch.logical_or(*together(a, b))


@operator("Where", since=9)
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition holds, else y, broadcast."""
    condition, x, y = together(condition, x, y)
    return torch.where(condition, x, y)


@operator("Cast", since=6)
def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Every floating-point type is float32 here and every integer type int64, so that a network of halves runs in full
    precision.
    """
    return x.to(read_type(to))


@operator("CastLike", since=15)
def cast_like(x: Tensor, target: torch.dtype) -> Tensor:
    """To the type of another tensor."""
    return x.to(target)


def read_type(element_type: int) -> torch.dtype:
    """What numbers of an ONNX type are read as.

    Raises:
        ValueError: there is nothing that they could be read as.
    """
    if element_type in FLOATS:
        return torch.float32
    if element_type in INTEGERS:
        return torch.int64
    if element_type == TensorProto.BOOL:
        return torch.bool
    raise ValueError(f"numbers of type {type_name(element_type)} are not read")


def type_name(element_type: int) -> str:
    """ONNX's name of an element type, such as `FLOAT16`."""
    known: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
    return known.get(element_type, str(element_type))
