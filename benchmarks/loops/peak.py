"""What this machine gives at its best: matrix products, and the very convolutions that a loop runs.

Every convolution of a loop, forward or backward, is run alone, in float32 and bf16, contiguous and channels_last, and
its fastest time counts, in whatever precision and layout the loop itself ran it. The convolution peak of a loop is all
their floating-point operations over the sum of those times: what the loop would reach if nothing but its convolutions
took time, each of them at its best.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from compress.pipeline.device import Compute

PRECISIONS = (torch.float32, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

TRIALS = 5
"""Repeats of which the fastest counts: whatever disturbs a run only makes it slower."""


class Convolution(NamedTuple):
    """A call of a convolution, as far as its time depends on it."""

    images: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    wanted: tuple[bool, ...]
    """Of a backward pass: whether the gradients of images, weight and bias are computed; of a forward pass nothing."""

    @property
    def backward(self) -> bool:
        return bool(self.wanted)

    def __str__(self) -> str:
        kind = "backward" if self.backward else "forward"
        kernel = "x".join(str(side) for side in self.weight[2:])
        return f"{kernel} {kind} {self.weight[1] * self.groups}->{self.weight[0]} on {list(self.images)}"


class Best(NamedTuple):
    """The fastest way that was found."""

    seconds: float
    flops: int
    way: str

    @property
    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.flops / self.seconds


class ConvolutionsOf(TorchDispatchMode):
    """Counts the convolutions that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Convolution] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self._count(args, ())
        elif func is torch.ops.aten.convolution_backward.default:
            _, *arguments, wanted = args
            self._count(arguments, tuple(wanted))
        return func(*args, **(kwargs or {}))

    def _count(self, arguments: Sequence[Any], wanted: tuple[bool, ...]) -> None:
        images, weight, bias, stride, padding, dilation, _, _, groups = arguments
        self.calls[
            Convolution(
                images=tuple(images.shape),
                weight=tuple(weight.shape),
                stride=tuple(stride),
                padding=tuple(padding),
                dilation=tuple(dilation),
                groups=groups,
                bias=bias is not None,
                wanted=wanted,
            )
        ] += 1


def convolution_peak(calls: Mapping[Convolution, int], compute: Compute) -> tuple[Best, Best]:
    """All convolutions of a loop as one, each at its best; and the single one with the highest rate."""
    fastest = {call: fastest_convolution(call, compute) for call in calls}
    seconds = sum(count * fastest[call].seconds for call, count in calls.items())
    flops = sum(count * fastest[call].flops for call, count in calls.items())
    single, best = max(fastest.items(), key=lambda item: item[1].rate)
    return Best(seconds, flops, "each at its best"), best._replace(way=f"{single}, {best.way}")


def fastest_convolution(call: Convolution, compute: Compute) -> Best:
    """One convolution alone, in the precision and layout that suit it best."""
    found = []
    for precision, layout in product(PRECISIONS, LAYOUTS):
        work = _isolated(call, precision, layout, compute.device)
        with FlopCounterMode(display=False) as counter:
            work()
        way = f"{_name(precision)} {_name(layout)}"
        found.append(Best(_fastest(work, compute), counter.get_total_flops(), way))
    return min(found, key=lambda best: best.seconds)


def matrix_product_peak(precision: torch.dtype, compute: Compute, side: int) -> Best:
    """A product of two square matrices."""
    one, other = (torch.randn(side, side, device=compute.device, dtype=precision) for _ in range(2))
    seconds = _fastest(lambda: one @ other, compute)
    return Best(seconds, 2 * side**3, f"{_name(precision)} {side}x{side}")


def _isolated(
    call: Convolution, precision: torch.dtype, layout: torch.memory_format, device: torch.device
) -> Callable[[], Any]:
    images, weight = (
        torch.randn(shape, device=device).to(precision).contiguous(memory_format=layout)
        for shape in (call.images, call.weight)
    )
    bias = torch.zeros(call.weight[0], device=device, dtype=precision) if call.bias else None
    geometry = (call.stride, call.padding, call.dilation, False, (0,) * len(call.stride), call.groups)

    def forward() -> Tensor:
        return torch.ops.aten.convolution(images, weight, bias, *geometry)  # type: ignore[no-any-return]

    if not call.backward:
        return forward
    gradient = torch.randn_like(forward())
    sizes = [call.weight[0]] if call.wanted[2] else None
    return lambda: torch.ops.aten.convolution_backward(gradient, images, weight, sizes, *geometry, call.wanted)


def _fastest(work: Callable[[], object], compute: Compute) -> float:
    """Seconds of the fastest of `TRIALS` runs, after one to warm up."""
    work()
    times = []
    for _ in range(TRIALS):
        compute.synchronise()
        begun = time.perf_counter()
        work()
        compute.synchronise()
        times.append(time.perf_counter() - begun)
    return min(times)


def _name(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")
