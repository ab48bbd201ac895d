"""Follows a TorchScript graph from its input to its answer, and writes down the tensor operations on the way.

Numbers, lists and branches are worked out while going along, so that only operations on tensors remain, and arithmetic
with the sizes of tensors. Every module is taken to be in evaluation mode. No tensor operation is executed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from compress.pipeline.jail.child import Refused
from compress.pipeline.teacher.programs.dataflow import needed
from compress.pipeline.teacher.programs.graph import ProgramGraph, ValueRef
from compress.pipeline.teacher.programs.torchscript.answer import CONSTANT, Answer
from compress.pipeline.teacher.programs.torchscript.arithmetic import CHANGING_LISTS, ON_LISTS, ON_PLAIN_VALUES
from compress.pipeline.teacher.programs.torchscript.recorder import IMAGES, Recorder, not_allowed, origin
from compress.pipeline.teacher.programs.torchscript.tensor_operators import apply
from compress.pipeline.teacher.programs.torchscript.values import Held, Owner, Unknown, is_plain

MOST_STEPS = 50_000
"""Nodes that are followed, loops unrolled; an EfficientNetV2-L has 7,228."""


def translate(module: torch.jit.ScriptModule) -> Answer:
    """The tensors that a module uses in its `forward`, and what the `forward` of a module of TorchScript does to images `[N, C, H, W]` in evaluation mode.

    Raises:
        Refused: it does what a teacher may not: files, state, randomness, branches on what it computes.
    """
    method: Any = module.forward
    graph = method.graph.copy()
    torch._C._jit_pass_inline(graph)
    interpreter = Interpreter()
    owner, images, *others = [entering.debugName() for entering in graph.inputs()]
    interpreter.values |= {owner: Owner("", module._c), images: Held(ValueRef(value=IMAGES), rank=4)}
    for other, declared in zip(others, method.schema.arguments[2:], strict=True):
        if not declared.has_default_value():
            raise Refused(f"takes {len(others) + 1} inputs rather than images alone.")
        interpreter.values[other] = declared.default_value
    interpreter.run(graph)
    output = _logits([interpreter.values[output.debugName()] for output in graph.outputs()])
    recorder = interpreter.recorder
    program = ProgramGraph(IMAGES, needed(recorder.operations, output), output)
    return Answer(program, recorder.tensors, recorder.training)


def _logits(outputs: list[Any]) -> str:
    """The one tensor in an answer, which may be a list or dictionary of it and of values that are no tensors."""
    tensors: list[Held] = []
    for value in outputs:
        outputs += value if isinstance(value, list) else value.values() if isinstance(value, dict) else []
        tensors += [value] if isinstance(value, Held) else []
    if len(tensors) != 1:
        raise Refused(f"answers with {len(tensors)} tensors rather than with logits alone.")
    (logits,) = tensors
    if logits.stale or not isinstance(logits.ref, ValueRef):
        raise Refused("answers with a constant.")
    return logits.ref.value


@dataclass(slots=True)
class Interpreter:
    """The state while a graph is followed."""

    values: dict[str, Any] = field(default_factory=dict)
    """What the graph's variables stand for: a plain value, or one of `values.py`."""
    recorder: Recorder = field(default_factory=Recorder)
    lasting: list[list[Any]] = field(default_factory=list)
    """Lists that belong to the archive's modules."""
    steps: int = 0

    def run(self, block: torch.Graph | torch._C.Block) -> None:
        """Follow the nodes of a block, whose inputs are known."""
        for node in block.nodes():
            self._step()
            arguments = [self.values[entering.debugName()] for entering in node.inputs()]
            names = [leaving.debugName() for leaving in node.outputs()]
            result = self._evaluate(node, arguments)
            self.values |= zip(names, result if len(names) != 1 else [result], strict=True)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Refused(f"takes more than {MOST_STEPS:,} steps.")

    def _evaluate(self, node: torch.Node, arguments: list[Any]) -> Any:
        """What a node gives: a value, or a list of them if it gives another number than one."""
        kind = node.kind()
        if kind in _STATEMENTS:
            return _STATEMENTS[kind](self, node, arguments)
        if kind in ON_PLAIN_VALUES and is_plain(arguments):
            return ON_PLAIN_VALUES[kind](*arguments)
        if arguments and isinstance(arguments[0], list | dict):
            if kind in ON_LISTS and not any(isinstance(argument, Unknown) for argument in arguments):
                return ON_LISTS[kind](*arguments)
            if kind in CHANGING_LISTS:
                return self._changed(node, arguments)
        return apply(self.recorder, node, arguments)

    def constant(self, node: torch.Node, _: list[Any]) -> Any:
        path = f"{CONSTANT}{node.output().debugName()}"  # the same at every turn of a loop
        return self.recorder.from_archive(node.output().toIValue(), path, node.kind())

    def attribute(self, node: torch.Node, arguments: list[Any]) -> Any:
        (owner,), name = arguments, node.s("name")
        if not isinstance(owner, Owner):
            raise not_allowed(node)
        value = False if name == "training" else owner.module.getattr(name)  # type: ignore[attr-defined]  # not in its stub
        attribute = self.recorder.from_archive(value, f"{owner.path}.{name}" if owner.path else name, node.kind())
        self.lasting += [attribute] if isinstance(attribute, list) else []
        return attribute

    def _changed(self, node: torch.Node, arguments: list[Any]) -> Any:
        """The list itself, where the operator gives nothing else."""
        if any(arguments[0] is attribute for attribute in self.lasting):
            raise Refused("changes its own lists when it runs, which a teacher may not.")
        result = CHANGING_LISTS[node.kind()](*arguments)
        return _given(node, [arguments[0] if result is None else result][: node.outputsSize()])

    def branch(self, node: torch.Node, arguments: list[Any]) -> Any:
        (condition,), (when_true, when_false) = arguments, node.blocks()
        if isinstance(condition, bool):
            taken = when_true if condition else when_false
        elif _raises(when_true) != _raises(when_false):  # a check of its own input, taken to be passed
            taken = when_false if _raises(when_true) else when_true
        else:
            raise Refused(f"branches on {origin(condition)}, whose value is not known before it runs.")
        self.run(taken)
        return _given(node, self._outputs(taken))

    def loop(self, node: torch.Node, arguments: list[Any]) -> Any:
        (most, going, *carried), (block,) = arguments, node.blocks()
        names = [entering.debugName() for entering in block.inputs()]
        turn = 0
        while _known(going) and turn < _known(most):
            self._step()
            self.values |= zip(names, [turn, *carried], strict=True)
            self.run(block)
            going, *carried = self._outputs(block)
            turn += 1
        return _given(node, carried)

    def _outputs(self, block: torch._C.Block) -> list[Any]:
        return [self.values[leaving.debugName()] for leaving in block.outputs()]


