"""Pre-activation residual networks, among them the Wide ResNets WRN-d-k; any depth and width.

Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (figure 4e), and Zagoruyko & Komodakis,
"Wide Residual Networks", BMVC 2016 (table 1). Implementations differ in what weights do not show; the spec has a field
for each such difference.
"""

from collections import OrderedDict
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

Projected = Literal["activated", "raw"]
Ending = Literal["relu", "norm", "none"]

_SHORTCUT_TITLES: dict[Projected, str] = {
    "activated": "shortcuts after activation",
    "raw": "shortcuts before activation",
}
_WRN_STAGES = 3
_WRN_WIDTH = 16
"""Channels of the first stage of WRN-d-1. Source: Zagoruyko & Komodakis, table 1."""


class PreActResNetSpec(NetworkSpec):
    """What it takes to build a pre-activation ResNet of the CIFAR form.

    `widths` counts the channels inside the blocks of each stage; a bottleneck block puts out four times as many. The
    shortcut of a block whose shape changes is a 1x1 convolution, which takes the block's input `raw` or `activated`,
    that is, behind the block's first batch norm and ReLU. `strided` is the number of the convolution that has the
    stride of such a block. `stem_norm` puts batch norm and ReLU behind the first convolution; `ending` is what follows
    the last block: batch norm and ReLU, batch norm alone, or neither. `inner` counts the channels between the convolutions
    of a block, for each stage, where they are not the usual ones.
    """

    family: Literal["preact_resnet"] = "preact_resnet"
    block: Literal["basic", "bottleneck"] = "basic"
    blocks: tuple[Count, ...]
    widths: tuple[Count, ...]
    stem_width: Count
    projected: Projected = "activated"
    strided: Literal[1, 2] = 1
    stem_norm: bool = False
    ending: Ending = "relu"
    conv_bias: bool = False
    inner: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _sensible_stages(self) -> "PreActResNetSpec":
        if not self.blocks or len(self.blocks) != len(self.widths):
            raise ValueError(f"{len(self.blocks)} stages have block counts but {len(self.widths)} have widths")
        if self.inner and len(self.inner) != len(self.widths):
            raise ValueError(f"{len(self.widths)} stages have widths but {len(self.inner)} have inner ones")
        if max(self.widths) * self.expansion > MOST_CHANNELS:
            raise ValueError(f"blocks would put out {max(self.widths) * self.expansion} channels")
        return self

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    @property
    def is_wide_resnet(self) -> bool:
        """Whether the field would call it WRN-d-k: three stages, each twice as wide as the one before."""
        doubling = tuple(self.widths[0] << stage for stage in range(_WRN_STAGES))
        return self.block == "basic" and self.widths == doubling and not self.stem_norm and self.ending != "none"

    @property
    def depth(self) -> int:
        """The number in the usual name: weighted layers on the main path.

        A WRN counts convolutions alone, but three on shortcuts among them: 6 n + 4 for n blocks a stage.
        """
        layers = (3 if self.block == "bottleneck" else 2) * sum(self.blocks)
        return layers + (4 if self.is_wide_resnet else 2)

    @property
    def name(self) -> str:
        if self.is_wide_resnet:
            return f"wrn-{self.depth}-{self.widths[0] / _WRN_WIDTH:g}"
        return f"preactresnet{self.depth}"

    @property
    def title(self) -> str:
        usual = self.name.upper() if self.is_wide_resnet else f"PreActResNet-{self.depth}"
        widths = "-".join(str(width) for width in self.widths)
        shortcuts = _SHORTCUT_TITLES[self.projected]
        return f"{usual} (CIFAR form, {self.block} pre-activation blocks, widths {widths}, {shortcuts})"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this form was made for."""
        return 32

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that the strides before the last stage bring down to one."""
        return 1 << max(len(self.blocks) - 2, 0)

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        widths = [width * self.expansion for width in self.widths]
        return same_width_droppable(self.blocks, widths, self.stem_width)

    def keeping(self, kept: Kept) -> "PreActResNetSpec":
        return self.model_copy(update={"blocks": counts_of(kept)})

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels between the convolutions of a block, for each stage."""
        return self.inner or self.widths

    def narrowed(self, share: float) -> "PreActResNetSpec":
        inner = tuple(narrower(width, share) for width in self.inner_widths)
        return self if inner == self.inner_widths else self.model_copy(update={"inner": inner})


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int, spec: PreActResNetSpec) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=spec.conv_bias)


def _residual(in_channels: int, inner: int, out_channels: int, stride: int, spec: PreActResNetSpec) -> nn.Sequential:
    """A block's convolutions, with batch norm and ReLU before each but the first, which has them outside."""
    bottleneck, basic = ((1, inner), (3, inner), (1, out_channels)), ((3, inner), (3, out_channels))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (kernel, channels) in enumerate(bottleneck if spec.block == "bottleneck" else basic, 1):
        if number > 1:
            layers[f"bn{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(in_channels), nn.ReLU()
        own_stride = stride if number == spec.strided else 1
        layers[f"conv{number}"] = _convolution(in_channels, channels, kernel, own_stride, spec)
        in_channels = channels
    return nn.Sequential(layers)


class PreActBlock(nn.Module):
    """`[N, in, H, W]` to `[N, width * expansion, H / stride, W / stride]`; nothing follows the addition."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, spec: PreActResNetSpec) -> None:
        super().__init__()
        changes = stride != 1 or in_channels != out_channels
        self.projects_raw = spec.projected == "raw"
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.residual = _residual(in_channels, inner, out_channels, stride, spec)
        self.downsample = _convolution(in_channels, out_channels, 1, stride, spec) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual: Tensor = self.residual(activated)
        return residual + (x if self.downsample is None else self.downsample(x if self.projects_raw else activated))


class PreActResNet(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: PreActResNetSpec

    def __init__(self, spec: PreActResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = nn.Sequential(_convolution(spec.channels, spec.stem_width, 3, 1, spec))
        if spec.stem_norm:
            self.stem.extend([nn.BatchNorm2d(spec.stem_width), nn.ReLU()])
        in_channels = spec.stem_width
        self.stages = nn.Sequential()
        for index, (count, width, inner) in enumerate(zip(spec.blocks, spec.widths, spec.inner_widths, strict=True)):
            stage, out_channels = nn.Sequential(), width * spec.expansion
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(PreActBlock(in_channels, inner, out_channels, stride, spec))
                in_channels = out_channels
            self.stages.append(stage)
        self.norm = nn.Identity() if spec.ending == "none" else nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU() if spec.ending == "relu" else nn.Identity()
        self.fc = nn.Linear(in_channels, spec.num_classes)

    def enter(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stem(images)
        return maps

    def stage_list(self) -> list[Stage]:
        return [Stage((), blocks_of(stage.children())) for stage in self.stages]

    def inner_channels(self) -> list[Inner]:
        """Behind every convolution of a block but its last."""
        last = 3 if self.spec.block == "bottleneck" else 2
        return [
            Inner((f"{name}.conv{number}", f"{name}.bn{number + 1}"), (f"{name}.conv{number + 1}",))
            for name in (f"{name}.residual" for name, block in self.named_modules() if isinstance(block, PreActBlock))
            for number in range(1, last)
        ]

    def leave(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(x))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits
