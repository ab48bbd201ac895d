"""Checkpoints of the long stage, without pickle: tensors as safetensors, numbers as JSON, every file with its SHA-256."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from compress.exporters.bundle import sha256_of, write_file
from compress.pipeline.tensor_files import write_tensors

INDEX = "checkpoint.index"

RESUME_FILES = ("checkpoint*", "pool-*.safetensors")
"""What only serves to continue."""


def save_checkpoint(folder: Path, round_number: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write a checkpoint after a round; the index is written last, then files that it no longer names are removed."""
    path = folder / f"checkpoint-{round_number:05}.safetensors"
    write_tensors(path, tensors)
    index = _read_index(folder) or {"pool": {}}
    chunks = {name: sha for name, sha in index["pool"].items() if (folder / name).exists()}
    chunks |= {chunk.name: sha256_of(chunk) for chunk in folder.glob("pool-*.safetensors") if chunk.name not in chunks}
    content = {"round": round_number, "file": path.name, "sha256": sha256_of(path), "pool": chunks, "numbers": numbers}
    text = json.dumps(content).encode()
    write_file(folder / INDEX, text + b"\n" + _seal(text))
    _remove(old for old in folder.glob("checkpoint-*.safetensors") if old != path)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The last round that was saved, its tensors and numbers; None when there is none or a file is damaged."""
    index = _read_index(folder)
    if index is None:
        return None
    files = {index["file"]: index["sha256"], **index["pool"]}
    if any(not (folder / name).exists() or sha256_of(folder / name) != sha for name, sha in files.items()):
        return None
    # A chunk that the index does not name was written by a round that never finished.
    _remove(chunk for chunk in folder.glob("pool-*.safetensors") if chunk.name not in index["pool"])
    return index["round"], load((folder / index["file"]).read_bytes()), index["numbers"]


def remove_checkpoint(folder: Path) -> None:
    """Delete all that belongs to checkpoints."""
    _remove(path for pattern in RESUME_FILES for path in sorted(folder.glob(pattern)))


def momentum_of(optimiser: torch.optim.SGD) -> dict[str, Tensor]:
    """The momentum buffers by position of their parameter."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    buffers = {
        str(index): optimiser.state[parameter].get("momentum_buffer") for index, parameter in enumerate(parameters)
    }
    return {index: buffer for index, buffer in buffers.items() if buffer is not None}


def restore_momentum(optimiser: torch.optim.SGD, buffers: Mapping[str, Tensor]) -> None:
    """Put back what `momentum_of` took."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for index, buffer in buffers.items():
        parameter = parameters[int(index)]
        # Laid out in memory as the parameter is, as the optimiser's own buffers are.
        optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter, requires_grad=False).copy_(buffer)


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The index, JSON above the SHA-256 of that JSON; None when there is none or it is damaged."""
    try:
        text, _, seal = (folder / INDEX).read_bytes().rpartition(b"\n")
    except OSError:
        return None
    if seal != _seal(text):
        return None
    index: dict[str, Any] = json.loads(text)
    return index


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
