"""Recognises a file by its content, never by its name, and says of every format that is not read what to do instead."""

import io
import zipfile
from dataclasses import dataclass
from typing import Literal

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.pickles import is_pickle

Format = Literal["torch zip", "torch legacy", "safetensors", "pickle"]

STATE_DICT_HINT = "Save the weights of the original PyTorch model instead: torch.save({'state_dict': model.state_dict()}, 'teacher.pt')."
DAMAGED_HINT = "Copy or download it again, and compare its size with the original's."

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled long 0x1950a86a20f9469cfc6c that PyTorch wrote first until version 1.6.

Source: MAGIC_NUMBER in torch/serialization.py.
"""

_PICKLE_PROTOCOL = 0x80
"""The opcode that opens every pickle since protocol 2."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """A format that is recognised only to say that it is not read."""

    title: str
    hint: str = STATE_DICT_HINT


_TORCHSCRIPT = _Refused("a TorchScript archive, which is a program and not only weights")
_EXPORTED = _Refused("a torch.export program, whose reader may execute code")
_PACKAGE = _Refused("a torch.package archive, which is a program and not only weights")
_KERAS = _Refused("a Keras model")
_HDF5 = _Refused("an HDF5 file, as Keras writes them")
_ONNX = _Refused("an ONNX model, which cannot be used as a teacher yet")
_NUMPY = _Refused("a NumPy archive")
_OTHER_ZIP = _Refused("a zip archive, but not one of PyTorch's", "Unpack it and name the checkpoint inside.")
_TEXT = _Refused("a text file", "Name the checkpoint that training saved.")
_UNKNOWN = _Refused("in no format that is known here")

_MEMBERS = (
    # last part of a member's name in a zip archive, and what its presence means; the first that matches counts
    ("constants.pkl", _TORCHSCRIPT),
    ("serialized_exported_program.json", _EXPORTED),
    ("archive_format", _EXPORTED),
    ("extern_modules", _PACKAGE),
    ("model.weights.h5", _KERAS),
    ("keras_metadata.pb", _KERAS),
)

_SIGNATURES = (
    # offset and leading bytes
    (0, b"\x89HDF\r\n\x1a\n", _HDF5),
    (0, b"\x93NUMPY", _Refused("a NumPy array")),
    (0, b"GGUF", _Refused("a GGUF file, a format of language models", "")),
    (4, b"TFL3", _Refused("a TensorFlow Lite model")),
    (4, b"ET12", _Refused("an ExecuTorch program")),
    (0, b"\x1f\x8b", _Refused("compressed by gzip", "Unpack it and name the checkpoint inside.")),
    (257, b"ustar", _Refused("a tar archive", "Unpack it and name the checkpoint inside.")),
    (
        0,
        b"version https://git-lfs",
        _Refused("a Git LFS pointer, not the checkpoint itself", "Fetch it with: git lfs pull"),
    ),
    (
        0,
        b"<",
        _Refused(
            "a web page or XML text, not a checkpoint", "Download it again; the server may have sent a login page."
        ),
    ),
)


def recognise_format(data: bytes, name: str) -> Format:
    """The format of a checkpoint that can be read; a bare pickle is recognised, too, so that its reader can refuse it.

    Raises:
        InputError: the file is empty, damaged, or in a format that is not read; the sentence names the format.
    """
    if not data:
        raise InputError(f"'{name}' is empty.", DAMAGED_HINT)
    if data.startswith(b"PK\x03\x04"):
        return _recognise_zip(data, name)
    if data.startswith(_LEGACY_MAGIC):
        return "torch legacy"
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 100_000_000:  # the limit of the format's own reader
        return "safetensors"
    if data[0] == _PICKLE_PROTOCOL:
        return "pickle"
    found = _signed(data)
    if found is None and is_pickle(data):
        return "pickle"
    raise _refusal(found or _unsigned(data), name)


def printable(text: str) -> str:
    """A name from a file, fit for a terminal: control characters replaced, and not endless."""
    kept = "".join(character if character.isprintable() else "?" for character in text[:100])
    return kept if len(text) <= 100 else kept + "..."


def _refusal(found: _Refused, name: str) -> InputError:
    return InputError(f"'{name}' is {found.title}.", found.hint)


def _recognise_zip(data: bytes, name: str) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [info.filename for info in archive.infolist()]
    except Exception as error:  # besides BadZipFile, broken fields raise struct, decoding and other errors
        raise InputError(f"'{name}' is a damaged or truncated zip archive.", DAMAGED_HINT) from error
    if len(set(members)) < len(members):
        raise InputError(
            f"'{name}' holds the same member twice, so that two readers may see two models.", STATE_DICT_HINT
        )
    last_parts = {member.rsplit("/", 1)[-1] for member in members}
    for part, found in _MEMBERS:
        if part in last_parts:
            raise _refusal(found, name)
    if "data.pkl" in last_parts:
        return "torch zip"
    raise _refusal(_NUMPY if all(part.endswith(".npy") for part in last_parts) else _OTHER_ZIP, name)


def _signed(data: bytes) -> _Refused | None:
    for offset, signature, found in _SIGNATURES:
        if data.startswith(signature, offset):
            return found
    return None


def _unsigned(data: bytes) -> _Refused:
    if _looks_like_onnx(data):
        return _ONNX
    return _TEXT if _looks_like_text(data) else _UNKNOWN


def _looks_like_onnx(data: bytes) -> bool:
    """A protobuf message that opens with field 1, a small number, and goes on with another field of ONNX's ModelProto.

    Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ir_version = 1 and fields 2 to 8 of ModelProto.
    """
    return len(data) > 2 and data[0] == 0x08 and data[1] < 32 and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def _looks_like_text(data: bytes) -> bool:
    start = data[:4096].decode("utf-8", errors="replace")
    return all(
        character.isprintable() or character.isspace() for character in start.rstrip("\N{REPLACEMENT CHARACTER}")
    )
