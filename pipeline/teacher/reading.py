"""Reads a teacher's file, or folder, of any format: once, hashing the very bytes that it reads, executing nothing in it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.readers.contents import find_weights
from compress.pipeline.teacher.readers.files import memory_limit, read_file
from compress.pipeline.teacher.readers.formats import Format, printable, recognise_format
from compress.pipeline.teacher.readers.safetensors_files import index_in, read_index, read_safetensors
from compress.pipeline.teacher.readers.torch_files import read_plain_pickle, read_torch_legacy, read_torch_zip
from compress.pipeline.teacher.readers.trusted import Loaded, load_trusted
from compress.pipeline.teacher.readers.weights import tidy

if TYPE_CHECKING:
    from compress.pipeline.teacher.programs.exported import ExportedProgram

_CODE_WAS_RUN = "Code from the file was run to load it, as --allow-pickle asked."


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file in memory."""

    path: Path
    name: str
    """For messages."""
    data: bytearray
    sha256: str
    size: int
    """Bytes of all that was read."""
    allow_pickle: bool


def read_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Read weights, or a program with its weights.

    Args:
        path: a file in one of the formats of `formats.py`; a Hugging Face folder; or one with sharded safetensors.
        allow_pickle: run what a pickle says, where it says more than weights need.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        UnsafeInputError: loading it would execute code.
        InputError: it is in another format, damaged, or its weights are not usable.
    """
    if path.is_dir():
        return _read_folder(path, partial(read_checkpoint, allow_pickle=allow_pickle))
    data = read_file(path)
    file = _File(
        path=path,
        name=printable(path.name),
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        allow_pickle=allow_pickle,
    )
    return _READERS[recognise_format(data, file.name)](file)


def _read_folder(folder: Path, read: Callable[[Path], Checkpoint]) -> Checkpoint:
    if (folder / "config.json").exists():
        from compress.pipeline.teacher.programs.huggingface import read_model_folder

        return read_model_folder(folder, read)
    path = index_in(folder)
    if path is None:
        hint = "It has neither a model's config.json nor safetensors: name the checkpoint file inside it."
        raise InputError(f"'{folder}' is a folder.", hint)
    return read(path)


def _read_torch_zip(file: _File) -> Checkpoint:
    return _read_pickled(file, "torch zip", read_torch_zip, "PyTorch checkpoint")


def _read_torch_legacy(file: _File) -> Checkpoint:
    return _read_pickled(file, "torch legacy", read_torch_legacy, "PyTorch checkpoint of the format before 1.6")


def _read_plain_pickle(file: _File) -> Checkpoint:
    return _read_pickled(file, "pickle", read_plain_pickle, "Python pickle")


def _read_pickled(file: _File, form: Format, read: Callable[[bytearray, str], object], title: str) -> Checkpoint:
    """Data by the reader of the format; what it refuses as code is run where the user asked for it."""
    try:
        return _from_tree(read(file.data, file.name), file, title)
    except UnsafeInputError:
        if not file.allow_pickle:
            raise
    return _from_trusted(load_trusted(file.data, form, file.name), file, title)


def _from_trusted(loaded: Loaded, file: _File, title: str) -> Checkpoint:
    from compress.pipeline.teacher.programs.modules import Classifier, code_sha256

    checkpoint = _from_tree(loaded.tree, file, title)
    checkpoint = replace(checkpoint, warnings=(_CODE_WAS_RUN, *checkpoint.warnings))
    if loaded.module is None:
        return checkpoint
    kind = type(loaded.module)
    network = Program(
        network=Classifier(loaded.module),
        title=f"pickled module of class {kind.__module__}.{kind.__qualname__}",
        code_sha256=code_sha256(loaded.module),
    )
    return replace(checkpoint, format=f"{title}, a pickled module", program=network)


def _read_safetensors(file: _File) -> Checkpoint:
    tensors, metadata = read_safetensors(file.data, file.name)
    return _from_tree({**metadata, **tensors}, file, "safetensors file")


def _read_safetensors_index(file: _File) -> Checkpoint:
    sharded = read_index(file.data, file.path)
    whole = replace(file, sha256=sharded.sha256, size=sharded.size)
    return _from_tree({**sharded.metadata, **sharded.tensors}, whole, "sharded safetensors")


def _read_torchscript(file: _File) -> Checkpoint:
    from compress.pipeline.teacher.programs.torchscript import read_torchscript

    return read_torchscript(file.data, file.name, file.sha256)


def _read_exported(file: _File) -> Checkpoint:
    from compress.pipeline.teacher.programs.exported import read_exported

    return _from_program(read_exported(file.data, file.name), file, "torch.export program")


def _read_onnx(file: _File) -> Checkpoint:
    from compress.pipeline.teacher.programs.onnx.model import read_onnx

    return read_onnx(file.data, file.name, file.path.parent)


_READERS: Mapping[Format, Callable[[_File], Checkpoint]] = {
    "torch zip": _read_torch_zip,
    "torch legacy": _read_torch_legacy,
    "pickle": _read_plain_pickle,
    "safetensors": _read_safetensors,
    "safetensors index": _read_safetensors_index,
    "torchscript": _read_torchscript,
    "torch export": _read_exported,
    "onnx": _read_onnx,
}


def _from_tree(tree: object, file: _File, title: str) -> Checkpoint:
    """A checkpoint from whatever dictionary was saved."""
    found = find_weights(tree, file.name)
    tidied = tidy(found.weights, file.name, memory_limit(file.size))
    also = (f"The checkpoint has weights under '{printable(key)}', too; they were not used." for key in found.also)
    return Checkpoint(
        file_name=file.path.name,
        sha256=file.sha256,
        format=f"{title}, {found.location}",
        tensors=tidied.tensors,
        metadata=found.metadata,
        batches_tracked=tidied.batches_tracked,
        labels=found.labels,
        warnings=(*also, *tidied.notes),
    )


def _from_program(read: "ExportedProgram", file: _File, title: str) -> Checkpoint:
    return Checkpoint(
        file_name=file.path.name,
        sha256=file.sha256,
        format=title,
        tensors=read.tensors,
        batches_tracked=read.batches_tracked,
        warnings=read.warnings,
        program=read.program,
    )
