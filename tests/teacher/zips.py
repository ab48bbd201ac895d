"""Writes zip archives field by field, so that each field can be wrong."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lies:
    """What a member claims; None leaves the truth."""

    name: str | None = None
    flags: int = 0
    method: int | None = None
    crc: int | None = None
    size: int | None = None
    compressed: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A member: its name and content, and lies in its local header and in the directory."""

    name: str
    content: bytes
    deflate: bool = False
    local: Lies = Lies()
    central: Lies = Lies()


def written(entries: Sequence[Entry], *, prefix: bytes = b"", comment: bytes = b"", count: int | None = None) -> bytes:
    """An archive, honest but for its lies.

    Args:
        entries: in order.
        prefix: bytes before the first member.
        comment: of the archive.
        count: how many members its end claims.
    """
    parts, directory, at = [prefix], [], len(prefix)
    for entry in entries:
        local, central = _headers(entry, at)
        parts += [local, _packed(entry)]
        directory.append(central)
        at += len(local) + len(parts[-1])
    number, size = len(entries) if count is None else count, sum(map(len, directory))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, number, number, size, at, len(comment))
    return b"".join([*parts, *directory, end, comment])


def _packed(entry: Entry) -> bytes:
    if not entry.deflate:
        return entry.content
    deflater = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    return deflater.compress(entry.content) + deflater.flush()


def _headers(entry: Entry, offset: int) -> tuple[bytes, bytes]:
    """Local header and directory entry, with names. Layout: APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.12."""
    local_name, local = _fields(entry, entry.local)
    central_name, central = _fields(entry, entry.central)
    at = offset if entry.central.offset is None else entry.central.offset
    return (
        struct.pack("<4sH", b"PK\x03\x04", 20) + local + struct.pack("<2H", len(local_name), 0) + local_name,
        struct.pack("<4s2H", b"PK\x01\x02", 20, 20)
        + central
        + struct.pack("<5H2L", len(central_name), 0, 0, 0, 0, 0, at)
        + central_name,
    )


def _fields(entry: Entry, lies: Lies) -> tuple[bytes, bytes]:
    """Name; and flags, method, time, date, checksum and sizes."""

    def told(lie: int | None, truth: int) -> int:
        return truth if lie is None else lie

    name = (entry.name if lies.name is None else lies.name).encode()
    method, crc = told(lies.method, 8 * entry.deflate), told(lies.crc, zlib.crc32(entry.content))
    compressed, size = told(lies.compressed, len(_packed(entry))), told(lies.size, len(entry.content))
    return name, struct.pack("<4H3L", lies.flags, method, 0, 0, crc, compressed, size)
