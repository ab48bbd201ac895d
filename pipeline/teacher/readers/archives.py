"""Zip archives, read so strictly that every reader of zip sees the same one.

Readers differ over archives that contradict themselves: of two members of one name PyTorch takes the first and Python
the last; some find the members through the directory, others one by one from the start. An archive is accepted only if
its members, its directory and its end lie in the file one after the other, without a byte before, between or after
them, and if directory and members say the same.

Source: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12 (central
directory), 4.3.14 to 4.3.16 (its end, also in 64 bits), 4.4.4 (flags) and 4.5.3 (sizes in 64 bits).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT, memory_limit

MOST_MEMBERS = 20_000
"""PyTorch writes one for each tensor: some thousands for the largest classifiers with their optimizer's state."""

_INFLATION = 20
_INFLATION_SLACK = 64 * 2**20
"""PyTorch stores and does not compress, and trained weights hardly deflate: only an archive that was packed anew is
larger inside than outside, by as much as its tensors have zeros. Deflate itself could reach a factor of 1,032."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTORS = tuple(struct.Struct(layout) for layout in ("<4s3L", "<4sL2Q", "<3L", "<L2Q"))

_END_SIGNATURE, _DESCRIPTOR_SIGNATURE = b"PK\x05\x06", b"PK\x07\x08"
_LONGEST_COMMENT = 2**16
_STORED, _DEFLATED = 0, 8
_HAS_DESCRIPTOR, _UTF8 = 0x8, 0x800
_KNOWN_FLAGS = 0x6 | _HAS_DESCRIPTOR | _UTF8
"""Level of deflate, sizes behind the data, names in UTF-8. The others change what the data mean: encryption, patches."""

_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
"""What stands in a field whose number takes 64 bits and stands elsewhere."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, as the directory describes it."""

    name: str
    offset: int
    """Of its local header."""
    flags: int
    method: int
    crc: int
    compressed: int
    size: int


class Archive:
    """A zip archive in memory; nothing of it is ever unpacked to disk."""

    def __init__(self, data: bytearray, name: str) -> None:
        """Check all that can be checked without inflating.

        Raises:
            InputError: the archive is damaged, contradicts itself, or claims too much.
        """
        self._data, self._name = data, name
        try:
            directory, found = _read_directory(data, name)
        except (struct.error, UnicodeDecodeError) as error:
            raise damaged_archive(name) from error
        _check_members(found, len(data), name)
        self._members = {member.name: member for member in found}
        self._starts = dict(self._check_places(directory))

    @property
    def names(self) -> frozenset[str]:
        """Of all members."""
        return frozenset(self._members)

    def size(self, member_name: str) -> int:
        """Bytes of a member's content."""
        return self._members[member_name].size

    def read(self, member_name: str) -> memoryview:
        """The content of a member, writable so that tensors can share its memory.

        Raises:
            InputError: it is damaged.
        """
        member, start = self._members[member_name], self._starts[member_name]
        content = memoryview(self._data)[start : start + member.compressed]
        if member.method == _DEFLATED:
            content = memoryview(_inflated(content, member.size, self._name))
        if zlib.crc32(content) != member.crc:
            raise InputError(f"'{self._name}' is damaged: a checksum in it is wrong.", DAMAGED_HINT)
        return content

    def _check_places(self, directory: int) -> Iterator[tuple[str, int]]:
        """Where each member's data start, if one member follows the other up to the directory."""
        members = sorted(self._members.values(), key=lambda member: member.offset)
        ends = [*(member.offset for member in members[1:]), directory]
        if not members or members[0].offset != 0:
            raise _contradiction(self._name)
        for member, end in zip(members, ends, strict=True):
            start = self._data_start(member)
            if start + member.compressed > end or not self._ends_well(member, start + member.compressed, end):
                raise _contradiction(self._name)
            yield member.name, start

    def _data_start(self, member: Member) -> int:
        name_at = member.offset + _LOCAL.size
        try:
            header = _LOCAL.unpack_from(self._data, member.offset)
        except struct.error as error:
            raise _contradiction(self._name) from error
        signature, _, flags, method, _, _, *numbers, name_length, extra_length = header
        name = bytes(self._data[name_at : name_at + name_length])
        wanted = (b"PK\x03\x04", member.flags, member.method, member.name.encode(_encoding(member.flags)))
        same = (signature, flags, method, name) == wanted
        if not (same and _agree(numbers, member)):
            raise _contradiction(self._name)
        return name_at + int(name_length) + int(extra_length)

    def _ends_well(self, member: Member, data_end: int, end: int) -> bool:
        """Whether there is a correct data descriptor, where there should be one, and nothing else."""
        wanted: tuple[int | bytes, ...] = (member.crc, member.compressed, member.size)
        rest = bytes(self._data[data_end : min(end, data_end + 64)])
        if not rest:  # PyTorch writes none behind an empty member
            return not member.flags & _HAS_DESCRIPTOR or member.size == 0
        signed = (_DESCRIPTOR_SIGNATURE, *wanted)
        return bool(member.flags & _HAS_DESCRIPTOR) and any(
            len(rest) == layout.size and layout.unpack(rest) in (wanted, signed) for layout in _DESCRIPTORS
        )


