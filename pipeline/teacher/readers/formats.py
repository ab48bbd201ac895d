"""Recognises a file by its content, never by its name, and says of every format that is not read what to do instead."""

import pickle
from dataclasses import dataclass
from typing import Literal

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.archives import Archive, ends_like_an_archive
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT
from compress.pipeline.teacher.readers.pickles import is_pickle

Format = Literal[
    "torch zip",
    "torch legacy",
    "safetensors",
    "safetensors index",
    "pickle",
    "torchscript",
    "torch export",
    "onnx",
]

STATE_DICT_HINT = "Save the weights of the original PyTorch model instead: torch.save({'state_dict': model.state_dict()}, 'teacher.pt')."

_LEGACY_MAGIC = tuple(pickle.dumps(0x1950A86A20F9469CFC6C, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))
"""The number that PyTorch wrote first until version 1.6, in the protocol that the user chose, which usually was 2.

Source: MAGIC_NUMBER in torch/serialization.py.
"""

_PICKLE_PROTOCOL = 0x80
"""The opcode that opens every pickle since protocol 2."""

_TAR_MAGIC_OFFSET = 257


@dataclass(frozen=True, slots=True)
class _Refused:
    """A format that is recognised only to say that it is not read."""

    title: str
    hint: str = STATE_DICT_HINT


_PACKAGE = _Refused("a torch.package archive, which is code and not only weights")
_KERAS = _Refused("a Keras model")
_NUMPY = _Refused("a NumPy archive")
_SEVERAL_FOLDERS = _Refused("a zip archive of several folders, of which two readers may take two", HOSTILE_HINT)
_OTHER_ZIP = _Refused("a zip archive, but not one of PyTorch's", "Unpack it and name the checkpoint inside.")
_OLD_TAR = _Refused(
    "a PyTorch checkpoint of before version 0.1.10, in the tar format",
    "Load it in PyTorch where you trust it, and save its weights: torch.save({'state_dict': ...}, 'teacher.pt').",
)
_INDEX_KEY = b'"weight_map"'
_JSON = _Refused(
    "a JSON file and not a checkpoint", "Where it is the config.json of a model folder, name the folder instead."
)
_TEXT = _Refused("a text file", "Name the checkpoint that training saved.")
_UNKNOWN = _Refused("in no format that is known here")

_SIGNATURES: tuple[tuple[int, bytes | tuple[bytes, ...], _Refused], ...] = (
    # offset and leading bytes
    (0, b"\x89HDF\r\n\x1a\n", _Refused("an HDF5 file, as Keras writes them")),
    (0, b"\x93NUMPY", _Refused("a NumPy array")),
    (0, b"GGUF", _Refused("a GGUF file, a format of language models", "")),
    (0, (b"ftrt", b"ptrt"), _Refused("a TensorRT engine, which is a program for one device")),
    (4, b"TFL3", _Refused("a TensorFlow Lite model")),
    (4, b"ET12", _Refused("an ExecuTorch program")),
    (0, b"\x1f\x8b", _Refused("compressed by gzip", "Unpack it and name the checkpoint inside.")),
    (_TAR_MAGIC_OFFSET, b"ustar", _Refused("a tar archive", "Unpack it and name the checkpoint inside.")),
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

_OLD_TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"tensors\0", b"storages\0")
"""Source: legacy_load in torch/serialization.py; any may come first."""


def recognise_format(data: bytearray, name: str) -> Format:
    """The format of a file that can be read; what lies inside is for its reader to judge.

    Raises:
        InputError: the file is empty, damaged, two things at once, or in a format that is not read, which is named.
    """
    if not data:
        raise InputError(f"'{name}' is empty.", DAMAGED_HINT)
    if data.startswith(b"PK\x03\x04"):
        return _recognise_zip(data, name)
    found = _recognise_plain(data)
    if isinstance(found, _Refused):
        raise _refusal(found, name)
    if ends_like_an_archive(data):
        raise InputError(f"'{name}' is two files in one: it begins as {found} and ends as a zip archive.", HOSTILE_HINT)
    return found


