"""Tensors of an ONNX file, within a budget that is checked before anything is allocated."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from onnx import TensorProto
from torch import Tensor

from compress.pipeline.teacher.programs.meter import MOST_AXES
from compress.pipeline.teacher.programs.onnx.external import ExternalFiles
from compress.pipeline.teacher.programs.onnx.file import OnnxRefusal, quoted
from compress.pipeline.teacher.programs.onnx.operators.elementwise import read_type, type_name
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT, memory_limit

_STORED: dict[int, tuple[torch.dtype, str]] = {
    # element type: how it lies in raw bytes, and the field that holds its numbers where there are none
    TensorProto.FLOAT: (torch.float32, "float_data"),
    TensorProto.DOUBLE: (torch.float64, "double_data"),
    TensorProto.FLOAT16: (torch.float16, "int32_data"),
    TensorProto.BFLOAT16: (torch.bfloat16, "int32_data"),
    TensorProto.INT8: (torch.int8, "int32_data"),
    TensorProto.INT16: (torch.int16, "int32_data"),
    TensorProto.INT32: (torch.int32, "int32_data"),
    TensorProto.INT64: (torch.int64, "int64_data"),
    TensorProto.UINT8: (torch.uint8, "int32_data"),
    TensorProto.BOOL: (torch.uint8, "int32_data"),
}
"""Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, message TensorProto."""

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class _Declared:
    """A tensor that there is room for."""

    tensor: TensorProto
    label: str
    count: int
    place: tuple[BinaryIO, int] | None
    """The file beside the model that holds it, and where."""


class TensorReader:
    """Reads tensors as float32, int64 or bool, and hashes what it takes from files beside the model.

    Close it after use.
    """

    def __init__(self, data: bytes | bytearray, folder: Path | None) -> None:
        self._file_size, self._taken = len(data), 0
        self._hash = hashlib.sha256(data)
        self._external = ExternalFiles(folder)

    @property
    def sha256(self) -> str:
        """Of the model's bytes, followed by those of its tensors in files beside it, in the order of reading."""
        return self._hash.hexdigest()

    @property
    def memory_limit(self) -> int:
        """Bytes that the tensors may come to."""
        return memory_limit(self._file_size + self._external.size)

    def close(self) -> None:
        """Closes the files beside the model."""
        self._external.close()

    def read(self, tensors: Iterable[TensorProto]) -> list[Tensor]:
        """Tensors, none of which is made before all are known to fit.

        Raises:
            OnnxRefusal: one is of a type that is not read, holds other numbers than it declares, or NaN; or the file
                beside the model that it lies in is not there, or may not be opened.
        """
        declared = [self._declare(tensor) for tensor in tensors]
        return [self._made(one) for one in declared]

    def _declare(self, tensor: TensorProto) -> _Declared:
        label = quoted(tensor.name)
        if tensor.data_type not in _STORED:
            raise OnnxRefusal(
                f"holds {label} as {type_name(tensor.data_type)} rather than plain numbers",
                "A teacher is the network in full precision, before any quantization.",
            )
        stored, _ = _STORED[tensor.data_type]
        count = _count(tensor, label)
        external = tensor.data_location == TensorProto.EXTERNAL
        place = self._external.locate(tensor.external_data, label, count * stored.itemsize) if external else None
        self._taken += count * read_type(tensor.data_type).itemsize
        if self._taken > self.memory_limit:
            raise OnnxRefusal(
                f"is small but declares {self._taken:,} bytes of tensors, those of {label} included", HOSTILE_HINT
            )
        return _Declared(tensor, label, count, place)

    def _made(self, declared: _Declared) -> Tensor:
        tensor, label = declared.tensor, declared.label
        stored, field = _STORED[tensor.data_type]
        if declared.place is not None:
            numbers = _from_bytes(self._content(*declared.place, declared.count * stored.itemsize), stored, label)
        elif tensor.HasField("raw_data"):
            numbers = _from_bytes(tensor.raw_data, stored, label)
        else:
            numbers = _from_numbers(list(getattr(tensor, field)), stored, label)
        if numbers.numel() != declared.count:
            raise OnnxRefusal(
                f"declares {declared.count:,} numbers in {label} but holds {numbers.numel():,}", DAMAGED_HINT
            )
        numbers = numbers.to(read_type(tensor.data_type)).reshape(tuple(tensor.dims))
        _check_finite(numbers, label)
        return numbers

    def _content(self, file: BinaryIO, offset: int, length: int) -> bytes:
        file.seek(offset)
        raw = file.read(length)
        self._hash.update(raw)
        return raw


def _count(tensor: TensorProto, label: str) -> int:
    """How many numbers a tensor says that it has."""
    dims = [int(size) for size in tensor.dims]
    if len(dims) > MOST_AXES or not all(0 <= size < 2**32 for size in dims):
        raise OnnxRefusal(f"declares {label} with a shape that makes no sense", DAMAGED_HINT)
    return math.prod(dims)


def _from_bytes(raw: bytes, stored: torch.dtype, label: str) -> Tensor:
    if len(raw) % stored.itemsize:
        raise OnnxRefusal(f"has broken numbers in {label}", DAMAGED_HINT)
    return torch.frombuffer(bytearray(raw), dtype=stored) if raw else torch.empty(0, dtype=stored)


def _from_numbers(numbers: list[float], stored: torch.dtype, label: str) -> Tensor:
    """Halves lie in integers by their bits."""
    try:
        if stored in _HALVES:
            return torch.tensor(numbers, dtype=torch.int32).to(torch.int16).view(stored)
        return torch.tensor(numbers, dtype=stored)
    except (RuntimeError, OverflowError) as error:
        raise OnnxRefusal(f"has broken numbers in {label}", DAMAGED_HINT) from error


def _check_finite(numbers: Tensor, label: str) -> None:
    """A single infinite number may be a bound; infinite weights are of no use."""
    if not numbers.is_floating_point() or bool(numbers.isfinite().all()):
        return
    if numbers.numel() > 1 or bool(numbers.isnan().any()):
        raise OnnxRefusal(f"has NaN or infinite numbers in {label}", "Use a model from before training diverged.")
