"""The safetensors format, in one file or in shards that an index lists.

Read here and not by its own package, which accepts shapes whose product overflows, and headers whose JSON alone would
take gigabytes.

Source: https://huggingface.co/docs/safetensors, format: the length of a JSON header in 8 bytes, the header, the numbers.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT, memory_limit, read_file
from compress.pipeline.teacher.readers.formats import printable
from compress.pipeline.teacher.readers.stored import MOST_DIMENSIONS, from_bytes

MOST_HEADER_BYTES = 25_000_000
"""Some 150 for each tensor are usual; as Python objects they take up to twenty times as much memory."""

MOST_SHARDS = 1_000
_LONGEST_NAME = 1_000

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class Sharded:
    """What an index and its shards hold together."""

    tensors: dict[str, Tensor]
    metadata: dict[str, object]
    sha256: str
    """Of the lines that the command `sha256sum` prints for index and shards in the order of their names."""
    size: int
    """Bytes of index and shards."""


class _BadHeader(ValueError):
    """A header that is wrong; the message says how, after `its header`."""


def read_safetensors(data: bytearray, name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors that share memory with the file, and its metadata, of which those that hold JSON are decoded.

    Args:
        data: the file.
        name: the file's, for messages.

    Raises:
        InputError: the file is damaged or contradicts itself.
    """
    try:
        header, start = _header(data)
        metadata = header.pop("__metadata__", {})
        if any(len(key) > _LONGEST_NAME for key in header):
            raise _BadHeader("has a name that no layer would have")
        entries = {key: _entry(value) for key, value in header.items()}
        _check_places(entries.values(), len(data) - start)
        tensors = {key: _tensor(data, start, *entry) for key, entry in entries.items()}
        return tensors, _decoded(metadata)
    except _BadHeader as error:
        raise InputError(f"'{name}' is damaged or made to deceive: its header {error}.", DAMAGED_HINT) from error


def read_index(data: bytearray, path: Path) -> Sharded:
    """The tensors of all shards that an index lists.

    Args:
        data: the index.
        path: its, beside which the shards lie.

    Raises:
        InputError: index and shards do not fit together, or a shard is damaged.
    """
    name = printable(path.name)
    places = _weight_map(data, name)
    digests, size = {path.name: hashlib.sha256(data).hexdigest()}, len(data)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, object] = {}
    for shard, expected in _by_shard(places).items():
        content = _read_shard(path.parent / shard, name)
        found, more = read_safetensors(content, printable(shard))
        if found.keys() != expected:
            differing = printable(min(found.keys() ^ expected))
            raise InputError(
                f"'{name}' and its shard '{printable(shard)}' disagree about where '{differing}' is.",
                "Fetch the index and all of its shards from one place.",
            )
        tensors, metadata, size = tensors | found, metadata | more, size + len(content)
        digests[shard] = hashlib.sha256(content).hexdigest()
    lines = "".join(f"{digests[file]}  {file}\n" for file in sorted(digests))
    return Sharded(tensors, metadata, hashlib.sha256(lines.encode()).hexdigest(), size)


def index_in(folder: Path) -> Path | None:
    """The file in a folder that stands for all: its one index, or its one safetensors file; None where it has neither.

    Raises:
        InputError: there are several.
    """
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise InputError(
                f"The folder '{folder.name}' has {len(found)} files {pattern}.", "Name the one that counts."
            )
        if found:
            return found[0]
    return None


def _header(data: bytearray) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the numbers start."""
    length = int.from_bytes(data[:8], "little")
    start = 8 + length
    if start > len(data):
        raise _BadHeader("ends behind the file: it is truncated")
    if length > MOST_HEADER_BYTES:
        raise _BadHeader(f"has {length:,} bytes")
    header = _parsed(bytes(data[8:start]))
    if not isinstance(header, dict):
        raise _BadHeader("is no list of tensors")
    return header, start


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise _BadHeader("is no proper JSON") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(value: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Type, shape, and where the numbers of a tensor start and end."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _BadHeader("describes a tensor in an unknown way")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _BadHeader(f"names a type of numbers that is not read: {printable(str(kind)[:20])}")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and len(shape) <= MOST_DIMENSIONS):
        raise _BadHeader("has a shape or a place that is none")
    return _DTYPES[kind], shape, *offsets


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**48 for number in value)


def _check_places(entries: Iterable[tuple[torch.dtype, list[int], int, int]], size: int) -> None:
    """Every tensor takes what its shape needs, one follows the other, and together they fill the file."""
    position = 0
    for dtype, shape, start, end in sorted(entries, key=lambda entry: entry[2:]):
        if end - start != math.prod(shape) * dtype.itemsize:
            raise _BadHeader("gives a tensor another size than its shape")
        if math.prod(shape) == 0 and math.prod(max(number, 1) for number in shape) * dtype.itemsize > memory_limit(
            size
        ):
            raise _BadHeader("has an empty tensor of a vast shape")
        if start != position:
            raise _BadHeader("has tensors that overlap, or leave a hole")
        position = end
    if position > size:
        raise _BadHeader("claims more numbers than there are: the file is truncated")
    if position < size:
        raise _BadHeader("claims fewer bytes than there are: the file goes on behind its end")


def _tensor(data: bytearray, base: int, dtype: torch.dtype, shape: list[int], start: int, end: int) -> Tensor:
    return from_bytes(memoryview(data)[base + start : base + end], dtype).view(shape)


def _decoded(metadata: Any) -> dict[str, object]:
    """Metadata values are strings; those that hold JSON become what they hold."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _BadHeader("has metadata that are no text")
    return dict(_items(metadata))


def _items(metadata: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    for key, value in metadata.items():
        try:
            yield key, json.loads(value)
        except (ValueError, RecursionError):
            yield key, value


def _weight_map(data: bytearray, name: str) -> dict[str, str]:
    """Tensors' names to the shards in which they lie."""
    if len(data) > MOST_HEADER_BYTES:
        raise InputError(f"'{name}' is an index of {len(data):,} bytes.", HOSTILE_HINT)
    try:
        index = _parsed(bytes(data))
    except _BadHeader as error:
        raise InputError(f"'{name}' {error}.", DAMAGED_HINT) from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise InputError(f"'{name}' is a JSON file, but no index of weights.", DAMAGED_HINT)
    shards = set(places.values())
    if len(shards) > MOST_SHARDS:
        raise InputError(f"'{name}' lists {len(shards):,} files; {MOST_SHARDS:,} are read.", HOSTILE_HINT)
    for shard in shards:
        if not shard or shard in (".", "..") or set(shard) & {"/", "\\", "\0"}:
            raise InputError(f"'{name}' lists a file outside of its folder: '{printable(shard)}'.", HOSTILE_HINT)
    return places


def _by_shard(places: Mapping[str, str]) -> dict[str, set[str]]:
    shards: dict[str, set[str]] = {}
    for key, shard in places.items():
        shards.setdefault(shard, set()).add(key)
    return shards


def _read_shard(path: Path, index_name: str) -> bytearray:
    try:
        content = read_file(path)
    except UsageError as error:
        raise InputError(f"'{index_name}' lists a file that cannot be read: {error.message}", error.hint) from error
    if content.startswith(b"PK") or content[8:9] != b"{":
        raise InputError(f"'{index_name}' lists '{printable(path.name)}', which is no safetensors file.", DAMAGED_HINT)
    return content
