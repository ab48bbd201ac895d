"""Densely connected networks: the CIFAR form and the ImageNet form, with and without bottlenecks, any depth and growth.

Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, section 3 and table 1. Parameters are named
as torchvision names them (`features.denseblock1.denselayer1.norm1`, `features.transition1.conv`, `classifier`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from compress.pipeline.networks.spec import MOST_CHANNELS, Count, Kept, NetworkSpec, counts_of, narrower
from compress.pipeline.networks.staged import Inner, Stage, StagedNetwork, blocks_of, run

Order = Literal["oldest first", "newest first"]


class DenseNetSpec(NetworkSpec):
    """What it takes to build a DenseNet.

    `layers` counts the dense layers of each block, `growth` the channels that each adds. `bottleneck` is the width
    between a layer's 1x1 and its 3x3 convolution; without one, a layer is the 3x3 convolution alone. `transitions` are
    the widths between blocks. `order` says whether a layer's channels go behind those that it was given or before them.
    The CIFAR form usually has no `stem_norm`; one implementation has no ReLU in its transitions.
    """

    family: Literal["densenet"] = "densenet"
    stem: Literal["cifar", "imagenet"]
    layers: tuple[Count, ...]
    growth: Count
    bottleneck: Count | None
    transitions: tuple[Count, ...]
    stem_width: Count
    stem_norm: bool
    order: Order = "oldest first"
    transition_relu: bool = True

    @model_validator(mode="after")
    def _sensible_blocks(self) -> "DenseNetSpec":
        if len(self.layers) != len(self.transitions) + 1:
            raise ValueError(f"{len(self.layers)} blocks have {len(self.transitions)} transitions between them")
        if max(self.widths) > MOST_CHANNELS:
            raise ValueError(f"blocks would put out {max(self.widths)} channels")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels that each block puts out."""
        return tuple(width + self.growth * count for width, count in zip(self.entering, self.layers, strict=True))

    @property
    def entering(self) -> tuple[int, ...]:
        """Channels that enter each block."""
        return self.stem_width, *self.transitions

    @property
    def depth(self) -> int:
        """The number in the usual name: weighted layers, transitions among them."""
        return (2 if self.bottleneck else 1) * sum(self.layers) + len(self.transitions) + 2

    @property
    def name(self) -> str:
        return f"densenet{self.depth}"

    @property
    def title(self) -> str:
        form = "CIFAR form" if self.stem == "cifar" else "ImageNet form"
        layers = "-".join(str(count) for count in self.layers)
        inner = "bottlenecks" if self.bottleneck else "no bottlenecks"
        order = ", new channels first" if self.order == "newest first" else ""
        return f"DenseNet-{self.depth} ({form}, blocks of {layers} layers, growth {self.growth}, {inner}{order})"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this form was made for."""
        return 32 if self.stem == "cifar" else 224

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that leave two for the last transition to average.

        The ImageNet stem brings n pixels down to n / 4, rounded up.
        """
        pixels = 1 << len(self.transitions)
        return pixels if self.stem == "cifar" else 4 * (pixels - 1) + 1

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """Every dense layer: those behind it then see fewer channels."""
        return tuple((True,) * count for count in self.layers)

    def keeping(self, kept: Kept) -> "DenseNetSpec":
        return self.model_copy(update={"layers": counts_of(kept)})

    def narrowed(self, share: float) -> "DenseNetSpec":
        """The channels of bottlenecks."""
        return self.model_copy(update={"bottleneck": self.bottleneck and narrower(self.bottleneck, share)})


class DenseLayer(nn.Sequential):
    """`[N, in, H, W]` to `[N, in + growth, H, W]`: what it was given, and what it adds."""

    def __init__(self, in_channels: int, spec: DenseNetSpec) -> None:
        layers = [("norm1", nn.BatchNorm2d(in_channels)), ("relu1", nn.ReLU())]
        number = 1
        if spec.bottleneck:
            layers += [("conv1", nn.Conv2d(in_channels, spec.bottleneck, 1, bias=False))]
            layers += [("norm2", nn.BatchNorm2d(spec.bottleneck)), ("relu2", nn.ReLU())]
            in_channels, number = spec.bottleneck, 2
        layers += [(f"conv{number}", nn.Conv2d(in_channels, spec.growth, 3, padding=1, bias=False))]
        super().__init__(OrderedDict(layers))
        self.newest_first = spec.order == "newest first"

    def forward(self, input: Tensor) -> Tensor:
        added = run(self, input)
        return torch.cat((added, input) if self.newest_first else (input, added), 1)


