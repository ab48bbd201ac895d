"""What `torch.save` wrote, in today's format and in the one before version 1.6, and weights that were pickled without it.

PyTorch's own reader with `weights_only=True` executes no code, but it trusts sizes and structure: measured on version
2.13, a file of 392 bytes makes it allocate 2 GB, one of 662 bytes keeps it busy without end, and one of 200 kB ends the
process by deep recursion. It also skips the archive's checksums. So the formats are read here.

Source of both formats: `_save` and `_legacy_save` in torch/serialization.py.
"""

import io
import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, BinaryIO

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.archives import Archive
from compress.pipeline.teacher.readers.constructors import CONSTRUCTORS, STORAGES
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import root_of
from compress.pipeline.teacher.readers.pickles import MOST_BYTES, BrokenPickle, Constructor, Machine
from compress.pipeline.teacher.readers.recipes import Loader, refusal
from compress.pipeline.teacher.readers.stored import ImplausibleTensor, Storage

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_COUNT = struct.Struct("<q")
"""Before the numbers of a storage in the old format: how many there are."""

_LONGEST_KEY = 100

_LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
"""What a storage becomes in a pickle that torch.save did not write: a file of the old format, as bytes."""


def read_torch_zip(data: bytearray, name: str) -> object:
    """What was saved, as plain data: dictionaries, lists and stored tensors.

    Args:
        data: the file.
        name: the file's, for messages.

    Raises:
        UnsafeInputError: it would import what weights have no need of; the sentence names that.
        InputError: it is damaged, or claims what is not there.
    """
    archive = Archive(data, name)
    root = root_of(archive.names)
    swapped = _is_big_endian(archive, f"{root}/byteorder", name)
    read = cache(archive.read)  # once, however many tensors share a storage

    def load_stored(identity: Any) -> Storage:
        dtype, size, key, count = _storage_of(identity)
        member = f"{root}/data/{key}"
        _check_bytes(count * size, archive.size(member))
        return Storage(dtype, count, lambda: read(member), swapped)

    if archive.size(f"{root}/data.pkl") > MOST_BYTES:
        raise _too_long(name)
    return _Stream(archive.read(f"{root}/data.pkl"), name, load_stored=load_stored).next()


def read_torch_legacy(data: bytearray, name: str) -> object:
    """Five pickles, of which the fourth is what was saved, then the numbers of its storages; arguments, result and
    errors as of `read_torch_zip`."""
    described: dict[str, tuple[int, int]] = {}
    places: dict[str, memoryview] = {}

    def load_stored(identity: Any) -> object:
        if identity[0] == "module":  # a class with its source code, which a whole network's pickle names
            return identity[1]
        dtype, size, key, count = _storage_of(identity)
        if described.setdefault(key, (count, size)) != (count, size):
            raise ImplausibleTensor("describes one storage in two ways")
        return _viewed(Storage(dtype, count, lambda: places[key]), size, identity[5] if len(identity) > 5 else None)

    stream = _Stream(memoryview(data)[:MOST_BYTES], name, load_stored=load_stored)
    magic, protocol, _, tree, keys = (stream.next() for _ in range(5))
    try:
        _check_version(magic, protocol)
        places |= _places(data, stream.position, keys, described)
    except (struct.error, TypeError, KeyError, ImplausibleTensor) as error:
        raise _problem(name, error) from error
    return tree


def read_plain_pickle(data: bytearray, name: str) -> object:
    """A dictionary of weights that `pickle.dump` wrote, as NumPy arrays or as tensors; as `read_torch_zip`."""
    if len(data) > MOST_BYTES:
        raise _too_long(name)
    read: dict[int, tuple[object, object]] = {}

    def load_from_bytes(content: Any) -> object:
        if id(content) not in read:  # a pickle may name one storage many times
            raw = content.encode("latin-1") if isinstance(content, str) else content
            read[id(content)] = (content, read_torch_legacy(bytearray(raw), name))
        return read[id(content)][1]

    constructors = {**CONSTRUCTORS, _LOAD_FROM_BYTES: load_from_bytes}
    stream = _Stream(memoryview(data), name, constructors, loader="pickle")
    tree = stream.next()
    if stream.position != len(data):
        raise _problem(name, ImplausibleTensor("has other bytes behind its end"))
    return tree


