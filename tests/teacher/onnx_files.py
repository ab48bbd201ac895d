"""ONNX files of small networks, written node by node or exported."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from tests.graphs import Array
from tests.teacher.small_resnet import small_resnet

Size = int | str | None


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """Names separated by spaces."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    *,
    shape: Sequence[Size] = ("batch", 3, 8, 8),
    output: Sequence[Size] | None = None,
    opset: int = 17,
    functions: Sequence[FunctionProto] = (),
) -> ModelProto:
    """From `images` to `logits`; nothing is checked."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(one.domain, 1) for one in functions[:1])]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def weights_of(network: nn.Module) -> dict[str, Array]:
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


def resnet_by_hand(opset: int, batch: Size = "batch") -> ModelProto:
    """The small residual network as exporters of that time wrote it, batch norms and the sizes of its view included."""
    writer = _Writer(opset)
    x = writer.relu(writer.norm("bn1", writer.conv("conv1", "images", 2, 3)))
    x = writer.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer2.1", 1)):
        x = writer.block(block, x, stride)
    x = writer.view(writer.add("GlobalAveragePool", x))
    writer.nodes.append(node("Gemm", f"{x} fc.weight fc.bias", "logits", transB=1))
    return model(writer.nodes, writer.constants, shape=(batch, 3, 32, 32), output=(batch, 5), opset=opset)


class _Writer:
    def __init__(self, opset: int) -> None:
        self.opset, self.nodes = opset, list[NodeProto]()
        self.constants = weights_of(small_resnet())

    def add(self, operator: str, inputs: str, **attributes: Any) -> str:
        output = f"value{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, output, **attributes))
        return output

    def conv(self, name: str, x: str, stride: int, padding: int) -> str:
        return self.add("Conv", f"{x} {name}.weight", strides=[stride] * 2, pads=[padding] * 4)

    def norm(self, name: str, x: str) -> str:
        parts = ("weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", " ".join([x, *(f"{name}.{part}" for part in parts)]), epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def block(self, name: str, x: str, stride: int) -> str:
        y = self.relu(self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride, 1)))
        y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y, 1, 1))
        if f"{name}.downsample.0.weight" in self.constants:
            x = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride, 0))
        return self.relu(self.add("Add", f"{y} {x}"))

    def view(self, x: str) -> str:
        """x.view(x.size(0), -1)."""
        self.constants |= {"zero": np.array(0), "rest": np.array([-1]), "front": np.array([0])}
        images = self.add("Gather", f"{self.add('Shape', x)} zero", axis=0)
        axes: dict[str, Any] = {"axes": [0]} if self.opset < 13 else {}
        first = self.add("Unsqueeze", images if axes else f"{images} front", **axes)
        return self.add("Reshape", f"{x} {self.add('Concat', f'{first} rest', axis=0)}")


def export(network: nn.Module, path: Path, size: int, *, optimize: bool, batch: int | None = None) -> Path:
    """Written by torch.onnx.export with its defaults, for any number of images unless told otherwise."""
    example = torch.rand(batch or 2, 3, size, size)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if batch is None else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        torch.onnx.export(network, (example,), path, dynamic_shapes=shapes, optimize=optimize, verbose=False)
    return path
