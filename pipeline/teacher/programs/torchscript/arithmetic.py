"""TorchScript's operators on numbers, texts and lists, where their values are known, and what they do to ranks."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from compress.pipeline.teacher.programs.torchscript.values import Held

ON_PLAIN_VALUES: dict[str, Callable[..., Any]] = {
    "aten::__and__": operator.and_,
    "aten::__contains__": operator.contains,
    "aten::__derive_index": lambda turn, start, step: start + turn * step,
    "aten::__not__": operator.not_,
    "aten::__or__": operator.or_,
    "aten::__range_length": lambda start, end, step: len(range(start, end, step)),
    "aten::Bool": bool,
    "aten::Float": float,
    "aten::Int": int,
    "aten::IntImplicit": int,
    "aten::add": lambda left, right, alpha=1: left + (right if alpha == 1 else right * alpha),
    "aten::all": all,
    "aten::any": any,
    "aten::ceil": math.ceil,
    "aten::div": lambda left, right, rounding=None: left // right if rounding else left / right,
    "aten::eq": operator.eq,
    "aten::floor": math.floor,
    "aten::floor_divide": operator.floordiv,
    "aten::floordiv": operator.floordiv,
    "aten::format": lambda text, *arguments: text,  # texts only go into messages
    "aten::ge": operator.ge,
    "aten::gt": operator.gt,
    "aten::is_autocast_enabled": lambda: False,
    "aten::is_grad_enabled": lambda: True,
    "aten::le": operator.le,
    "aten::len": len,
    "aten::lt": operator.lt,
    "aten::mul": operator.mul,
    "aten::ne": operator.ne,
    "aten::neg": operator.neg,
    "aten::pow": operator.pow,
    "aten::remainder": operator.mod,
    "aten::rsub": lambda left, right, alpha=1: right - left * alpha,
    "aten::sqrt": math.sqrt,
    "aten::sub": lambda left, right, alpha=1: left - right * alpha,
    "prim::max": max,
    "prim::min": min,
}
"""What an operator gives for values that are all known: numbers, texts, None and lists of them."""

ON_LISTS: dict[str, Callable[..., Any]] = {
    "aten::__getitem__": operator.getitem,
    "aten::add": operator.add,
    "aten::len": len,
    "aten::list": list,
    "aten::slice": lambda items, start, end, step: items[slice(start, end, step)],
}
"""What an operator gives for a list of anything, tensors included."""

CHANGING_LISTS: dict[str, Callable[..., Any]] = {
    "aten::_set_item": operator.setitem,
    "aten::append": list.append,
    "aten::extend": list.extend,
    "aten::insert": list.insert,
    "aten::pop": list.pop,
    "aten::reverse": list.reverse,
}
"""The same of operators that change the list itself, as in Python."""

ON_SIZES: dict[str, tuple[str, list[list[Any]]]] = {
    # the arithmetic of the network, and what may follow the two numbers
    "aten::add": ("operator.add", [[], [1]]),
    "aten::div": ("operator.truediv", [[]]),
    "aten::floor_divide": ("operator.floordiv", [[]]),
    "aten::floordiv": ("operator.floordiv", [[]]),
    "aten::mul": ("operator.mul", [[]]),
    "aten::pow": ("operator.pow", [[]]),
    "aten::remainder": ("operator.mod", [[]]),
    "aten::rsub": ("operator.sub", [[], [1]]),  # the second number minus the first
    "aten::sub": ("operator.sub", [[], [1]]),
}
"""Arithmetic that a network may do with sizes when it runs."""

_KEEP_THE_RANK = frozenset(
    """
    abs adaptive_avg_pool2d add avg_pool2d batch_norm cat celu chunk clamp clamp_max clamp_min clone constant_pad_nd
    contiguous conv1d conv2d conv_transpose2d convolution detach div elu exp gelu group_norm hardsigmoid hardswish
    hardtanh instance_norm layer_norm leaky_relu linear log log_softmax max_pool2d mish mul narrow neg pad
    pixel_shuffle prelu reflection_pad2d relu relu6 replication_pad2d roll rsub sigmoid silu slice softmax softplus
    split split_with_sizes sqrt sub tanh transpose upsample_bilinear2d upsample_nearest2d zeros_like ones_like
    scaled_dot_product_attention
    """.split()  # noqa: SIM905  a page long as a list
)

_AS_LONG_AS_THE_LIST = frozenset(("view", "reshape", "expand", "permute", "new_zeros", "new_ones", "new_full"))


def rank_after(operator_name: str, arguments: Sequence[Any]) -> int | None:
    """Number of dimensions of what an operator such as `aten.conv2d.default` gives; None where no simple rule tells."""
    base = operator_name.split(".")[1]
    ranks = [item.rank for argument in arguments for item in _tensors_in(argument)]
    if base in _AS_LONG_AS_THE_LIST and isinstance(arguments[1], list):
        return len(arguments[1])
    if base in _KEEP_THE_RANK and ranks and None not in ranks:
        return ranks[0] if base in ("conv1d", "conv2d", "linear", "prelu") else max(filter(None, ranks), default=0)
    if base in ("select", "unsqueeze") and ranks[0] is not None:
        return ranks[0] + (1 if base == "unsqueeze" else -1)
    if base in ("mean", "sum") and isinstance(arguments[1], list) and ranks[0] is not None:
        return ranks[0] if arguments[2] else ranks[0] - len(arguments[1])
    if base == "flatten" and ranks[0] is not None and all(isinstance(argument, int) for argument in arguments[1:3]):
        first, last = (argument % ranks[0] for argument in arguments[1:3])
        return int(ranks[0] - (last - first))
    return None


def _tensors_in(argument: Any) -> list[Held]:
    if isinstance(argument, list):
        return [item for item in argument if isinstance(item, Held)]
    return [argument] if isinstance(argument, Held) else []
