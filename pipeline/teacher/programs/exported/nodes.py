"""Translates the calls of an exported program into operations of the allow-list, in evaluation mode and float32.

Dropout passes its input through, batch norms use what they recorded, assertions are dropped, calls in place become pure
ones, and tensors that are made on a device are made where the images are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.exported.archive import DTYPES
from compress.pipeline.teacher.programs.exported.calls import Call, float32_for, operator_of, read_call
from compress.pipeline.teacher.programs.exported.document import EXPORT_HINT, Graph, Node, TensorMeta
from compress.pipeline.teacher.programs.exported.names import Names
from compress.pipeline.teacher.programs.graph import (
    BATCH_NORM,
    Argument,
    Operation,
    TensorRef,
    ValueRef,
    find_operator,
)
from compress.pipeline.teacher.readers.files import DAMAGED_HINT
from compress.pipeline.teacher.readers.formats import printable

_SAME = {
    # operators, and others with the same arguments and results
    "aten.alias.default": "aten.detach.default",
    "aten.lift_fresh_copy.default": "aten.clone.default",
}

_PLACEMENT = frozenset(("device", "layout", "pin_memory", "memory_format", "non_blocking"))
"""Arguments that say where a tensor lies and how, which changes no number."""

_SIZE_ARITHMETIC = ("operator.", "math.", "torch.sym_", "aten.sym_")
"""How the names of operators begin that take and give single numbers. Unused ones are harmless, whatever they are."""

_ASSERTIONS = ("aten._assert_", "aten.sym_constrain_range")
"""How the names of operators begin that only check."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What the calls became."""

    operations: tuple[Operation, ...]
    names: Names
    training: bool
    """Whether the program was exported in training mode."""


def translate(graph: Graph, images: str, stored: Mapping[str, str], name: str) -> Translation:
    """Translate all calls of a program, in order.

    Args:
        graph: the calls.
        images: the graph's name of the images.
        stored: the graph's names of the file's tensors, and the file's own.
        name: the file's, for messages.

    Raises:
        InputError: an operator is not allowed, or a call makes no sense.
    """
    translator = _Translator(graph, images, name)
    for key, tensor in stored.items():
        translator.names.define(key, TensorRef(tensor))
    for node in graph.nodes:
        translator.add(node)
    return Translation(tuple(translator.operations), translator.names, translator.training)


