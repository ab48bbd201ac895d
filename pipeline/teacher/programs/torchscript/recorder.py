"""Writes down operations, with arguments as a program may have them."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from compress.pipeline.jail.child import Refused
from compress.pipeline.teacher.programs.graph import Argument, Operation, TensorRef, ValueRef
from compress.pipeline.teacher.programs.torchscript.values import Held, Owner, Size, Sizes, Unknown, is_plain
from compress.pipeline.teacher.readers.formats import printable

IMAGES = "images"
"""The name of the program's input."""

FLOATING = (None, 5, 6, 7, 15)
"""No type, half, float, double and bfloat16, which all become float32. Source: c10/core/ScalarType.h."""

_STORAGE = frozenset(
    ("dtype", "layout", "device", "pin_memory", "non_blocking", "copy", "memory_format", "requires_grad")
)
"""Arguments that say how a tensor is stored; the network that is built decides that itself."""


@dataclass(slots=True)
class Recorder:
    """What was written down so far."""

    operations: list[Operation] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Those of the archive that were met, by the paths to them."""
    sizes: dict[Size, ValueRef] = field(default_factory=dict)
    """Sizes that were computed."""
    training: bool = False
    """Whether something was met that is done in training only."""

    def emit(
        self, operator: str, arguments: tuple[Argument, ...], keywords: dict[str, Argument] | None = None
    ) -> ValueRef:
        """Write one operation down; returns its result."""
        result = f"v{len(self.operations)}"
        self.operations.append(Operation(name=result, operator=operator, arguments=arguments, keywords=keywords or {}))
        return ValueRef(value=result)

    def argument(self, value: Any) -> Argument:
        """A value as the argument of an operation; sizes are computed on the way."""
        if isinstance(value, list):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, Held):
            if value.stale:
                raise Refused("overwrites in place a part of a tensor that it uses again, which a teacher may not.")
            return value.ref
        if isinstance(value, Size):
            return self._computed(value)
        if isinstance(value, Sizes):
            return self.emit("aten.sym_size.default", (value.of,))
        if not is_plain(value):
            raise Refused(f"rests on {origin(value)}, whose value is not known before it runs.")
        plain: Argument = value
        return plain

    def _computed(self, value: Size) -> ValueRef:
        if value not in self.sizes:
            arguments = (self.argument(item) if isinstance(item, Size) else item for item in value.arguments)
            self.sizes[value] = self.emit(value.operator, tuple(arguments))
        return self.sizes[value]

    def call(
        self, operator: str, node: torch.Node, arguments: list[Any], *, before: tuple[Argument, ...] = ()
    ) -> ValueRef:
        """Write an operation down with the arguments of a node, without those that say how a tensor is stored."""
        positional = list(before)
        keywords: dict[str, Argument] = {}
        skipped = False
        for declared, given in zip(schema_of(node).arguments, arguments, strict=True):
            if str(declared.type) == "Tensor" and isinstance(given, Size | int | float):
                given = Held(self.emit("aten.new_full.default", (ValueRef(IMAGES), (), self.argument(given))), rank=0)
            if declared.name == "dtype" and given not in FLOATING:
                raise not_allowed(node)
            if declared.name in _STORAGE:
                skipped = True
            elif skipped or declared.kwarg_only:
                keywords[declared.name] = self.argument(given)
            else:
                positional.append(self.argument(given))
        return self.emit(operator, tuple(positional), keywords)

    def from_archive(self, value: Any, path: str, kind: str) -> Any:
        """What a constant or an attribute stands for."""
        if isinstance(value, Tensor):
            self.tensors[path] = value
            return Held(TensorRef(tensor=path), value.dim())
        if isinstance(value, list | tuple):
            return [self.from_archive(item, f"{path}.{index}", kind) for index, item in enumerate(value)]
        if isinstance(value, torch._C.ScriptModule):
            return Owner(path, value)
        return value if is_plain(value) else Unknown(kind)


@lru_cache
def _parsed(text: str) -> torch._C.FunctionSchema:
    return torch._C.parse_schema(text)


def schema_of(node: torch.Node) -> torch._C.FunctionSchema:
    """Names and types of the arguments of a node's operator, and which of them it changes."""
    return _parsed(node.schema())


def not_allowed(node: torch.Node) -> Refused:
    """The refusal of an operator."""
    return Refused(f"uses the operator {printable(node.kind())}, which a teacher may not.")


def origin(value: Any) -> str:
    """Where a value came from, for messages."""
    return printable(value.origin) if isinstance(value, Unknown) else "what it computes"
