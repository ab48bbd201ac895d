"""MobileNetV2, as torchvision, timm and the usual CIFAR repositories name its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.pipeline.networks.inverted_residual import ACTIVATION_TITLES, Activation, Stride
from compress.pipeline.networks.mobilenet_v2 import MobileNetV2Spec
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.inverted_residual import (
    STAGE_STRIDES,
    TIMM_EXPANDED,
    TIMM_NARROW,
    BlockShape,
    block_shapes,
    joined,
    stage_lengths,
    stage_strides,
    strides_assumption,
)
from compress.pipeline.teacher.families.naming import (
    Arrangement,
    Layout,
    Naming,
    activation_assumption,
    arrange,
    renamed,
    sizes_of,
    weight,
)

_FAMILY = "MobileNetV2"

_LENGTHS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of the stages. Source: Sandler et al., CVPR 2018, table 2."""

_EXPANDED: Layout = {
    "expansion": ("conv.0.0", "conv.0.1"),
    "depthwise": ("conv.1.0", "conv.1.1"),
    "projection": ("conv.2", "conv.3"),
}
_NARROW: Layout = {"depthwise": ("conv.0.0", "conv.0.1"), "projection": ("conv.1", "conv.2")}
_SHORTCUT: Layout = {"shortcut": ("shortcut.0", "shortcut.1")}
_OUR_LAYOUTS = (_EXPANDED, _NARROW, {**_EXPANDED, **_SHORTCUT})

_FLAT: Layout = {
    "expansion": ("conv.0", "conv.1"),
    "depthwise": ("conv.3", "conv.4"),
    "projection": ("conv.6", "conv.7"),
}
_PLAIN: Layout = {"expansion": ("conv1", "bn1"), "depthwise": ("conv2", "bn2"), "projection": ("conv3", "bn3")}


@dataclass(frozen=True, slots=True)
class _Form:
    """What weights cannot show."""

    stem_stride: Stride
    stage_strides: tuple[Stride, ...]
    activation: Activation = "relu6"


_PADDED_STEM = "weiaicunzai/pytorch-cifar100"
_IMAGENET = _Form(2, STAGE_STRIDES)
_CIFAR = _Form(1, (1, 1, 2, 2, 1, 2, 1))

_KNOWN: tuple[tuple[Naming, tuple[_Form, ...]], ...] = (
    # namings, and the forms, likeliest first, of the networks that go by them
    (
        Naming(
            author="torchvision",  # chenyaofo/pytorch-cifar-models is of the same names and of the CIFAR form
            block="features.*.",
            layouts=(_EXPANDED, _NARROW),
            ends={
                "stem": ("features.0.0", "features.0.1"),
                "head": ("features.*.0", "features.*.1"),
                "classifier": ("classifier.1",),
            },
        ),
        (_IMAGENET, _CIFAR),
    ),
    (
        Naming(
            author="timm",
            block="blocks.*.*.",
            layouts=(TIMM_EXPANDED, TIMM_NARROW),
            ends={"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2"), "classifier": ("classifier",)},
        ),
        (_IMAGENET,),
    ),
    (
        Naming(
            author="tonylins/pytorch-mobilenet-v2",  # d-li14/mobilenetv2.pytorch names the head otherwise
            block="features.*.",
            layouts=(_FLAT, {"depthwise": ("conv.0", "conv.1"), "projection": ("conv.3", "conv.4")}),
            ends={
                "stem": ("features.0.0", "features.0.1"),
                "head": ("features.*.0|conv.0", "features.*.1|conv.1"),
                "classifier": ("classifier|classifier.*",),
            },
        ),
        (_IMAGENET, _CIFAR),
    ),
    (
        Naming(
            author="kuangliu/pytorch-cifar",
            block="layers.*.",
            layouts=(_PLAIN, {**_PLAIN, **_SHORTCUT}),
            ends={"stem": ("conv1", "bn1"), "head": ("conv2", "bn2"), "classifier": ("linear",)},
        ),
        (_Form(1, _CIFAR.stage_strides, "relu"),),
    ),
    (
        Naming(
            author="HobbitLong/RepDistiller",
            block="blocks.*.*.",
            layouts=(_FLAT,),
            ends={
                "stem": ("conv1.0", "conv1.1"),
                "head": ("conv2.0", "conv2.1"),
                "classifier": ("classifier|classifier.0",),
            },
        ),
        (_Form(2, _CIFAR.stage_strides, "relu"),),
    ),
    (
        Naming(
            author=_PADDED_STEM,
            block="stage*.*.|stage*.",
            layouts=(
                {
                    "expansion": ("residual.0", "residual.1"),
                    "depthwise": ("residual.3", "residual.4"),
                    "projection": ("residual.6", "residual.7"),
                },
            ),
            ends={"stem": ("pre.0", "pre.1"), "head": ("conv1.0", "conv1.1"), "classifier": ("conv2",)},
        ),
        (_Form(1, (1, 2, 2, 2, 1, 1, 1)),),
    ),
)


