"""What the jail answers: one safetensors file, in whose metadata the program is written as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor

from compress.pipeline.jail.child import Refused
from compress.pipeline.teacher.programs.graph import Argument, Operation, ProgramGraph, TensorRef, ValueRef
from compress.pipeline.teacher.readers.formats import printable
from compress.pipeline.teacher.readers.safetensors_files import read_safetensors
from compress.pipeline.teacher.readers.weights import is_dense

MOST_OPERATIONS = 20_000
"""Of a program; the deepest classifiers have some thousands."""

CONSTANT = "<constant>"
"""What the names of tensors begin with that have none in the archive."""

_ENTRY = "program"
_ALIGNMENT = 8

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names. Source: https://huggingface.co/docs/safetensors, format."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An archive as data."""

    graph: ProgramGraph
    tensors: dict[str, Tensor]
    """Parameters, buffers and used constants, of the types that the archive has them in."""
    training: bool
    """Whether the graph was recorded in training mode; the program is in evaluation mode all the same."""


def pack(answer: Answer) -> Iterator[bytes | memoryview]:
    """The same as the parts of a file.

    Raises:
        Refused: a tensor is not of plain numbers.
    """
    ends = [*accumulate(map(_size, answer.tensors.values()), initial=0)]
    header = {
        name: {"dtype": _dtype(name, tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
        for (name, tensor), (start, end) in zip(answer.tensors.items(), pairwise(ends), strict=True)
    }
    text = json.dumps({**header, "__metadata__": {_ENTRY: json.dumps(_as_json(answer))}}).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return chain([len(text).to_bytes(8, "little"), text], map(_numbers, answer.tensors.values()))


def unpack(data: bytearray) -> Answer:
    """What `pack` has packed; its tensors share memory with `data`.

    Raises:
        Exception: of any type, where it is something else.
    """
    tensors, metadata = read_safetensors(data, "the answer")
    program: Any = metadata[_ENTRY]
    if len(program["operations"]) > MOST_OPERATIONS:
        raise ValueError("too many operations")
    operations = tuple(_operation(*fields) for fields in program["operations"])
    graph = ProgramGraph(_text(program["input"]), operations, _text(program["output"]))
    return Answer(graph, tensors, training=bool(program["training"]))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _dtype(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPES or not is_dense(tensor):
        raise Refused(f"holds '{printable(name)}' in another form than plain numbers, such as quantized ones.")
    return _DTYPES[tensor.dtype]


def _numbers(tensor: Tensor) -> memoryview:
    plain = tensor.detach().contiguous().flatten()
    return plain.view(torch.uint8).numpy().data


def _as_json(answer: Answer) -> dict[str, Any]:
    operations = [
        [operation.name, operation.operator, _encoded(operation.arguments), _encoded(operation.keywords)]
        for operation in answer.graph.operations
    ]
    ends = {"input": answer.graph.input, "output": answer.graph.output}
    return {**ends, "operations": operations, "training": answer.training}


def _operation(name: Any, operator: Any, arguments: list[Any], keywords: dict[Any, Any]) -> Operation:
    named = {_text(key): _decoded(argument) for key, argument in keywords.items()}
    return Operation(_text(name), _text(operator), tuple(map(_decoded, arguments)), named)


def _encoded(argument: Any) -> Any:
    if isinstance(argument, ValueRef):
        return {"value": argument.value}
    if isinstance(argument, TensorRef):
        return {"tensor": argument.tensor}
    if isinstance(argument, Mapping):
        return {key: _encoded(item) for key, item in argument.items()}
    return [_encoded(item) for item in argument] if isinstance(argument, tuple) else argument


def _decoded(argument: Any) -> Argument:
    match argument:
        case {"value": str(name), **rest} if not rest:
            return ValueRef(name)
        case {"tensor": str(name), **rest} if not rest:
            return TensorRef(name)
        case list():
            return tuple(map(_decoded, argument))
        case None | bool() | int() | float() | str():
            return argument
    raise TypeError("not an argument")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
