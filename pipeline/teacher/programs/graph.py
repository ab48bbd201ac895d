"""A program as data: operations of an allow-list on named values, from which a network is built.

TorchScript archives and exported programs are translated into this and built anew. Nothing of the file is run: an
operation is a name looked up among the pure tensor operators below, and whatever is not found there is refused.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.formats import printable

REFUSED_HINT = (
    "Where the model's code is at hand, save its weights alone: "
    "torch.save({'state_dict': model.state_dict()}, 'weights.pt')."
)

BATCH_NORM = "aten.batch_norm.default"
_BATCH_NORM_ARGUMENTS = 9

_ATTENTION, _SHARE_DROPPED = "aten.scaled_dot_product_attention.default", 4
"""Drops values at random unless the argument of this position is zero."""

Arithmetic = Callable[[Any, Any], Any]

_LARGEST_NUMBER = 2**63


def _on_numbers(function: Arithmetic) -> Arithmetic:
    """Arithmetic of numbers that no repetition makes endless, and of nothing else."""

    def calculate(left: float, right: float) -> float:
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise TypeError("not numbers")
        result: float = function(left, right)
        if abs(result) >= _LARGEST_NUMBER:
            raise OverflowError("no size of a tensor")
        return result

    return calculate


_ARITHMETIC: dict[str, Arithmetic] = {
    # of sizes, which are plain numbers when the network runs
    "operator.add": _on_numbers(operator.add),
    "operator.sub": _on_numbers(operator.sub),
    "operator.mul": _on_numbers(operator.mul),
    "operator.truediv": _on_numbers(operator.truediv),
    "operator.floordiv": _on_numbers(operator.floordiv),
    "operator.mod": _on_numbers(operator.mod),
    "operator.pow": _on_numbers(math.pow),
    "operator.getitem": operator.getitem,
}

_ATEN = frozenset(
    """
    abs adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d add.Scalar add.Tensor
    addcmul addmm amax amin any.dim argmax avg_pool2d baddbmm bitwise_not bmm cat ceil celu channel_shuffle chunk
    clamp clamp.Tensor clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d conv2d.padding
    conv_transpose2d.input convolution cos cumsum detach div.Scalar div.Tensor div.Tensor_mode dot einsum elu
    eq.Scalar eq.Tensor erf exp expand expand_as expm1 flatten.using_ints flip floor fmod.Scalar
    full_like gather ge.Scalar ge.Tensor gelu glu group_norm gt.Scalar gt.Tensor hardshrink hardsigmoid hardswish
    hardtanh im2col index.Tensor index_select instance_norm isnan layer_norm le.Scalar le.Tensor leaky_relu
    lerp.Scalar linalg_vector_norm linear log log1p log_sigmoid _log_softmax log_softmax.int logical_and logical_not
    logical_or logit logsumexp lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor matmul max.dim max.other
    max_pool2d max_pool2d_with_indices maximum mean mean.dim min.dim min.other minimum mish mm movedim.int
    movedim.intlist mul.Scalar mul.Tensor mv nan_to_num narrow native_layer_norm ne.Scalar ne.Tensor neg new_full
    new_ones new_zeros norm.ScalarOpt_dim ones_like pad permute pixel_shuffle pixel_unshuffle pow.Scalar
    pow.Tensor_Scalar pow.Tensor_Tensor prelu reciprocal reflection_pad2d relu relu6 remainder.Scalar repeat
    repeat_interleave.self_int replication_pad2d reshape reshape_as roll round rsqrt rsub.Scalar
    scaled_dot_product_attention select.int selu sigmoid silu sin slice.Tensor _softmax softmax.int softplus
    softshrink split.sizes split.Tensor split_with_sizes sqrt square squeeze squeeze.dim squeeze.dims stack std std.correction
    std.dim std_mean.correction sub.Scalar sub.Tensor sum sum.dim_IntList sym_size.default sym_size.int t tanh
    threshold tile to.dtype transpose.int true_divide.Tensor type_as unbind.int unflatten.int unfold unsqueeze
    upsample_bicubic2d.vec upsample_bilinear2d upsample_bilinear2d.vec upsample_nearest2d upsample_nearest2d.vec var
    var.correction var.dim var_mean.correction var_mean.dim vdot view view_as _weight_norm where.self zeros_like
    """.split()  # noqa: SIM905  pages long as a list
)
"""Pure functions from tensors to tensors: no state, no files, no randomness in evaluation mode.

Source of names and signatures: https://docs.pytorch.org/docs/stable/torch.compiler_ir.html.
"""


@dataclass(frozen=True, slots=True)
class ValueRef:
    """The result of an earlier operation, or the program's input."""

    value: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of the file."""

    tensor: str


Argument: TypeAlias = "ValueRef | TensorRef | bool | int | float | str | torch.dtype | tuple[Argument, ...] | None"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: its result gets a name."""

    name: str
    operator: str
    """`aten.conv2d.default`, or one of Python's on sizes, such as `operator.floordiv`."""
    arguments: tuple[Argument, ...]
    """In the order of the operator's schema."""
    keywords: Mapping[str, Argument] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProgramGraph:
    """Operations in order of execution, from one input `[N, C, H, W]` to one output `[N, K]`."""

    input: str
    operations: tuple[Operation, ...]
    output: str


