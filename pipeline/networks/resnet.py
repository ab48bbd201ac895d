"""Residual networks: the CIFAR form and the ImageNet form, any depth and width.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (section 4.2 for the CIFAR form and for
shortcut options A and B); Xie et al., "Aggregated Residual Transformations", CVPR 2017, for groups.
Parameters are named as torchvision names them (`conv1`, `layer1.0.conv1`, `layer1.0.downsample.0`, `fc`).
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from compress.pipeline.records import Record

Shortcut = Literal["pad", "projection", "linear"]


class ResNetSpec(Record):
    """What it takes to build a ResNet.

    `widths` counts the channels inside the blocks of each stage; a bottleneck block puts out four times as many.
    `shortcut` is how a block whose shape changes carries its input over: `pad` subsamples and pads with zero channels
    (option A), `projection` is a 1x1 convolution with batch norm (option B), `linear` the convolution alone.
    Without `batch_norm`, as after fusing it away, every convolution but a `linear` shortcut has a bias instead.
    """

    family: Literal["resnet"] = "resnet"
    stem: Literal["cifar", "imagenet"]
    block: Literal["basic", "bottleneck"] = "basic"
    shortcut: Shortcut = "projection"
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int
    groups: int = 1
    base_width: int = 64
    channels: int = 3
    num_classes: int
    batch_norm: bool = True

    @model_validator(mode="after")
    def _one_width_a_stage(self) -> "ResNetSpec":
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"{len(self.blocks)} stages have block counts but {len(self.widths)} have widths")
        return self

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    @property
    def depth(self) -> int:
        """The number in the usual name: weighted layers on the main path."""
        return (3 if self.block == "bottleneck" else 2) * sum(self.blocks) + 2

    @property
    def title(self) -> str:
        form = "CIFAR form" if self.stem == "cifar" else "ImageNet form"
        widths = "-".join(str(width) for width in self.widths)
        norm = "" if self.batch_norm else ", no batch norm"
        return f"ResNet-{self.depth} ({form}, {self.block} blocks, widths {widths}, {self.shortcut} shortcuts{norm})"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this form was made for."""
        return 32 if self.stem == "cifar" else 224

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that the strides before the last stage bring down to one."""
        return (1 if self.stem == "cifar" else 4) << max(len(self.blocks) - 2, 0)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros in the channels that the block adds (half before, half after)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        missing = out_channels - in_channels
        self.in_channels, self.stride = in_channels, stride
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def as_convolution(self) -> Tensor:
        """The weight `[out, in, 1, 1]` of the bias-free 1x1 convolution of the same stride that computes the same."""
        return F.pad(torch.eye(self.in_channels), (0, 0, self.before, self.after))[:, :, None, None]


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, spec: ResNetSpec, groups: int = 1
) -> nn.Conv2d:
    bias = not spec.batch_norm
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


def _norm(channels: int, spec: ResNetSpec) -> nn.Module:
    return nn.BatchNorm2d(channels) if spec.batch_norm else nn.Identity()


def _shortcut(in_channels: int, out_channels: int, stride: int, spec: ResNetSpec) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if spec.shortcut == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    if spec.shortcut == "linear":
        return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(_convolution(in_channels, out_channels, 1, stride, spec), _norm(out_channels, spec))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut. `[N, in, H, W]` to `[N, out, H / stride, W / stride]`."""

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResNetSpec) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, width, 3, stride, spec)
        self.bn1 = _norm(width, spec)
        self.conv2 = _convolution(width, width, 3, 1, spec)
        self.bn2 = _norm(width, spec)
        self.downsample = _shortcut(in_channels, width, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (strided, grouped) and 1x1 convolution and the shortcut, as torchvision places the stride."""

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResNetSpec) -> None:
        super().__init__()
        inner, out_channels = int(width * spec.base_width / 64) * spec.groups, width * spec.expansion
        self.conv1 = _convolution(in_channels, inner, 1, 1, spec)
        self.bn1 = _norm(inner, spec)
        self.conv2 = _convolution(inner, inner, 3, stride, spec, spec.groups)
        self.bn2 = _norm(inner, spec)
        self.conv3 = _convolution(inner, out_channels, 1, 1, spec)
        self.bn3 = _norm(out_channels, spec)
        self.downsample = _shortcut(in_channels, out_channels, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        kernel, stride = (7, 2) if spec.stem == "imagenet" else (3, 1)
        self.conv1 = _convolution(spec.channels, spec.stem_width, kernel, stride, spec)
        self.bn1 = _norm(spec.stem_width, spec)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if spec.stem == "imagenet" else nn.Identity()
        width = spec.stem_width
        for index, stage in enumerate(_stages(spec), start=1):
            self.add_module(f"layer{index}", stage)
            width = spec.widths[index - 1] * spec.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, spec.num_classes)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages in order, each a sequence of blocks."""
        modules = [self.get_submodule(f"layer{index}") for index in range(1, len(self.spec.blocks) + 1)]
        return [stage for stage in modules if isinstance(stage, nn.Sequential)]

    def logits_and_stage_outputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[N, num_classes]`, and what each stage puts out, `[N, C_s, H_s, W_s]`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return self.fc(torch.flatten(self.avgpool(x), 1)), outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_and_stage_outputs(x)[0]


def _stages(spec: ResNetSpec) -> Iterator[nn.Sequential]:
    block = BottleneckBlock if spec.block == "bottleneck" else BasicBlock
    in_channels = spec.stem_width
    for index, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        stage = nn.Sequential()
        for position in range(count):
            stage.append(block(in_channels, width, 2 if position == 0 and index > 0 else 1, spec))
            in_channels = width * spec.expansion
        yield stage
