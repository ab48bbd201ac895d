"""Checkpoints of the long stage, without pickle: tensors as safetensors, numbers as JSON, every file with its SHA-256.

Checkpoint N is up to three files. `checkpoint-N.safetensors` holds tensors, `pool-N.safetensors` the images that joined
the pool since the checkpoint before. `checkpoint-N.index`, written last, is JSON above the SHA-256 of that JSON: it names
these files and all earlier images of the pool with SHA-256 and size, and the indexes of the checkpoints kept beside it
with their SHA-256. The last two are kept, and the last one that was made between two rounds. A number is never used
twice, so nothing is ever overwritten.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor
from torch.optim import Optimizer

from compress.exporters.bundle import sha256_of, write_file
from compress.pipeline.errors import MissingResourceError
from compress.pipeline.tensor_files import write_tensors

RESUME_FILES = ("checkpoint-*", "pool-*.safetensors", ".checkpoint-*.partial", ".pool-*.partial")
"""What only serves to continue, and what is left of it where the process was killed while it wrote."""

_INDEX = "checkpoint-{:06}.index"
_TENSORS = "checkpoint-{:06}.safetensors"
_IMAGES = "pool-{:06}.safetensors"


class FileEntry(NamedTuple):
    """A file as an index names it."""

    name: str
    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        return cls(path.name, sha256_of(path), path.stat().st_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state of the run."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    between_rounds: bool
    """Whether no round had begun that is not finished."""
    pool: tuple[FileEntry, ...] = ()
    """Files with the pool's images, the oldest first."""


class Loaded(NamedTuple):
    """The checkpoint to continue from, if there is one, and what is wrong with those that are newer, a sentence each."""

    checkpoint: Checkpoint | None
    problems: tuple[str, ...]


class _DamagedError(Exception):
    """A checkpoint that cannot be used; says why."""


class _Index(NamedTuple):
    """An index as it was read, and the SHA-256 of its file."""

    path: Path
    sha256: str
    content: dict[str, Any]

    @property
    def files(self) -> list[FileEntry]:
        return [FileEntry(*entry) for entry in (self.content["tensors"], *self.content["pool"])]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, fresh: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """Write a checkpoint whole or not at all, then remove the files that no kept one needs.

    Args:
        folder: the stage's.
        checkpoint: the state; its pool as far as it is on the disk already.
        fresh: `images` and `targets` that have joined the pool since.

    Returns:
        The checkpoint, with the fresh images in its pool.

    Raises:
        MissingResourceError: the disk is full or fails; the earlier checkpoints are as they were.
    """
    number = _next_number(folder)
    kept = _kept_beside(folder, checkpoint.between_rounds)
    written = [folder / pattern.format(number) for pattern in (_TENSORS, _IMAGES, _INDEX)]
    tensors, images, index = written
    try:
        write_tensors(tensors, checkpoint.tensors)
        pool = checkpoint.pool
        if fresh:
            write_tensors(images, fresh)
            pool = (*pool, FileEntry.of(images))
        content = {
            "between_rounds": checkpoint.between_rounds,
            "tensors": FileEntry.of(tensors),
            "pool": pool,
            "kept": {older.path.name: older.sha256 for older in kept},
            "numbers": checkpoint.numbers,
        }
        text = json.dumps(content).encode()
        write_file(index, text + b"\n" + _seal(text))
    except MissingResourceError as error:
        _remove(written)
        raise MissingResourceError(error.message, f"{error.hint} The same command then continues.") from error
    needed = {index.name, tensors.name, *(entry.name for entry in pool)}
    needed |= {name for older in kept for name in (older.path.name, *(entry.name for entry in older.files))}
    _remove(path for path in _all_files(folder) if path.name not in needed)
    return Checkpoint(
        tensors=checkpoint.tensors, numbers=checkpoint.numbers, between_rounds=checkpoint.between_rounds, pool=pool
    )


