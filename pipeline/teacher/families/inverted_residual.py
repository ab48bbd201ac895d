"""What the recognisers of MobileNetV2, MobileNetV3 and EfficientNet have in common: reading their blocks off shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Literal

from compress.pipeline.networks.inverted_residual import Activation, Block, Gate, InvertedResidualSpec, Squeeze, Stride
from compress.pipeline.teacher.families import NotInFamily, Shapes
from compress.pipeline.teacher.families.naming import SQUEEZE, Arrangement, Layout, weight

STAGE_STRIDES: tuple[Stride, ...] = (1, 2, 2, 2, 1, 2, 1)
"""Of the seven stages of MobileNetV2 and of EfficientNet in their ImageNet forms.

Source: Sandler et al., CVPR 2018, table 2; Tan & Le, ICML 2019, table 1.
"""

TIMM_EXPANDED: Layout = {
    "expansion": ("conv_pw", "bn1"),
    "depthwise": ("conv_dw", "bn2"),
    "projection": ("conv_pwl", "bn3"),
}
TIMM_NARROW: Layout = {"depthwise": ("conv_dw", "bn1"), "projection": ("conv_pw", "bn2")}
TIMM_SQUEEZE: Layout = {SQUEEZE: ("se.conv_reduce", "se.conv_expand")}
"""timm's layouts of blocks, with and without expansion, and of what they may have besides."""


def _counted(*steps: str) -> Layout:
    members = {SQUEEZE: ("fc1", "fc2")}
    return {
        step: tuple(f"block.{index}.{member}" for member in members.get(step, ("0", "1")))
        for index, step in enumerate(steps)
    }


COUNTED_LAYOUTS = (
    _counted("expansion", "depthwise", SQUEEZE, "projection"),
    _counted("expansion", "depthwise", "projection"),
    _counted("depthwise", SQUEEZE, "projection"),
    _counted("depthwise", "projection"),
)
"""torchvision's layouts of blocks in MobileNetV3 and EfficientNet, where the steps that are there are counted."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """What differs between frameworks and between those who ported weights from one to another."""

    padding: Literal["centred", "same"]
    epsilon: float
    origin: str
    """In words that follow `as in`."""


TIMM_NUMERICS = (
    Numerics("centred", 1e-5, "what timm trained itself"),
    Numerics("same", 1e-3, "what timm ported from TensorFlow"),
)
"""Source: timm/models/mobilenetv3.py and efficientnet.py, where the names of ported models start with `tf_`."""


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What the names and shapes of a block's weights say."""

    kernel: int
    expanded: int
    out: int
    squeezed: int | None
    expansion: Literal["convolution", "idle", "none"]
    projects: bool
    """Whether its shortcut has weights."""

    @property
    def look(self) -> tuple[int, int]:
        """What the blocks of a stage have in common."""
        return self.kernel, self.out


def block_shapes(found: Arrangement, shapes: Shapes, family: str) -> list[BlockShape]:
    """The blocks in their order.

    Raises:
        NotInFamily: a layer is not the convolution that it is named as.
    """
    return [_block_shape(steps, shapes, family) for steps in found.blocks.values()]


def _block_shape(steps: Layout, shapes: Shapes, family: str) -> BlockShape:
    depthwise = weight(shapes, steps["depthwise"][0], 4, family)
    return BlockShape(
        kernel=depthwise[2],
        expanded=depthwise[0],
        out=weight(shapes, steps["projection"][0], 4, family)[0],
        squeezed=weight(shapes, steps[SQUEEZE][0], 4, family)[0] if SQUEEZE in steps else None,
        expansion="convolution" if "expansion" in steps else "none",
        projects="shortcut" in steps,
    )


def stage_lengths(found: Arrangement, blocks: Sequence[BlockShape], usual: Sequence[int], family: str) -> list[int]:
    """How many blocks each stage has.

    Names may say it. Where they only count blocks, a new stage shows in kernel, width and expansion; but neighbouring
    stages of narrow networks can look alike, so `usual` lengths go first where they fit.

    Raises:
        NotInFamily: there are more or fewer stages than usual.
    """
    if any(len(place) > 1 for place in found.blocks):
        lengths = [len(list(places)) for _, places in groupby(found.blocks, key=itemgetter(0))]
    elif _fit(usual, blocks):
        lengths = list(usual)
    else:
        lengths = [len(list(alike)) for _, alike in groupby(blocks, key=lambda block: (block.look, block.expansion))]
    if len(lengths) != len(usual):
        problem = f"its blocks form {len(lengths)} stages and not {len(usual)}"
        raise NotInFamily(family, problem, distance=len(blocks))
    return lengths


def _fit(lengths: Sequence[int], blocks: Sequence[BlockShape]) -> bool:
    """Whether all blocks of each stage look alike."""
    stages = [stage for stage, length in enumerate(lengths) for _ in range(length)]
    return len(stages) == len(blocks) and len({*zip(stages, (b.look for b in blocks), strict=True)}) == len(lengths)


def stage_strides(lengths: Sequence[int], strides: Sequence[Stride]) -> list[Stride]:
    """The stride of each block: its stage's for the first of a stage."""
    return [
        stride if index == 0 else 1 for length, stride in zip(lengths, strides, strict=True) for index in range(length)
    ]


def joined(
    shapes: Sequence[BlockShape],
    stem_width: int,
    strides: Sequence[Stride],
    activations: Sequence[Activation],
    squeeze: tuple[Activation, Gate] = ("silu", "sigmoid"),
) -> tuple[Block, ...]:
    """The blocks one after the other, with a shortcut wherever a block keeps the shape of its input.

    Raises:
        ValidationError: a size is none that a block can have.
    """
    blocks: list[Block] = []
    for shape, stride, activation in zip(shapes, strides, activations, strict=True):
        in_channels = blocks[-1].out if blocks else stem_width
        identity = stride == 1 and in_channels == shape.out
        blocks.append(
            Block(
                kernel=shape.kernel,
                stride=stride,
                expanded=shape.expanded,
                out=shape.out,
                expansion=shape.expansion,
                squeeze=_squeeze(shape.squeezed, *squeeze),
                shortcut="projection" if shape.projects else "identity" if identity else "none",
                activation=activation,
            )
        )
    return tuple(blocks)


def _squeeze(width: int | None, activation: Activation, gate: Gate) -> Squeeze | None:
    return None if width is None else Squeeze(width=width, activation=activation, gate=gate)


def strides_assumption(spec: InvertedResidualSpec, lengths: Sequence[int] | None = None) -> str:
    """A sentence on the strides of the stem and of the stages, or of the blocks."""
    strides = [block.stride for block in spec.blocks]
    firsts = strides if lengths is None else [strides[start] for start in accumulate(lengths[:-1], initial=0)]
    where = "blocks" if lengths is None else "stages"
    listed = "-".join(str(stride) for stride in firsts)
    return (
        f"Strides leave no trace in a checkpoint; they are taken to be {spec.stem_stride} in the stem and {listed} in "
        f"the {where}, the {spec.form}."
    )


def numerics_assumption(spec: InvertedResidualSpec, origin: str) -> str:
    padding = "TensorFlow's (SAME)" if spec.padding == "same" else "the same on all sides"
    return (
        f"Padding and the epsilon of batch norm leave no trace in a checkpoint; they are taken to be {padding} and "
        f"{spec.epsilon:g}, as in {origin}."
    )
