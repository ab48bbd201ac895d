"""ConvNeXt, any depth, width and patch size: layer norms inside and no batch norm anywhere.

Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (arXiv 2201.03545), section 2 and figure 4.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from compress.pipeline.networks.spec import Count, Kept, NetworkSpec, counts_of
from compress.pipeline.networks.staged import Stage, StagedNetwork, blocks_of

EPSILON = 1e-6
"""Of the layer norms. Source: the authors' code, https://github.com/facebookresearch/ConvNeXt, as of every port of it."""

LayerScale = Literal["vector", "map", "none"]
Pointwise = Literal["linear", "convolution"]

_NAMED: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    # blocks and widths of the stages. Source: the paper, section 3.1, and timm for what is below tiny
    ((2, 2, 6, 2), (40, 80, 160, 320)): "atto",
    ((2, 2, 6, 2), (48, 96, 192, 384)): "femto",
    ((2, 2, 6, 2), (64, 128, 256, 512)): "pico",
    ((2, 2, 8, 2), (80, 160, 320, 640)): "nano",
    ((3, 3, 9, 3), (96, 192, 384, 768)): "tiny",
    ((3, 3, 27, 3), (96, 192, 384, 768)): "small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "base",
    ((3, 3, 27, 3), (192, 384, 768, 1536)): "large",
    ((3, 3, 27, 3), (256, 512, 1024, 2048)): "xlarge",
}


class ConvNeXtSpec(NetworkSpec):
    """What it takes to build a ConvNeXt.

    `patch` is the side of the stem's patches in pixels, `kernel` that of the depthwise convolutions, `expansion` how
    many times wider a block is inside. The parameters of a block come in several shapes that compute the same: the
    layer scale as a vector `[C]`, as a map `[C, 1, 1]` or not at all, the pointwise layers as linear layers or as 1x1
    convolutions. `final_epsilon` is the last layer norm's, which one implementation chooses apart from the others.
    """

    family: Literal["convnext"] = "convnext"
    blocks: tuple[Count, ...]
    widths: tuple[Count, ...]
    patch: Count = 4
    kernel: Count = 7
    expansion: Count = 4
    layer_scale: LayerScale = "vector"
    pointwise: Pointwise = "linear"
    final_epsilon: float = EPSILON

    @model_validator(mode="after")
    def _one_width_a_stage(self) -> "ConvNeXtSpec":
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(f"{len(self.blocks)} stages have block counts but {len(self.widths)} have widths")
        return self

    @property
    def size_name(self) -> str | None:
        """What the field calls this depth and width; None where it has no name."""
        return _NAMED.get((self.blocks, self.widths))

    @property
    def name(self) -> str:
        return f"convnext_{self.size_name or f'{_dashed(self.blocks)}_{_dashed(self.widths)}'}"

    @property
    def title(self) -> str:
        name = f"ConvNeXt-{self.size_name}" if self.size_name else "ConvNeXt"
        sizes = f"blocks {_dashed(self.blocks)}, widths {_dashed(self.widths)}, {self.patch}x{self.patch} patches"
        return f"{name} ({sizes}, no batch norm)"

    @property
    def usual_size(self) -> int:
        """224 px, or 32 px for patches smaller than the published ones, which small images need."""
        return max(224 if self.patch >= 4 else 32, self.minimum_size)

    @property
    def minimum_size(self) -> int:
        """Height and width in pixels that patches and the halving between stages bring down to one."""
        return self.patch << (len(self.blocks) - 1)

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """Every block: what changes the shape stands between stages."""
        return tuple((True,) * count for count in self.blocks)

    def keeping(self, kept: Kept) -> "ConvNeXtSpec":
        return self.model_copy(update={"blocks": counts_of(kept)})


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of maps `[N, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm, two pointwise layers with GELU between, and the scaled sum; keeps the shape."""

    def __init__(self, width: int, spec: ConvNeXtSpec) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, spec.kernel, padding=spec.kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.expand = _pointwise_layer(width, spec.expansion * width, spec)
        self.project = _pointwise_layer(spec.expansion * width, width, spec)
        shapes = {"vector": (width,), "map": (width, 1, 1)}
        self.scale = nn.Parameter(torch.ones(shapes[spec.layer_scale])) if spec.layer_scale != "none" else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = _pointwise(self.project, F.gelu(_pointwise(self.expand, out)))
        if self.scale is not None:
            out = self.scale.flatten() * out
        return x + out.permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    """`[N, in, H, W]` to `[N, width, H / 2, W / 2]`; the first stage, which has no `downsample`, keeps the shape."""

    def __init__(self, in_channels: int | None, width: int, blocks: int, spec: ConvNeXtSpec) -> None:
        super().__init__()
        self.downsample = nn.Sequential()
        if in_channels is not None:
            self.downsample.append(ChannelNorm(in_channels, EPSILON))
            self.downsample.append(nn.Conv2d(in_channels, width, 2, 2))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, spec) for _ in range(blocks)))

    @property
    def stage(self) -> Stage:
        """Its blocks, which the halving opens."""
        return Stage((self.downsample,), blocks_of(self.blocks))


class ConvNeXt(StagedNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: ConvNeXtSpec

    def __init__(self, spec: ConvNeXtSpec) -> None:
        super().__init__()
        first, last = spec.widths[0], spec.widths[-1]
        self.spec = spec
        self.stem = nn.Sequential(
            nn.Conv2d(spec.channels, first, spec.patch, spec.patch),
            ChannelNorm(first, EPSILON),
        )
        stages = zip((None, *spec.widths[:-1]), spec.widths, spec.blocks, strict=True)
        self.stages = nn.Sequential(*(ConvNeXtStage(before, width, blocks, spec) for before, width, blocks in stages))
        self.norm = nn.LayerNorm(last, spec.final_epsilon)
        self.head = nn.Linear(last, spec.num_classes)

    def enter(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stem(images)
        return maps

    def stage_list(self) -> list[Stage]:
        return [stage.stage for stage in self.stages.children() if isinstance(stage, ConvNeXtStage)]

    def leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x.mean((2, 3))))
        return logits


def _pointwise_layer(inputs: int, outputs: int, spec: ConvNeXtSpec) -> nn.Linear | nn.Conv2d:
    return nn.Linear(inputs, outputs) if spec.pointwise == "linear" else nn.Conv2d(inputs, outputs, 1)


def _pointwise(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """`[N, H, W, in]` to `[N, H, W, out]`, whichever shape the layer's weight has."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def _dashed(numbers: tuple[int, ...]) -> str:
    return "-".join(str(number) for number in numbers)
