"""Finds the weights inside whatever dictionary training saved, and brings them to plain float32 tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.formats import STATE_DICT_HINT, printable

WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "net", "teacher", "ema")
"""Where training checkpoints keep the weights; the first that is there counts."""

METADATA_KEYS = ("input_size", "mean", "std")

_LEVELS = 3
"""Dictionaries inside dictionaries; a limit, because a pickle may hold itself."""

_WRAPPERS = re.compile(r"^(?:module\.|model\.|_orig_mod\.|backbone\.)+")
"""What DataParallel, trainers and torch.compile put before every name."""


@dataclass(frozen=True, slots=True)
class Found:
    """The weights as they lie in a checkpoint."""

    location: str
    """In words, such as `weights under 'state_dict'`."""
    weights: dict[str, Tensor]
    metadata: dict[str, object]
    also: tuple[str, ...]
    """Other keys of the same level under which there may be weights."""


def find_weights(tree: object, name: str) -> Found:
    """Descend to the dictionary of tensors, and gather the metadata on the way.

    Raises:
        InputError: there is none; the sentence says what is there instead.
    """
    path: list[str] = []
    also: list[str] = []
    metadata: dict[str, object] = {}
    level = _dictionary(tree, name)
    while len(path) < _LEVELS:
        metadata = {key: level[key] for key in METADATA_KEYS if key in level} | metadata
        inner = [key for key in WEIGHT_KEYS if _may_hold_weights(level.get(key))]
        if not inner:
            break
        path.append(inner[0])
        also += inner[1:]
        level = _dictionary(level[inner[0]], name)
    weights = {key: value for key, value in level.items() if isinstance(value, Tensor) and key not in METADATA_KEYS}
    if not weights:
        raise InputError(f"'{name}' holds no weights where they usually are; it has {_listed(level)}.", STATE_DICT_HINT)
    location = "weights under " + " and ".join(repr(key) for key in path) if path else "a bare state_dict"
    return Found(location, weights, metadata, tuple(also))


def without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that they had before wrappers put theirs in front."""
    names = [_WRAPPERS.sub("", name) for name in weights]
    return dict(zip(names, weights.values(), strict=True)) if len(set(names)) == len(names) else weights


def as_float32(weights: dict[str, Tensor], name: str, limit: int) -> dict[str, Tensor]:
    """Dense float32 copies of the weights; batch counters are left out.

    Args:
        weights: tensors of any floating-point precision.
        name: the file's, for messages.
        limit: the most bytes that the tensors may declare in all.

    Raises:
        InputError: a tensor is not plain numbers, holds NaN or infinity, or is a negative variance.
    """
    kept = {key: tensor.detach() for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
    declared = sum(4 * tensor.numel() for tensor in kept.values())
    if declared > limit:
        raise InputError(
            f"'{name}' is small but declares {declared:,} bytes of weights.", "It is damaged or made to exhaust memory."
        )
    return {key: _checked(key, tensor, name) for key, tensor in kept.items()}


def is_dense(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are there to be read, one by one."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _checked(key: str, tensor: Tensor, name: str) -> Tensor:
    key = printable(key)
    if not (is_dense(tensor) and tensor.is_floating_point()):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"'{name}' holds '{key}' as {kind} rather than plain floating-point numbers.",
            "A teacher is the network in full precision, before any quantization.",
        )
    if tensor.numel() == 0:
        raise InputError(f"'{name}' has no numbers in '{key}'.", "The checkpoint is damaged.")
    tensor = tensor.float().contiguous()
    if not bool(tensor.isfinite().all()):
        raise InputError(
            f"'{name}' has NaN or infinite numbers in '{key}'.", "Use a checkpoint from before training diverged."
        )
    if key.endswith("running_var") and bool((tensor < 0).any()):
        raise InputError(f"'{name}' has a negative variance in '{key}'.", "The checkpoint is damaged.")
    return tensor


def _may_hold_weights(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor | Mapping) for inner in value.values())


def _dictionary(tree: object, name: str) -> dict[str, object]:
    if not isinstance(tree, Mapping):
        raise InputError(f"'{name}' holds a {type(tree).__name__}, not a dictionary of weights.", STATE_DICT_HINT)
    return {key: value for key, value in tree.items() if isinstance(key, str)}


def _listed(level: Mapping[str, object], most: int = 6) -> str:
    keys = [f"'{printable(key)}'" for key in level]
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return (", ".join(keys[:most]) or "nothing") + more
