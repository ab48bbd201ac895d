"""MobileNetV3, large and small, any width.

Source: Howard et al., "Searching for MobileNetV3", ICCV 2019 (tables 1 and 2).
Parameters are named as torchvision names them (`features.1.block.0.0`, `features.4.block.2.fc1`, `classifier.3`).
"""

from typing import Literal

from torch import nn

from compress.pipeline.networks.inverted_residual import (
    ACTIVATIONS,
    Activation,
    InvertedResidual,
    InvertedResidualSpec,
    PooledConvolution,
    PooledNetwork,
    layer,
)
from compress.pipeline.networks.spec import Count

Variant = Literal["large", "small", "large_minimal", "small_minimal"]

_LAST_WIDTHS: dict[Variant, int] = {"large": 160, "small": 96, "large_minimal": 160, "small_minimal": 96}
"""Channels that the last block puts out at width 1.0. Source: the paper, tables 1 and 2."""


class MobileNetV3Spec(InvertedResidualSpec):
    """What it takes to build a MobileNetV3.

    `head_width` counts the channels of the 1x1 convolution after the blocks, `hidden_width` those of the layer between
    pooling and classifier, which is a `linear` one or a 1x1 `convolution` with bias. The `minimal` variants do without
    squeeze-and-excite, large kernels and hard swish. `activation` is the stem's, the head's and the hidden layer's.
    """

    family: Literal["mobilenet_v3"] = "mobilenet_v3"
    variant: Variant
    head_width: Count
    hidden_width: Count
    hidden: Literal["linear", "convolution"] = "linear"
    activation: Activation = "hardswish"

    @property
    def width(self) -> float:
        """The width multiplier that its last block speaks of."""
        return self.blocks[-1].out / _LAST_WIDTHS[self.variant]

    @property
    def name(self) -> str:
        return f"mobilenet_v3_{self.variant}" + ("" if self.width == 1 else f"_x{self.width:.3g}".replace(".", "_"))

    @property
    def title(self) -> str:
        variant = self.variant.replace("_", " ")
        return f"MobileNetV3 {variant} x{self.width:.3g} ({self.form}, {len(self.blocks)} blocks{self.details})"


class MobileNetV3(PooledNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, spec: MobileNetV3Spec) -> None:
        stem = layer(spec.channels, spec.stem_width, 3, spec.stem_stride, activation=spec.activation, spec=spec)
        blocks = map(InvertedResidual, spec.block_inputs, spec.blocks, [spec] * len(spec.blocks))
        head = layer(spec.blocks[-1].out, spec.head_width, activation=spec.activation, spec=spec)
        hidden = (nn.Linear if spec.hidden == "linear" else PooledConvolution)(spec.head_width, spec.hidden_width)
        last = nn.Linear(spec.hidden_width, spec.num_classes)
        classifier = nn.Sequential(hidden, ACTIVATIONS[spec.activation](), nn.Dropout(0.2), last)
        super().__init__(nn.Sequential(stem, *blocks, head), classifier)
        self.spec = spec
