"""VGG networks with and without batch norm, for any plan of convolutions, with the heads that repositories give them.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1;
batch norm and the adaptive pooling as torchvision adds them. Parameters are named as torchvision names them
(`features.0`, `classifier.6`).
"""

from itertools import islice, pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, fx, nn

from compress.pipeline.networks.spec import Count, Kept, NetworkSpec, narrower
from compress.pipeline.networks.staged import Block, Inner, Stage, StagedNetwork, run

Head = Literal["linear", "convolutional"]

_USUAL_LINEAR_LAYERS = 3
"""The number in a usual name counts so many, however many a smaller head has."""

_IMAGENET_GRID = 7


class VGGSpec(NetworkSpec):
    """What it takes to build a VGG.

    `blocks` are the widths of the 3x3 convolutions between two poolings. A `linear` head sees the last maps averaged
    to `grid` x `grid` pixels; a `convolutional` one begins with a convolution of that size and averages behind its
    hidden layers. `hidden` are the widths of the layers before the last. `last_pool` says whether max pooling follows
    the last block, too.
    """

    family: Literal["vgg"] = "vgg"
    blocks: tuple[tuple[Count, ...], ...]
    hidden: tuple[Count, ...] = ()
    grid: Annotated[int, Field(ge=1, le=64)] = 1
    head: Head = "linear"
    last_pool: bool = True
    batch_norm: bool = True
    conv_bias: bool = True

    @model_validator(mode="after")
    def _something_in_each_part(self) -> "VGGSpec":
        if not self.blocks or not all(self.blocks):
            raise ValueError("a block has no convolution")
        if self.head == "convolutional" and not self.hidden:
            raise ValueError("a convolutional head has hidden layers")
        return self

    @property
    def depth(self) -> int:
        """The number in the usual name: weighted layers of the original with so many convolutions."""
        return sum(len(widths) for widths in self.blocks) + _USUAL_LINEAR_LAYERS

    @property
    def name(self) -> str:
        return f"vgg{self.depth}_bn" if self.batch_norm else f"vgg{self.depth}"

    @property
    def title(self) -> str:
        form = "ImageNet form" if self.grid == _IMAGENET_GRID else "CIFAR form"
        counts = "-".join(str(len(widths)) for widths in self.blocks)
        widths = "-".join("/".join(str(width) for width in dict.fromkeys(widths)) for widths in self.blocks)
        linear = f"{len(self.hidden) + 1} linear layer{'s' if self.hidden else ''}"
        norm = "batch norm" if self.batch_norm else "no batch norm"
        return f"VGG-{self.depth} ({form}, blocks of {counts} convolutions, widths {widths}, {linear}, {norm})"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels that the poolings bring down to the grid: 224 with 7x7, 32 with one pixel."""
        return self.grid << len(self.blocks)

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that the poolings bring down to one."""
        return 1 << (len(self.blocks) - (0 if self.last_pool else 1))

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """Convolutions whose input is as wide as their output."""
        entering = (self.channels, *(widths[-1] for widths in self.blocks[:-1]))
        return tuple(
            tuple(before == after for before, after in pairwise((first, *widths)))
            for first, widths in zip(entering, self.blocks, strict=True)
        )

    @property
    def block_kinds(self) -> tuple[tuple[int, ...], ...]:
        """The widths of the convolutions."""
        return self.blocks

    def keeping(self, kept: Kept) -> "VGGSpec":
        chosen = zip(self.blocks, kept, strict=True)
        return self.model_copy(update={"blocks": tuple(tuple(widths[i] for i in index) for widths, index in chosen)})

    def narrowed(self, share: float) -> "VGGSpec":
        """All convolutions but the last before each pooling."""
        blocks = tuple((*(narrower(width, share) for width in widths[:-1]), widths[-1]) for widths in self.blocks)
        return self.model_copy(update={"blocks": blocks})

    @property
    def learnable(self) -> "VGGSpec":
        """A batch norm takes over the bias of its convolution."""
        return self if self.batch_norm else self.model_copy(update={"batch_norm": True, "conv_bias": False})


class VGG(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: VGGSpec

    def __init__(self, spec: VGGSpec) -> None:
        super().__init__()
        self.spec = spec
        self.features = _features(spec)
        self.classifier = _classifier(spec)

    def enter(self, images: Tensor) -> Tensor:
        return images

    def stage_list(self) -> list[Stage]:
        modules = iter(self.features)
        layers = 3 if self.spec.batch_norm else 2
        stages = []
        for number, widths in enumerate(self.spec.blocks):
            pool = tuple(islice(modules, 1 if number else 0))
            blocks: list[Block] = [tuple(islice(modules, layers)) for _ in widths]
            stages.append(Stage(pool, blocks))
        return stages

    def inner_channels(self) -> list[Inner]:
        """Between two convolutions that no pooling parts."""
        names = {module: f"features.{name}" for name, module in self.features.named_children()}
        return [
            Inner(tuple(names[module] for module in first if module.state_dict()), (names[second[0]],))
            for stage in self.stage_list()
            for first, second in pairwise(stage.blocks)
        ]

    def leave(self, x: Tensor) -> Tensor:
        grid = self.spec.grid
        x = self.features[-1](x) if self.spec.last_pool else x
        if self.spec.head == "convolutional":
            x = run(list(self.classifier)[:-1], _at_least(x, grid))
            logits: Tensor = self.classifier[-1](torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        else:
            logits = self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, grid), 1))
        return logits


@fx.wrap
def _at_least(maps: Tensor, grid: int) -> Tensor:
    """Maps that are smaller than the grid stretched to it; a leaf to tracers, since it asks for the size."""
    height, width = (max(size, grid) for size in maps.shape[2:])
    return F.adaptive_avg_pool2d(maps, (height, width))


def _features(spec: VGGSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = spec.channels
    for widths in spec.blocks:
        for width in widths:
            layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=spec.conv_bias))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if spec.batch_norm else [nn.ReLU()]
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*(layers if spec.last_pool else layers[:-1]))


def _classifier(spec: VGGSpec) -> nn.Sequential:
    """Dropout does nothing in evaluation mode; it keeps the numbers of the layers as torchvision has them."""
    in_channels, grid = spec.blocks[-1][-1], spec.grid
    layers: list[nn.Module] = []
    for width in spec.hidden:
        if spec.head == "convolutional":
            layers.append(nn.Conv2d(in_channels, width, grid))
        else:
            layers.append(nn.Linear(in_channels * grid**2, width))
        layers += [nn.ReLU(), nn.Dropout()]
        in_channels, grid = width, 1
    return nn.Sequential(*layers, nn.Linear(in_channels * grid**2, spec.num_classes))
