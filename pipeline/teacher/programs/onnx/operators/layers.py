"""Operators with weights or windows: convolution, pooling, products of matrices, normalisation, softmax."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.operators.registry import Ints, axis_of, beside, operator, together
from compress.pipeline.teacher.programs.onnx.operators.windows import AutoPad, Window, window

_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
# by the number of spatial axes, less one


@operator("Conv", since=1)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """`[N, C, ...]` with weights `[K, C / group, ...]`; padding may differ at the two ends."""
    over = _kernel_window(x, weight, kernel_shape, strides, dilations, pads, auto_pad)
    x, padding = (x, over.before) if over.symmetric else (over.pad(x), 0)
    weight, bias = beside(x, weight), beside(x, bias)
    result: Tensor = _for_axes(_CONVOLUTIONS, over)(x, weight, bias, over.strides, padding, over.dilations, group)
    return result


@operator("ConvTranspose", since=1)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: Literal["NOTSET"] = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """The transpose of a convolution, weights `[C, K / group, ...]`; padding is what is cut off its result."""
    over = _kernel_window(x, weight, kernel_shape, strides, dilations, pads, auto_pad)
    transposed = _for_axes(_TRANSPOSED, over)
    weight, bias = beside(x, weight), beside(x, bias)
    whole: Tensor = transposed(x, weight, bias, over.strides, 0, output_padding or 0, group, over.dilations)
    for axis, (before, after) in enumerate(zip(over.before, over.after, strict=True), start=2):
        whole = whole.narrow(axis, before, whole.shape[axis] - before - after)
    return whole


@operator("MaxPool", since=1)
def max_pool(
    x: Tensor,
    *,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> Tensor:
    """The largest number of each window; padding never is."""
    over = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    x, padding = (x, over.before) if _torch_pads(over) else (over.pad(x, -math.inf), 0)
    pool = _for_axes(_MAX_POOLS, over)
    result: Tensor = pool(x, over.kernel, over.strides, padding, over.dilations, bool(ceil_mode))
    return result


@operator("AveragePool", since=7)
def average_pool(
    x: Tensor,
    *,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """The mean of each window, in which padding counts as zeros or not at all."""
    over = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    if any(dilation > 1 for dilation in over.dilations):
        raise ValueError("an average pooling with dilations is not read")
    pool = _for_axes(_AVERAGE_POOLS, over)
    if _torch_pads(over):
        result: Tensor = pool(x, over.kernel, over.strides, over.before, bool(ceil_mode), bool(count_include_pad))
        return result
    result = pool(over.pad(x), over.kernel, over.strides, 0, bool(ceil_mode))
    if count_include_pad:
        return result
    share: Tensor = pool(over.pad(torch.ones_like(x[:1, :1])), over.kernel, over.strides, 0, bool(ceil_mode))
    return result / share


@operator("GlobalAveragePool", since=1)
def global_average_pool(x: Tensor) -> Tensor:
    """`[N, C, ...]` to the means of the channels, `[N, C, 1, ...]`."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool", since=1)
def global_max_pool(x: Tensor) -> Tensor:
    """`[N, C, ...]` to the largest numbers of the channels, `[N, C, 1, ...]`."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@operator("MatMul", since=1)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices, or of stacks of them, as in NumPy."""
    return torch.matmul(*together(a, b))


@operator("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha A B + beta C."""
    a, b = together(a.t() if transA else a, b.t() if transB else b)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    c = beside(product, c)
    return product if c is None else product + (c if beta == 1 else beta * c)


@operator("BatchNormalization", since=14)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """With the recorded statistics, also where the file asks for training: a teacher is in evaluation mode."""
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@operator("BatchNormalization", since=9)
def batch_normalization_9(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:
    """Before 14 the number of outputs told training from evaluation."""
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@operator("BatchNormalization", since=7)
def batch_normalization_7(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
) -> Tensor:
    """Before 9 there was a form with statistics for every pixel."""
    if not spatial:
        raise ValueError("a batch norm with statistics for every pixel is not read")
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def channelwise(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`[N, C, ...]` times `scale` plus `bias`, both `[C]`."""
    shape = (-1, *(1,) * (x.dim() - 2))
    scale, bias = beside(x, scale), beside(x, bias)
    return x * scale.reshape(shape) + bias.reshape(shape)


@operator("LayerNormalization", since=17)
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over all axes from `axis` on."""
    scale, bias = beside(x, scale), beside(x, bias)
    normalised = F.layer_norm(x, x.shape[axis_of(axis, x.dim()) :], eps=epsilon) * scale
    return normalised if bias is None else normalised + bias


@operator("InstanceNormalization", since=6)
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each image by its own mean and variance."""
    scale, bias = beside(x, scale), beside(x, bias)
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int, stash_type: int = 1
) -> Tensor:
    """Each group of channels of each image by its own mean and variance; `scale` and `bias` are `[C]`."""
    scale, bias = beside(x, scale), beside(x, bias)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("GroupNormalization", since=18)
def group_normalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int) -> Tensor:
    """Before 21 `scale` and `bias` were `[num_groups]`."""
    repeats = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return group_normalization(x, scale, bias, epsilon=epsilon, num_groups=num_groups)


@operator("LRN", since=1)
def local_response_normalization(
    x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    """x / (bias + alpha / size s)^beta, s the sum of squares over `size` neighbouring channels, of which
    floor((size - 1) / 2) come before.
    """
    squares = F.pad(x.square().flatten(2)[:, None], (0, 0, (size - 1) // 2, size // 2))
    means = F.avg_pool2d(squares, (size, 1), stride=1).reshape(x.shape)
    return x / (bias + alpha * means) ** beta


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Over one axis, the last unless told otherwise."""
    return torch.softmax(x, axis_of(axis, x.dim()))


@operator("Softmax", since=1)
def softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before 13: over all axes from `axis` on, together."""
    return torch.softmax(x.flatten(axis_of(axis, x.dim())), -1).reshape(x.shape)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """The logarithm of Softmax."""
    return torch.log_softmax(x, axis_of(axis, x.dim()))


@operator("LogSoftmax", since=1)
def log_softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """The logarithm of Softmax before 13."""
    return torch.log_softmax(x.flatten(axis_of(axis, x.dim())), -1).reshape(x.shape)


def _kernel_window(
    x: Tensor,
    weight: Tensor,
    kernel_shape: Ints | None,
    strides: Ints | None,
    dilations: Ints | None,
    pads: Ints | None,
    auto_pad: str,
) -> Window:
    kernel = tuple(weight.shape[2:])
    if kernel_shape not in (None, kernel):
        raise ValueError(f"kernel_shape {kernel_shape} is not that of the weights, {kernel}")
    return window(tuple(x.shape[2:]), kernel, strides, dilations, pads, auto_pad)


def _for_axes(functions: tuple[Any, ...], over: Window) -> Any:
    """The function for that number of spatial axes."""
    if len(over.kernel) > len(functions):
        raise ValueError(f"a window of {len(over.kernel)} axes is not read")
    return functions[len(over.kernel) - 1]


def _torch_pads(over: Window) -> bool:
    """torch's pooling pads both ends alike, by half a kernel at most, and no padding at all needs no padding."""
    return over.symmetric and all(2 * pad <= size for pad, size in zip(over.before, over.kernel, strict=True))
