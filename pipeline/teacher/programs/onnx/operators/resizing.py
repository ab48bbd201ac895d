"""Resize and its predecessor Upsample, one axis after the other, by the formulas of the operator's page.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from compress.pipeline.teacher.programs.onnx.operators.registry import Floats, Ints, axis_of, operator

Coordinates = Literal["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
Rounding = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
Mode = Literal["nearest", "linear"]


@operator("Resize", since=18)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Ints | None = None,
    coordinate_transformation_mode: Coordinates = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: Literal["stretch"] = "stretch",
    mode: Mode = "nearest",
    nearest_mode: Rounding = "round_prefer_floor",
) -> Tensor:
    """To the nearest pixel or linearly between two, to the sizes given, or by the scales."""
    if antialias:
        raise ValueError("resizing with antialiasing is not read")
    axes = tuple(range(x.dim())) if axes is None else axes
    for index, axis in enumerate(axis_of(axis, x.dim()) for axis in axes):
        scale = scales[index] if scales else None
        size = sizes[index] if sizes else math.floor(x.shape[axis] * scale) if scale else x.shape[axis]
        if size != x.shape[axis] or scale not in (None, 1.0):
            positions = _positions(x.shape[axis], size, scale, coordinate_transformation_mode).to(x.device)
            x = _nearest(x, axis, positions, nearest_mode) if mode == "nearest" else _linear(x, axis, positions)
    return x


@operator("Resize", since=11)
def resize_11(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    coordinate_transformation_mode: Coordinates = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    mode: Mode = "nearest",
    nearest_mode: Rounding = "round_prefer_floor",
) -> Tensor:
    """Before 18 on all axes."""
    return resize(
        x,
        scales=scales,
        sizes=sizes,
        coordinate_transformation_mode=coordinate_transformation_mode,
        mode=mode,
        nearest_mode=nearest_mode,
    )


@operator("Resize", since=10)
@operator("Upsample", since=9)
def upsample(x: Tensor, scales: Floats, *, mode: Mode = "nearest") -> Tensor:
    """Before 11 positions were scaled as they are; which pixel was the nearest of a larger image was left open."""
    if mode == "nearest" and any(scale < 1 for scale in scales):
        raise ValueError("which pixels remain of a smaller image was not defined before operator set 11")
    return resize(x, scales=scales, coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="floor")


@operator("Upsample", since=7)
def upsample_7(x: Tensor, *, scales: Floats, mode: Mode = "nearest") -> Tensor:
    """Before 9 scales were an attribute."""
    return upsample(x, scales, mode=mode)


def _positions(length: int, size: int, scale: float | None, mode: Coordinates) -> Tensor:
    """Where the `size` pixels of the result lie in an axis of `length` pixels."""
    scale = size / length if scale is None else scale
    index = torch.arange(size, dtype=torch.float64)
    if mode == "asymmetric":
        return index / scale
    if mode == "align_corners":
        return index * ((length - 1) / max(size - 1, 1))
    if mode == "pytorch_half_pixel" and size == 1:
        return torch.zeros_like(index)
    return (index + 0.5) / scale - 0.5


def _nearest(x: Tensor, axis: int, positions: Tensor, rounding: Rounding) -> Tensor:
    rounded = {
        "round_prefer_floor": lambda: (positions - 0.5).ceil(),
        "round_prefer_ceil": lambda: (positions + 0.5).floor(),
        "floor": positions.floor,
        "ceil": positions.ceil,
    }[rounding]()
    return x.index_select(axis, rounded.clamp(0, x.shape[axis] - 1).long())


def _linear(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Beyond the ends the outermost pixels go on."""
    positions = positions.clamp(0, x.shape[axis] - 1)
    lower = positions.floor().long()
    upper = (lower + 1).clamp_max(x.shape[axis] - 1)
    share = (positions - lower).to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1 - axis))
    return x.index_select(axis, lower) * (1 - share) + x.index_select(axis, upper) * share
