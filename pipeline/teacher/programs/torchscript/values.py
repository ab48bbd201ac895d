"""What the variables of a TorchScript graph stand for while it is translated."""

from dataclasses import dataclass, field
from typing import Any

import torch

from compress.pipeline.teacher.programs.graph import TensorRef, ValueRef


@dataclass(eq=False, slots=True)
class Held:
    """A tensor, or a list of them that one operation gave."""

    ref: ValueRef | TensorRef
    """Where its present content comes from."""
    rank: int | None
    """Number of dimensions, of each tensor of a list; None if unknown."""
    family: list["Held"] = field(default_factory=list)
    """All that may share its memory, itself included."""
    stale: bool = False
    """Whether its memory was overwritten through another of its family."""

    def __post_init__(self) -> None:
        self.family.append(self)

    def alias(self, ref: ValueRef | TensorRef, rank: int | None) -> "Held":
        """Another tensor that may share this one's memory."""
        return Held(ref, rank, self.family, self.stale)

    def overwrite(self, ref: ValueRef, rank: int | None) -> "Held":
        """Give this tensor new content; what else may share its memory can no longer be told."""
        self.ref, self.rank = ref, rank
        for other in self.family:
            other.stale = other is not self
        return self


@dataclass(frozen=True, slots=True)
class Size:
    """A number that is known only when the network runs: the size of a dimension, or arithmetic with such."""

    operator: str
    arguments: tuple["ValueRef | TensorRef | Size | int | float", ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is an integer in any case."""
        parts = (argument.is_whole if isinstance(argument, Size) else True for argument in self.arguments)
        return self.operator not in ("operator.truediv", "operator.pow") and all(parts)


@dataclass(frozen=True, slots=True)
class Sizes:
    """All sizes of a tensor whose number of dimensions is unknown."""

    of: ValueRef | TensorRef

    def __getitem__(self, dimension: int) -> Size:
        return size(self.of, dimension)


@dataclass(frozen=True, slots=True)
class Owner:
    """A module of the archive, and the path to it as in the names of its parameters."""

    path: str
    module: torch._C.ScriptModule

    def within(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


@dataclass(frozen=True, slots=True)
class Unknown:
    """Anything else; an error only if the network's answer rests on it."""

    origin: str
    """The operator that it came from."""


def size(of: ValueRef | TensorRef, dimension: int) -> Size:
    """The size of one dimension, counted from the end where negative."""
    return Size("aten.sym_size.int", (of, dimension))


def is_plain(value: Any) -> bool:
    """Whether a value is known now: a number, a text, None, or a list of such."""
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
