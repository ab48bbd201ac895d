"""Bytes of pickles and archives, opcode by opcode where no honest writer would write them."""

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from tests.teacher.zips import Entry, written

Maker = Callable[[Path], bytes]
"""From the path of the canary to the content of a file."""


def into(files: dict[str, Maker]) -> Callable[[Maker], Maker]:
    """Decorates a maker of a file, and keeps it under its name."""

    def keep(maker: Maker) -> Maker:
        files[maker.__name__] = maker
        return maker

    return keep


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.marker), "w")


def call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle of protocol 0, without its end, that calls a function with texts."""
    texts = b"".join(b"V" + argument.encode() + b"\n" for argument in arguments)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + texts + b"tR"


def torch_zip(data_pickle: bytes, *more: Entry, order: bytes = b"little", root: str = "archive") -> bytes:
    """An archive as torch.save writes it, around any pickle."""
    usual = [
        Entry(f"{root}/data.pkl", data_pickle),
        Entry(f"{root}/byteorder", order),
        Entry(f"{root}/version", b"3\n"),
    ]
    return written([*usual, *more])


def saved(content: object, protocol: int = 2, *, legacy: bool = False) -> bytes:
    """What torch.save makes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def weights_pickle(
    name: bytes = b"fc.weight",
    *,
    count: int = 4,
    shape: Sequence[int] = (2, 2),
    stride: Sequence[int] = (2, 1),
    offset: int = 0,
) -> bytes:
    """A state_dict of one tensor, whose storage is `data/0`."""
    return b"\x80\x02}" + text(name) + tensor(count, shape, stride, offset) + b"s."


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def storage(count: int, key: bytes = b"0", kind: bytes = b"FloatStorage") -> bytes:
    return b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + integer(count) + b"tQ"


def tensor(count: int, shape: Sequence[int], stride: Sequence[int], offset: int = 0, key: bytes = b"0") -> bytes:
    arguments = storage(count, key) + integer(offset) + integers(shape) + integers(stride) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
