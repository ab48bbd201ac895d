"""Brings weights, as training saved them, to plain float32 tensors under the network's own names."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.files import HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import printable
from compress.pipeline.teacher.readers.stored import StoredTensor

NETWORKS = ("teacher", "model", "net", "network", "module", "student", "ema", "ema_model", "model_ema")
"""Attributes in which trainers keep whole networks; of several the first is meant, as of the keys of a checkpoint."""

WRAPPERS = frozenset({*NETWORKS, "_orig_mod", "backbone", "encoder", "base_model"})
"""What DataParallel, trainers and torch.compile put before the names of a network's tensors."""

_MOST_WRAPPERS = 8
"""Of one network, one around the other."""

_BESIDE = (("criterion", "loss", "metric"), ("_loss", "_acc", "_metric", "_metrics"))
"""What the attributes begin or end with in which trainers keep losses, with weights of the classes, and metrics."""

_PROFILER = ("total_ops", "total_params")
"""Counters that thop leaves in every module."""

_LEAST_SHARE = 0.25
"""Of all tensors, in what counts as a network and not as a few settings of one."""

_COUNTER = "num_batches_tracked"
_NETWORK_PARTS = ("weight", "bias", "running_mean", "running_var")
_INDEX_TYPES = (torch.int64, torch.int32, torch.bool)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """Weights and nothing else."""

    tensors: dict[str, Tensor]
    """Dense float32."""
    batches_tracked: dict[str, int]
    """Batches that each batch norm has seen in training, by the name of its module."""
    notes: tuple[str, ...]
    """What was left out, in sentences."""


def tidy(weights: Mapping[str, Tensor | StoredTensor], name: str, limit: int) -> Tidied:
    """One network's tensors, in float32, pruning masks applied, without what training and its tools left among them.

    Args:
        weights: tensors as they were saved, of any floating-point precision.
        name: the file's, for messages.
        limit: the most bytes that they may take in float32; compared before any is made.

    Raises:
        InputError: as of `as_float32`.
    """
    _check_declared(weights.values(), name, limit)
    made = {key: tensor if isinstance(tensor, Tensor) else tensor.tensor() for key, tensor in weights.items()}
    network, others = _one_network(made)
    network, beside = _split(network, _is_beside)
    network, profiled = _split(network, lambda key: _last_part(key) in _PROFILER)
    counters = {key: tensor for key, tensor in network.items() if _last_part(key) == _COUNTER}
    network, indices = _split(network, lambda key: key not in counters and _is_index(key, network[key]))
    notes = (
        _note(others, "of another network in the file"),
        _note(beside, "of the training's loss or metrics"),
        _note(profiled, "of a profiler"),
        _note(indices, "of integers"),
    )
    tensors = {key: _checked(key, tensor, name) for key, tensor in network.items() if key not in counters}
    return Tidied(
        tensors=_pruned(tensors), batches_tracked=_batches(counters), notes=tuple(note for note in notes if note)
    )


def without_wrappers(weights: Mapping[str, Value]) -> dict[str, Value]:
    """The same tensors under the names that they had before wrappers put theirs in front.

    A wrapper's name is taken off where more than half of the tensors have it and no two would get one name; `encoder`,
    which is a part of transformers, too, only where all have it.
    """
    names = list(weights)
    for _ in range(_MOST_WRAPPERS):
        names = _without_one_wrapper(names) or names
    return dict(zip(names, weights.values(), strict=True))


def as_float32(weights: Mapping[str, Tensor], name: str, limit: int) -> dict[str, Tensor]:
    """Dense float32 copies of weights under the same names; batch counters are left out.

    Args:
        weights: tensors of any floating-point precision.
        name: the file's, for messages.
        limit: the most bytes that they may take.

    Raises:
        InputError: they would take more; or a tensor is not plain numbers, holds NaN or infinity, or is a negative
            variance.
    """
    kept = {key: tensor for key, tensor in weights.items() if _last_part(key) != _COUNTER}
    _check_declared(kept.values(), name, limit)
    return {key: _checked(key, tensor, name) for key, tensor in kept.items()}


