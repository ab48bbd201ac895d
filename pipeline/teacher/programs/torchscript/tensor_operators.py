"""What the operators of TorchScript on tensors come down to."""

from collections.abc import Callable
from typing import Any

import torch

from compress.pipeline.jail.child import Refused
from compress.pipeline.teacher.programs.graph import BATCH_NORM, TensorRef, ValueRef, find_operator
from compress.pipeline.teacher.programs.torchscript.answer import CONSTANT
from compress.pipeline.teacher.programs.torchscript.arithmetic import ON_SIZES, rank_after
from compress.pipeline.teacher.programs.torchscript.recorder import FLOATING, IMAGES, Recorder, not_allowed, schema_of
from compress.pipeline.teacher.programs.torchscript.values import Held, Size, Sizes, Unknown, is_plain, size
from compress.pipeline.teacher.readers.formats import printable

_TRAINING = 5
"""The argument of a batch norm that is true in training."""

_SAME = {"view": "reshape"}
"""Operators that do the same with tensors of any memory format."""


def apply(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    """The result of a node, written down where it is an operation on tensors.

    Raises:
        Refused: the operator is not allowed, or changes what it may not.
    """
    kind = node.kind()
    if kind in _SPECIAL:
        return _SPECIAL[kind](recorder, node, arguments)
    computed = _with_sizes(recorder, kind, arguments) if kind in ON_SIZES else None
    return _operation(recorder, node, arguments) if computed is None else computed


def _operation(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    if not node.kind().startswith("aten::"):
        raise not_allowed(node)
    schema = schema_of(node)
    if not schema.is_mutable and schema.returns and not any("Tensor" in str(given.type) for given in schema.returns):
        return Unknown(node.kind())
    if _counts_batches(schema, arguments):
        return arguments[0]
    target = _overwritten(recorder, node, arguments) if schema.is_mutable else None
    base = schema.name.removeprefix("aten::").removesuffix("_" if target else "")
    name = f"aten.{_SAME.get(base, base)}.{schema.overload_name or 'default'}"
    if find_operator(name) is None and name != BATCH_NORM:
        raise not_allowed(node)
    recorder.training |= name == BATCH_NORM and arguments[_TRAINING] is not False
    ref, rank = recorder.call(name, node, arguments), rank_after(name, arguments)
    if target:
        return target.overwrite(ref, rank)
    shared = [given for given in arguments if isinstance(given, Held)] if schema.returns[0].alias_info else []
    result = shared[0].alias(ref, rank) if shared else Held(ref, rank)
    count = len(schema.returns)
    return result if count == 1 else [_item(recorder, result, index) for index in range(count)]


def _counts_batches(schema: torch._C.FunctionSchema, arguments: list[Any]) -> bool:
    """Whether this is what a batch norm does besides in training."""
    ref = arguments[0].ref if schema.is_mutable and isinstance(arguments[0], Held) else None
    return isinstance(ref, TensorRef) and ref.tensor.endswith("num_batches_tracked")


def _overwritten(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Held:
    """The tensor that an operator changes in place: its first argument, and none that the archive holds."""
    written = [
        declared.alias_info is not None and declared.alias_info.is_write for declared in schema_of(node).arguments
    ]
    target = arguments[0]
    if written.index(True) > 0 or sum(written) > 1 or not isinstance(target, Held):
        raise not_allowed(node)
    for shared in target.family:
        if isinstance(shared.ref, TensorRef):
            raise Refused(f"changes its own '{printable(shared.ref.tensor)}' when it runs, which a teacher may not.")
    return target


def _item(recorder: Recorder, packed: Held, index: int) -> Held:
    ref = recorder.emit("operator.getitem", (recorder.argument(packed), index))
    return packed.alias(ref, packed.rank)


def _unpacked(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> list[Any]:
    (packed,), count = arguments, node.outputsSize()
    if isinstance(packed, list) and len(packed) == count:
        return packed
    if isinstance(packed, Sizes):
        return [size(packed.of, index) for index in range(count)]
    if not isinstance(packed, Held):
        raise not_allowed(node)
    return [_item(recorder, packed, index) for index in range(count)]


def _picked(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    packed, index = arguments
    if isinstance(packed, Sizes) and isinstance(index, int):
        return size(packed.of, index)
    if isinstance(packed, Held) and isinstance(index, int):
        return _item(recorder, packed, index)
    return Unknown(node.kind())


def _sizes(_: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    held, *dimension = arguments
    if not isinstance(held, Held) or not is_plain(dimension):
        return Unknown(node.kind())
    if dimension:
        return size(held.ref, dimension[0])
    return Sizes(held.ref) if held.rank is None else [size(held.ref, index) for index in range(held.rank)]


def _rank(_: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    rank = arguments[0].rank if isinstance(arguments[0], Held) else None
    return Unknown(node.kind()) if rank is None else rank


def _length(_: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    held = arguments[0]
    return size(held.ref, 0) if isinstance(held, Held) and "len.Tensor" in node.schema() else Unknown(node.kind())


def _with_sizes(recorder: Recorder, kind: str, arguments: list[Any]) -> Size | None:
    """Arithmetic in which a size takes part, and numbers otherwise."""
    left, right, *more = (_number_in(recorder, argument) for argument in arguments)
    operator, known = ON_SIZES[kind]
    if more in (["floor"], ["trunc"]):  # how a quotient is rounded
        operator, more = "operator.floordiv", []
    numbers = isinstance(left, Size | int | float) and isinstance(right, Size | int | float)
    if not numbers or not (isinstance(left, Size) or isinstance(right, Size)) or more not in known:
        return None
    return Size(operator, (right, left) if kind == "aten::rsub" else (left, right))


def _root(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    found = arguments[0]
    return Size("operator.pow", (found, 0.5)) if isinstance(found, Size) else _operation(recorder, node, arguments)


def _number(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    found = _number_in(recorder, arguments[0])
    return Unknown(node.kind()) if isinstance(found, Held) else found


def _whole_number(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    found = _number(recorder, node, arguments)
    if isinstance(found, Size):
        return found if found.is_whole else Unknown(node.kind())
    return int(found) if isinstance(found, int | float) else found


def _number_in(recorder: Recorder, value: Any) -> Any:
    """Tracing writes the numbers that sizes are computed with as tensors without dimensions."""
    if isinstance(value, Held) and isinstance(value.ref, TensorRef) and value.rank == 0:
        return recorder.tensors[value.ref.tensor].item()
    return value


def _moved(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    """A tensor on another device or of another type: everything is where the images are, and float32 as they are."""
    held = arguments[0]
    if not isinstance(held, Held):
        return held
    given = {declared.name: value for declared, value in zip(schema_of(node).arguments, arguments, strict=True)}
    if given.get("dtype") not in FLOATING:
        raise not_allowed(node)
    other = given.get("other", Held(ValueRef(value=IMAGES), rank=4))
    if given.get("dtype") is None and "other" not in given:
        return held.alias(held.ref, held.rank)
    ref = recorder.emit("aten.type_as.default", (recorder.argument(held), recorder.argument(other)))
    return held.alias(ref, held.rank)


def _dropout(recorder: Recorder, _: torch.Node, arguments: list[Any]) -> Any:
    held, _, training = arguments
    recorder.training |= training is not False
    return held.alias(held.ref, held.rank) if isinstance(held, Held) else held


def _convolution(recorder: Recorder, _: torch.Node, arguments: list[Any]) -> Held:
    """Of its 12 or 13 arguments, those after the ninth choose among implementations."""
    name = "aten.convolution.default"
    ref = recorder.emit(name, tuple(recorder.argument(argument) for argument in arguments[:9]))
    return Held(ref, rank_after(name, arguments[:1]))


def _created(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Held:
    """A new tensor, where the images are."""
    name = f"aten.new_{node.kind().removeprefix('aten::')}.default"
    ref = recorder.call(name, node, arguments, before=(ValueRef(value=IMAGES),))
    return Held(ref, rank_after(name, [None, *arguments]))


def _literal(recorder: Recorder, node: torch.Node, arguments: list[Any]) -> Any:
    """A tensor made of numbers that are known."""
    if not is_plain(arguments[0]) or arguments[1] not in FLOATING:
        raise not_allowed(node)
    path = f"{CONSTANT}{node.output().debugName()}.{len(recorder.tensors)}"  # another at every turn of a loop
    return recorder.from_archive(torch.tensor(arguments[0]), path, node.kind())


_SPECIAL: dict[str, Callable[[Recorder, torch.Node, list[Any]], Any]] = {
    "aten::Float": _number,
    "aten::FloatImplicit": _number,
    "aten::Int": _whole_number,
    "aten::IntImplicit": _whole_number,
    "aten::ScalarImplicit": _number,
    "aten::__getitem__": _picked,
    "aten::_convolution": _convolution,
    "aten::alias": _moved,
    "aten::alpha_dropout": _dropout,
    "aten::alpha_dropout_": _dropout,
    "aten::cpu": _moved,
    "aten::cuda": _moved,
    "aten::dim": _rank,
    "aten::dropout": _dropout,
    "aten::dropout_": _dropout,
    "aten::feature_alpha_dropout": _dropout,
    "aten::feature_alpha_dropout_": _dropout,
    "aten::feature_dropout": _dropout,
    "aten::feature_dropout_": _dropout,
    "aten::full": _created,
    "aten::len": _length,
    "aten::lift_fresh": _moved,
    "aten::ones": _created,
    "aten::size": _sizes,
    "aten::sqrt": _root,
    "aten::tensor": _literal,
    "aten::to": _moved,
    "aten::type_as": _moved,
    "aten::zeros": _created,
    "prim::ListUnpack": _unpacked,
    "prim::NumToTensor": _number,
    "prim::TupleUnpack": _unpacked,
}
