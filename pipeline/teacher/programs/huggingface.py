"""Hugging Face model folders for image classification: `config.json` and weights, read by transformers, offline.

The weights go through the same reader as every other checkpoint; code that a folder brings along is never run.
Source: https://huggingface.co/docs/transformers/main_classes/configuration and .../main_classes/image_processor.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.pipeline.errors import CompressError, InputError, MissingResourceError, UnsafeInputError
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.inputs import LARGEST_SIZE
from compress.pipeline.teacher.programs.modules import Classifier, misfit
from compress.pipeline.teacher.readers.files import HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import printable

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""The first that is there counts."""

_MOST_JSON_BYTES = 4_000_000
_LAYER_COUNT = re.compile(r"layers|depth|blocks|repeats|stages")

_COMMON_SETTINGS = ("architectures", "id2label", "num_labels")
"""Of the settings that every model has, those that say which network it is."""

_MOST = 2**20
"""Of anything that a config counts: classes, channels, words."""

_MOST_COMPUTED = 2**24
"""Numbers that a network may compute for itself when it is built, such as tables of positions."""

_FOREIGN = ("timm_wrapper", "shieldgemma2")
"""Models that are made of other libraries' or other models', which their configs name, hubs' among them."""

_FOREIGN_HINT = "For a model of timm: --arch timm:NAME, with the file of weights."


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
    digest = hashlib.sha256(config_bytes + processor_bytes + checkpoint.sha256.encode()).hexdigest()
    checkpoint = replace(checkpoint, file_name=folder.resolve().name, sha256=digest)
    if "model_type" not in config and isinstance(config.get("pretrained_cfg"), Mapping):
        return _of_timm(checkpoint, config["pretrained_cfg"])
    _check_config(config, len(checkpoint.tensors), folder.name)
    module = _build(config, checkpoint, folder.name)
    return replace(
        checkpoint,
        format=f"Hugging Face folder, {checkpoint.format}",
        metadata=_metadata(config, _json(processor_bytes or b"{}", folder / PROCESSOR_FILE)),
        labels=_labels(config),
        program=Program(network=Classifier(module), title=f"{type(module).__name__} of transformers"),
    )


def _of_timm(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """Weights in a folder that timm wrote; the architecture is inferred from them, as always.

    Source: https://huggingface.co/docs/timm/hf_hub, the config.json that push_to_hf_hub writes.
    """
    stated = {key: config[key] for key in ("input_size", "mean", "std") if key in config}
    names = config.get("label_names")
    labels = tuple(str(name) for name in names) if isinstance(names, list) else ()
    return replace(checkpoint, format=f"timm folder, {checkpoint.format}", metadata=stated, labels=labels)


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
    """No code of the folder's own, and no counts that would make building it endless work."""
    if config.get("auto_map"):
        raise UnsafeInputError(
            f"The model in '{name}' needs Python code of its own, which is not run.",
            "Where you trust the code, name it: --arch package.module:function, with the file of weights.",
        )
    if config.get("model_type") in _FOREIGN:
        raise UnsafeInputError(
            f"The model in '{name}' is '{config['model_type']}', which may fetch its parts from elsewhere.",
            _FOREIGN_HINT,
        )
    for key, count in _integers(config):
        if _LAYER_COUNT.search(key) and count > tensors:
            raise InputError(f"'{name}' claims {count:,} for '{printable(key)}' but holds {tensors} tensors.")
        if count > (LARGEST_SIZE if key == "image_size" else _MOST):
            raise InputError(f"'{name}' claims {count:,} for '{printable(key)}', which is too many.", HOSTILE_HINT)


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers with their keys; of a list their sum, since each of a stage's layers has tensors of its own."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _integers(item, str(inner))
    elif isinstance(value, list):
        numbers = [item for item in value if isinstance(item, int)]
        yield key, sum(numbers) if _LAYER_COUNT.search(key) else max(numbers, default=0)
        for item in value:
            if not isinstance(item, int):
                yield from _integers(item, key)
    elif isinstance(value, int):
        yield key, value


def _build(config: Mapping[str, Any], checkpoint: Checkpoint, name: str) -> nn.Module:
    """The network with the checkpoint's weights; its size is known before anything is allocated.

    transformers itself loads them, since it has other names for some tensors than the files that it writes.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    with _refusals(name), _quiet():
        settings = AutoConfig.for_model(str(config.get("model_type")), **_settings(config))
        with torch.device("meta"):
            plan: nn.Module = AutoModelForImageClassification.from_config(settings, trust_remote_code=False)
        _check_size(plan, checkpoint, name)
        module: nn.Module
        module, loading = type(plan).from_pretrained(  # type: ignore[attr-defined]  # every model of transformers has it
            None,
            config=settings,
            state_dict=checkpoint.tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_loading(module, loading, name)
    return module


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What describes the architecture. How and where it runs is left out: kernels, for one, come from the network."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    known = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else None  # noqa: SIM401  its `get` finds nothing
    common = {key: config[key] for key in _COMMON_SETTINGS if config.get(key) is not None}
    return common | (_own_settings(known, config) if known else {})


def _own_settings(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the keys of a config those that its class has and not every class; of configs inside it likewise."""
    from transformers import PretrainedConfig

    common = {field.name for field in fields(PretrainedConfig)}
    own = ({field.name for field in fields(kind)} | set(kind.attribute_map)) - common
    found = {key: value for key, value in config.items() if key in own}
    inner = {key: part for key, part in kind.sub_configs.items() if isinstance(found.get(key), Mapping)}
    return found | {key: _own_settings(part, found[key]) for key, part in inner.items()}


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except CompressError:
        raise
    except ImportError as error:
        raise MissingResourceError(f"'{name}' takes a package that is not installed: {_first_line(error)}") from error
    except Exception as error:  # a config may be wrong in as many ways as there are architectures
        raise InputError(
            f"'{name}' is no image classifier that transformers can build: {_first_line(error)}",
            "It takes a model for image classification, as save_pretrained writes it.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers; what matters of them becomes an error here."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _check_size(plan: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """The network may be a little larger than its weights in the file, by tables that it computes."""
    wanted = sum(tensor.numel() for tensor in (*plan.parameters(), *plan.buffers()))
    given = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    if wanted > 2 * given + _MOST_COMPUTED:
        raise InputError(
            f"The weights of '{name}' do not fit the network: it has {wanted:,} numbers and the file {given:,}."
        )


def _check_loading(module: nn.Module, loading: Mapping[str, Any], name: str) -> None:
    """Every tensor has landed, and none that holds trained numbers is missing."""
    trained = {key for key, tensor in module.state_dict().items() if tensor.is_floating_point()}
    problems = [
        *(f"'{printable(key)}' has no place in it" for key in sorted(loading["unexpected_keys"])),
        *(f"'{printable(key)}' is missing" for key in sorted(trained & set(loading["missing_keys"]))),
        *(
            f"'{printable(key)}' is {list(given)} and not {list(wanted)}"
            for key, given, wanted in sorted(loading["mismatched_keys"])
        ),
        *(printable(str(message)) for message in loading["error_msgs"]),
    ]
    if problems:
        raise misfit(problems, name)


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
        stated = config.get("num_channels")
        channels = stated if isinstance(stated, int) else 3
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
