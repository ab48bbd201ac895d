"""An ONNX file as a message: counted before it is parsed, and of a version that is read."""

from typing import Any

from onnx import ModelProto

from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import printable

OLDEST_OPSET, NEWEST_OPSET = 7, 21

MOST_FIELDS = 2_000_000
"""Of the whole message; a network of ten thousand nodes has about a tenth. Two bytes of a file make an object of about
a hundred, so that it is the fields and not the bytes that use up memory.
"""

EXPORT_HINT = (
    "Export it from PyTorch once more, with torch.onnx.export(model, images, 'teacher.onnx', dynamo=True, "
    "optimize=False), or save its weights: torch.save({'state_dict': model.state_dict()}, 'teacher.pt')."
)

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class OnnxRefusal(Exception):
    """Why a file cannot be a teacher: the rest of a sentence that its name begins, and a hint."""

    def __init__(self, predicate: str, hint: str = EXPORT_HINT) -> None:
        super().__init__(predicate)
        self.predicate, self.hint = predicate, hint


def parse_model(data: bytes | bytearray) -> ModelProto:
    """The message in a file; data that lie outside of it are not looked at.

    Raises:
        OnnxRefusal: it is damaged, or has too many fields.
    """
    _check_fields(memoryview(data))
    try:
        model: ModelProto = ModelProto.FromString(data)
    except Exception as error:  # DecodeError, of a package that carries no types
        raise _damaged() from error
    if not model.graph.node:
        raise OnnxRefusal("is an ONNX file without a graph", DAMAGED_HINT)
    return model


def opset_of(imports: Any) -> int:
    """The version of ONNX's own operators that a model or a function imports.

    Raises:
        OnnxRefusal: there is none, or none that is read.
    """
    versions = {entry.version for entry in imports if entry.domain in ("", "ai.onnx")}
    if len(versions) != 1:
        raise OnnxRefusal(f"states {len(versions)} versions of ONNX's operators rather than one")
    (version,) = versions
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise OnnxRefusal(
            f"is of operator set {version}; those from {OLDEST_OPSET} to {NEWEST_OPSET} are read",
            "Export it with opset_version=18, or convert it with onnx.version_converter.",
        )
    return int(version)


def quoted(name: str) -> str:
    """A name from the file, fit for a message."""
    return f"'{printable(name)}'"


def _check_fields(data: memoryview) -> None:
    """Walks over the message and the messages inside it: their fields are in order, not too many, and texts are texts.

    Source: https://protobuf.dev/programming-guides/encoding/.
    """
    fields, pending = 0, [(0, len(data), ModelProto.DESCRIPTOR)]
    while pending:
        position, end, message = pending.pop()
        while position < end:
            fields += 1
            if fields > MOST_FIELDS:
                raise OnnxRefusal(f"has more than {MOST_FIELDS:,} fields", HOSTILE_HINT)
            tag, position = _varint(data, position, end)
            start, position = _content(data, position, end, tag & 7)
            field = message.fields_by_number.get(tag >> 3)
            if field is None or tag & 7 != _DELIMITED:
                continue
            if field.message_type is not None:
                pending.append((start, position, field.message_type))
            elif field.type == field.TYPE_STRING:
                _check_text(data[start:position])


def _content(data: memoryview, position: int, end: int, wire_type: int) -> tuple[int, int]:
    """Where a field's content begins and ends."""
    length = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)
    if wire_type == _VARINT:
        length = _varint(data, position, end)[1] - position
    elif wire_type == _DELIMITED:
        length, position = _varint(data, position, end)
    if wire_type not in (_VARINT, _FIXED64, _DELIMITED, _FIXED32) or length > end - position:
        raise _damaged()
    return position, position + length


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte, position = data[position], position + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise _damaged()


def _check_text(content: memoryview) -> None:
    try:
        str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise _damaged() from error


def _damaged() -> OnnxRefusal:
    return OnnxRefusal("is a damaged or truncated ONNX file", DAMAGED_HINT)
