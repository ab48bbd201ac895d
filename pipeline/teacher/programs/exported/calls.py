"""Reads the calls of an exported program: which operator, which arguments by name, and what the results are called."""

from dataclasses import dataclass

import torch

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.exported.archive import DTYPES
from compress.pipeline.teacher.programs.exported.document import EXPORT_HINT, MaybeNamed, Named, Node, Symbol, Value
from compress.pipeline.teacher.programs.exported.names import Names
from compress.pipeline.teacher.programs.graph import Argument
from compress.pipeline.teacher.readers.formats import printable

_VIEWS = frozenset(
    """
    _unsafe_view alias chunk contiguous detach expand expand_as flatten movedim narrow permute reshape reshape_as select
    slice split split_with_sizes squeeze t transpose type_as unbind unflatten unfold unsqueeze view view_as
    """.split()  # noqa: SIM905  a list would take twenty-five lines
)
"""Operators whose results may share memory with their first argument."""

_PLACEMENT = frozenset(("as_device", "as_layout", "as_memory_format"))
"""Arguments that say where a tensor lies and how, which changes no number."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one operator."""

    operator: str
    """Such as `aten.relu.default`; the pure one where the call is in place."""
    arguments: dict[str, Argument]
    """By their names in the operator's schema."""
    first: str | None
    """The name that the first argument has in the program, where it is a tensor."""
    results: tuple[str, ...]
    several: bool
    """Whether the operator gives a tuple or list, even one of a single tensor."""
    in_place: bool

    @property
    def subject(self) -> Argument:
        """The first argument."""
        return next(iter(self.arguments.values()), None)

    @property
    def shares_with(self) -> str | None:
        """The name of the tensor whose memory the results may be in."""
        return self.first if self.in_place or self.operator.split(".")[1] in _VIEWS else None


def operator_of(node: Node) -> str:
    """The operator's name without where PyTorch keeps it: `aten.relu_.default`, `operator.mul`."""
    name = node.target.removeprefix("torch.ops.")
    return name.removeprefix("_") if name.startswith("_operator.") else name


def read_call(node: Node, operator: str, names: Names, file_name: str) -> Call:
    """Read one call.

    Args:
        node: the call.
        operator: of the call, or the pure one that does the same.
        names: what the program's names mean so far.
        file_name: for messages.

    Raises:
        InputError: an argument is of a kind that no classifier needs, or is not defined.
    """
    return Call(
        operator=operator,
        arguments={given.name: _argument(given.arg, names, file_name) for given in node.inputs},
        first=node.inputs[0].arg.as_tensor.name if node.inputs and node.inputs[0].arg.as_tensor else None,
        results=tuple(name for value in node.outputs for name in _result_names(value)),
        several=len(node.outputs) > 1 or any(value.as_tensors is not None for value in node.outputs),
        in_place=operator != operator_of(node),
    )


def float32_for(dtype: torch.dtype | None) -> torch.dtype | None:
    """The number type that stands for it in a network of float32."""
    return torch.float32 if dtype is not None and dtype.is_floating_point else dtype


def _argument(value: Value, names: Names, file_name: str) -> Argument:
    kind = value.kind
    if kind in _PLACEMENT or kind == "as_none":
        return None
    if kind == "as_scalar_type" and float32_for(DTYPES.get(value.as_scalar_type or 0)):
        return float32_for(DTYPES.get(value.as_scalar_type or 0))
    given = getattr(value, kind) if kind in Value.model_fields and kind != "as_scalar_type" else None
    if given is None:
        raise InputError(
            f"'{file_name}' has an argument of the kind {printable(kind)}, which a teacher may not.", EXPORT_HINT
        )
    return tuple(_item(item, names) for item in given) if isinstance(given, list) else _item(given, names)


def _item(item: object, names: Names) -> Argument:
    """One argument, or one of a list."""
    if isinstance(item, MaybeNamed):
        return None if item.as_tensor is None else names[item.as_tensor.name]
    if isinstance(item, Named):
        return names[item.name]
    if isinstance(item, Symbol):
        return item.as_int if item.as_name is None else names[item.as_name]
    if item in ("Infinity", "-Infinity", "NaN"):
        return float(str(item))
    return item if isinstance(item, bool | int | float | str) else None


def _result_names(value: Value) -> list[str]:
    symbol = value.as_sym_int or value.as_sym_bool or value.as_sym_float
    if symbol is not None and symbol.as_name is not None:
        return [symbol.as_name]
    return [named.name for named in ([value.as_tensor] if value.as_tensor else value.as_tensors or [])]