def _known(value: Any) -> int:
    if not isinstance(value, int):
        raise Refused(f"repeats itself as often as {origin(value)} says, whose value is not known before it runs.")
    return value


def _given(node: torch.Node, values: list[Any]) -> Any:
    return values[0] if node.outputsSize() == 1 else values


def _raises(block: torch._C.Block) -> bool:
    """Whether a block ends in an error, whatever is in it besides."""
    return any(
        node.kind() == "prim::RaiseException" or (node.kind() == "prim::If" and all(map(_raises, node.blocks())))
        for node in block.nodes()
    )


def _fails(_: Interpreter, node: torch.Node, arguments: list[Any]) -> Any:
    raise Refused("stops with an error of its own whatever the images are.")


def _is(_: Interpreter, node: torch.Node, arguments: list[Any]) -> Any:
    left, right = arguments
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return Unknown(node.kind())
    return (left is right) == (node.kind() == "aten::__is__")


def _always(value: Any) -> Callable[[Interpreter, torch.Node, list[Any]], Any]:
    return lambda interpreter, node, arguments: value


_STATEMENTS: dict[str, Callable[[Interpreter, torch.Node, list[Any]], Any]] = {
    "aten::__is__": _is,
    "aten::__isnot__": _is,
    "aten::warn": _always([]),
    "prim::Constant": Interpreter.constant,
    "prim::DictConstruct": lambda interpreter, node, arguments: dict(zip(arguments[::2], arguments[1::2], strict=True)),
    "prim::GetAttr": Interpreter.attribute,
    "prim::If": Interpreter.branch,
    "prim::ListConstruct": lambda interpreter, node, arguments: arguments,
    "prim::Loop": Interpreter.loop,
    "prim::Print": _always([]),
    "prim::RaiseException": _fails,
    "prim::TupleConstruct": lambda interpreter, node, arguments: arguments,
    "prim::TupleIndex": lambda interpreter, node, arguments: arguments[0][arguments[1]],
    "prim::Uninitialized": _always(Unknown("prim::Uninitialized")),
    "prim::device": _always("cpu"),
    "prim::dtype": _always(6),  # float32
    "prim::is_cuda": _always(False),
    "prim::is_nested": _always(False),
    "prim::is_quantized": _always(False),
    "prim::requires_grad": _always(True),
    "prim::type": lambda interpreter, node, arguments: arguments[0],  # of a device
    "prim::unchecked_cast": lambda interpreter, node, arguments: arguments[0],
    "prim::unchecked_unwrap_optional": lambda interpreter, node, arguments: arguments[0],
}