def find_operator(name: str) -> Callable[..., Any] | None:
    """The function of that name, if it is one of those that a program may use."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    if namespace != "aten" or not ({rest, base if overload == "default" else rest} & _ATEN):
        return None
    return getattr(getattr(torch.ops.aten, base), overload or "default", None)


def build_network(graph: ProgramGraph, tensors: Mapping[str, Tensor], name: str) -> fx.GraphModule:
    """The network of a program: every operation one of the allow-list, every batch norm a module in evaluation mode.

    Args:
        graph: what the file's program does.
        tensors: the file's tensors by the names that the graph uses.
        name: the file's, for messages.

    Raises:
        InputError: an operator is not allowed, or refers to something that is not there.
    """
    builder = _Builder(tensors, name)
    builder.values[graph.input] = builder.graph.placeholder("images")
    for operation in graph.operations:
        builder.add(operation)
    builder.graph.output(builder.resolve(ValueRef(value=graph.output)))
    return fx.GraphModule(builder.root, builder.graph).eval().requires_grad_(False)


def _keywords_of(function: Callable[..., Any]) -> set[str]:
    """Names of an operator's arguments; Python's own on sizes have none."""
    schema = getattr(function, "_schema", None)
    return set() if schema is None else {argument.name for argument in schema.arguments}


def _drops(operation: Operation) -> bool:
    """Whether an operation drops values at random."""
    shares = (*operation.arguments[_SHARE_DROPPED : _SHARE_DROPPED + 1], operation.keywords.get("dropout_p", 0))
    return operation.operator == _ATTENTION and any(share != 0 for share in shares)


class _Builder:
    """Turns operations into nodes of torch.fx; names from the file never become names in code."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.tensors, self.file_name = tensors, name
        self.values: dict[str, fx.Node] = {}
        self.placed: dict[str, fx.Node] = {}

    def add(self, operation: Operation) -> None:
        if operation.operator == BATCH_NORM and len(operation.arguments) == _BATCH_NORM_ARGUMENTS:
            self.values[operation.name] = self._batch_norm(operation.arguments)
            return
        function = find_operator(operation.operator)
        if function is None:
            raise self._error(f"uses the operator {printable(operation.operator)}, which a teacher may not.")
        if not operation.keywords.keys() <= _keywords_of(function):  # torch.fx writes them into code as they are
            raise self._error(f"gives {printable(operation.operator)} arguments that it does not take.")
        if _drops(operation):
            raise self._error("drops values at random, as in training; it must be saved in evaluation mode.")
        arguments = tuple(self.resolve(argument) for argument in operation.arguments)
        keywords = {key: self.resolve(argument) for key, argument in operation.keywords.items()}
        self.values[operation.name] = self.graph.call_function(function, arguments, keywords)

    def resolve(self, argument: Argument) -> Any:
        if isinstance(argument, ValueRef):
            return self._looked_up(self.values, argument.value)
        if isinstance(argument, TensorRef):
            return self._tensor(argument.tensor)
        return [self.resolve(item) for item in argument] if isinstance(argument, tuple) else argument

    def _looked_up(self, table: Mapping[str, Any], key: str) -> Any:
        if key not in table:
            raise self._error(f"refers to '{printable(key)}', which it does not have.")
        return table[key]

    def _tensor(self, key: str) -> fx.Node:
        if key not in self.placed:
            attribute = f"tensor{len(self.placed)}"
            self.root.register_buffer(attribute, self._looked_up(self.tensors, key))
            self.placed[key] = self.graph.get_attr(attribute)
        return self.placed[key]

    def _batch_norm(self, arguments: Sequence[Argument]) -> fx.Node:
        """Arguments as in aten.batch_norm: input, weight, bias, mean, variance, training, momentum, eps, cudnn."""
        entering, *parts, _, _, eps, _ = arguments
        weight, bias, mean, variance = (self._vector(part) for part in parts)
        if mean is None or variance is None:
            raise self._error("has a batch norm without running statistics, which normalises by each batch.")
        shapes = {vector.shape for vector in (weight, bias, mean, variance) if vector is not None}
        if shapes != {(mean.numel(),)} or not isinstance(eps, int | float):
            raise self._error("has a batch norm whose parts do not fit together.")
        attribute = f"norm{sum(1 for _ in self.root.children())}"
        self.root.add_module(attribute, batch_norm_module(mean, variance, weight, bias, eps))
        return self.graph.call_module(attribute, (self.resolve(entering),))

    def _vector(self, argument: Argument) -> Tensor | None:
        if argument is not None and not isinstance(argument, TensorRef):
            raise self._error("has a batch norm whose parts are computed.")
        return None if argument is None else self._looked_up(self.tensors, argument.tensor)

    def _error(self, what: str) -> InputError:
        return InputError(f"'{self.file_name}' {what}", REFUSED_HINT)


class AnyBatchNorm(nn.BatchNorm2d):
    """A batch norm of images or of vectors: a graph does not say which."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def batch_norm_module(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> nn.BatchNorm2d:
    """A batch norm in evaluation mode with these statistics, and with weight one and bias zero where there are none."""
    norm = AnyBatchNorm(len(mean), eps=eps).eval().requires_grad_(False)
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    norm.load_state_dict(
        {
            "running_mean": mean,
            "running_var": variance,
            "weight": ones if weight is None else weight,
            "bias": zeros if bias is None else bias,
        },
        strict=False,
    )
    return norm
