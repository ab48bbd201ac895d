"""Loads a pickle the way Python does, running whatever it says: only where the user asked for that."""

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.contents import WEIGHT_KEYS
from compress.pipeline.teacher.readers.formats import Format, printable

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What unpickling made."""

    tree: object
    """The network's state where there is a network, else what was saved."""
    module: nn.Module | None = None


def load_trusted(data: bytearray, form: Format, name: str) -> Loaded:
    """Unpickle a file; its code runs in this process, with all rights of the user.

    Args:
        data: the file.
        form: a format that is or holds a pickle.
        name: the file's, for messages.

    Raises:
        InputError: that failed, for instance since a module that it needs is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sources that changed, and the like
            tree = _unpickled(data, form)
    except Exception as error:  # code of any kind runs, and fails in its own way
        reason = printable(str(error).partition("\n")[0])
        raise InputError(
            f"'{name}' cannot be unpickled: {type(error).__name__}: {reason}",
            "Start the command where the model's own modules can be imported.",
        ) from error
    module = _module_in(tree)
    return Loaded(tree) if module is None else Loaded(module.state_dict(), module)


def _unpickled(data: bytearray, form: Format) -> object:
    stream = io.BytesIO(data)
    if form == "pickle":
        return pickle.load(stream)
    tree: object = torch.load(stream, map_location="cpu", weights_only=False)
    return tree


def _module_in(tree: object) -> nn.Module | None:
    """The network itself, or under one of the keys where others keep its weights; without what spreads it over GPUs."""
    held = [tree.get(key) for key in WEIGHT_KEYS] if isinstance(tree, Mapping) else [tree]
    module = next((value for value in held if isinstance(value, nn.Module)), None)
    while isinstance(module, _WRAPPERS):
        module = module.module
    return module
