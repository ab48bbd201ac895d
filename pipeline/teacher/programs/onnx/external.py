"""Files beside an ONNX model that hold its weights: of a plain name, in the same folder, opened once.

Source: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md. A location that leads elsewhere, by a path or by a
link, would make the weights of any file on the machine: CVE-2022-25882, CVE-2024-27318, CVE-2026-27489.
"""

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from compress.pipeline.teacher.programs.onnx.file import OnnxRefusal, quoted
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, LARGEST_FILE

PLAIN_HINT = "Load it with onnx.load and save it in one piece with onnx.save."

_KEYS = {"location", "offset", "length", "checksum"}


class ExternalFiles:
    """The files that one model's tensors lie in. Close them after use."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, tuple[BinaryIO, int]] = {}

    @property
    def size(self) -> int:
        """Bytes of all files that were opened."""
        return sum(size for _, size in self._files.values())

    def locate(self, entries: Any, label: str, length: int) -> tuple[BinaryIO, int]:
        """The file that holds the `length` bytes of a tensor, and where they begin.

        Args:
            entries: the tensor's `external_data`, pairs of keys and values.
            label: the tensor's name, for messages.
            length: what its shape and type come to.

        Raises:
            OnnxRefusal: the entries make no sense, or name a file that is not there or may not be opened.
        """
        found = {entry.key: entry.value for entry in entries}
        if len(found) < len(entries) or not found.keys() <= _KEYS:
            raise OnnxRefusal(f"says where {label} lies in words that ONNX does not have", PLAIN_HINT)
        offset, stated = (_whole_number(found.get(key, fallback), label) for key, fallback in _defaults(length))
        file, size = self._opened(found.get("location", ""), label)
        if stated != length or offset + length > size:
            raise OnnxRefusal(
                f"places {label} at bytes {offset:,} to {offset + stated:,} of {quoted(found['location'])}, which has "
                f"{size:,} bytes, but its shape comes to {length:,} bytes",
                DAMAGED_HINT,
            )
        return file, offset

    def close(self) -> None:
        """Closes them."""
        for file, _ in self._files.values():
            file.close()

    def _opened(self, location: str, label: str) -> tuple[BinaryIO, int]:
        if location not in self._files:
            self._files[location] = self._open(location, label)
        return self._files[location]

    def _open(self, location: str, label: str) -> tuple[BinaryIO, int]:
        if not _is_plain(location):
            raise OnnxRefusal(f"looks for {label} outside of its folder, in {quoted(location)}", PLAIN_HINT)
        if self._folder is None:
            raise OnnxRefusal(f"keeps {label} in another file, {quoted(location)}", PLAIN_HINT)
        path = self._folder / location
        try:
            before = path.lstat()
            if not stat.S_ISREG(before.st_mode) or before.st_nlink != 1:
                raise OnnxRefusal(
                    f"keeps {label} in {quoted(location)}, which is a link or no regular file",
                    "Copy the file itself to that place.",
                )
            if before.st_size > LARGEST_FILE:
                raise OnnxRefusal(f"keeps {label} in {quoted(location)}, which is too large", PLAIN_HINT)
            file = path.open("rb")
        except (OSError, ValueError) as error:
            raise OnnxRefusal(
                f"keeps {label} in {quoted(location)}, which cannot be read", "Keep that file in the model's folder."
            ) from error
        after = os.fstat(file.fileno())
        if not os.path.samestat(before, after):
            file.close()
            raise OnnxRefusal(f"keeps {label} in {quoted(location)}, which changed while it was opened", "Try again.")
        return file, after.st_size


def _defaults(length: int) -> tuple[tuple[str, str], ...]:
    return ("offset", "0"), ("length", str(length))


def _whole_number(text: str, label: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise OnnxRefusal(f"places {label} at {quoted(text)}, which is no number of bytes", DAMAGED_HINT)
    return int(text)


def _is_plain(location: str) -> bool:
    return location not in ("", ".", "..") and not set(location) & set("/\\:\0")
