"""The table of operators: functions from tensors to tensors, found by an operator's name and operator set.

A function's signature is its schema: positional parameters are the node's inputs in order, keyword-only ones its
attributes, and the annotations say what each must be. An input that is annotated as numbers rather than as `Tensor`
steers the computation, as the axes of a reduction do, and is handed over as plain numbers.

Source: the operators' pages, https://onnx.ai/onnx/operators/onnx__NAME.html. An operator set has the newest version of
an operator that is not newer than the set: https://github.com/onnx/onnx/blob/main/docs/Versioning.md.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, NewType, ParamSpec, TypeVar, get_args, get_origin

import torch
from torch import Tensor

Ints = tuple[int, ...]
Floats = tuple[float, ...]
Number = int | float

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Optional = TypeVar("_Optional", bound=Tensor | None)

OutputCount = NewType("OutputCount", int)
"""Annotates a keyword that is no attribute: how many outputs the node has."""

MOST_STEERING_NUMBERS = 4096
"""Sizes, axes and positions are a handful."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input or an attribute."""

    kind: Any
    """`Tensor`, `torch.dtype`, `Ints`, `Floats`, `Number`, `int`, `float`, `OutputCount`, or the words allowed."""
    required: bool
    default: Any = None
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """How one version of an operator is computed."""

    function: Callable[..., Any]
    inputs: tuple[Parameter, ...]
    attributes: Mapping[str, Parameter]


VERSIONS: dict[str, dict[int, Operator]] = {}


def operator(name: str, since: int) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Enters a function as the operator's version that came with the operator set `since`."""

    def enter(function: Callable[_P, _R]) -> Callable[_P, _R]:
        parameters = inspect.signature(function).parameters.values()
        inputs = tuple(_parameter(one) for one in parameters if one.kind is not one.KEYWORD_ONLY)
        attributes = {one.name: _parameter(one) for one in parameters if one.kind is one.KEYWORD_ONLY}
        VERSIONS.setdefault(name, {})[since] = Operator(function, inputs, attributes)
        return function

    return enter


def unary(name: str, since: int, function: Callable[[Tensor], Tensor]) -> None:
    """Enters a function of torch that takes one tensor."""
    VERSIONS.setdefault(name, {})[since] = Operator(function, (Parameter(Tensor, required=True),), {})


def find_operator(name: str, opset: int) -> Operator | None:
    """The operator as the operator set has it; None where it has none that is read here."""
    versions = VERSIONS.get(name, {})
    return max(((since, found) for since, found in versions.items() if since <= opset), default=(0, None))[1]


def as_numbers(tensor: Tensor) -> tuple[Any, ...]:
    """The numbers of a short vector.

    Raises:
        ValueError: they are not known without the image, or too many.
    """
    if tensor.is_meta:
        raise ValueError("its sizes depend on the pixels of the image")
    if tensor.dim() > 1 or tensor.numel() > MOST_STEERING_NUMBERS:
        raise ValueError(f"a tensor {list(tensor.shape)} cannot be a list of sizes")
    return tuple(tensor.reshape(-1).tolist())


def as_number(tensor: Tensor) -> Any:
    """The single number of a tensor.

    Raises:
        ValueError: it is not known without the image, or not single.
    """
    (number,) = as_numbers(tensor.reshape(-1))
    return number


def dtype_of(tensor: Tensor) -> torch.dtype:
    """What kind of numbers a tensor holds."""
    return tensor.dtype


READERS: Mapping[Any, Callable[[Tensor], Any]] = {
    Ints: as_numbers,
    Floats: as_numbers,
    Number: as_number,
    torch.dtype: dtype_of,
}
"""How a tensor becomes what an annotation other than `Tensor` asks for."""


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: sizes and single numbers live on the CPU, and follow the images where they meet them."""
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), tensors[0].device)
    return tuple(tensor.to(device) for tensor in tensors)


def beside(x: Tensor, other: _Optional) -> _Optional:
    """The other tensor, where there is one, on the device of x."""
    return other if other is None else other.to(x.device)  # type: ignore[return-value]


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        ValueError: the tensor has no such axis.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"a tensor of {rank} dimensions has no axis {axis}")
    return axis % rank


def _parameter(parameter: inspect.Parameter) -> Parameter:
    kinds = tuple(kind for kind in get_args(parameter.annotation) if kind is not NoneType)
    variadic = parameter.kind is parameter.VAR_POSITIONAL
    required = parameter.default is parameter.empty
    return Parameter(_kind(parameter.annotation, kinds), required, None if required else parameter.default, variadic)


def _kind(annotation: Any, alternatives: tuple[Any, ...]) -> Any:
    if get_origin(annotation) is Literal:
        return alternatives
    if NoneType not in get_args(annotation):
        return annotation
    return Number if set(alternatives) == {int, float} else alternatives[0]
