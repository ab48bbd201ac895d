"""Finds the weights inside whatever dictionary training saved, and what it says about images and classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.constructors import NumpyArray
from compress.pipeline.teacher.readers.files import HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import STATE_DICT_HINT, printable
from compress.pipeline.teacher.readers.pickles import Inert
from compress.pipeline.teacher.readers.stored import StoredTensor, UnusableTensor

WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "teacher",
    "ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "params_ema",
)
"""Where training checkpoints keep the weights; the first that is there counts, so averaged ones only by themselves."""

METADATA_KEYS = ("input_size", "mean", "std")
_SETTINGS_KEYS = ("pretrained_cfg", "default_cfg")
"""Where timm keeps its metadata."""

_LABEL_KEYS = ("classes", "class_names", "labels", "label_names", "class_to_idx", "idx_to_class", "id2label")

MOST_TENSORS = 20_000
"""The largest classifiers have some thousands."""

_LEVELS = 3
"""Dictionaries inside dictionaries; a limit, because a pickle may hold itself."""

_MOST_METADATA = 64
_MOST_LABELS = 100_000
_LONGEST_LABEL = 1_000

_STORED = (Tensor, StoredTensor, UnusableTensor, NumpyArray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The weights as they lie in a checkpoint."""

    location: str
    """In words, such as `weights under 'state_dict'`."""
    weights: Mapping[str, Tensor | StoredTensor]
    metadata: dict[str, object] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """Other keys of the same level under which there may be weights."""


def find_weights(tree: object, name: str) -> Found:
    """Descend to the dictionary of tensors, and gather on the way what is known about images and classes.

    Args:
        tree: what was saved, as plain data.
        name: the file's, for messages.

    Raises:
        InputError: there are no weights, with a sentence on what is there instead; or they are of a kind that is not
            read.
    """
    path: list[str] = []
    also: list[str] = []
    metadata: dict[str, object] = {}
    labels: tuple[str, ...] = ()
    level = _dictionary(tree, name)
    while True:
        metadata = _metadata(level) | metadata
        labels = labels or _labels(level)
        inner = _keys_with_weights(level) if len(path) < _LEVELS else []
        if not inner:
            break
        path.append(inner[0])
        also += inner[1:]
        level = _dictionary(level[inner[0]], name)
    location = "weights under " + " and ".join(f"'{printable(key)}'" for key in path) if path else "a bare state_dict"
    return Found(location=location, weights=_weights(level, name), metadata=metadata, labels=labels, also=tuple(also))


def _weights(level: Mapping[str, object], name: str) -> dict[str, Tensor | StoredTensor]:
    """The tensors of a level."""
    stored = {key: _unpacked(value) for key, value in level.items() if isinstance(value, _STORED)}
    tensors: dict[str, Tensor | StoredTensor] = {}
    for key, value in stored.items():
        if isinstance(value, UnusableTensor):
            raise InputError(
                f"'{name}' holds '{printable(key)}' as {value.kind} rather than plain floating-point numbers.",
                "A teacher is the network in full precision, before any quantization.",
            )
        if key not in METADATA_KEYS:
            tensors[key] = value
    if len(tensors) > MOST_TENSORS:
        raise InputError(f"'{name}' holds {len(tensors):,} tensors; {MOST_TENSORS:,} are read.", HOSTILE_HINT)
    if not tensors:
        raise InputError(f"'{name}' holds no weights where they usually are; it has {_listed(level)}.", STATE_DICT_HINT)
    return tensors


def _unpacked(value: Tensor | StoredTensor | UnusableTensor | NumpyArray) -> Tensor | StoredTensor | UnusableTensor:
    return value.stored if isinstance(value, NumpyArray) else value


def _keys_with_weights(level: Mapping[str, object]) -> list[str]:
    """The usual keys; where there is none of them and the level itself has no tensors, the one other that will do."""
    usual = [key for key in WEIGHT_KEYS if _may_hold_weights(level.get(key))]
    if usual or any(isinstance(value, _STORED) for value in level.values()):
        return usual
    others = [key for key, value in level.items() if isinstance(value, Mapping) and _names_layers(value)]
    return others if len(others) == 1 else []


def _may_hold_weights(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(inner, _STORED) for inner in value.values()) or any(
        isinstance(value.get(key), Mapping) for key in WEIGHT_KEYS
    )


def _names_layers(value: Mapping[object, object]) -> bool:
    return any(
        isinstance(inner, _STORED) and isinstance(key, str) and key.endswith(".weight") for key, inner in value.items()
    )


def _metadata(level: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for source in (*(level.get(key) for key in _SETTINGS_KEYS), level):
        if isinstance(source, Mapping):
            found |= {key: _small(source[key]) for key in METADATA_KEYS if _small(source.get(key)) is not None}
    return found


def _small(value: object) -> object:
    """A number, a text, or a few numbers; None for all else."""
    if isinstance(value, NumpyArray):
        value = value.stored
    if isinstance(value, StoredTensor):
        return value.tensor() if value.numel() <= _MOST_METADATA else None
    if isinstance(value, list | tuple):
        few = len(value) <= _MOST_METADATA and all(isinstance(number, int | float) for number in value)
        return value if few else None
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_LABEL else None
    return value if isinstance(value, int | float | Tensor) else None


def _labels(level: Mapping[str, object]) -> tuple[str, ...]:
    """Class names in order, from the first key that has them as a list, by index, or with their indices."""
    return next((names for key in _LABEL_KEYS if (names := _class_names(level.get(key)))), ())


def _class_names(value: object) -> tuple[str, ...]:
    if isinstance(value, Mapping) and len(value) <= _MOST_LABELS:
        to_index = all(type(index) is int and 0 <= index < len(value) for index in value.values())
        by_index = {index: label for label, index in value.items()} if to_index else value
        numbered = {str(index): label for index, label in by_index.items()}
        value = [numbered.get(str(index)) for index in range(len(value))]
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= _MOST_LABELS:
        return ()
    names = tuple(label for label in value if isinstance(label, str) and 0 < len(label) <= _LONGEST_LABEL)
    return names if len(names) == len(value) else ()


def _dictionary(tree: object, name: str) -> dict[str, object]:
    if not isinstance(tree, Mapping):
        raise InputError(f"'{name}' holds one {_described(tree)}, not a dictionary of weights.", STATE_DICT_HINT)
    return {key: value for key, value in tree.items() if isinstance(key, str)}


def _described(tree: object) -> str:
    if isinstance(tree, _STORED):
        return "tensor"
    return "object" if isinstance(tree, Inert) else type(tree).__name__


def _listed(level: Mapping[str, object], most: int = 6) -> str:
    keys = [f"'{printable(key)}'" for key in list(level)[:most]]
    more = f" and {len(level) - most} more" if len(level) > most else ""
    return (", ".join(keys) or "nothing") + more
