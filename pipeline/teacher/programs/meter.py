"""What a graph costs, added up while it runs on tensors that have a shape but no numbers.

A kilobyte of graph can ask for a tensor of 2^40 numbers, or for hours of multiplication; so what a network may cost for
one image is bounded, and known before any of it is paid.
"""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MOST_NUMBERS = 2**28
"""Of one tensor, and of all that exist at a time, for one image: 1 GiB in float32."""

MOST_NUMBERS_IN_ALL = 2**34
"""Written for one image; a ResNet-152 at 224 pixels writes less than 2^27."""

MOST_OPERATIONS = 2**42
"""Floating-point operations for one image; a ViT-H/14 at 224 pixels takes less than 2^39."""

MOST_AXES = 16
"""Of a tensor."""


class TooMuch(Exception):
    """The graph would cost more than a network may."""


class Meter(TorchDispatchMode):
    """While it is on, adds up what operations make and compute, intermediate results included.

    Args:
        images: how many images the limits are for.
        most: numbers of one tensor, in place of the usual limit.
        most_in_all: numbers that may be written, likewise.
    """

    def __init__(self, images: int = 1, *, most: int = MOST_NUMBERS, most_in_all: int = MOST_NUMBERS_IN_ALL) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.most_in_all, self.most_operations = most * images, most_in_all, MOST_OPERATIONS * images
        self.in_all = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises TooMuch when a limit is passed."""
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, list | tuple) else (result,):
            if isinstance(made, Tensor):
                self._made(made, written=not func.is_view)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        if self.operations > self.most_operations:
            raise TooMuch(f"it would take more than {self.most_operations:,} operations")
        return result

    def _made(self, tensor: Tensor, written: bool) -> None:
        """A view shows numbers that are there already, but whatever reads it reads all that it shows."""
        if tensor.dim() > MOST_AXES:
            raise TooMuch(f"it would make a tensor of {tensor.dim()} dimensions")
        if tensor.numel() > self.most:
            raise TooMuch(f"it would make a tensor of {tensor.numel():,} numbers")
        self.in_all += tensor.numel() if written else 0
        if self.in_all > self.most_in_all:
            raise TooMuch(f"it would make {self.in_all:,} numbers in all")