def ends_like_an_archive(data: bytearray) -> bool:
    """Whether a reader that looks for a zip archive from the end would find one."""
    return _last_end(data) is not None


def damaged_archive(name: str) -> InputError:
    return InputError(f"'{name}' is a damaged or truncated zip archive.", DAMAGED_HINT)


def _contradiction(name: str) -> InputError:
    return InputError(
        f"'{name}' is a zip archive that contradicts itself, so that two readers may see two models.", HOSTILE_HINT
    )


def _last_end(data: bytearray) -> int | None:
    """Offset of the last end record whose comment ends within the file."""
    at = len(data)
    least = max(len(data) - _END.size - _LONGEST_COMMENT, 0)
    while (at := data.rfind(_END_SIGNATURE, least, at)) >= 0:
        if at + _END.size <= len(data) and at + _END.size + _END.unpack_from(data, at)[-1] <= len(data):
            return at
    return None


def _read_directory(data: bytearray, name: str) -> tuple[int, list[Member]]:
    """Offset of the central directory, and the members in it."""
    at = _last_end(data)
    if at is None:
        raise damaged_archive(name)
    if at + _END.size != len(data):
        raise InputError(f"'{name}' is a zip archive with other bytes behind its end.", HOSTILE_HINT)
    directory, end, count = _directory_place(data, at, name)
    if count > MOST_MEMBERS:
        raise InputError(f"'{name}' is a zip archive of {count:,} members; {MOST_MEMBERS:,} can be read.", HOSTILE_HINT)
    members: list[Member] = []
    position = directory
    for _ in range(count):
        member, position = _read_member(data, position, end, name)
        members.append(member)
    if position != end:
        raise _contradiction(name)
    return directory, members


def _directory_place(data: bytearray, at: int, name: str) -> tuple[int, int, int]:
    """Where the directory starts and ends, and how many members it has; `at` is the offset of the end record."""
    _, *disks, here, count, size, offset, _ = _END.unpack_from(data, at)
    found, end = (*disks, here, count, size, offset), at
    locator = at - _LOCATOR64.size
    if locator >= 0 and data.startswith(b"PK\x06\x07", locator):
        end = locator - _END64.size
        if end < 0 or _LOCATOR64.unpack_from(data, locator) != (b"PK\x06\x07", 0, end, 1):
            raise _contradiction(name)
        signature, length, _, _, *numbers = _END64.unpack_from(data, end)
        full = (_FULL16, _FULL16, _FULL16, _FULL16, _FULL32, _FULL32)
        same = all(short in (long, limit) for short, long, limit in zip(found, numbers, full, strict=True))
        if signature != b"PK\x06\x06" or length != _END64.size - 12 or not same:
            raise _contradiction(name)
        found = tuple(numbers)
    disk, directory_disk, here, count, size, offset = found
    if disk or directory_disk or here != count or offset + size != end:
        raise _contradiction(name)
    return offset, end, count


