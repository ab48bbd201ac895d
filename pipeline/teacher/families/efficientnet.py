"""EfficientNet, as torchvision, timm, lukemelas/EfficientNet-PyTorch and kuangliu/pytorch-cifar name its layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.pipeline.networks.efficientnet import EfficientNetSpec
from compress.pipeline.networks.inverted_residual import Stride
from compress.pipeline.teacher.families import Candidate, Shapes
from compress.pipeline.teacher.families.inverted_residual import (
    COUNTED_LAYOUTS,
    STAGE_STRIDES,
    TIMM_EXPANDED,
    TIMM_NARROW,
    TIMM_NUMERICS,
    TIMM_SQUEEZE,
    BlockShape,
    Numerics,
    block_shapes,
    joined,
    numerics_assumption,
    stage_lengths,
    stage_strides,
    strides_assumption,
)
from compress.pipeline.teacher.families.naming import (
    SQUEEZE,
    Arrangement,
    Layout,
    Naming,
    activation_assumption,
    arrange,
    renamed,
    sizes_of,
    weight,
)

_FAMILY = "EfficientNet"

_LENGTHS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of B0's stages. Source: Tan & Le, ICML 2019, table 1."""

_OUR_LAYOUTS = tuple(layout for layout in COUNTED_LAYOUTS if SQUEEZE in layout)

_TORCHVISION = Naming(
    author="torchvision",
    block="features.*.*.",
    layouts=_OUR_LAYOUTS,
    ends={
        "stem": ("features.0.0", "features.0.1"),
        "head": ("features.*.0", "features.*.1"),
        "classifier": ("classifier.1",),
    },
)
_TIMM = Naming(
    author="timm",
    block="blocks.*.*.",
    layouts=({**TIMM_EXPANDED, **TIMM_SQUEEZE}, {**TIMM_NARROW, **TIMM_SQUEEZE}),
    ends={"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2"), "classifier": ("classifier",)},
)
_LUKEMELAS_NARROW: Layout = {
    "depthwise": ("_depthwise_conv", "_bn1"),
    SQUEEZE: ("_se_reduce", "_se_expand"),
    "projection": ("_project_conv", "_bn2"),
}
_LUKEMELAS = Naming(
    author="lukemelas/EfficientNet-PyTorch",
    block="_blocks.*.",
    layouts=({"expansion": ("_expand_conv", "_bn0"), **_LUKEMELAS_NARROW}, _LUKEMELAS_NARROW),
    ends={"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "classifier": ("_fc",)},
)
_KUANGLIU = Naming(
    author="kuangliu/pytorch-cifar",
    block="layers.*.",
    layouts=(
        {
            "expansion": ("conv1", "bn1"),
            "depthwise": ("conv2", "bn2"),
            SQUEEZE: ("se.se1", "se.se2"),
            "projection": ("conv3", "bn3"),
        },
    ),
    ends={"stem": ("conv1", "bn1"), "classifier": ("linear",)},
)


@dataclass(frozen=True, slots=True)
class _Form:
    """What weights cannot show."""

    numerics: Numerics
    stem_stride: Stride = 2


_LARGE_SCALES, _LARGE_EPSILON = ("b5", "b6", "b7"), 1e-3
"""Of those that torchvision took from TensorFlow. Source: torchvision/models/efficientnet.py."""

_FORMS = {
    _TORCHVISION.author: (_Form(Numerics("centred", 1e-5, "torchvision")),),
    _TIMM.author: tuple(_Form(numerics) for numerics in TIMM_NUMERICS),
    _LUKEMELAS.author: (_Form(Numerics("same", 1e-3, _LUKEMELAS.author)),),
    _KUANGLIU.author: (_Form(Numerics("centred", 1e-5, _KUANGLIU.author), stem_stride=1),),
}


def efficientnet_candidates(shapes: Shapes) -> list[Candidate]:
    """An EfficientNet for each way of padding that goes with such names.

    Raises:
        NotInFamily: layers are left over or missing, or the blocks do not form seven stages.
    """
    found = arrange(shapes, (_TORCHVISION, _TIMM, _LUKEMELAS, _KUANGLIU), _FAMILY)
    blocks = block_shapes(found, shapes, _FAMILY)
    lengths = stage_lengths(found, blocks, _LENGTHS, _FAMILY)
    return [_candidate(shapes, found, blocks, lengths, form) for form in _FORMS[found.naming.author]]


def _candidate(
    shapes: Shapes, found: Arrangement, blocks: Sequence[BlockShape], lengths: Sequence[int], form: _Form
) -> Candidate:
    with sizes_of(_FAMILY):
        spec = _spec(shapes, found, blocks, lengths, form)
    if found.naming is _TORCHVISION and spec.scale in _LARGE_SCALES:
        spec = spec.model_copy(update={"epsilon": _LARGE_EPSILON})
    ends = {
        "stem": ("features.0.0", "features.0.1"),
        "head": (f"features.{len(lengths) + 1}.0", f"features.{len(lengths) + 1}.1"),
        "classifier": ("classifier.1",),
    }
    prefixes = [
        f"features.{stage}.{index}." for stage, length in enumerate(lengths, start=1) for index in range(length)
    ]
    idle = "Where a block does not widen, its weights for that are taken not to be used, as in kuangliu/pytorch-cifar."
    return Candidate(
        spec,
        renamed(shapes, found, prefixes, _OUR_LAYOUTS, ends),
        reasons=(
            f"The tensors are named as in {found.naming.author}.",
            f"{len(blocks)} inverted residual blocks, all with squeeze-and-excite, in {len(lengths)} stages.",
        ),
        assumptions=(
            strides_assumption(spec, lengths),
            activation_assumption("SiLU", found),
            numerics_assumption(spec, form.numerics.origin),
            *((idle,) if found.naming is _KUANGLIU else ()),
        ),
    )


def _spec(
    shapes: Shapes, found: Arrangement, blocks: Sequence[BlockShape], lengths: Sequence[int], form: _Form
) -> EfficientNetSpec:
    stem = weight(shapes, found.ends["stem"][0], 4, _FAMILY)
    if found.naming is _KUANGLIU:
        blocks = _with_idle_expansions(blocks, stem[0])
    strides = stage_strides(lengths, STAGE_STRIDES)
    return EfficientNetSpec(
        channels=stem[1],
        num_classes=weight(shapes, found.ends["classifier"][0], 2, _FAMILY)[0],
        stem_width=stem[0],
        stem_stride=form.stem_stride,
        blocks=joined(blocks, stem[0], strides, ["silu"] * len(blocks), ("silu", "sigmoid")),
        repeats=tuple(lengths),
        head_width=weight(shapes, found.ends["head"][0], 4, _FAMILY)[0] if "head" in found.ends else None,
        padding=form.numerics.padding,
        epsilon=form.numerics.epsilon,
        batch_norm=found.batch_norm,
    )


def _with_idle_expansions(blocks: Sequence[BlockShape], stem_width: int) -> list[BlockShape]:
    """kuangliu's blocks have an expansion, but use it only where it makes more channels."""
    inputs = [stem_width, *(block.out for block in blocks[:-1])]
    return [
        replace(block, expansion="idle") if block.expanded == in_channels else block
        for block, in_channels in zip(blocks, inputs, strict=True)
    ]
