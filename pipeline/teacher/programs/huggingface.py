"""Hugging Face model folders for image classification: `config.json` and weights, read by transformers, offline.

The weights go through the same reader as every other checkpoint; code that a folder brings along is never run.
Source: https://huggingface.co/docs/transformers/main_classes/configuration and .../main_classes/image_processor.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.pipeline.errors import InputError, MissingResourceError, UnsafeInputError
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.programs.modules import Classifier, load_by_name
from compress.pipeline.teacher.readers.formats import printable

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""The first that is there counts."""

_MOST_JSON_BYTES = 4_000_000
_LAYER_COUNT = re.compile(r"layers|depth|blocks|repeats|stages")


def read_model_folder(folder: Path, read_weights: Any) -> Checkpoint:
    """A folder that `save_pretrained` wrote.

    Args:
        folder: with `config.json` and one of `WEIGHT_FILES`.
        read_weights: from a path to a `Checkpoint`.

    Raises:
        UnsafeInputError: the model needs code of the folder's own.
        InputError: it is no image classifier, or its files do not fit together.
    """
    config_bytes, processor_bytes = _bytes_of(folder / CONFIG_FILE), _bytes_of(folder / PROCESSOR_FILE)
    config = _json(config_bytes, folder / CONFIG_FILE)
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if weights is None:
        raise InputError(f"The folder '{folder.name}' has no weights.", f"It takes one of {', '.join(WEIGHT_FILES)}.")
    checkpoint: Checkpoint = read_weights(weights)
    _check_config(config, len(checkpoint.tensors), folder.name)
    module = _build(config, checkpoint, folder.name)
    digest = hashlib.sha256(config_bytes + processor_bytes + checkpoint.sha256.encode()).hexdigest()
    return replace(
        checkpoint,
        file_name=folder.name,
        sha256=digest,
        format=f"Hugging Face folder, {checkpoint.format}",
        metadata=_metadata(config, _json(processor_bytes or b"{}", folder / PROCESSOR_FILE)),
        labels=_labels(config),
        program=Program(network=Classifier(module), title=f"{type(module).__name__} of transformers"),
    )


def _bytes_of(path: Path) -> bytes:
    """The file's content; nothing where there is none."""
    if not path.exists():
        return b""
    if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
        raise InputError(f"'{path}' is not a JSON file of reasonable size.")
    return path.read_bytes()


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not JSON.") from error
    if not isinstance(found, dict):
        raise InputError(f"'{path}' holds no settings.")
    return found


def _check_config(config: Mapping[str, Any], tensors: int, name: str) -> None:
    """No code of the folder's own, and no more layers than there are tensors, so that building it is no endless work."""
    if config.get("auto_map"):
        raise UnsafeInputError(
            f"The model in '{name}' needs Python code of its own, which is not run.",
            "Where you trust the code, name it: --arch package.module:function, with the file of weights.",
        )
    for key, count in _integers(config):
        if _LAYER_COUNT.search(key) and count > tensors:
            raise InputError(f"'{name}' claims {count:,} for '{printable(key)}' but holds {tensors} tensors.")


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _integers(item, str(inner))
    elif isinstance(value, list):
        for item in value:
            yield from _integers(item, key)
    elif isinstance(value, int):
        yield key, value


def _build(config: dict[str, Any], checkpoint: Checkpoint, name: str) -> nn.Module:
    """The network with the checkpoint's weights; its shapes are compared before anything is allocated."""
    with torch.device("meta"):
        load_by_name(_from_config(config, name), _on_meta(checkpoint), name)
    module = _from_config(config, name)
    load_by_name(module, checkpoint.tensors, name)
    return module


def _on_meta(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {key: tensor.to("meta") for key, tensor in checkpoint.tensors.items()}


def _from_config(config: dict[str, Any], name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    kind = str(config.get("model_type"))
    try:
        plain = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
        settings = AutoConfig.for_model(kind, **plain)
        module: nn.Module = AutoModelForImageClassification.from_config(settings, trust_remote_code=False)
    except ImportError as error:
        raise MissingResourceError(f"'{name}' takes a package that is not installed: {_first_line(error)}") from error
    except Exception as error:  # a config may be wrong in as many ways as there are architectures
        raise InputError(
            f"'{name}' is no image classifier that transformers can build: {_first_line(error)}",
            "It takes a model for image classification, as save_pretrained writes it.",
        ) from error
    return module


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0]) or type(error).__name__


def _metadata(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, object]:
    """Size and normalisation, as image processors state them; only what is stated."""
    found: dict[str, object] = {}
    size = next(
        (
            pixels
            for pixels in map(_pixels, (processor.get("crop_size"), processor.get("size"), config.get("image_size")))
            if pixels
        ),
        None,
    )
    if size is not None:
        found["input_size"] = size
    if processor.get("do_normalize") is False:
        channels = int(config.get("num_channels", 3))
        return found | {"mean": [0.0] * channels, "std": [1.0] * channels}
    normalisation = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    return found | {key: value for key, value in normalisation.items() if value is not None}


def _pixels(size: object) -> object:
    """Of `224`, `[224, 224]`, `{"height": 224, "width": 224}` or `{"shortest_edge": 224}`."""
    if isinstance(size, Mapping):
        return [size["height"], size["width"]] if "height" in size and "width" in size else size.get("shortest_edge")
    return size


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names in order, unless they are the placeholders that transformers writes."""
    names = config.get("id2label")
    if not isinstance(names, Mapping) or sorted(names) != sorted(str(index) for index in range(len(names))):
        return ()
    ordered = tuple(str(names[str(index)]) for index in range(len(names)))
    return () if all(re.fullmatch(r"LABEL_\d+", label) for label in ordered) else ordered