def root_of(members: frozenset[str]) -> str:
    """The one folder in which all of an archive lies; empty where there is none such."""
    roots = {member.split("/", 1)[0] for member in members}
    return roots.pop() if len(roots) == 1 else ""


def printable(text: str) -> str:
    """A name from a file, fit for a terminal: control characters replaced, and not endless."""
    kept = "".join(character if character.isprintable() else "?" for character in text[:100])
    return kept if len(text) <= 100 else kept + "..."


def _refusal(found: _Refused, name: str) -> InputError:
    return InputError(f"'{name}' is {found.title}.", found.hint)


def _recognise_zip(data: bytearray, name: str) -> Format:
    members = Archive(data, name).names
    if data.startswith(b"ustar", _TAR_MAGIC_OFFSET):
        raise InputError(f"'{name}' is two files in one: a zip archive and a tar archive.", HOSTILE_HINT)
    found = _kinds(members)
    if len(found) > 1:
        titles = " and ".join(sorted(kind if isinstance(kind, str) else kind.title for kind in found))
        raise InputError(f"'{name}' is two files in one: it has the marks of {titles}.", HOSTILE_HINT)
    kind = next(iter(found), _other_zip(members))
    if isinstance(kind, _Refused):
        raise _refusal(kind, name)
    return kind


def _kinds(members: frozenset[str]) -> set[Format | _Refused]:
    """All that an archive has the marks of.

    Source: the members that torch.save, torch.jit.save, torch.export.save in its two layouts and torch.package write,
    and that their readers look for; a TorchScript archive also has all members of a checkpoint.
    """
    root = root_of(members)
    marks: dict[Format | _Refused, bool] = {
        "torchscript": f"{root}/constants.pkl" in members or f"{root}/bytecode.pkl" in members,
        "torch export": bool({f"{root}/archive_format", "serialized_exported_program.json"} & members),
        _PACKAGE: f"{root}/.data/extern_modules" in members,
        _KERAS: bool({"model.weights.h5", "keras_metadata.pb"} & members),
    }
    found = {kind for kind, marked in marks.items() if marked}
    if f"{root}/data.pkl" in members and "torchscript" not in found and _PACKAGE not in found:
        found.add("torch zip")
    return found


def _other_zip(members: frozenset[str]) -> _Refused:
    if any(member.endswith(("/data.pkl", "/constants.pkl", "/archive_format")) for member in members):
        return _SEVERAL_FOLDERS
    return _NUMPY if all(member.endswith(".npy") for member in members) else _OTHER_ZIP


def _recognise_plain(data: bytearray) -> Format | _Refused:
    if data.startswith(_LEGACY_MAGIC):
        return "torch legacy"
    if data[8:9] == b"{" and data[7] == 0:  # a header of less than 2^56 bytes
        return "safetensors"
    if data[0] == _PICKLE_PROTOCOL:
        return "pickle"
    if _looks_like_onnx(data):
        return "onnx"
    if data[:100].lstrip().startswith(b"{"):
        return "safetensors index" if _INDEX_KEY in data else _JSON
    return _signed(data) or ("pickle" if is_pickle(data) else _unsigned(data))


def _signed(data: bytearray) -> _Refused | None:
    if data.startswith(b"ustar", _TAR_MAGIC_OFFSET) and data.startswith(_OLD_TAR_MEMBERS):
        return _OLD_TAR
    return next((found for offset, signature, found in _SIGNATURES if data.startswith(signature, offset)), None)


def _unsigned(data: bytearray) -> _Refused:
    return _TEXT if _looks_like_text(data) else _UNKNOWN


def _looks_like_onnx(data: bytearray) -> bool:
    """A protobuf message that opens with field 1, a small number, and goes on with another field of ONNX's ModelProto.

    Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ir_version = 1 and fields 2 to 8 of ModelProto.
    """
    return len(data) > 2 and data[0] == 0x08 and data[1] < 32 and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def _looks_like_text(data: bytearray) -> bool:
    start = data[:4096].decode("utf-8", errors="replace")
    return all(
        character.isprintable() or character.isspace() for character in start.rstrip("\N{REPLACEMENT CHARACTER}")
    )
