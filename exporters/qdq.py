"""Fake quantization: a float classifier to one that computes with the values that int8 inference will see.

The quantizers are ordinary modules in a `torch.fx` graph, so the same network is calibrated, trained and exported. At
export each becomes one QuantizeLinear and one DequantizeLinear.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, sections 2.1 and 3; Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
whitepaper", arXiv 1806.08342, for one scale a channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from compress.exporters.folding import fold_batch_norm
from compress.exporters.placement import Runtime, place

Scheme = Literal["s8s8", "u8s8"]
"""Signedness of activations and weights."""

SMALLEST_SCALE = 1e-8
"""Keeps the scale of a dead channel above zero, which runtimes demand."""


@dataclass(frozen=True)
class Levels:
    """The integers that activations are rounded to: all 8-bit ones, from `lowest` to `highest`."""

    lowest: int
    highest: int
    symmetric: bool
    """Whether the zero point is 0."""

    def parameters(self, low: float, high: float) -> tuple[float, int]:
        """Scale and zero point under which the range [low, high], widened to contain 0, is representable.

        Symmetric: scale = max(|low|, |high|) / highest. Else scale = (high - low) / (highest - lowest) and
        zero point = lowest + round(-low / scale), so that 0 is an exact level.

        Source: arXiv 1806.08342, sections 2.1 and 2.2.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            return max(max(-low, high) / self.highest, SMALLEST_SCALE), 0
        scale = max((high - low) / (self.highest - self.lowest), SMALLEST_SCALE)
        return scale, self.lowest + round(-low / scale)


def levels_of(scheme: Scheme, runtime: Runtime) -> Levels:
    """Signed symmetric levels for TensorRT, which takes no other zero point than 0.

    ONNX Runtime gets a zero point, for then ReLU is the lowest level and part of the convolution before it; unsigned
    for the fast kernels of x86, signed for those of Arm.
    """
    if scheme == "u8s8":
        return Levels(0, 255, symmetric=False)
    return Levels(-128, 127, symmetric=runtime == "tensorrt")


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels, the same for all its elements; gradients pass straight through inside the range.

    `scale` is a float32 scalar, `zero_point` an int8 or uint8 scalar.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int8 if levels.lowest < 0 else torch.uint8))

    def set_range(self, low: float, high: float) -> None:
        """Fixes scale and zero point, so that the levels span [low, high]."""
        scale, zero_point = self.levels.parameters(low, high)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return _quantize_dequantize(x, self.scale, self.zero_point)
        zero_point = self.zero_point.to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, zero_point, self.levels.lowest, self.levels.highest)


class WeightQuantizer(nn.Module):
    """Rounds weights `[out, ...]` to signed 8 bits, with one scale an output channel: its largest magnitude / 127."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.empty(weight.shape[0]))
        self.register_buffer("zero_point", torch.zeros(weight.shape[0], dtype=torch.int8))
        self.follow(weight)

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Sets the scales to what these weights need."""
        self.scale.copy_((weight.flatten(1).abs().amax(1) / 127).clamp_min(SMALLEST_SCALE))

    def forward(self, weight: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return _quantize_dequantize(weight, self.scale, self.zero_point, axis=0)
        zero_points = self.zero_point.to(torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, self.scale, zero_points, 0, -128, 127)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with the weights of another, which it quantizes. `[N, in, H, W]` to `[N, out, H', W']`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]  # torch stores it as a tuple of any length
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            bias=convolution.bias is not None,
            padding_mode=convolution.padding_mode,
            device="meta",  # draws no random numbers; the weights come next
        )
        self.weight, self.bias = convolution.weight, convolution.bias
        self.weight_quantizer = WeightQuantizer(convolution.weight)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)
        return output


def insert_fake_quantization(
    model: nn.Module, scheme: Scheme, exclude: Sequence[str] = (), runtime: Runtime | None = None
) -> fx.GraphModule:
    """A copy of a float classifier, batch norm folded, with quantizers where the runtime wants them.

    Activations have no range yet: `observe` gives it. Two models of the same architecture get the same module names,
    so the state of one can be loaded into the other. `runtime` None is ONNX Runtime for `u8s8`, else TensorRT.

    Raises:
        InputError: the model cannot be traced.
        UsageError: `exclude` names a convolution that the model does not have.
    """
    module = fold_batch_norm(model)
    runtime = runtime or ("onnxruntime" if scheme == "u8s8" else "tensorrt")
    placement, levels = place(module, runtime, exclude), levels_of(scheme, runtime)
    for name in placement.layers:
        convolution = module.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        module.set_submodule(name, QuantizedConv2d(convolution))
    nodes = {node.name: node for node in module.graph.nodes}
    quantized = {tensor: _insert_quantizer(module, nodes[tensor], levels) for tensor in placement.tensors}
    for tensor, consumer in placement.edges:
        nodes[consumer].replace_input_with(nodes[tensor], quantized[tensor])
    module.graph.lint()
    module.recompile()
    return module.eval()


def refresh_weight_scales(module: nn.Module) -> None:
    """Lets the scales of all quantized weights follow their weights, as after every step of training."""
    for layer in module.modules():
        if isinstance(layer, QuantizedConv2d):
            layer.weight_quantizer.follow(layer.weight)


def activation_quantizers(module: nn.Module) -> dict[str, ActivationQuantizer]:
    """The quantizer of every quantized tensor, under the tensor's name in the graph."""
    named = module.named_modules()
    return {name.rpartition(".")[2]: child for name, child in named if isinstance(child, ActivationQuantizer)}


def quantized_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers that compute with quantized data and weights."""
    return tuple(name for name, child in module.named_modules() if isinstance(child, QuantizedConv2d))


def float_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions and linear layers that stay in floating point."""
    weighted = (nn.modules.conv._ConvNd, nn.Linear)
    named = module.named_modules()
    return tuple(n for n, child in named if isinstance(child, weighted) and not isinstance(child, QuantizedConv2d))


def _insert_quantizer(module: fx.GraphModule, node: fx.Node, levels: Levels) -> fx.Node:
    name = f"activation_quantizers.{node.name}"
    module.add_submodule(name, ActivationQuantizer(levels))
    with module.graph.inserting_after(node):
        return module.graph.call_module(name, (node,))


def _quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """The two ONNX operators themselves, for they are to stay apart in the file."""
    to_integers = partial(torch.onnx.ops.symbolic, "QuantizeLinear", dtype=zero_point.dtype, shape=x.shape)
    to_floats = partial(torch.onnx.ops.symbolic, "DequantizeLinear", dtype=x.dtype, shape=x.shape)
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    integers = to_integers((x, scale, zero_point), attributes)
    floats: Tensor = to_floats((integers, scale, zero_point), attributes)
    return floats
