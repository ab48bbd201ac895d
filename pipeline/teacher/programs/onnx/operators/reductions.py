"""Reductions over axes, which became an input with operator set 18, for ReduceSum with 13."""

from collections.abc import Callable

import torch
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.operators.registry import Ints, axis_of, operator

_Reduction = Callable[[Tensor, Ints, bool], Tensor]


def _enter(name: str, reduction: _Reduction, axes_are_input_since: int = 18) -> None:
    """Enters both forms of a reduction."""

    def reduce(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        """Over the axes given, or over all where there are none, unless these mean none."""
        if not axes and noop_with_empty_axes:
            return x
        over = tuple(axis_of(axis, x.dim()) for axis in axes or range(x.dim()))
        return reduction(x, over, bool(keepdims))

    def reduce_1(x: Tensor, *, axes: Ints | None = None, keepdims: int = 1) -> Tensor:
        return reduce(x, axes, keepdims=keepdims)

    # torch.fx tells functions apart by their names.
    reduce.__name__, reduce_1.__name__ = name, f"{name}_1"
    operator(name, since=axes_are_input_since)(reduce)
    operator(name, since=1)(reduce_1)


def _product(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_enter("ReduceMean", torch.mean)
_enter("ReduceSum", torch.sum, axes_are_input_since=13)
_enter("ReduceMax", torch.amax)
_enter("ReduceMin", torch.amin)
_enter("ReduceProd", _product)
_enter("ReduceL2", lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep))
_enter("ReduceSumSquare", lambda x, axes, keep: x.square().sum(axes, keep))
