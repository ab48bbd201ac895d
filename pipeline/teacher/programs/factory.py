"""Networks built by code that the user names: a function of their own, or one of timm's models."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.pipeline.errors import InputError, MissingResourceError, UsageError
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.programs.modules import Classifier, code_sha256, load_by_name

TIMM = "timm:"
_FORM = "Write --arch package.module:function, or --arch timm:NAME."


def with_architecture(checkpoint: Checkpoint, arch: str) -> Checkpoint:
    """The checkpoint with the network that `arch` builds, its weights loaded strictly.

    Args:
        checkpoint: weights under the names that the network gives them.
        arch: `package.module:function`, a function without arguments that returns an `nn.Module`, looked for in the
            current folder, too; or `timm:NAME`.

    Raises:
        UsageError: there is no such function or model, or it does not return a network.
        MissingResourceError: timm is not installed.
        InputError: the weights do not fit the network.
    """
    module = _timm_model(arch.removeprefix(TIMM), checkpoint) if arch.startswith(TIMM) else _call(arch)
    load_by_name(module, checkpoint.tensors, checkpoint.file_name)
    code = code_sha256(module, arch, sys.modules.get(arch.partition(":")[0]))
    title = f"{type(module).__name__} of {arch}"
    return replace(checkpoint, program=Program(network=Classifier(module), title=title, code_sha256=code))


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Modules in the folder where the command runs can be imported, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _call(arch: str) -> nn.Module:
    module_name, separator, function_name = arch.partition(":")
    if not (separator and module_name and function_name):
        raise UsageError(f"--arch '{arch}' names no function.", _FORM)
    with current_folder_importable():
        function = _find(module_name, function_name, arch)
        try:
            network = function()
        except (Exception, SystemExit) as error:  # the user's own code fails in its own way
            raise UsageError(
                f"--arch {arch} failed: {type(error).__name__}: {error}", "It is called without arguments."
            ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--arch {arch} returns {type(network).__name__}, which is not a torch.nn.Module.", _FORM)
    return network


def _find(module_name: str, function_name: str, arch: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the module's own code fails in its own way, or is a script that ends
        raise UsageError(f"--arch {arch} cannot be imported: {type(error).__name__}: {error}", _FORM) from error
    function: Callable[[], Any] | None = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"There is no function '{function_name}' in the module '{module_name}'.", _FORM)
    return function


def _timm_model(name: str, checkpoint: Checkpoint) -> nn.Module:
    """Source: https://huggingface.co/docs/timm/reference/models, create_model and is_model."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingResourceError(f"timm cannot be imported: {error}.", "Run `pip install timm`.") from error
    if not timm.is_model(name):
        raise UsageError(f"timm has no model '{name}'.", "timm.list_models() lists those that it has.")
    probe: nn.Module = timm.create_model(name, pretrained=False)
    options = _timm_options(getattr(probe, "pretrained_cfg", {}), checkpoint)
    network: nn.Module = timm.create_model(name, pretrained=False, **options)
    return network


def _timm_options(config: Any, checkpoint: Checkpoint) -> dict[str, int]:
    """Classes and channels from the layers that timm says are the last and the first."""
    last, first = (str(config.get(key) or "") for key in ("classifier", "first_conv"))
    wanted = {"num_classes": (f"{last}.weight", 0), "in_chans": (f"{first}.weight", 1)}
    found = {
        option: checkpoint.tensors[key].shape[dimension]
        for option, (key, dimension) in wanted.items()
        if key in checkpoint.tensors and checkpoint.tensors[key].dim() > dimension
    }
    if "num_classes" not in found:
        raise InputError(f"'{checkpoint.file_name}' has no '{last}.weight', which is the last layer of that model.")
    return found
