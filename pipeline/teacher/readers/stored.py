"""Tensors as files store them: checked against the bytes that are there, and made only when somebody asks for them.

A made tensor shares the memory of the file that was read, so a claim costs nothing before it was compared with a budget.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

MOST_DIMENSIONS = 64
"""As many as NumPy allows; torch sets no limit."""

_LARGEST = 2**48
"""No dimension or offset of a tensor that fits into a file reaches it."""


class ImplausibleTensor(Exception):
    """A tensor that cannot be what it claims; the message goes on where the file's name ended."""


@dataclass(slots=True, eq=False)
class Storage:
    """Numbers in a row, which several tensors may share."""

    dtype: torch.dtype | None
    """None where each tensor says for itself, and `numel` counts bytes."""
    numel: int
    fetch: Callable[[], memoryview]
    """Gives the bytes, `numel` times the size of a number."""
    swapped: bool = False
    """Whether the bytes are those of a big-endian machine."""
    _numbers: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """All of them, in one dimension."""
        if dtype not in self._numbers:
            content = self.fetch()
            whole = len(content) - len(content) % dtype.itemsize
            self._numbers[dtype] = from_bytes(content[:whole], dtype, swapped=self.swapped)
        return self._numbers[dtype]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A view of a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def numel(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    def tensor(self) -> Tensor:
        """The tensor itself, sharing memory with the file."""
        if self.numel() == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        return self.storage.numbers(self.dtype).as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True, slots=True, eq=False)
class UnusableTensor:
    """A tensor of a kind that is not read, such as `quantized`."""

    kind: str


def stored_tensor(
    storage: Storage, dtype: torch.dtype, offset: int, shape: Sequence[int], stride: Sequence[int]
) -> StoredTensor:
    """A view of a storage in which it fits, and which does not claim more numbers than are stored.

    Args:
        storage: where its numbers lie.
        dtype: of the tensor; the storage's, where that has one.
        offset: of its first number.
        shape: in numbers.
        stride: distance in memory from one number to the next, for each dimension.

    Raises:
        ImplausibleTensor: it does not fit.
    """
    sensible = len(shape) == len(stride) <= MOST_DIMENSIONS
    if not (sensible and all(type(number) is int and 0 <= number < _LARGEST for number in (offset, *shape, *stride))):
        raise ImplausibleTensor("has a tensor without a sensible shape")
    available = storage.numel if storage.dtype is not None else storage.numel // dtype.itemsize
    claimed = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if claimed > available:
        raise ImplausibleTensor(f"claims a tensor of {claimed:,} numbers where {available:,} are stored")
    if claimed and last >= available:
        raise ImplausibleTensor("has a tensor that reaches beyond its numbers")
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def stored_array(storage: Storage, dtype: torch.dtype, shape: Sequence[int], *, column_major: bool) -> StoredTensor:
    """All of a storage as an array, whose first dimension varies fastest where it is column-major, else its last.

    Raises:
        ImplausibleTensor: it does not fit.
    """
    if len(shape) > MOST_DIMENSIONS:
        raise ImplausibleTensor("has an array without a sensible shape")
    order = list(shape if column_major else reversed(shape))
    strides = [*accumulate(order, operator.mul, initial=1)][: len(order)]
    return stored_tensor(storage, dtype, 0, shape, strides if column_major else strides[::-1])


def from_bytes(content: memoryview, dtype: torch.dtype, *, swapped: bool = False) -> Tensor:
    """Numbers in one dimension from writable bytes, whose memory they share where the machine allows it.

    Args:
        content: a whole number of them.
        dtype: their type.
        swapped: whether the first byte of a number is its highest.
    """
    if not content:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(content, dtype=torch.uint8)
    if swapped:
        raw = raw.view(-1, dtype.itemsize).flip(1).flatten()
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # processors may read numbers at whole multiples of their size only
    return raw.view(dtype)
