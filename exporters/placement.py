"""Which tensors of a classifier are quantized. Pure: reads a traced graph, decides, changes nothing.

Source: what NVIDIA Model Optimizer places on a residual network (github.com/NVIDIA/Model-Optimizer,
modelopt/onnx/quantization/graph_utils.py), and what ONNX Runtime needs to run a convolution on integers
(onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from compress.pipeline.errors import UsageError

Runtime = Literal["tensorrt", "onnxruntime"]
_Kind = TypeVar("_Kind", bound=nn.Module)

_RELUS = (nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, "relu", "relu_")
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SELECTIONS = (nn.MaxPool2d, F.max_pool2d)
_MEANS = (torch.mean, "mean")


@dataclass(frozen=True)
class Placement:
    """Names of the convolutions that are quantized, and the edges `(tensor, consumer)` that carry quantized values."""

    layers: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every quantized tensor once, in graph order."""
        return tuple(dict.fromkeys(tensor for tensor, _ in self.edges))


def place(module: fx.GraphModule, runtime: Runtime, exclude: Sequence[str] = ()) -> Placement:
    """Where quantizers belong in a traced network without batch norm.

    A convolution takes quantized data and weights; nothing stands between it and its ReLU; one tensor is quantized
    once for all who take it. The input of the last global average pool is quantized, the classifier stays float.
    TensorRT fuses a convolution with the addition and the ReLU behind it, so there an addition takes its convolution
    bare and only the skip quantized. ONNX Runtime fuses a convolution only with the quantizer behind it, so there
    every output of a convolution is quantized, and so are all terms of an addition.

    Raises:
        UsageError: `exclude` names a layer that the network does not have.
    """
    graph = _Graph(module)
    graph.check_names(exclude)
    convolutions = [node for node in graph.nodes if graph.takes_integers(node) and node.target not in exclude]
    edges = {(node.all_input_nodes[0], node) for node in convolutions}
    edges |= {(pool.all_input_nodes[0], pool) for pool in graph.last_pools(convolutions)}
    additions = [node for node in graph.nodes if graph.is_addition(node)]
    for addition in additions:
        bare = graph.bare_term(addition, convolutions)
        if bare is not None:
            terms = addition.all_input_nodes
            edges |= {(term, addition) for term in terms if term is not bare or runtime == "onnxruntime"}
    if runtime == "onnxruntime":
        outputs = [graph.fused_output(node) for node in convolutions]
        edges |= {(output, user) for output in outputs for user in output.users if graph.computes(user)}
    order = {node: index for index, node in enumerate(graph.nodes)}
    ordered = sorted(edges, key=lambda edge: (order[edge[0]], order[edge[1]]))
    return Placement(
        layers=tuple(dict.fromkeys(str(node.target) for node in convolutions)),
        edges=tuple((tensor.name, consumer.name) for tensor, consumer in ordered),
    )


class _Graph:
    """What the rules ask about a traced network."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.nodes = list(module.graph.nodes)
        self.modules: Mapping[str, nn.Module] = dict(module.named_modules())
        self.depth: dict[fx.Node, int] = {}
        for node in self.nodes:
            longest = max((self.depth[source] for source in node.all_input_nodes), default=0)
            self.depth[node] = longest + (self.module_of(node, nn.Conv2d) is not None)
        self.pooled: set[fx.Node] = set()
        for node in self.nodes:
            sources = node.all_input_nodes
            if self.is_global_pool(node) or (sources and all(source in self.pooled for source in sources)):
                self.pooled.add(node)

    def module_of(self, node: fx.Node, kind: type[_Kind]) -> _Kind | None:
        """The module that the node calls, if it is one of that kind."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, kind) else None

    def check_names(self, names: Sequence[str]) -> None:
        known = [str(node.target) for node in self.nodes if self.module_of(node, nn.Conv2d) is not None]
        for name in names:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
                hint = f"Did you mean '{nearest[0]}'?" if nearest else "The report lists the layers that are quantized."
                raise UsageError(f"There is no convolution '{name}' to keep in floating point.", hint)

    def takes_integers(self, node: fx.Node) -> bool:
        """Whether integer kernels exist for this convolution and its values are no gate (pooled to one pixel)."""
        convolution = self.module_of(node, nn.Conv2d)
        return (
            convolution is not None
            and node not in self.pooled
            and _has_integer_kernel(convolution, first=self.depth[node] == 1)
        )

    def is_addition(self, node: fx.Node) -> bool:
        terms = [argument for argument in node.args if isinstance(argument, fx.Node) and argument.op != "get_attr"]
        return len(terms) == 2 and len(node.all_input_nodes) == 2 and self._calls(node, _ADDITIONS)

    def is_global_pool(self, node: fx.Node) -> bool:
        pool = self.module_of(node, nn.AdaptiveAvgPool2d)
        if pool is not None:
            return pool.output_size in (1, (1, 1))
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size", node.kwargs.get("dim"))
        if self._calls(node, (F.adaptive_avg_pool2d,)):
            return size in (1, (1, 1), [1, 1])
        return (
            self._calls(node, _MEANS) and isinstance(size, list | tuple) and {int(axis) % 4 for axis in size} == {2, 3}
        )

    def last_pools(self, convolutions: Sequence[fx.Node]) -> Iterator[fx.Node]:
        """Global pools that end the features of quantized convolutions; the pool of a gate leads back into them."""
        quantized = set(convolutions)
        for node in self.nodes:
            ends = self.is_global_pool(node) and _reachable(node, lambda n: n.users) <= self.pooled
            if ends and quantized & _reachable(node, lambda n: n.all_input_nodes):
                yield node

    def bare_term(self, addition: fx.Node, convolutions: Sequence[fx.Node]) -> fx.Node | None:
        """The convolution that the addition is fused with: the deeper one, for the shallower is the shortcut's."""
        terms = [term for term in addition.all_input_nodes if term in convolutions and len(term.users) == 1]
        return max(terms, key=lambda term: self.depth[term], default=None)

    def fused_output(self, convolution: fx.Node) -> fx.Node:
        """What a convolution puts out once its ReLU is part of it."""
        users = list(convolution.users)
        return users[0] if len(users) == 1 and self._calls(users[0], _RELUS) else convolution

    def computes(self, node: fx.Node) -> bool:
        """Not the network's output, nor a choice among values, which takes integers as they come."""
        return node.op != "output" and not self._calls(node, _SELECTIONS)

    def _calls(self, node: fx.Node, targets: Sequence[Any]) -> bool:
        if node.op == "call_module":
            return type(self.modules[str(node.target)]) in targets
        return node.op in ("call_function", "call_method") and node.target in targets


def _has_integer_kernel(convolution: nn.Conv2d, *, first: bool) -> bool:
    """TensorRT's limits on small channel counts, as the source of this module states them for int8."""
    inputs, outputs = convolution.in_channels // convolution.groups, convolution.out_channels
    if inputs >= 16 and outputs >= 16:
        return True
    if convolution.groups > 1:
        return outputs % 8 == 0 and min(convolution.kernel_size) >= 3
    square = len(set(convolution.kernel_size)) == 1
    return square and (outputs % 8 == 0 or inputs % 8 == 0) and (first or outputs >= 16 or inputs >= 16)


def _reachable(node: fx.Node, neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """Every node on a path from this one along `neighbours`."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        new = set(neighbours(waiting.pop())) - found
        found |= new
        waiting.extend(new)
    return found