def _read_member(data: bytearray, position: int, end: int, name: str) -> tuple[Member, int]:
    """One entry of the directory, and where the next one starts."""
    fields = _CENTRAL.unpack_from(data, position)
    signature, _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length, comment_length = fields[:13]
    disk, offset = fields[13], fields[16]
    name_end = position + _CENTRAL.size + name_length
    extra_end = name_end + extra_length
    if signature != b"PK\x01\x02" or disk or extra_end + comment_length > end:
        raise _contradiction(name)
    wide = _in_64_bits(bytes(data[name_end:extra_end]), (size, compressed, offset), name)
    member_name = data[name_end - name_length : name_end].decode(_encoding(flags))
    return Member(member_name, wide[2], flags, method, crc, wide[1], wide[0]), extra_end + comment_length


def _in_64_bits(extra: bytes, numbers: tuple[int, int, int], name: str) -> list[int]:
    """Size, compressed size and offset; those that do not fit into 32 bits stand, in this order, in an extra field."""
    missing = sum(number == _FULL32 for number in numbers)
    wide: list[int] = []
    while len(extra) >= 4 and missing:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{missing}Q", extra[4 : 4 + length]))
            break
        extra = extra[4 + length :]
    if len(wide) != missing:
        raise _contradiction(name)
    rest = iter(wide)
    return [next(rest) if number == _FULL32 else number for number in numbers]


def _agree(numbers: list[int], member: Member) -> bool:
    """Whether checksum and sizes before the data are those of the directory; they may stand elsewhere instead."""
    elsewhere = (0, _FULL32) if member.flags & _HAS_DESCRIPTOR else (_FULL32,)
    crc, *sizes = numbers
    same_crc = crc == member.crc or (crc == 0 and bool(member.flags & _HAS_DESCRIPTOR))
    wanted = (member.compressed, member.size)
    return same_crc and all(given in (want, *elsewhere) for given, want in zip(sizes, wanted, strict=True))


def _check_members(members: list[Member], size: int, name: str) -> None:
    if len({member.name for member in members}) < len(members):
        raise InputError(f"'{name}' holds the same member twice, so that two readers may see two models.", HOSTILE_HINT)
    if any(not _is_plain(member.name) for member in members):
        raise InputError(f"'{name}' is a zip archive with a member whose name leads out of it.", HOSTILE_HINT)
    if any(member.flags & ~_KNOWN_FLAGS for member in members):
        raise InputError(f"'{name}' is a zip archive that is encrypted or patched.", "Unpack it and pack it anew.")
    if any(member.method not in (_STORED, _DEFLATED) for member in members):
        raise InputError(f"'{name}' is a zip archive of an unusual compression.", "Unpack it and pack it anew.")
    declared = sum(member.size for member in members)
    if declared > min(_INFLATION * size + _INFLATION_SLACK, memory_limit(size)):
        raise InputError(f"'{name}' is small but declares {declared:,} bytes.", HOSTILE_HINT)
    if any(member.method == _STORED and member.size != member.compressed for member in members):
        raise _contradiction(name)


def _is_plain(member_name: str) -> bool:
    """Neither absolute nor leading upwards, on any system."""
    parts = member_name.split("/")
    return bool(parts[0]) and ".." not in parts and not set(member_name) & {"\\", "\0", ":"}


def _encoding(flags: int) -> str:
    return "utf-8" if flags & _UTF8 else "cp437"


def _inflated(content: memoryview, size: int, name: str) -> bytearray:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = bytearray(inflater.decompress(content, size + 1))
    except zlib.error as error:
        raise damaged_archive(name) from error
    if len(inflated) != size or not inflater.eof or inflater.unused_data:
        raise _contradiction(name)
    return inflated