def mobilenet_v2_candidates(shapes: Shapes) -> list[Candidate]:
    """A MobileNetV2 for each form that goes by such names.

    Raises:
        NotInFamily: layers are left over or missing, or the blocks are none of a MobileNetV2.
    """
    found = arrange(shapes, [naming for naming, _ in _KNOWN], _FAMILY)
    blocks = block_shapes(found, shapes, _FAMILY)
    _check_kernels(found, blocks)
    lengths = stage_lengths(found, blocks, _LENGTHS, _FAMILY)
    forms = next(forms for naming, forms in _KNOWN if naming is found.naming)
    return [_candidate(shapes, found, blocks, lengths, form) for form in forms]


def _check_kernels(found: Arrangement, blocks: Sequence[BlockShape]) -> None:
    """MobileNetV2's kernels are 3x3; whoever names layers alike but has larger ones has other activations, too.

    Source: Sandler et al., CVPR 2018, section 4.
    """
    others = [
        steps["depthwise"][0] for steps, block in zip(found.blocks.values(), blocks, strict=True) if block.kernel != 3
    ]
    if others:
        raise NotInFamily(_FAMILY, "not all of its depthwise convolutions are 3x3", tuple(others))


def _candidate(
    shapes: Shapes, found: Arrangement, blocks: Sequence[BlockShape], lengths: Sequence[int], form: _Form
) -> Candidate:
    with sizes_of(_FAMILY):
        spec = _spec(shapes, found, blocks, stage_strides(lengths, form.stage_strides), form)
    ends = {
        "stem": ("features.0.0", "features.0.1"),
        "head": (f"features.{len(blocks) + 1}.0", f"features.{len(blocks) + 1}.1"),
        "classifier": ("classifier.1",),
    }
    prefixes = [f"features.{index}." for index in range(1, len(blocks) + 1)]
    return Candidate(
        spec,
        renamed(shapes, found, prefixes, _OUR_LAYOUTS, ends),
        reasons=(
            f"The tensors are named as in {found.naming.author}.",
            f"{len(blocks)} inverted residual blocks in {len(lengths)} stages, 3x3 and without squeeze-and-excite.",
        ),
        assumptions=(
            strides_assumption(spec, lengths),
            activation_assumption(ACTIVATION_TITLES[spec.activation], found),
            *(
                (f"The 1x1 stem is taken to be padded by one pixel, as in {_PADDED_STEM}.",)
                if spec.stem_kernel == 1
                else ()
            ),
        ),
    )


def _spec(
    shapes: Shapes, found: Arrangement, blocks: Sequence[BlockShape], strides: Sequence[Stride], form: _Form
) -> MobileNetV2Spec:
    stem = weight(shapes, found.ends["stem"][0], 4, _FAMILY)
    last = found.ends["classifier"][0]
    linear = len(shapes.get(f"{last}.weight", ())) != 4
    return MobileNetV2Spec(
        channels=stem[1],
        num_classes=weight(shapes, last, 2 if linear else 4, _FAMILY)[0],
        stem_width=stem[0],
        stem_kernel=stem[2],
        stem_stride=form.stem_stride,
        blocks=joined(blocks, stem[0], strides, [form.activation] * len(blocks)),
        head_width=weight(shapes, found.ends["head"][0], 4, _FAMILY)[0],
        activation=form.activation,
        classifier="linear" if linear else "convolution",
        batch_norm=found.batch_norm,
        bias=found.batch_norm and f"{found.ends['stem'][0]}.bias" in shapes,
    )
