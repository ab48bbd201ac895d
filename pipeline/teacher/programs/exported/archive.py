"""The archive of an exported program: its document and its tensors, read as inert data.

`torch.export.load` is never called: it unpickles sample inputs, and what does not load safely it loads unsafely. Here
JSON and raw bytes are read, and sample inputs are not even opened.
Source: torch/export/pt2_archive/_package.py and, for the layout before it, torch/export/__init__.py of PyTorch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.teacher.programs.exported.document import (
    EXPORT_HINT,
    Document,
    Payload,
    Payloads,
    check_version,
    parse,
)
from compress.pipeline.teacher.readers.archives import Archive
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT, memory_limit
from compress.pipeline.teacher.readers.formats import printable, root_of
from compress.pipeline.teacher.readers.stored import ImplausibleTensor, Storage, StoredTensor, stored_tensor
from compress.pipeline.teacher.readers.torch_files import read_torch_zip

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Real number types by their codes. Source: ScalarType in torch/_export/serde/schema.py."""

_STRIDED = 7
"""The layout of dense tensors. Source: Layout, ibid."""

_FLAT_DOCUMENT = "serialized_exported_program.json"
"""The document's name in the layout before PyTorch 2.8, which had no folders."""


@dataclass(frozen=True, slots=True)
class ExportedArchive:
    """What was found: tensors of any number type, none of them made yet."""

    document: Document
    weights: dict[str, StoredTensor]
    """Parameters and buffers under their own names."""
    constants: dict[str, StoredTensor]
    """Tensors that the program brings along, and buffers that no state_dict holds."""


def read_archive(data: bytearray, name: str) -> ExportedArchive:
    """Read what `torch.export.save` wrote.

    Args:
        data: the file.
        name: the file's, for messages.

    Raises:
        UnsafeInputError: tensors are stored as pickles of something other than tensors.
        InputError: the archive is damaged, declares more than its size allows, or holds something else.
    """
    archive = Archive(data, name)
    found = _flat(archive, name) if _FLAT_DOCUMENT in archive.names else _packaged(archive, name)
    check_version(found.document, name)
    _check_budget((*found.weights.values(), *found.constants.values()), memory_limit(len(data)), name)
    return found


def _flat(archive: Archive, name: str) -> ExportedArchive:
    """Of the layout before PyTorch 2.8."""
    return ExportedArchive(
        parse(Document, _content(archive, _FLAT_DOCUMENT, name), name),
        _pickled(archive, "serialized_state_dict.pt", name),
        _pickled(archive, "serialized_constants.pt", name),
    )


def _packaged(archive: Archive, name: str) -> ExportedArchive:
    """Of the layout since PyTorch 2.8, where everything lies in a folder named after the file."""
    root = root_of(archive.names)
    models = f"{root}/models/"
    programs = [member for member in archive.names if member.startswith(models) and member.endswith(".json")]
    if len(programs) != 1:
        found = f"{len(programs)} programs" if programs else "no program, at most of what was compiled from one"
        raise InputError(f"'{name}' is a torch.export archive of {found}.", EXPORT_HINT)
    model = programs[0].removeprefix(models).removesuffix(".json")
    return ExportedArchive(
        parse(Document, _content(archive, programs[0], name), name),
        _tensors(archive, root, f"data/weights/{model}", name),
        _tensors(archive, root, f"data/constants/{model}", name),
    )


def _content(archive: Archive, member: str, name: str) -> memoryview:
    _check_presence(archive, member, name)
    return archive.read(member)


def _check_presence(archive: Archive, member: str, name: str) -> None:
    if member not in archive.names:
        raise InputError(f"'{name}' lacks its member '{printable(member)}'.", DAMAGED_HINT)


def _tensors(archive: Archive, root: str, stem: str, name: str) -> dict[str, StoredTensor]:
    """Tensors of one kind, as raw bytes that a configuration describes or, as PyTorch 2.8 wrote them, as one pickle."""
    if f"{root}/{stem}.pt" in archive.names:
        return _pickled(archive, f"{root}/{stem}.pt", name)
    folder, kind = f"{root}/{stem.rpartition('/')[0]}", stem.split("/")[1]
    config = parse(Payloads, _content(archive, f"{root}/{stem}_{kind}_config.json", name), name).config
    swapped = f"{root}/byteorder" in archive.names and bytes(archive.read(f"{root}/byteorder")) == b"big"
    storages: dict[str, Storage] = {}  # tied tensors share one
    for member in {f"{folder}/{payload.path_name}" for payload in config.values() if not payload.use_pickle}:
        _check_presence(archive, member, name)
        storages[member] = Storage(None, archive.size(member), partial(archive.read, member), swapped)
    return {
        key: _tensor(payload, storages.get(f"{folder}/{payload.path_name}"), key, name)
        for key, payload in config.items()
    }


def _tensor(payload: Payload, storage: Storage | None, key: str, name: str) -> StoredTensor:
    meta = payload.tensor_meta
    if storage is None or meta is None:
        raise _unsafe(key, name)
    if meta.dtype not in DTYPES or meta.layout != _STRIDED:
        raise InputError(
            f"'{name}' holds '{printable(key)}' as something other than plain numbers.",
            "A teacher is the network in full precision, before any quantization.",
        )
    offset, sizes, strides = (
        [-1 if length.as_int is None else length.as_int for length in lengths]
        for lengths in ([meta.storage_offset], meta.sizes, meta.strides)
    )
    try:
        return stored_tensor(storage, DTYPES[meta.dtype], offset[0], sizes, strides)
    except ImplausibleTensor as error:
        raise InputError(f"'{name}' {error}, under the name '{printable(key)}'.", HOSTILE_HINT) from error


def _pickled(archive: Archive, member: str, name: str) -> dict[str, StoredTensor]:
    """A state_dict that torch.save wrote, in an archive of its own; nothing where there was nothing to save."""
    content = bytearray(_content(archive, member, name))
    if not content:
        return {}
    try:
        found = read_torch_zip(content, name)
    except UnsafeInputError as error:
        raise _unsafe(member, name) from error
    entries = found if isinstance(found, Mapping) else {}
    tensors = {key: value for key, value in entries.items() if isinstance(value, StoredTensor) and isinstance(key, str)}
    if not isinstance(found, Mapping) or len(tensors) < len(entries):
        raise _unsafe(member, name)
    return tensors


def _check_budget(tensors: Iterable[StoredTensor], limit: int, name: str) -> None:
    """Several tensors may share one storage, but each is made; half precision becomes float32."""
    declared = sum(max(4, tensor.dtype.itemsize) * tensor.numel() for tensor in tensors)
    if declared > limit:
        raise InputError(f"'{name}' is small but declares {declared:,} bytes of tensors.", HOSTILE_HINT)


def _unsafe(what: str, name: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"'{name}' stores '{printable(what)}' as a pickle that may execute code when it is read.", EXPORT_HINT
    )