def load_checkpoint(folder: Path, *, between_rounds: bool = False) -> Loaded:
    """The newest checkpoint whose files are all as they were written, each checked against its SHA-256.

    One that a newer, readable index does not name by its SHA-256 is not trusted, either. Damaged ones that are newer
    are removed, so that the next save does not count on them.

    Args:
        between_rounds: pass over those that were made within a round.
    """
    problems: dict[Path, str] = {}
    named: Mapping[str, str] | None = None
    for path in sorted(folder.glob(_INDEX.replace("{:06}", "*")), reverse=True):
        try:
            index = _read_index(path)
            if named is not None and named.get(path.name) != index.sha256:
                raise _DamagedError(f"{path.name} is not the one that its successor names")
            named = index.content["kept"]
            if between_rounds and not index.content["between_rounds"]:
                continue
            checkpoint = _read(folder, index)
        except _DamagedError as damage:
            problems[path] = f"{damage}."
            continue
        _remove(problems)
        return Loaded(checkpoint, tuple(problems.values()))
    return Loaded(None, tuple(problems.values()))


def pool_chunk(folder: Path, entry: FileEntry) -> dict[str, Tensor]:
    """`images` and `targets` of one of the pool's files."""
    return load((folder / entry.name).read_bytes())


def remove_checkpoints(folder: Path) -> None:
    """Delete all that belongs to checkpoints."""
    _remove(_all_files(folder))


def state_of(optimiser: Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers of each parameter, under the parameter's position and a name: `3.exp_avg`."""
    remembered = (optimiser.state.get(parameter, {}) for parameter in _parameters(optimiser))
    return {
        f"{index}.{name}": value
        for index, state in enumerate(remembered)
        for name, value in state.items()
        if value is not None
    }


def restore_state(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` took."""
    parameters = _parameters(optimiser)
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        # Laid out in memory as the parameter is, as the optimiser's own buffers are; counts of steps stay on the CPU.
        own = torch.empty_like(parameter, requires_grad=False) if value.dim() else torch.empty_like(value)
        optimiser.state[parameter][key] = own.copy_(value)


def _parameters(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _read(folder: Path, index: _Index) -> Checkpoint:
    """Raises `_DamagedError` unless every file that the index names is as it says."""
    content = index.content
    for entry in index.files:
        _check(folder, entry)
    return Checkpoint(
        tensors=load((folder / content["tensors"][0]).read_bytes()),
        numbers=content["numbers"],
        between_rounds=content["between_rounds"],
        pool=tuple(FileEntry(*entry) for entry in content["pool"]),
    )


def _check(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    if not path.is_file():
        raise _DamagedError(f"{entry.name} is missing")
    size = path.stat().st_size
    if size != entry.size:
        raise _DamagedError(f"{entry.name} has {size:,} bytes instead of {entry.size:,}")
    if sha256_of(path) != entry.sha256:
        raise _DamagedError(f"{entry.name} was changed")


def _read_index(path: Path) -> _Index:
    """Raises `_DamagedError` unless it is sealed by its own SHA-256."""
    raw = path.read_bytes()
    text, _, seal = raw.rpartition(b"\n")
    if not raw:
        raise _DamagedError(f"{path.name} is empty")
    if seal != _seal(text):
        raise _DamagedError(f"{path.name} is cut short or was changed")
    return _Index(path, hashlib.sha256(raw).hexdigest(), json.loads(text))


def _kept_beside(folder: Path, between_rounds: bool) -> list[_Index]:
    """What stays when a new checkpoint comes: the last, and the last between two rounds unless the new one is such."""
    readable: list[_Index] = []
    for path in sorted(folder.glob(_INDEX.replace("{:06}", "*"))):
        try:
            readable.append(_read_index(path))
        except _DamagedError:
            continue
    whole = [index for index in readable if index.content["between_rounds"]]
    kept: Sequence[_Index] = readable[-1:] if between_rounds else [*whole[-1:], *readable[-1:]]
    return list({index.path: index for index in kept}.values())


def _next_number(folder: Path) -> int:
    numbers = [int(found[0]) for path in _all_files(folder) if (found := re.findall(r"-(\d+)\.", path.name))]
    return max(numbers, default=-1) + 1


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _all_files(folder: Path) -> list[Path]:
    return [path for pattern in RESUME_FILES for path in sorted(folder.glob(pattern))]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
