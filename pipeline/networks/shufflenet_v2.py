"""ShuffleNetV2, any width and depth, in the ImageNet form and the CIFAR forms.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018 (figure 3 c
and d, table 5). Parameters are named as torchvision names them (`conv1.0`, `stage2.0.branch1.0`, `conv5.0`, `fc`).
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from compress.pipeline.networks.inverted_residual import Kernel
from compress.pipeline.networks.spec import MOST_CHANNELS, Count, Kept, NetworkSpec, counts_of
from compress.pipeline.networks.staged import Stage, StagedNetwork, blocks_of

_WIDTHS: dict[tuple[int, ...], str] = {
    (48, 96, 192): "x0_5",
    (116, 232, 464): "x1_0",
    (176, 352, 704): "x1_5",
    (244, 488, 976): "x2_0",
}
"""Of the three stages. Source: the paper, table 5."""

_REPEATS = (4, 8, 4)
"""Units of the three stages. Source: as above."""


class ShuffleNetV2Spec(NetworkSpec):
    """What it takes to build a ShuffleNetV2.

    `widths` counts the channels that each stage puts out, half of them from each branch, and `repeats` its units. The
    ImageNet stem strides and pools. `inner` says how wide the strided units are inside, `out` as half of what they put
    out or `in` as all that comes in. Without `batch_norm`, as after fusing it away, every convolution has a bias; with
    `bias` it has one besides its batch norm.
    """

    family: Literal["shufflenet_v2"] = "shufflenet_v2"
    stem: Literal["imagenet", "cifar"]
    stem_kernel: Kernel = 3
    stem_activation: Literal["relu", "none"] = "relu"
    stem_width: Count
    repeats: Annotated[tuple[Count, ...], Field(min_length=1)]
    widths: tuple[Annotated[int, Field(ge=2, le=MOST_CHANNELS, multiple_of=2)], ...]
    head_width: Count
    inner: Literal["out", "in"] = "out"
    batch_norm: bool = True
    bias: bool = False

    @model_validator(mode="after")
    def _one_width_a_stage(self) -> "ShuffleNetV2Spec":
        if len(self.repeats) != len(self.widths):
            raise ValueError(f"{len(self.repeats)} stages have unit counts but {len(self.widths)} have widths")
        return self

    @property
    def name(self) -> str:
        width = _WIDTHS.get(self.widths, "_".join(str(width) for width in self.widths))
        return f"shufflenet_v2_{width}" + ("" if self.repeats == _REPEATS else f"_{sum(self.repeats)}_units")

    @property
    def title(self) -> str:
        form = "ImageNet form" if self.stem == "imagenet" else "CIFAR form"
        widths = "-".join(str(width) for width in self.widths)
        norm = "" if self.batch_norm else ", no batch norm"
        return f"ShuffleNetV2 ({form}, {sum(self.repeats)} units, widths {widths}{norm})"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this form was made for."""
        return 224 if self.stem == "imagenet" else 32

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that the strides before the last stage bring down to one."""
        return (4 if self.stem == "imagenet" else 1) << (len(self.widths) - 1)

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """The units without stride."""
        return tuple((False,) + (True,) * (count - 1) for count in self.repeats)

    def keeping(self, kept: Kept) -> "ShuffleNetV2Spec":
        return self.model_copy(update={"repeats": counts_of(kept)})

    @property
    def learnable(self) -> "ShuffleNetV2Spec":
        """A batch norm takes over the bias of its convolution."""
        return self if self.batch_norm else self.model_copy(update={"batch_norm": True, "bias": False})


class ShuffleUnit(nn.Module):
    """Half of the channels pass a bottleneck, or all where it strides. `[N, in, H, W]` to `[N, out, H / s, W / s]`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, spec: ShuffleNetV2Spec) -> None:
        super().__init__()
        self.passing = half = out_channels // 2
        inner = in_channels if stride > 1 and spec.inner == "in" else half
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1.extend([*_depthwise(in_channels, stride, spec), *_pointwise(in_channels, half, spec)])
        entering = in_channels if stride > 1 else half
        self.branch2 = nn.Sequential(
            *_pointwise(entering, inner, spec), *_depthwise(inner, stride, spec), *_pointwise(inner, half, spec)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Slices, since older operator sets cannot express a split into equal parts.
        kept, changed = (x, x) if len(self.branch1) else (x[:, : self.passing], x[:, self.passing :])
        return shuffle(torch.cat((self.branch1(kept), self.branch2(changed)), dim=1))


def shuffle(maps: Tensor) -> Tensor:
    """`[N, C, H, W]` with the channels of the first and the second half in turn."""
    shuffled: Tensor = maps.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return shuffled


class ShuffleNetV2(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: ShuffleNetV2Spec

    def __init__(self, spec: ShuffleNetV2Spec) -> None:
        super().__init__()
        self.spec = spec
        kernel, stride = spec.stem_kernel, 2 if spec.stem == "imagenet" else 1
        self.conv1 = nn.Sequential(
            _convolution(spec.channels, spec.stem_width, kernel, stride, spec), _norm(spec.stem_width, spec)
        )
        if spec.stem_activation == "relu":
            self.conv1.append(nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1) if spec.stem == "imagenet" else nn.Identity()
        for index, stage in enumerate(_stages(spec), start=2):
            self.add_module(f"stage{index}", stage)
        self.conv5 = nn.Sequential(*_pointwise(spec.widths[-1], spec.head_width, spec))
        self.fc = nn.Linear(spec.head_width, spec.num_classes)

    def enter(self, images: Tensor) -> Tensor:
        maps: Tensor = self.maxpool(self.conv1(images))
        return maps

    def stage_list(self) -> list[Stage]:
        stages = (self.get_submodule(f"stage{index + 2}") for index in range(len(self.spec.widths)))
        return [Stage((), blocks_of(stage.children())) for stage in stages]

    def leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv5(x).mean((2, 3)))
        return logits


def _stages(spec: ShuffleNetV2Spec) -> Iterator[nn.Sequential]:
    in_channels = spec.stem_width
    for repeat, width in zip(spec.repeats, spec.widths, strict=True):
        units = [ShuffleUnit(width, width, 1, spec) for _ in range(repeat - 1)]
        yield nn.Sequential(ShuffleUnit(in_channels, width, 2, spec), *units)
        in_channels = width


def _pointwise(in_channels: int, out_channels: int, spec: ShuffleNetV2Spec) -> list[nn.Module]:
    return [_convolution(in_channels, out_channels, 1, 1, spec), _norm(out_channels, spec), nn.ReLU()]


def _depthwise(channels: int, stride: int, spec: ShuffleNetV2Spec) -> list[nn.Module]:
    return [_convolution(channels, channels, 3, stride, spec, groups=channels), _norm(channels, spec)]


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, spec: ShuffleNetV2Spec, groups: int = 1
) -> nn.Conv2d:
    bias = spec.bias or not spec.batch_norm
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


def _norm(channels: int, spec: ShuffleNetV2Spec) -> nn.Module:
    return nn.BatchNorm2d(channels) if spec.batch_norm else nn.Identity()
