"""Operators that rearrange, select or repeat numbers, and those that compute with sizes.

Sizes are integers in tensors on the CPU, wherever the images are.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.operators.registry import (
    Ints,
    Number,
    OutputCount,
    axis_of,
    operator,
    together,
)


@operator("Shape", since=15)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of the axes from `start` to `end`."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device="cpu")


@operator("Shape", since=1)
def shape_1(x: Tensor) -> Tensor:
    """The sizes of all axes."""
    return shape(x)


@operator("Size", since=1)
def count(x: Tensor) -> Tensor:
    """How many numbers there are."""
    return torch.tensor(x.numel(), dtype=torch.int64, device="cpu")


@operator("Reshape", since=14)
def reshape(x: Tensor, sizes: Ints, *, allowzero: int = 0) -> Tensor:
    """-1 stands for what is left, and 0, unless it is allowed to mean itself, for the size that the axis has."""
    if not allowzero:
        sizes = tuple(x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes))
    return x.reshape(sizes)


@operator("Reshape", since=5)
def reshape_5(x: Tensor, sizes: Ints) -> Tensor:
    """Likewise; 0 never means itself."""
    return reshape(x, sizes)


def images_in(x: Tensor) -> int:
    """How many there are."""
    return x.shape[0]


def reshape_for_any_batch(x: Tensor, sizes: Ints, images: int, batch: int) -> Tensor:
    """Reshape of a graph that was exported for `batch` images alone, with the first size made to fit as many as there are.

    It stays as it is where that fits: sizes that have nothing to do with the batch.
    """
    if -1 not in sizes and math.prod(sizes) == x.numel():
        return reshape(x, sizes)
    return reshape(x, (sizes[0] * images // batch if sizes[0] > 0 else sizes[0], *sizes[1:]))


@operator("Flatten", since=1)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To a matrix, with the axes before `axis` in its rows."""
    axis = axis if axis == x.dim() else axis_of(axis, x.dim())
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose", since=1)
def transpose(x: Tensor, *, perm: Ints | None = None) -> Tensor:
    """The axes in another order, by default the reverse."""
    return x.permute(perm or tuple(reversed(range(x.dim()))))


@operator("Squeeze", since=13)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Without the given axes of size one, by default without all of them."""
    if axes is None:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} of {list(x.shape)} are not of size one")
    return x.squeeze(axes)


@operator("Squeeze", since=1)
def squeeze_1(x: Tensor, *, axes: Ints | None = None) -> Tensor:
    """Before 13 axes were an attribute."""
    return squeeze(x, axes)


@operator("Unsqueeze", since=13)
def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """With axes of size one at the given places of the result."""
    for axis in sorted(axis_of(axis, x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Unsqueeze", since=1)
def unsqueeze_1(x: Tensor, *, axes: Ints) -> Tensor:
    """Before 13 axes were an attribute."""
    return unsqueeze(x, axes)


@operator("Concat", since=4)
def concat(*tensors: Tensor, axis: int) -> Tensor:
    """One after the other along an axis.

    A tensor for a single image, such as the class token of a transformer exported for one image alone, is repeated for
    each of several.
    """
    batch = max(tensor.shape[0] if tensor.dim() else 0 for tensor in tensors)
    along_images = axis % max(tensors[0].dim(), 1) == 0
    if batch > 1 and not along_images:
        tensors = tuple(one.expand(batch, *one.shape[1:]) if one.shape[0] == 1 else one for one in tensors)
    return torch.cat(together(*tensors), axis)


@operator("Split", since=18)
def split(
    x: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: OutputCount
) -> tuple[Tensor, ...]:
    """Into parts of the given sizes, or into as many equal ones as there are outputs; the last may be smaller."""
    length = x.shape[axis_of(axis, x.dim())]
    if sizes is None:
        part = -(-length // outputs)
        sizes = tuple(max(0, min(part, length - part * index)) for index in range(outputs))
    if len(sizes) != outputs or num_outputs not in (None, outputs):
        raise ValueError(f"{num_outputs or len(sizes)} parts do not fit {outputs} outputs")
    parts: tuple[Tensor, ...] = x.split(sizes, axis)
    return parts


@operator("Split", since=13)
def split_13(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, outputs: OutputCount) -> tuple[Tensor, ...]:
    """Before 18 the number of outputs was no attribute."""
    return split(x, sizes, axis=axis, outputs=outputs)


@operator("Split", since=2)
def split_2(x: Tensor, *, axis: int = 0, split: Ints | None = None, outputs: OutputCount) -> tuple[Tensor, ...]:
    """Before 13 the sizes were an attribute."""
    return split_13(x, split, axis=axis, outputs=outputs)


@operator("SplitToSequence", since=11)
def split_to_sequence(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, keepdims: int = 1) -> tuple[Tensor, ...]:
    """Into parts of the given sizes, or of one size, or of size one, which may lose their axis."""
    if sizes is None and not keepdims:
        return x.unbind(axis)
    parts: tuple[Tensor, ...] = x.split(sizes if sizes and len(sizes) > 1 else (sizes or (1,))[0], axis)
    return parts


@operator("SequenceAt", since=11)
def sequence_at(sequence: Tensor, position: Number) -> Tensor:
    """One tensor of a sequence, which is a tuple here."""
    return sequence[int(position)]


@operator("Slice", since=10)
def slice_axes(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """From start to end on each of the axes; negative positions count from the end, and ends may lie beyond it."""
    axes, steps = axes or tuple(range(len(starts))), steps or (1,) * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, taken.start if taken else 0, len(taken))
        else:
            x = x.index_select(axis, torch.arange(len(taken), device=x.device) * taken.step + taken.start)
    return x


@operator("Slice", since=1)
def slice_1(x: Tensor, *, starts: Ints, ends: Ints, axes: Ints | None = None) -> Tensor:
    """Before 10 positions were attributes."""
    return slice_axes(x, starts, ends, axes)


@operator("Gather", since=1)
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The slices at the given positions of an axis, in the shape of `indices`."""
    axis = axis_of(axis, x.dim())
    indices = indices.to(x.device)
    positions = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, positions.reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherND", since=12)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The slices at positions of as many leading axes as the last axis of `indices` is long."""
    if batch_dims:
        raise ValueError("gathering for each image apart is not read")
    return x[tuple(indices.to(x.device).unbind(-1))]


