"""MobileNetV2, any width and depth, in the ImageNet form and the CIFAR forms.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 (table 2).
Parameters are named as torchvision names them (`features.0.0`, `features.1.conv.0.0`, `classifier.1`).
"""

from typing import Literal

from torch import Tensor, nn

from compress.pipeline.networks.inverted_residual import (
    ACTIVATION_TITLES,
    Activation,
    Block,
    InvertedResidualSpec,
    Kernel,
    PooledConvolution,
    PooledNetwork,
    expansion_to_squeeze,
    layer,
    shortcut,
)
from compress.pipeline.networks.spec import Count

_LAST_WIDTH, _DEPTH = 320, 17
"""Channels that the last block puts out at width 1.0, and number of blocks. Source: the paper, table 2."""


class MobileNetV2Spec(InvertedResidualSpec):
    """What it takes to build a MobileNetV2.

    `head_width` counts the channels of the 1x1 convolution after the blocks; `activation` is the stem's and the head's.
    A stem of one pixel is padded by one pixel all the same, as its author has it.
    """

    family: Literal["mobilenet_v2"] = "mobilenet_v2"
    stem_kernel: Kernel = 3
    head_width: Count
    activation: Activation = "relu6"
    classifier: Literal["linear", "convolution"] = "linear"

    @property
    def width(self) -> float:
        """The width multiplier that its last block speaks of."""
        return self.blocks[-1].out / _LAST_WIDTH

    @property
    def name(self) -> str:
        width = "" if self.width == 1 else f"_x{self.width:.3g}".replace(".", "_")
        return f"mobilenet_v2{width}" + ("" if len(self.blocks) == _DEPTH else f"_{len(self.blocks)}_blocks")

    @property
    def title(self) -> str:
        activation = ACTIVATION_TITLES[self.activation]
        return f"MobileNetV2 x{self.width:.3g} ({self.form}, {len(self.blocks)} blocks, {activation}{self.details})"


class LinearBottleneck(nn.Module):
    """An inverted residual block under the names of torchvision's MobileNetV2, which projects without a sequence."""

    def __init__(self, in_channels: int, block: Block, spec: MobileNetV2Spec) -> None:
        super().__init__()
        projection = layer(block.expanded, block.out, spec=spec)
        self.conv = nn.Sequential(*expansion_to_squeeze(in_channels, block, spec), *projection)
        self.shortcut = shortcut(in_channels, block, spec)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(PooledNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, spec: MobileNetV2Spec) -> None:
        stem = layer(
            spec.channels,
            spec.stem_width,
            spec.stem_kernel,
            spec.stem_stride,
            padding=max(spec.stem_kernel // 2, 1),
            activation=spec.activation,
            spec=spec,
        )
        blocks = map(LinearBottleneck, spec.block_inputs, spec.blocks, [spec] * len(spec.blocks))
        head = layer(spec.blocks[-1].out, spec.head_width, activation=spec.activation, spec=spec)
        last = (nn.Linear if spec.classifier == "linear" else PooledConvolution)(spec.head_width, spec.num_classes)
        super().__init__(nn.Sequential(stem, *blocks, head), nn.Sequential(nn.Dropout(0.2), last))
        self.spec = spec
