"""Inverted residual blocks with squeeze-and-excite, which MobileNetV2, MobileNetV3 and EfficientNet are made of.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 (figure 4); Hu et al.,
"Squeeze-and-Excitation Networks", CVPR 2018 (figure 1), after the depthwise convolution as in Howard et al.,
"Searching for MobileNetV3", ICCV 2019 (figure 4).
"""

from collections.abc import Iterable
from itertools import islice
from math import prod
from typing import Annotated, Literal, Self

import torch.nn.functional as F
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from compress.pipeline.networks.spec import Count, Kept, NetworkSpec, kept_of, narrower
from compress.pipeline.networks.staged import Inner, Stage, StagedNetwork, blocks_of, run
from compress.pipeline.records import Record

Activation = Literal["relu", "relu6", "hardswish", "silu"]
Gate = Literal["sigmoid", "hardsigmoid"]
Stride = Literal[1, 2]


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("the kernel is even")
    return kernel


Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]
"""Height and width of a kernel in pixels, which padding centres."""

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}
_GATES: dict[Gate, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}
ACTIVATION_TITLES: dict[Activation, str] = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "hardswish": "hard swish",
    "silu": "SiLU",
}


class Squeeze(Record):
    """Squeeze-and-excite through `width` channels."""

    width: Count
    activation: Activation
    gate: Gate


class Block(Record):
    """One inverted residual block: 1x1 expansion, depthwise convolution, squeeze-and-excite, 1x1 projection.

    `expanded` counts the channels of the depthwise convolution, `out` those that the block puts out. An `idle`
    expansion has weights that its author's network never uses. The shortcut adds the block's input to its output, the
    `projection` one through a 1x1 convolution with batch norm.
    """

    kernel: Kernel
    stride: Stride
    expanded: Count
    out: Count
    expansion: Literal["convolution", "idle", "none"] = "convolution"
    squeeze: Squeeze | None = None
    shortcut: Literal["identity", "projection", "none"] = "none"
    activation: Activation


class InvertedResidualSpec(NetworkSpec):
    """What the specs of networks of such blocks have in common.

    `same` padding is TensorFlow's, `centred` the same number of pixels on all sides. Without `batch_norm`, as after
    fusing it away, every convolution has a bias; with `bias` it has one besides its batch norm.
    """

    stem_width: Count
    stem_stride: Stride
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    padding: Literal["centred", "same"] = "centred"
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    batch_norm: bool = True
    bias: bool = False

    @model_validator(mode="after")
    def _blocks_join(self) -> "InvertedResidualSpec":
        for in_channels, block in zip(self.block_inputs, self.blocks, strict=True):
            if block.expansion != "convolution" and block.expanded != in_channels:
                raise ValueError(f"a block without expansion has {in_channels} channels but {block.expanded} inside")
            if block.shortcut != "none" and block.stride != 1:
                raise ValueError("a block that strides cannot have a shortcut")
            if block.shortcut == "identity" and block.out != in_channels:
                raise ValueError(f"an identity shortcut takes {in_channels} channels to {block.out}")
        return self

    @property
    def block_inputs(self) -> tuple[int, ...]:
        """The channels that enter each block."""
        return self.stem_width, *(block.out for block in self.blocks[:-1])

    @property
    def stages(self) -> list[list[Block]]:
        """The blocks by resolution: each that strides begins a new stage."""
        stages: list[list[Block]] = []
        for block in self.blocks:
            if block.stride > 1 or not stages:
                stages.append([])
            stages[-1].append(block)
        return stages

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """The residual blocks proper."""
        return tuple(tuple(block.shortcut == "identity" for block in stage) for stage in self.stages)

    @property
    def block_kinds(self) -> tuple[tuple[Block, ...], ...]:
        """Blocks of one resolution may differ in anything."""
        return tuple(tuple(stage) for stage in self.stages)

    def keeping(self, kept: Kept) -> "InvertedResidualSpec":
        return self.model_copy(update={"blocks": tuple(kept_of(self.stages, kept))})

    def narrowed(self, share: float) -> "InvertedResidualSpec":
        """The channels of depthwise convolutions, but those of blocks without an expansion."""
        blocks = tuple(
            block.model_copy(update={"expanded": narrower(block.expanded, share)})
            if block.expansion == "convolution"
            else block
            for block in self.blocks
        )
        return self if blocks == self.blocks else self.model_copy(update={"blocks": blocks})

    @property
    def learnable(self) -> Self:
        """A batch norm takes over the bias of its convolution."""
        return self if self.batch_norm else self.model_copy(update={"batch_norm": True, "bias": False})

    @property
    def reduction(self) -> int:
        """How many times lower and narrower than the image the last maps are."""
        return self.stem_stride * prod(block.stride for block in self.blocks)

    @property
    def usual_size(self) -> int:
        """224 for what reduces images 32 times, as all ImageNet forms do; CIFAR's 32 for what reduces them less."""
        return 224 if self.reduction >= 32 else 32

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that all strides but the last bring down to one."""
        return max(self.reduction // 2, 1)

    @property
    def form(self) -> str:
        return "ImageNet form" if self.reduction >= 32 else "CIFAR form"

    @property
    def details(self) -> str:
        """What leaves no trace in weights and sets candidates apart, for titles."""
        padding = "" if self.padding == "centred" else ", TensorFlow's padding"
        return f"{padding}{'' if self.batch_norm else ', no batch norm'}"


class SamePaddedConv2d(nn.Conv2d):
    """Pads just enough for an output of `ceil(size / stride)` pixels, an odd pixel at the bottom and on the right.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2, "SAME".
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = (_missing(*sides) for sides in zip(input.shape[2:], self.kernel_size, self.stride, strict=True))
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(F.pad(input, padding))