class _Translator:
    def __init__(self, graph: Graph, images: str, name: str) -> None:
        self.operations: list[Operation] = []
        self.names = Names(name)
        self.training = False
        self._file_name, self._images, self._metas = name, ValueRef(images), graph.tensor_values
        self.names.define(images, self._images)

    def add(self, node: Node) -> None:
        """Translate one call."""
        pure = _pure(operator_of(node))
        if pure.startswith(_ASSERTIONS):
            return
        call = read_call(node, pure, self.names, self._file_name)
        particular = _PARTICULAR.get(pure)
        if particular is None:
            self._plain(call)
        else:
            for name in call.results[:1]:
                meaning = particular(self, call, name)
                self.names.define(name, meaning, sharing=call.first if meaning == call.subject else call.shares_with)
        if call.in_place and call.first is not None and call.results:
            self.names.change(call.first, self.names[call.results[0]])

    def _dtype_of(self, name: str | None) -> torch.dtype | None:
        meta = self._metas.get(name or "")
        return float32_for(DTYPES.get(meta.dtype)) if meta else None

    def _emit(self, name: str, operator: str, *arguments: Argument, **keywords: Argument) -> ValueRef:
        self.operations.append(Operation(name, operator, arguments, keywords))
        return ValueRef(name)

    def _intermediate(self, operator: str, *arguments: Argument, **keywords: Argument) -> ValueRef:
        """An operation whose result has no name in the program."""
        result = self._emit(f"#{len(self.operations)}", operator, *arguments, **keywords)
        self.names.define(result.value, result)
        return result

    def _plain(self, call: Call) -> None:
        """One operator for one call."""
        operator = _SAME.get(call.operator, call.operator)
        function = find_operator(operator)
        if function is None and not operator.startswith(_SIZE_ARITHMETIC):
            self._refuse(f"the operator {operator}")
        positional, keywords = self._bound(function, call)
        if call.several:
            results = self._intermediate(operator, *positional, **keywords)
            for index, name in enumerate(call.results):
                element = self._emit(name, "operator.getitem", results, index)
                self.names.define(name, element, sharing=call.shares_with)
        elif call.results:
            result = self._emit(call.results[0], operator, *positional, **keywords)
            self.names.define(call.results[0], result, sharing=call.shares_with)

    def _bound(self, function: Callable[..., object] | None, call: Call) -> tuple[list[Argument], dict[str, Argument]]:
        """Arguments in the order of the operator's schema and, from the first that is left out, by name."""
        schema = getattr(function, "_schema", None)
        if schema is None:
            return list(call.arguments.values()), {}
        given = {key: value for key, value in call.arguments.items() if key not in _PLACEMENT}
        if "dropout_p" in given:  # inside attention
            self.training |= given["dropout_p"] != 0
            given["dropout_p"] = 0.0
        if not given.keys() <= {parameter.name for parameter in schema.arguments}:
            raise InputError(
                f"'{self._file_name}' gives {printable(call.operator)} arguments that it does not take.", DAMAGED_HINT
            )
        positional: list[Argument] = []
        for parameter in schema.arguments:
            if parameter.kwarg_only or parameter.name not in given:
                break
            positional.append(given.pop(parameter.name))
        return positional, given

    def _pass_through(self, call: Call, name: str) -> Argument:
        """Dropout in evaluation mode."""
        self.training |= call.arguments.get("train") is True
        return call.subject

    def _batch_norm(self, call: Call, name: str) -> Argument:
        """The first result is the output in all variants; the others are what only training keeps."""
        given = call.arguments
        self.training |= given.get("training") is True or "with_update" in call.operator
        tensors = (given.get(key) for key in ("input", "weight", "bias", "running_mean", "running_var"))
        eps = given.get("eps", given.get("epsilon"))
        if not isinstance(eps, float):
            self._refuse("a batch norm without a number for its eps")
        return self._emit(name, BATCH_NORM, *tensors, False, 0.0, eps, False)

    def _reshape(self, call: Call, name: str) -> Argument:
        """A view fails where the memory format is another than at export."""
        return self._emit(name, "aten.reshape.default", call.subject, call.arguments.get("size"))

    def _restride(self, call: Call, name: str) -> Argument:
        """The same numbers in another order in memory; any other use of the operator is refused."""
        sizes, strides = call.arguments.get("size"), call.arguments.get("stride")
        same = _same_numbers(self._metas.get(call.first or ""), sizes, strides)
        if not same or call.arguments.get("storage_offset"):
            self._refuse(f"the operator {call.operator}")
        return call.subject

    def _group_norm(self, call: Call, name: str) -> Argument:
        """Without the sizes, the batch's among them, that the decomposed operator has as arguments."""
        given = (call.arguments.get(key) for key in ("input", "group", "weight", "bias", "eps"))
        return self._emit(name, "aten.group_norm.default", *given)

    def _convert(self, call: Call, name: str) -> Argument:
        """Another number type; of floating-point types all are float32 here, but another one was a copy."""
        source, target = self._metas.get(call.first or ""), self._metas.get(name)
        if source is None or target is None or source.dtype == target.dtype:
            return call.subject
        if self._dtype_of(call.first) == self._dtype_of(name):
            return self._emit(name, "aten.clone.default", call.subject)
        return self._emit(name, "aten.to.dtype", call.subject, self._dtype_of(name))

    def _filled(self, call: Call, name: str) -> Argument:
        """A tensor of one number, where the images are."""
        kind = call.operator.split(".")[1].removeprefix("new_")
        number = {"zeros": 0, "ones": 1}.get(kind, call.arguments.get("fill_value", call.arguments.get("s")))
        size, dtype = call.arguments.get("size", ()), self._dtype_of(name)
        return self._emit(name, "aten.new_full.default", self._images, size, number, dtype=dtype)

    def _counted(self, call: Call, name: str) -> Argument:
        """0, 1, 2, ..., as cumulated ones less one, where the images are."""
        end, start, step = call.arguments.get("end"), call.arguments.get("start", 0), call.arguments.get("step", 1)
        if not isinstance(start, int) or not isinstance(step, int) or step == 0:
            self._refuse("a range of other than whole numbers")
        if (start, step) != (0, 1):
            end = (
                max(0, -((start - end) // step)) if isinstance(end, int) else self._refuse("a range of unknown length")
            )
        ones = self._intermediate("aten.new_ones.default", self._images, (end,), dtype=self._dtype_of(name))
        cumulated = self._intermediate("aten.cumsum.default", ones, 0)
        scaled = self._intermediate("aten.mul.Scalar", cumulated, step)
        return self._emit(name, "aten.add.Scalar", scaled, start - step)

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"'{self._file_name}' uses {printable(what)}, which a teacher may not.", EXPORT_HINT)


_PARTICULAR: dict[str, Callable[[_Translator, Call, str], Argument]] = {
    f"aten.{name}": method
    for method, names in (
        (
            _Translator._pass_through,
            "dropout.default native_dropout.default feature_dropout.default alpha_dropout.default",
        ),
        (
            _Translator._batch_norm,
            """
            batch_norm.default native_batch_norm.default cudnn_batch_norm.default _native_batch_norm_legit.default
            _native_batch_norm_legit_functional.default _native_batch_norm_legit_no_training.default
            _batch_norm_with_update.default _batch_norm_with_update_functional.default _batch_norm_no_update.default
            """,
        ),
        (_Translator._restride, "as_strided.default"),
        (_Translator._reshape, "view.default _unsafe_view.default"),
        (_Translator._group_norm, "native_group_norm.default"),
        (_Translator._convert, "to.dtype to.dtype_layout to.device _to_copy.default"),
        (
            _Translator._filled,
            "zeros.default ones.default full.default new_zeros.default new_ones.default new_full.default scalar_tensor.default",
        ),
        (_Translator._counted, "arange.default arange.start arange.start_step"),
    )
    for name in names.split()
}
"""Operators that become others, by what translates a call of them into the meaning of its first result."""


def _pure(operator: str) -> str:
    """The operator that does the same without changing its first argument, where it is one in place."""
    namespace, _, rest = operator.partition(".")
    base, _, overload = rest.partition(".")
    candidate = f"{namespace}.{base.removesuffix('_')}.{overload}"
    known = candidate in _PARTICULAR or candidate in _SAME or find_operator(candidate) is not None
    return candidate if base.endswith("_") and known else operator


def _same_numbers(meta: TensorMeta | None, sizes: Argument, strides: Argument) -> bool:
    """Whether sizes and strides are a tensor's own, but for the strides of dimensions of length one."""
    if meta is None or not isinstance(sizes, tuple) or not isinstance(strides, tuple):
        return False
    own = [(length, step.as_int) for length, step in zip(meta.shape, meta.strides, strict=False)]
    return len(own) == len(sizes) == len(strides) and all(
        length == size == 1 or (length in (size, None) and step == stride)
        for (length, step), size, stride in zip(own, sizes, strides, strict=True)
    )
