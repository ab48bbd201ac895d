"""Runs inside the jail: TorchScript archive in, tensors and a program as data out."""

import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

import torch
from torch import nn

from compress.pipeline.jail.child import Refused
from compress.pipeline.teacher.programs.torchscript.answer import pack
from compress.pipeline.teacher.programs.torchscript.interpreter import translate
from compress.pipeline.teacher.readers.formats import printable

_FILES = ("aten::save", "aten::from_file")


def prepare() -> None:
    """Read one archive, so that whatever torch opens at the first time is open."""
    torch.set_num_threads(1)
    sample = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.BatchNorm2d(1).eval(), torch.zeros(1, 1, 1, 1)), sample)
    sample.seek(0)
    list(read(sample))


def read(source: BinaryIO) -> Iterable[bytes | memoryview]:
    """The program, with the archive's parameters, its buffers and the constants that the program uses.

    Raises:
        Refused: the archive cannot be loaded, or is no program for a teacher.
    """
    module = _load(source)
    _check_other_methods(module)
    used = translate(module)
    return pack(replace(used, tensors=dict(module.state_dict()) | used.tensors))


def _load(source: BinaryIO) -> torch.jit.ScriptModule:
    try:
        module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(source.read()), map_location="cpu")
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # as torch says it
            raise MemoryError from error
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise Refused(f"cannot be loaded as TorchScript: {printable(line.rstrip('.'))}.") from error
    if not hasattr(module, "forward"):
        raise Refused("has no forward to run.")
    return module


def _check_other_methods(module: torch.jit.ScriptModule) -> None:
    """Refuse files and foreign code in any method, such as one that has run, to no effect, at loading."""
    with suppress(RuntimeError):  # some methods cannot be listed; only `forward` will be translated
        for operator in torch.jit.export_opnames(module):
            if operator in _FILES or not operator.startswith(("aten::", "prim::")):
                raise Refused(f"uses the operator {printable(operator)}, which a teacher may not.")