def _missing(size: int, kernel: int, stride: int) -> int:
    """Pixels by which a side is too short for `ceil(size / stride)` steps of the kernel."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)


class PooledConvolution(nn.Conv2d):
    """A 1x1 convolution in the place of a linear layer, after pooling: `[N, in]` to `[N, out]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, :, None, None]).flatten(1)


class Idle(nn.Sequential):
    """Layers that have weights in a checkpoint but that its author's network never runs."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean of all channels. `[N, C, H, W]` to the same shape."""

    def __init__(self, channels: int, squeeze: Squeeze) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze.width, 1)
        self.activation = ACTIVATIONS[squeeze.activation]()
        self.fc2 = nn.Conv2d(squeeze.width, channels, 1)
        self.gate = _GATES[squeeze.gate]()

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * gate


class InvertedResidual(nn.Module):
    """The block under torchvision's names of it. `[N, in, H, W]` to `[N, out, H / stride, W / stride]`."""

    def __init__(self, in_channels: int, block: Block, spec: InvertedResidualSpec) -> None:
        super().__init__()
        projection = layer(block.expanded, block.out, spec=spec)
        self.block = nn.Sequential(*expansion_to_squeeze(in_channels, block, spec), projection)
        self.shortcut = shortcut(in_channels, block, spec)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out if self.shortcut is None else out + self.shortcut(x)


class PooledNetwork(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`: features, their mean over pixels, a classifier.

    The first of the features is the stem; what follows the blocks is the head. A stage begins where a block strides.
    """

    spec: InvertedResidualSpec

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def blocks(self) -> Iterable[nn.Module]:
        """The blocks in order."""
        return list(self.features)[1 : 1 + len(self.spec.blocks)]

    def head(self) -> Iterable[nn.Module]:
        """What follows the blocks, before pooling."""
        return list(self.features)[1 + len(self.spec.blocks) :]

    def enter(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features[0](images)
        return maps

    def stage_list(self) -> list[Stage]:
        blocks = iter(self.blocks())
        return [Stage((), blocks_of(islice(blocks, len(stage)))) for stage in self.spec.stages]

    def leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(run(self.head(), x).mean((2, 3)))
        return logits

    def inner_channels(self) -> list[Inner]:
        """From the expansion, through depthwise convolution and squeeze-and-excite, to the projection."""
        names = {module: name for name, module in self.named_modules()}
        blocks = zip(self.blocks(), self.spec.blocks, strict=True)
        return [_inner_of(names[module], module) for module, block in blocks if block.expansion == "convolution"]


def _inner_of(prefix: str, block: nn.Module) -> Inner:
    """Of a block with batch norms: the names of its layers in the order that `expansion_to_squeeze` gives them."""
    layers = [
        f"{prefix}.{name}"
        for name, module in block.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not name.startswith("shortcut")
    ]
    *inside, projection, _ = layers
    squeeze = inside[4:]  # Behind two convolutions and their norms: one layer takes all channels in, one puts them out.
    return Inner((*inside[:4], *squeeze[1:]), (projection, *squeeze[:1]))


def expansion_to_squeeze(in_channels: int, block: Block, spec: InvertedResidualSpec) -> list[nn.Module]:
    """All of a block but its projection."""
    steps: list[nn.Module] = []
    if block.expansion != "none":
        expansion = layer(in_channels, block.expanded, activation=block.activation, spec=spec)
        steps.append(expansion if block.expansion == "convolution" else Idle(*expansion))
    steps.append(
        layer(
            block.expanded,
            block.expanded,
            block.kernel,
            block.stride,
            groups=block.expanded,
            activation=block.activation,
            spec=spec,
        )
    )
    return steps if block.squeeze is None else [*steps, SqueezeExcite(block.expanded, block.squeeze)]


def shortcut(in_channels: int, block: Block, spec: InvertedResidualSpec) -> nn.Module | None:
    if block.shortcut == "none":
        return None
    return nn.Identity() if block.shortcut == "identity" else layer(in_channels, block.out, spec=spec)


def layer(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    padding: int | None = None,
    activation: Activation | None = None,
    spec: InvertedResidualSpec,
) -> nn.Sequential:
    """Convolution, batch norm and, where there is one, activation.

    Centred padding keeps the size of maps unless `padding` says how many pixels it is.
    """
    bias = spec.bias or not spec.batch_norm
    convolution = SamePaddedConv2d if spec.padding == "same" else nn.Conv2d
    pixels = 0 if spec.padding == "same" else kernel // 2 if padding is None else padding
    norm = nn.BatchNorm2d(out_channels, eps=spec.epsilon) if spec.batch_norm else nn.Identity()
    steps = [convolution(in_channels, out_channels, kernel, stride, pixels, groups=groups, bias=bias), norm]
    return nn.Sequential(*steps, *([ACTIVATIONS[activation]()] if activation else []))