def is_dense(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are there to be read, one by one."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _check_declared(tensors: Iterable[Tensor | StoredTensor], name: str, limit: int) -> None:
    declared = sum(4 * tensor.numel() for tensor in tensors)
    if declared > limit:
        raise InputError(f"'{name}' is small but declares {declared:,} bytes of weights.", HOSTILE_HINT)


def _one_network(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network that is meant, without wrappers' names, and the names of those of others."""
    kept, others = dict(weights), list[str]()
    for _ in range(_MOST_WRAPPERS):
        kept, more = _split(kept, _of_other_networks(kept).__contains__)
        others += more
        kept = dict(zip(_without_one_wrapper(list(kept)) or kept, kept.values(), strict=True))
    return kept, others


def _of_other_networks(names: Iterable[str]) -> set[str]:
    """Names in networks beside the first that is large enough to be one."""
    parts = {name: _first_part(name) for name in names}
    counts = Counter(parts.values())
    meant = next((part for part in NETWORKS if counts[part] >= _LEAST_SHARE * len(parts)), None)
    return {name for name, part in parts.items() if meant is not None and part in NETWORKS and part != meant}


def _without_one_wrapper(names: Sequence[str]) -> list[str] | None:
    """The names without the outermost wrapper's; None where there is none, or two tensors would get one name."""
    if not names:
        return None
    part, count = Counter(map(_first_part, names)).most_common(1)[0]
    if part not in WRAPPERS or 2 * count <= len(names) or (part == "encoder" and count < len(names)):
        return None
    shorter = [name.removeprefix(f"{part}.") for name in names]
    return shorter if len(set(shorter)) == len(shorter) else None


def _first_part(name: str) -> str:
    part, dot, _ = name.partition(".")
    return part if dot else ""


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _is_beside(name: str) -> bool:
    starts, ends = _BESIDE
    return _first_part(name).startswith(starts) or _first_part(name).endswith(ends)


def _split(weights: Mapping[str, Tensor], leave_out: Callable[[str], object]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that stay, and the names of those that do not."""
    left_out = [name for name in weights if leave_out(name)]
    return {name: tensor for name, tensor in weights.items() if not leave_out(name)}, left_out


def _note(names: Sequence[str], what: str) -> str:
    """A sentence on tensors that were left out; none where there are none."""
    if not names:
        return ""
    count = "A tensor" if len(names) == 1 else f"{len(names):,} tensors"
    return f"{count} {what} {'was' if len(names) == 1 else 'were'} left out, such as '{printable(names[0])}'."


def _is_index(key: str, tensor: Tensor) -> bool:
    return tensor.dtype in _INDEX_TYPES and _last_part(key) not in _NETWORK_PARTS


def _batches(counters: Mapping[str, Tensor]) -> dict[str, int]:
    """Module names to counts; what is no count is dropped."""
    single = {key: tensor for key, tensor in counters.items() if tensor.numel() == 1 and is_dense(tensor)}
    counts = {key.rpartition(".")[0]: float(tensor.detach().real) for key, tensor in single.items()}
    return {module: int(count) for module, count in counts.items() if 0 <= count < float("inf")}


def _pruned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights multiplied by their masks.

    Source: https://docs.pytorch.org/docs/stable/nn.html#utilities, torch.nn.utils.prune, which keeps `weight` as
    `weight_orig` and `weight_mask`.
    """
    masked = [key.removesuffix("_mask") for key in tensors if key.endswith("_mask")]
    pairs = {key: (tensors.get(f"{key}_orig"), tensors[f"{key}_mask"]) for key in masked if key not in tensors}
    products = {
        key: original * mask
        for key, (original, mask) in pairs.items()
        if original is not None and original.shape == mask.shape
    }
    used = {f"{key}_{part}" for key in products for part in ("orig", "mask")}
    return {key: tensor for key, tensor in tensors.items() if key not in used} | products


def _checked(key: str, tensor: Tensor, name: str) -> Tensor:
    """A copy in float32, whose memory is its own and not the file's."""
    shown = printable(key)
    if not (is_dense(tensor) and tensor.is_floating_point() and tensor.dtype.itemsize > 1):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"'{name}' holds '{shown}' as {kind} rather than plain floating-point numbers.",
            "A teacher is the network in full precision, before any quantization.",
        )
    if tensor.numel() == 0:
        raise InputError(f"'{name}' has no numbers in '{shown}'.", "The checkpoint is damaged.")
    tensor = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(tensor.isfinite().all()):
        raise InputError(
            f"'{name}' has NaN or infinite numbers in '{shown}'.", "Use a checkpoint from before training diverged."
        )
    if key.endswith("running_var") and bool((tensor < 0).any()):
        raise InputError(f"'{name}' has a negative variance in '{shown}'.", "The checkpoint is damaged.")
    return tensor