@operator("ConstantOfShape", since=9)
def constant_of_shape(sizes: Ints, *, value: Tensor | None = None) -> Tensor:
    """One number, by default the zero of float32, everywhere."""
    return torch.zeros(sizes) if value is None else torch.full(sizes, value.item(), dtype=value.dtype)


@operator("Range", since=11)
def number_range(start: Number, limit: Number, delta: Number) -> Tensor:
    """From start to limit, exclusive."""
    numbers = torch.arange(start, limit, delta)
    return numbers.float() if numbers.is_floating_point() else numbers


@operator("Expand", since=8)
def expand(x: Tensor, sizes: Ints) -> Tensor:
    """Broadcast both ways: axes where `sizes` has one keep what they have."""
    return x.expand(torch.broadcast_shapes(x.shape, sizes))


def expand_for_any_batch(x: Tensor, sizes: Ints, images: int, batch: int) -> Tensor:
    """Expand of a graph that was exported for `batch` images alone, with the first size that of x if only the number of
    images makes it differ.
    """
    scaled = sizes[0] * images // batch if sizes else 0
    return expand(x, (scaled, *sizes[1:]) if x.dim() == len(sizes) and x.shape[0] == scaled else sizes)


@operator("Tile", since=6)
def tile(x: Tensor, repeats: Ints) -> Tensor:
    """Repeated along every axis."""
    return x.repeat(repeats)


@operator("DepthToSpace", since=1)
def depth_to_space(x: Tensor, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Tensor:
    """Blocks of channels become blocks of pixels; the block comes before (DCR) or after (CRD) the channel that remains."""
    images, channels, height, width = x.shape
    kept = channels // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(images, blocksize, blocksize, kept, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(images, kept, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(images, kept, height * blocksize, width * blocksize)


@operator("SpaceToDepth", since=1)
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Blocks of pixels become channels."""
    images, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    blocks = x.reshape(images, channels, rows, blocksize, columns, blocksize).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(images, channels * blocksize**2, rows, columns)


PadMode = Literal["constant", "reflect", "edge", "wrap"]


@operator("Pad", since=18)
def pad(
    x: Tensor, pads: Ints, value: Number | None = None, axes: Ints | None = None, *, mode: PadMode = "constant"
) -> Tensor:
    """`pads` holds what goes before each of the axes and then what goes after; negative numbers cut off."""
    axes = tuple(range(x.dim())) if axes is None else axes
    if len(pads) != 2 * len(axes):
        raise ValueError(f"{len(pads)} pads do not fit {len(axes)} axes")
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        x = _padded(x, axis_of(axis, x.dim()), before, after, mode, value or 0)
    return x


@operator("Pad", since=11)
def pad_11(x: Tensor, pads: Ints, value: Number | None = None, *, mode: PadMode = "constant") -> Tensor:
    """Before 18 on all axes."""
    return pad(x, pads, value, mode=mode)


@operator("Pad", since=2)
def pad_2(x: Tensor, *, pads: Ints, value: float = 0.0, mode: PadMode = "constant") -> Tensor:
    """Before 11 pads and value were attributes."""
    return pad(x, pads, value, mode=mode)


def _padded(x: Tensor, axis: int, before: int, after: int, mode: PadMode, value: Number) -> Tensor:
    if mode == "constant":
        return F.pad(x, (0, 0) * (x.dim() - 1 - axis) + (before, after), value=value)
    length = x.shape[axis]
    positions = torch.arange(-before, length + after, device=x.device)
    if mode == "edge":
        return x.index_select(axis, positions.clamp(0, length - 1))
    if mode == "wrap":
        return x.index_select(axis, positions % length)
    period = max(2 * (length - 1), 1)  # there and back, without the ends twice
    return x.index_select(axis, (length - 1) - (positions % period - (length - 1)).abs())
