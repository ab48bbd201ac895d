"""Residual networks: the CIFAR form and the ImageNet form, any depth and width.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (section 4.2 for the CIFAR form and for
shortcut options A and B); Xie et al., "Aggregated Residual Transformations", CVPR 2017, for groups; He et al., "Bag of
Tricks for Image Classification", CVPR 2019 (section 4.2), for deep stems (ResNet-C) and pooled shortcuts (ResNet-D).
Parameters are named as torchvision names them (`conv1`, `layer1.0.conv1`, `layer1.0.downsample.0`, `fc`).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from compress.pipeline.networks.spec import (
    MOST_CHANNELS,
    Count,
    Kept,
    NetworkSpec,
    counts_of,
    narrower,
    same_width_droppable,
)
from compress.pipeline.networks.staged import Inner, Stage, StagedNetwork, blocks_of

Shortcut = Literal["pad", "projection", "linear", "pooled"]
Zeros = Literal["around", "after"]

_SHORTCUT_TITLES: dict[Shortcut, str] = {
    "pad": "option A shortcuts",
    "projection": "option B shortcuts",
    "linear": "linear shortcuts",
    "pooled": "pooled option B shortcuts",
}


class ResNetSpec(NetworkSpec):
    """What it takes to build a ResNet.

    `widths` counts the channels inside the blocks of each stage; a bottleneck block puts out four times as many.
    `inner` counts the channels between the convolutions of a block, for each stage, where they are not the usual ones.
    `shortcut` is how a block whose shape changes carries its input over: `pad` subsamples and pads with zero channels
    (option A), `projection` is a 1x1 convolution with batch norm (option B), `linear` the convolution alone, `pooled`
    averages 2x2 pixels before a projection that has no stride of its own. `zeros` says where padding puts them: half
    before the input's channels and half after, or all after. `deep_stem` are the widths of the 3x3 convolutions before
    the last one, where several stand for the 7x7 convolution of the ImageNet stem.
    Without `batch_norm`, as after fusing it away, every convolution but a `linear` shortcut has a bias instead.
    """

    family: Literal["resnet"] = "resnet"
    stem: Literal["cifar", "imagenet"]
    block: Literal["basic", "bottleneck"] = "basic"
    shortcut: Shortcut = "projection"
    zeros: Zeros = "around"
    blocks: tuple[Count, ...]
    widths: tuple[Count, ...]
    stem_width: Count
    deep_stem: tuple[Count, ...] = ()
    groups: Count = 1
    base_width: Count = 64
    batch_norm: bool = True
    inner: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _one_width_a_stage(self) -> "ResNetSpec":
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"{len(self.blocks)} stages have block counts but {len(self.widths)} have widths")
        if self.inner and len(self.inner) != len(self.widths):
            raise ValueError(f"{len(self.widths)} stages have widths but {len(self.inner)} have inner ones")
        if not self.blocks:
            raise ValueError("there are no stages")
        return self

    @model_validator(mode="after")
    def _sensible_channels(self) -> "ResNetSpec":
        outputs = (self.stem_width, *(width * self.expansion for width in self.widths))
        inner = self.inner_widths
        if min(inner) < 1 or max(*inner, *outputs) > MOST_CHANNELS:
            raise ValueError(f"its blocks would have from {min(inner)} to {max(*inner, *outputs)} channels")
        if self.shortcut == "pad" and any(after < before for before, after in pairwise(outputs)):
            raise ValueError("padding cannot take channels away")
        if self.deep_stem and self.stem != "imagenet":
            raise ValueError("a deep stem is one of the ImageNet form")
        return self

    def usual_inner(self, width: int) -> int:
        """Channels between the convolutions of a block of that width, unless `inner` says otherwise."""
        return int(width * self.base_width / 64) * self.groups if self.block == "bottleneck" else width

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels between the convolutions of a block, for each stage."""
        return self.inner or tuple(self.usual_inner(width) for width in self.widths)

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    @property
    def depth(self) -> int:
        """The number in the usual name: weighted layers on the main path."""
        return (3 if self.block == "bottleneck" else 2) * sum(self.blocks) + 2

    @property
    def variant(self) -> str:
        """The letter behind the number in the usual name: c and d after the paper, t for timm's tiered stem."""
        if not self.deep_stem:
            return ""
        if self.shortcut != "pooled":
            return "c"
        return "d" if len(set(self.deep_stem)) == 1 else "t"

    @property
    def name(self) -> str:
        depth = f"{self.depth}{self.variant}"
        if self.groups > 1:
            return f"resnext{depth}_{self.groups}x{self.base_width}d"
        return f"wide_resnet{depth}_{self.base_width / 64:g}" if self.base_width != 64 else f"resnet{depth}"

    @property
    def title(self) -> str:
        form = "CIFAR form" if self.stem == "cifar" else "ImageNet form"
        widths = "-".join(str(width) for width in self.widths)
        shortcuts = _SHORTCUT_TITLES[self.shortcut]
        zeros = ", zero channels last" if self.shortcut == "pad" and self.zeros == "after" else ""
        norm = "" if self.batch_norm else ", no batch norm"
        return f"{self._usual_name} ({form}, {self.block} blocks, widths {widths}, {shortcuts}{zeros}{norm})"

    @property
    def _usual_name(self) -> str:
        depth = f"{self.depth}{self.variant.upper()}"
        if self.groups > 1:
            return f"ResNeXt-{depth} {self.groups}x{self.base_width}d"
        return f"Wide ResNet-{depth}-{self.base_width / 64:g}" if self.base_width != 64 else f"ResNet-{depth}"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this form was made for."""
        return 32 if self.stem == "cifar" else 224

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that the strides before the last stage bring down to one."""
        return (1 if self.stem == "cifar" else 4) << max(len(self.blocks) - 2, 0)

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        widths = [width * self.expansion for width in self.widths]
        return same_width_droppable(self.blocks, widths, self.stem_width)

    def keeping(self, kept: Kept) -> "ResNetSpec":
        return self.model_copy(update={"blocks": counts_of(kept)})

    def narrowed(self, share: float) -> "ResNetSpec":
        """Channels of a grouped convolution belong together, and all stay."""
        if self.groups > 1:
            return self
        inner = tuple(narrower(width, share) for width in self.inner_widths)
        return self if inner == self.inner_widths else self.model_copy(update={"inner": inner})

    @property
    def learnable(self) -> "ResNetSpec":
        """Option-A shortcuts as 1x1 convolutions that compute the same: they fuse on the device, and learn."""
        shortcut = "linear" if self.shortcut == "pad" else self.shortcut
        return self.model_copy(update={"shortcut": shortcut, "batch_norm": True})


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros in the channels that the block adds."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: Zeros = "around") -> None:
        super().__init__()
        missing = out_channels - in_channels
        self.in_channels, self.stride = in_channels, stride
        self.before = missing // 2 if zeros == "around" else 0
        self.after = missing - self.before

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


