"""What the metadata of an ONNX model say about its images and classes."""

import json
import re
from collections.abc import Mapping

from onnx import ModelProto

MOST_CHARACTERS = 1_000_000

_KEYS = ("input_size", "mean", "std")

_PIXELS = re.compile(r"float32 \[N, (\d{1,3}), (\d{1,5}), (\d{1,5})\] in \[0, 1\]")
"""How graphs that were exported here describe their input: the normalisation is inside."""


def properties_of(model: ModelProto) -> dict[str, str]:
    """The metadata as texts; what is too long is left out."""
    return {one.key: one.value for one in model.metadata_props if len(one.value) <= MOST_CHARACTERS}


def metadata_of(properties: Mapping[str, str]) -> dict[str, object]:
    """`input_size` `[C, H, W]` or as it stands there, `mean` and `std`, those that are given."""
    found = {key: _decoded(properties[key]) for key in _KEYS if key in properties}
    pixels = _PIXELS.fullmatch(properties.get("input", ""))
    if pixels is None:
        return found
    size = [int(number) for number in pixels.groups()]
    return {"input_size": size, "mean": [0.0] * size[0], "std": [1.0] * size[0]} | found


def labels_of(properties: Mapping[str, str], classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names in the order of the outputs, one a line or as a JSON list; and a warning where they do not fit."""
    text = properties.get("labels", "").strip()
    if not text:
        return (), ()
    decoded = _decoded(text)
    labels = tuple(str(label) for label in decoded) if isinstance(decoded, list) else tuple(text.splitlines())
    if len(labels) == classes:
        return labels, ()
    return (), (f"The file names {len(labels)} classes but puts out {classes}; its names were not used.",)


def _decoded(text: str) -> object:
    """What a text holds if it is JSON, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
