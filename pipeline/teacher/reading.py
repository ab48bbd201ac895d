"""Reads a checkpoint without executing anything in it, and hashes the very bytes that it reads."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from compress.pipeline.errors import InputError, UnsafeInputError, UsageError
from compress.pipeline.teacher.formats import DAMAGED_HINT, Format, printable, recognise_format
from compress.pipeline.teacher.pickles import imported_names
from compress.pipeline.teacher.weights import METADATA_KEYS, as_float32, find_weights, without_wrappers

_MODULE_RECIPE = """Where the model's code is at hand, save its weights alone:
    model = {load}
    torch.save({{'state_dict': model.state_dict()}}, 'weights.pt')"""

_DICTIONARY_RECIPE = """Where you trust the file, save its weights alone:
    checkpoint = {load}
    torch.save({{'state_dict': checkpoint['state_dict']}}, 'weights.pt')"""

_TITLES: dict[Format, str] = {
    "torch zip": "PyTorch checkpoint",
    "torch legacy": "PyTorch checkpoint of the format before 1.6",
    "safetensors": "safetensors file",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as read: dense float32 tensors under names without wrappers' prefixes."""

    file_name: str
    sha256: str
    format: str
    tensors: dict[str, Tensor]
    metadata: dict[str, object]
    """`input_size`, `mean` and `std`, those that the file carries."""
    warnings: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state_dict, a training checkpoint or a safetensors file.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        UnsafeInputError: loading it would execute code.
        InputError: it is in another format, damaged, or its weights are not usable.
    """
    data = _read_bytes(path)
    form = recognise_format(data, path.name)
    found = find_weights(_parse(form, data, path.name), path.name)
    return Checkpoint(
        file_name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        format=f"{_TITLES[form]}, {found.location}",
        tensors=without_wrappers(as_float32(found.weights, path.name, _memory_limit(data))),
        metadata=found.metadata,
        warnings=tuple(f"The checkpoint has weights under '{key}', too; they were not used." for key in found.also),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"'{path}' is a folder.", "Name the checkpoint file inside it.")
        if path.exists() and not path.is_file():
            raise InputError(f"'{path}' is not a regular file.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"There is no file '{path}'.") from error
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.") from error


def _memory_limit(data: bytes) -> int:
    """Bytes that a file may expand to: half precision doubles, and small files may do as they like."""
    return 3 * len(data) + 2**30


def _parse(form: Format, data: bytes, name: str) -> object:
    if form == "safetensors":
        return _parse_safetensors(data, name)
    if form == "pickle":
        plain = InputError(f"'{name}' is a Python pickle that torch.save did not write.", _recipe(form, name, []))
        raise _unsafe(form, data, name) or plain
    if form == "torch zip":
        _check_declared_size(data, name)
    try:
        tree: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a file can fail in the reader in any way; what matters is whether it wanted to import
        stream = _object_pickle(data) if form == "torch zip" else data
        raise _unsafe(form, stream, name) or _damaged(name) from error
    return tree


def _check_declared_size(data: bytes, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        declared = sum(info.file_size for info in archive.infolist())
    if declared > _memory_limit(data):
        raise InputError(
            f"'{name}' is small but declares {declared:,} bytes.", "It is damaged or made to exhaust memory."
        )


def _object_pickle(data: bytes) -> bytes:
    """The pickle inside PyTorch's zip format; nothing where it is damaged."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = next(info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == "data.pkl")
        try:
            return archive.read(member)
        except Exception:  # noqa: BLE001  a wrong checksum, flag or method, each with its own type
            return b""


def _unsafe(form: Format, stream: bytes, name: str) -> UnsafeInputError | None:
    names = imported_names(stream)
    if not names:
        return None
    listed = ", ".join(printable(found) for found in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    sentence = f"'{name}' would execute code when loaded: it imports {listed}{more}."
    return UnsafeInputError(sentence, _recipe(form, name, names))


def _recipe(form: Format, name: str, imported: list[str]) -> str:
    """How the owner of a pickle saves its weights alone."""
    load = f"pickle.load(open('{name}', 'rb'))" if form == "pickle" else f"torch.load('{name}', weights_only=False)"
    is_module = any(found.startswith("torch.nn.modules.") for found in imported)
    return (_MODULE_RECIPE if is_module else _DICTIONARY_RECIPE).format(load=load)


def _damaged(name: str) -> InputError:
    return InputError(f"'{name}' is damaged or truncated.", DAMAGED_HINT)


def _parse_safetensors(data: bytes, name: str) -> object:
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = {key: value for key, value in header.get("__metadata__", {}).items() if key in METADATA_KEYS}
    except Exception as error:  # the reader raises its own type, and KeyError for number types that it does not know
        raise _damaged(name) from error
    return {**tensors, **_decoded(metadata)}


def _decoded(metadata: Mapping[str, str]) -> dict[str, object]:
    """Metadata values are strings; those that hold JSON become what they hold."""
    decoded: dict[str, object] = {}
    for key, value in metadata.items():
        try:
            decoded[key] = json.loads(value)
        except ValueError:
            decoded[key] = value
    return decoded
