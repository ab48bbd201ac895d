"""Reads a file whole: opened once, a regular file, and exactly the bytes that it had when it was opened."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from compress.pipeline.errors import InputError, UsageError

LARGEST_FILE = 32 * 2**30
"""Bytes; no image classifier comes near, not even with its optimizer's state beside it."""


DAMAGED_HINT = "Copy or download it again, and compare its size with the original's."
HOSTILE_HINT = "It is damaged or made to deceive; get it from whoever trained the model."


def memory_limit(size: int) -> int:
    """Bytes that a file of `size` bytes may expand to: half precision doubles, and small files may do as they like."""
    return 3 * size + 2**30


def read_file(path: Path) -> bytearray:
    """The content of a regular file; a pipe or a device is refused and never waited for.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        InputError: it is no regular file, too large, or changes while it is read.
    """
    try:
        with FileIO(path, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(path)
            return _read_exactly(file, status.st_size, path)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file '{path}'.") from error
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):  # a folder; a socket, or a device that is not there
            raise _not_regular(path) from error
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.") from error


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _read_exactly(file: FileIO, size: int, path: Path) -> bytearray:
    if size > LARGEST_FILE:
        raise InputError(f"'{path}' has {size:,} bytes; a checkpoint may have {LARGEST_FILE:,}.")
    try:
        data = bytearray(size)
    except MemoryError as error:
        raise InputError(f"'{path}' has {size:,} bytes, which do not fit into memory.") from error
    rest = memoryview(data)
    while rest and (count := file.readinto(rest)):
        rest = rest[count:]
    if rest or file.read(1):
        raise InputError(f"'{path}' changed while it was read.", "Wait until whatever writes it is done.")
    return data


def _not_regular(path: Path) -> InputError:
    return InputError(f"'{path}' is not a regular file.")
