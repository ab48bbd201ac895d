"""Runs a program on tensors that have a shape but no numbers, so that its cost is known before any of it is paid."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.dataflow import done_after
from compress.pipeline.teacher.programs.graph import (
    BATCH_NORM,
    REFUSED_HINT,
    Argument,
    Operation,
    ProgramGraph,
    TensorRef,
    ValueRef,
    find_operator,
)
from compress.pipeline.teacher.programs.meter import Meter, TooMuch
from compress.pipeline.teacher.readers.files import HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import printable

Shape = tuple[int, ...]


def shape_of_answer(graph: ProgramGraph, tensors: Mapping[str, Tensor], images: Sequence[int], name: str) -> Shape:
    """The shape of what a program answers, after it was made sure that it costs no more than a network may for one image.

    Args:
        graph: the program.
        tensors: the file's, by the names that the graph uses.
        images: their shape, `[N, C, H, W]`.
        name: the file's, for messages.

    Raises:
        InputError: an operation cannot be computed, or the program would cost too much.
    """
    run, done = DryRun(graph.input, tensors, images, name, Meter()), done_after(graph.operations)
    for operation in graph.operations:
        run.evaluate(operation)
        run.forget(done.get(operation.name, []))
    return run.shape_of(ValueRef(graph.output))


class DryRun:
    """The values of a program so far, for images of one shape."""

    def __init__(
        self, images_name: str, tensors: Mapping[str, Tensor], images: Sequence[int], file_name: str, meter: Meter
    ) -> None:
        """Start with images of a shape.

        Raises:
            InputError: they are too large.
        """
        self._tensors, self._file_name, self._meter, self._alive = tensors, file_name, meter, 0
        if math.prod(images) > meter.most:
            raise InputError(
                f"'{file_name}' takes images of {math.prod(images[1:]):,} numbers, which is too many.", HOSTILE_HINT
            )
        self._values: dict[str, Any] = {images_name: torch.empty(tuple(images), device="meta")}

    def evaluate(self, operation: Operation) -> None:
        """Compute the shape of an operation's result.

        Raises:
            InputError: it cannot be computed, or costs too much.
        """
        try:
            result = self._result(operation)
            self._alive += _numbers(result)
            if self._alive > self._meter.most:
                raise TooMuch(f"{self._alive:,} numbers would exist at a time")
        except InputError:
            raise
        except Exception as error:  # torch has many types for arguments that do not fit
            raise self._refusal(operation, error) from error
        self._values[operation.name] = result

    def forget(self, names: Iterable[str]) -> None:
        """Values that are of no more use take no more memory."""
        self._alive -= sum(_numbers(self._values.pop(name)) for name in names if name in self._values)

    def shape_of(self, argument: Argument) -> Shape:
        """Of a tensor; empty where it is none."""
        return tuple(getattr(self._resolved(argument), "shape", ()))

    def _result(self, operation: Operation) -> Any:
        arguments = [self._resolved(argument) for argument in operation.arguments]
        if operation.operator == BATCH_NORM:
            return _normalised(*arguments[:5])
        function = find_operator(operation.operator)
        if function is None:
            raise InputError(
                f"'{self._file_name}' uses the operator {printable(operation.operator)}, which a teacher may not.",
                REFUSED_HINT,
            )
        keywords = {key: self._resolved(argument) for key, argument in operation.keywords.items()}
        with self._meter:
            return function(*arguments, **keywords)

    def _resolved(self, argument: Argument) -> Any:
        if isinstance(argument, ValueRef):
            return self._values[argument.value]
        if isinstance(argument, TensorRef):
            return self._tensors[argument.tensor].to("meta")
        return [self._resolved(item) for item in argument] if isinstance(argument, tuple) else argument

    def _refusal(self, operation: Operation, error: Exception) -> InputError:
        reason = "it refers to something that is not there"
        if not isinstance(error, KeyError):
            reason = printable(next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip("."))
        hint = HOSTILE_HINT if isinstance(error, TooMuch) else REFUSED_HINT
        return InputError(f"'{self._file_name}' cannot be computed at '{printable(operation.name)}': {reason}.", hint)


def _normalised(images: Tensor, *tensors: Tensor | None) -> Tensor:
    """What a batch norm puts out, `[N, C, ...]`, like what it takes."""
    if images.dim() < 2 or any(tensor is not None and tensor.shape != images.shape[1:2] for tensor in tensors):
        raise ValueError(f"its statistics do not fit a tensor {list(images.shape)}")
    return images.clone()


def _numbers(result: Any) -> int:
    tensors = result if isinstance(result, list | tuple) else (result,)
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
