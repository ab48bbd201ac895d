"""Runs a translated graph on tensors that have a shape but no numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.pipeline.teacher.programs.meter import Meter, TooMuch
from compress.pipeline.teacher.programs.onnx.file import EXPORT_HINT, OnnxRefusal
from compress.pipeline.teacher.programs.onnx.operators.registry import READERS
from compress.pipeline.teacher.readers.files import HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import printable


class KeptOnCpu(nn.Module):
    """A constant that stays on the CPU wherever the network goes: sizes are worked out there, and single numbers mix
    with tensors of any device.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value  # no buffer, since these move

    def forward(self) -> Tensor:
        """The constant."""
        return self.value


def evaluate(function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any], meter: Meter) -> Any:
    """What a function of the table returns: numbers where all its tensors have numbers, else shapes alone.

    It is tried on shapes first, so that a result which is too large is never made.
    """
    if function in READERS.values():
        return function(*arguments)
    blank = [_without_numbers(argument) for argument in arguments]
    with torch.device("meta"), meter:
        shapes = function(*blank, **keywords)
    if any(isinstance(argument, Tensor) and argument.is_meta for argument in arguments):
        return shapes
    return function(*arguments, **keywords)


class DryRun(fx.Interpreter):
    """Runs a translated graph on images without numbers.

    Its nodes say in `meta["label"]` which node of the file they come from.
    """

    def __init__(self, module: fx.GraphModule, meter: Meter) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.meter, self.alive = meter, 0

    def run_node(self, n: fx.Node) -> Any:
        """One node.

        Raises:
            OnnxRefusal: it cannot be computed, or would cost too much.
        """
        try:
            result = super().run_node(n)
            self.alive += _size(result) if n.op != "get_attr" else 0
            if self.alive > self.meter.most:
                raise TooMuch(f"{self.alive:,} numbers would exist at a time")
        except Exception as error:  # torch has many types for arguments that do not fit
            raise refusal(error, n.meta.get("label", "the input")) from error
        self.alive -= sum(_size(self.env[gone]) for gone in self.user_to_last_uses.get(n, []) if gone.op != "get_attr")
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Of the table."""
        return evaluate(target, args, kwargs, self.meter)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A batch norm, whose result is like its input, or a constant."""
        module = self.fetch_attr(target)
        if isinstance(module, KeptOnCpu):
            return module()
        (entering,) = args
        if not isinstance(module, nn.BatchNorm2d) or entering.dim() < 2 or entering.shape[1] != module.num_features:
            raise ValueError(f"its statistics do not fit a tensor {list(entering.shape)}")
        return entering


def refusal(error: Exception, label: str) -> OnnxRefusal:
    """What an error at a node says about the file."""
    if isinstance(error, OnnxRefusal):
        return error
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    hint = HOSTILE_HINT if isinstance(error, TooMuch) else EXPORT_HINT
    return OnnxRefusal(f"cannot be computed at {label}: {printable(reason)}", hint)


def _without_numbers(argument: Any) -> Any:
    return argument.to("meta") if isinstance(argument, Tensor) else argument


def _size(result: Any) -> int:
    tensors = result if isinstance(result, tuple) else (result,)
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