def _block(in_channels: int, count: int, spec: DenseNetSpec) -> nn.Sequential:
    """Layers of which each sees what all before it put out."""
    layers = (DenseLayer(in_channels + index * spec.growth, spec) for index in range(count))
    return nn.Sequential(OrderedDict((f"denselayer{index}", layer) for index, layer in enumerate(layers, start=1)))


def _transition(in_channels: int, out_channels: int, spec: DenseNetSpec) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.BatchNorm2d(in_channels))
    if spec.transition_relu:
        layers["relu"] = nn.ReLU()
    layers["conv"] = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    layers["pool"] = nn.AvgPool2d(2)
    return nn.Sequential(layers)


def _stem(spec: DenseNetSpec) -> OrderedDict[str, nn.Module]:
    kernel, stride = (7, 2) if spec.stem == "imagenet" else (3, 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv0"] = nn.Conv2d(spec.channels, spec.stem_width, kernel, stride, kernel // 2, bias=False)
    if spec.stem_norm:
        layers["norm0"], layers["relu0"] = nn.BatchNorm2d(spec.stem_width), nn.ReLU()
    if spec.stem == "imagenet":
        layers["pool0"] = nn.MaxPool2d(3, 2, 1)
    return layers


class DenseNet(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: DenseNetSpec

    def __init__(self, spec: DenseNetSpec) -> None:
        super().__init__()
        self.spec = spec
        layers, entering = _stem(spec), spec.stem_width
        for index, (count, width) in enumerate(zip(spec.layers, spec.widths, strict=True), start=1):
            layers[f"denseblock{index}"] = _block(entering, count, spec)
            if index < len(spec.layers):
                entering = spec.transitions[index - 1]
                layers[f"transition{index}"] = _transition(width, entering, spec)
        # Always number 5, as in torchvision, however many blocks there are.
        layers["norm5"] = nn.BatchNorm2d(spec.widths[-1])
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(spec.widths[-1], spec.num_classes)

    def enter(self, images: Tensor) -> Tensor:
        layers = self.features.named_children()
        return run((layer for name, layer in layers if name in ("conv0", "norm0", "relu0", "pool0")), images)

    def stage_list(self) -> list[Stage]:
        blocks = [self.features.get_submodule(f"denseblock{index + 1}") for index in range(len(self.spec.layers))]
        transitions = [self.features.get_submodule(f"transition{index}") for index in range(1, len(blocks))]
        openings: list[tuple[nn.Module, ...]] = [(), *((transition,) for transition in transitions)]
        return [Stage(opening, blocks_of(block.children())) for opening, block in zip(openings, blocks, strict=True)]

    def leave(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.features.get_submodule("norm5")(x)), 1)
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits

    def inner_channels(self) -> list[Inner]:
        """Between the convolutions of a dense layer that has two."""
        names = [name for name, layer in self.named_modules() if isinstance(layer, DenseLayer)]
        return [Inner((f"{name}.conv1", f"{name}.norm2"), (f"{name}.conv2",)) for name in names if self.spec.bottleneck]

    def inputs_left(self, kept: Kept) -> dict[str, Tensor]:
        """A dense layer that goes takes its channels with it, out of all that sees them."""
        left: dict[str, Tensor] = {}
        last = len(kept) - 1
        for index, (entering, chosen) in enumerate(zip(self.spec.entering, kept, strict=True)):
            for position, layer in enumerate(chosen):
                seen = self._channels(entering, layer, chosen[:position])
                name = f"features.denseblock{index + 1}.denselayer{layer + 1}"
                left |= {f"{name}.norm1": seen, f"{name}.conv1": seen}
            seen = self._channels(entering, self.spec.layers[index], chosen)
            following = f"features.transition{index + 1}"
            behind = ("features.norm5", "classifier") if index == last else (f"{following}.norm", f"{following}.conv")
            left |= dict.fromkeys(behind, seen)
        return left

    def _channels(self, entering: int, count: int, chosen: Sequence[int]) -> Tensor:
        """Where what entered and what the chosen layers added lies among what entered and `count` layers added."""
        growth = self.spec.growth
        if self.spec.order == "newest first":
            parts = [torch.arange(growth) + (count - 1 - layer) * growth for layer in reversed(chosen)]
            return torch.cat([*parts, torch.arange(entering) + count * growth])
        parts = [torch.arange(growth) + entering + layer * growth for layer in chosen]
        return torch.cat([torch.arange(entering), *parts])