class _Stream:
    """Pickles one after the other."""

    def __init__(
        self,
        data: memoryview,
        name: str,
        constructors: Mapping[str, Constructor] = CONSTRUCTORS,
        load_stored: Constructor | None = None,
        loader: Loader = "torch",
    ) -> None:
        self._stream: BinaryIO = io.BytesIO(data)
        self._name, self._loader = name, loader
        self._constructors, self._load_stored = constructors, load_stored

    @property
    def position(self) -> int:
        """Bytes read."""
        return self._stream.tell()

    def next(self) -> object:
        """The value of the next pickle; that it would run code is said before all else."""
        machine = Machine(self._constructors, self._load_stored)
        try:
            value = machine.run(self._stream)
        except (BrokenPickle, ImplausibleTensor) as error:
            if machine.unknown:
                raise refusal(machine.unknown, self._name, self._loader, None) from error
            raise _problem(self._name, error) from error
        if machine.unknown:
            raise refusal(machine.unknown, self._name, self._loader, value)
        return value


def _storage_of(identity: Any) -> tuple[Any, int, str, int]:
    """Type of the numbers, bytes of each, key, and how many: of `("storage", class, key, location, count, ...)`."""
    kind, storage_class, key, _, count = identity[:5]
    dtype, size = STORAGES[storage_class.name]
    named = isinstance(key, str) and len(key) <= _LONGEST_KEY
    if kind != "storage" or not named or type(count) is not int or count < 0:
        raise ImplausibleTensor("refers to something that is no storage")
    return dtype, size, key, count


def _viewed(storage: Storage, size: int, view: Any) -> Storage:
    """A part of a storage, which old versions saved as one of its own: key, offset and count of numbers."""
    if view is None:
        return storage
    _, offset, count = view
    if not (type(offset) is type(count) is int and 0 <= offset <= offset + count <= storage.numel):
        raise ImplausibleTensor("has a storage that lies outside of another")
    return Storage(storage.dtype, count, lambda: storage.fetch()[offset * size : (offset + count) * size])


def _places(
    data: bytearray, position: int, keys: Any, described: Mapping[str, tuple[int, int]]
) -> dict[str, memoryview]:
    """Where each storage's numbers lie; they follow in the order of the keys, and the file ends with them."""
    places: dict[str, memoryview] = {}
    for key in keys:
        if not isinstance(key, str):
            raise ImplausibleTensor("lists storages without names")
        (count,), (expected, size) = _COUNT.unpack_from(data, position), described[key]
        start = position + _COUNT.size
        position = start + expected * size
        if count != expected or key in places or position > len(data):
            raise ImplausibleTensor("is damaged or truncated: the sizes of its storages do not fit")
        places[key] = memoryview(data)[start:position]
    if len(places) < len(described):
        raise ImplausibleTensor("is damaged: it lacks storages")
    if position != len(data):
        raise ImplausibleTensor("has other bytes behind its end")
    return places


def _check_version(magic: object, protocol: object) -> None:
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ImplausibleTensor("is of no version of PyTorch's format that there was")


def _check_bytes(claimed: int, available: int) -> None:
    if claimed != available:
        raise ImplausibleTensor(f"claims a storage of {claimed:,} bytes where {available:,} are stored")


def _is_big_endian(archive: Archive, member: str, name: str) -> bool:
    """Files of before version 2.1 do not say, and are little-endian."""
    order = bytes(archive.read(member)) if member in archive.names and archive.size(member) < 10 else b"little"
    if order not in (b"little", b"big"):
        raise InputError(f"'{name}' is in a byte order that is neither little nor big.", DAMAGED_HINT)
    return order == b"big"


def _problem(name: str, error: Exception) -> InputError:
    if isinstance(error, ImplausibleTensor):
        return InputError(f"'{name}' {error}.", HOSTILE_HINT)
    return InputError(f"'{name}' is damaged or truncated.", DAMAGED_HINT)


def _too_long(name: str) -> InputError:
    return InputError(f"'{name}' holds a pickle of more than {MOST_BYTES:,} bytes.", HOSTILE_HINT)