def _stem(spec: ResNetSpec) -> nn.Module:
    """What stands before the first batch norm: one convolution, or three with batch norms and ReLUs between them."""
    if not spec.deep_stem:
        kernel, stride = (7, 2) if spec.stem == "imagenet" else (3, 1)
        return _convolution(spec.channels, spec.stem_width, kernel, stride, spec)
    stem, stride, in_channels = nn.Sequential(), 2, spec.channels
    for width in spec.deep_stem:
        stem.extend([_convolution(in_channels, width, 3, stride, spec), _norm(width, spec), nn.ReLU()])
        stride, in_channels = 1, width
    return stem.append(_convolution(in_channels, spec.stem_width, 3, stride, spec))


def _norm(channels: int, spec: ResNetSpec) -> nn.Module:
    return nn.BatchNorm2d(channels) if spec.batch_norm else nn.Identity()


def _shortcut(in_channels: int, out_channels: int, stride: int, spec: ResNetSpec) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if spec.shortcut == "pad":
        return PadShortcut(in_channels, out_channels, stride, spec.zeros)
    if spec.shortcut == "linear":
        return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    if spec.shortcut == "pooled":
        pool = nn.AvgPool2d(2, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        return nn.Sequential(pool, _convolution(in_channels, out_channels, 1, 1, spec), _norm(out_channels, spec))
    return nn.Sequential(_convolution(in_channels, out_channels, 1, stride, spec), _norm(out_channels, spec))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut. `[N, in, H, W]` to `[N, out, H / stride, W / stride]`."""

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResNetSpec, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or spec.usual_inner(width)
        self.conv1 = _convolution(in_channels, inner, 3, stride, spec)
        self.bn1 = _norm(inner, spec)
        self.conv2 = _convolution(inner, width, 3, 1, spec)
        self.bn2 = _norm(width, spec)
        self.downsample = _shortcut(in_channels, width, stride, spec)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (strided, grouped) and 1x1 convolution and the shortcut, as torchvision places the stride."""

    def __init__(self, in_channels: int, width: int, stride: int, spec: ResNetSpec, inner: int | None = None) -> None:
        super().__init__()
        inner, out_channels = inner or spec.usual_inner(width), width * spec.expansion
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


class ResNet(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: ResNetSpec

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = _stem(spec)
        self.bn1 = _norm(spec.stem_width, spec)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if spec.stem == "imagenet" else nn.Identity()
        width = spec.stem_width
        for index, stage in enumerate(_stages(spec), start=1):
            self.add_module(f"layer{index}", stage)
            width = spec.widths[index - 1] * spec.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, spec.num_classes)

    def enter(self, images: Tensor) -> Tensor:
        maps: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        return maps

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages in order, each a sequence of blocks."""
        modules = [self.get_submodule(f"layer{index}") for index in range(1, len(self.spec.blocks) + 1)]
        return [stage for stage in modules if isinstance(stage, nn.Sequential)]

    def stage_list(self) -> list[Stage]:
        return [Stage((), blocks_of(stage)) for stage in self.stages]

    def leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits

    def inner_channels(self) -> list[Inner]:
        """Behind every convolution of a block but its last."""
        last = 3 if self.spec.block == "bottleneck" else 2
        return [
            Inner((f"{name}.conv{number}", f"{name}.bn{number}"), (f"{name}.conv{number + 1}",))
            for name, block in self.named_modules()
            if isinstance(block, BasicBlock | BottleneckBlock)
            for number in range(1, last)
        ]


def _stages(spec: ResNetSpec) -> Iterator[nn.Sequential]:
    block = BottleneckBlock if spec.block == "bottleneck" else BasicBlock
    in_channels = spec.stem_width
    for index, (count, width, inner) in enumerate(zip(spec.blocks, spec.widths, spec.inner_widths, strict=True)):
        stage = nn.Sequential()
        for position in range(count):
            stage.append(block(in_channels, width, 2 if position == 0 and index > 0 else 1, spec, inner))
            in_channels = width * spec.expansion
        yield stage
