"""EfficientNet, any width and depth: B0 to B7 and what lies between them.

Source: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019 (table 1).
Parameters are named as torchvision names them (`features.1.0.block.0.0`, `features.1.0.block.1.fc1`, `classifier.1`).
"""

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, islice, pairwise
from math import ceil
from typing import Literal

from pydantic import model_validator
from torch import nn

from compress.pipeline.networks.inverted_residual import (
    InvertedResidual,
    InvertedResidualSpec,
    PooledNetwork,
    layer,
)
from compress.pipeline.networks.spec import Count, Kept, kept_of

_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Of B0's stages. Source: the paper, table 1."""

_SCALING = {
    # width and depth multipliers, and height and width of the images in pixels. Source: the authors' code,
    # https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/efficientnet_builder.py
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
    "b5": (1.6, 2.2, 456),
    "b6": (1.8, 2.6, 528),
    "b7": (2.0, 3.1, 600),
}


class EfficientNetSpec(InvertedResidualSpec):
    """What it takes to build an EfficientNet.

    `repeats` counts the blocks of each stage. `head_width` counts the channels of the 1x1 convolution after the blocks,
    which some CIFAR forms lack.
    """

    family: Literal["efficientnet"] = "efficientnet"
    repeats: tuple[Count, ...]
    head_width: Count | None

    @model_validator(mode="after")
    def _all_blocks_are_in_stages(self) -> "EfficientNetSpec":
        if sum(self.repeats) != len(self.blocks):
            raise ValueError(f"the stages count {sum(self.repeats)} blocks but there are {len(self.blocks)}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Count that each stage puts out."""
        return tuple(self.blocks[end - 1].out for end in accumulate(self.repeats))

    @property
    def scale(self) -> str | None:
        """`b0` to `b7`, or None for what lies between."""
        for scale, (width, depth, _) in _SCALING.items():
            repeats = tuple(ceil(depth * repeat) for repeat in _REPEATS)
            if self.repeats == repeats and self.widths == tuple(round_channels(width * base) for base in _WIDTHS):
                return scale
        return None

    @property
    def name(self) -> str:
        between = f"x{self.widths[-1] / _WIDTHS[-1]:.3g}_{len(self.blocks)}_blocks".replace(".", "_")
        return f"efficientnet_{self.scale or between}"

    @property
    def title(self) -> str:
        scale = f"-{self.scale.upper()}" if self.scale else f" x{self.widths[-1] / _WIDTHS[-1]:.3g}"
        return f"EfficientNet{scale} ({self.form}, {len(self.blocks)} blocks{self.details})"

    @property
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this scale was made for."""
        usual = super().usual_size
        return _SCALING[self.scale][2] if self.scale and usual == 224 else usual

    def keeping(self, kept: Kept) -> "EfficientNetSpec":
        """A group of which no block stays disappears."""
        groups = iter([group for group, count in enumerate(self.repeats) for _ in range(count)])
        left = Counter(kept_of([list(islice(groups, len(stage))) for stage in self.stages], kept))
        repeats = tuple(left[group] for group in range(len(self.repeats)) if left[group])
        return self.model_copy(update={"blocks": tuple(kept_of(self.stages, kept)), "repeats": repeats})


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, or the next where that is more than a tenth less.

    Source: `round_filters` in the authors' code, as for `_SCALING`.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class EfficientNet(PooledNetwork):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`."""

    spec: EfficientNetSpec

    def __init__(self, spec: EfficientNetSpec) -> None:
        stem = layer(spec.channels, spec.stem_width, 3, spec.stem_stride, activation="silu", spec=spec)
        blocks = list(map(InvertedResidual, spec.block_inputs, spec.blocks, [spec] * len(spec.blocks)))
        ends = accumulate(spec.repeats, initial=0)
        stages = [nn.Sequential(*blocks[start:end]) for start, end in pairwise(ends)]
        out = spec.blocks[-1].out
        head = [] if spec.head_width is None else [layer(out, spec.head_width, activation="silu", spec=spec)]
        last = nn.Linear(spec.head_width or out, spec.num_classes)
        super().__init__(nn.Sequential(stem, *stages, *head), nn.Sequential(nn.Dropout(0.2), last))
        self.spec = spec

    def blocks(self) -> Iterable[nn.Module]:
        groups = list(self.features)[1 : 1 + len(self.spec.repeats)]
        return [block for group in groups for block in group.children()]

    def head(self) -> Iterable[nn.Module]:
        return list(self.features)[1 + len(self.spec.repeats) :]
