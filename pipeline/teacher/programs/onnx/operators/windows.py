"""Where a convolution or pooling window stands: strides, dilations and padding as ONNX states them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.operators.registry import Ints

LARGEST = 1024
"""Pixels; larger images are out of reach, and so are windows, steps and padding."""

AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]


@dataclass(frozen=True, slots=True)
class Window:
    """One number for each spatial axis; padding before and after."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    before: Ints
    after: Ints

    @property
    def symmetric(self) -> bool:
        """Whether torch can pad by itself."""
        return self.before == self.after

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(self.before + self.after)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """`[N, C, ...]` with the padding around its spatial axes."""
        pairs = [width for axis in reversed(range(len(self.kernel))) for width in (self.before[axis], self.after[axis])]
        return F.pad(x, pairs, value=value)


def window(
    size: Ints,
    kernel: Ints,
    strides: Ints | None,
    dilations: Ints | None,
    pads: Ints | None,
    auto_pad: str,
) -> Window:
    """The window of a node over an input whose spatial axes are of that size.

    SAME pads so that there are ceil(size / stride) outputs, with the odd one after (UPPER) or before (LOWER).
    Source: attribute auto_pad on https://onnx.ai/onnx/operators/onnx__Conv.html.

    Raises:
        ValueError: the attributes do not describe one.
    """
    axes = len(kernel)
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    if not len(strides) == len(dilations) == len(size) == axes:
        raise ValueError(f"a kernel of {axes} axes does not fit strides {strides} or {len(size)} axes of the input")
    if not axes or not all(1 <= number <= LARGEST for number in kernel + strides + dilations):
        raise ValueError(f"kernel {kernel}, strides {strides} and dilations {dilations} are beyond any image")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        before, after = zip(*_same(size, kernel, strides, dilations, auto_pad == "SAME_UPPER"), strict=True)
    else:
        pads = (0,) * 2 * axes if auto_pad == "VALID" or pads is None else pads
        before, after = pads[:axes], pads[axes:]
    if len(after) != axes or not all(0 <= number <= LARGEST for number in before + after):
        raise ValueError(f"pads {before + after} do not fit a kernel {kernel}")
    return Window(kernel, strides, dilations, before, after)


def _same(size: Ints, kernel: Ints, strides: Ints, dilations: Ints, upper: bool) -> Iterator[tuple[int, int]]:
    for length, extent, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        outputs = -(-length // stride)
        total = max((outputs - 1) * stride + (extent - 1) * dilation + 1 - length, 0)
        less, more = total // 2, total - total // 2
        yield (less, more) if upper else (more, less)
