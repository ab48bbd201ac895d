"""MobileNetV3, large and small, as torchvision and timm name its layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from compress.pipeline.networks.inverted_residual import Activation, Stride
from compress.pipeline.networks.mobilenet_v3 import MobileNetV3Spec, Variant
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.inverted_residual import (
    COUNTED_LAYOUTS,
    TIMM_EXPANDED,
    TIMM_NARROW,
    TIMM_NUMERICS,
    TIMM_SQUEEZE,
    BlockShape,
    Numerics,
    block_shapes,
    joined,
    numerics_assumption,
    strides_assumption,
)
from compress.pipeline.teacher.families.naming import (
    Arrangement,
    Naming,
    activation_assumption,
    arrange,
    renamed,
    sizes_of,
    weight,
)

_FAMILY = "MobileNetV3"


@dataclass(frozen=True, slots=True)
class _Table:
    """The blocks of a variant, in their order."""

    blocks: tuple[tuple[int, bool], ...]
    """Kernel, and whether there is squeeze-and-excite."""
    strides: tuple[Stride, ...]
    relus: int
    """How many blocks have ReLU, before those with hard swish."""


_LARGE_STRIDES: tuple[Stride, ...] = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)
_SMALL_STRIDES: tuple[Stride, ...] = (2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1)
_PLAIN, _SQUEEZED, _WIDE = (3, False), (3, True), (5, True)

_TABLES: dict[Variant, _Table] = {
    # Source: Howard et al., ICCV 2019, tables 1 and 2; of the minimal ones the authors' code,
    # https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/mobilenet_v3.py
    "large": _Table(
        (*3 * (_PLAIN,), *3 * (_WIDE,), *4 * (_PLAIN,), *2 * (_SQUEEZED,), *3 * (_WIDE,)), _LARGE_STRIDES, 6
    ),
    "small": _Table((_SQUEEZED, *2 * (_PLAIN,), *8 * (_WIDE,)), _SMALL_STRIDES, 3),
    "large_minimal": _Table(15 * (_PLAIN,), _LARGE_STRIDES, 15),
    "small_minimal": _Table(11 * (_PLAIN,), _SMALL_STRIDES, 11),
}

_TORCHVISION = Naming(
    author="torchvision",
    block="features.*.",
    layouts=COUNTED_LAYOUTS,
    ends={
        "stem": ("features.0.0", "features.0.1"),
        "head": ("features.*.0", "features.*.1"),
        "hidden": ("classifier.0",),
        "classifier": ("classifier.3",),
    },
)
_TIMM = Naming(
    author="timm",
    block="blocks.*.*.",
    layouts=(
        {**TIMM_EXPANDED, **TIMM_SQUEEZE},
        {**TIMM_NARROW, **TIMM_SQUEEZE},
        TIMM_EXPANDED,
        TIMM_NARROW,
        {"head": ("conv", "bn1")},  # which timm counts as one more block
    ),
    ends={"stem": ("conv_stem", "bn1"), "hidden": ("conv_head",), "classifier": ("classifier",)},
)
_NUMERICS = {
    # Source: torchvision/models/mobilenetv3.py
    "torchvision": (Numerics("centred", 1e-3, "torchvision"),),
    "timm": TIMM_NUMERICS,
}


def mobilenet_v3_candidates(shapes: Shapes) -> list[Candidate]:
    """A MobileNetV3 for each way of padding that goes with such names.

    Raises:
        NotInFamily: layers are left over or missing, or the blocks are arranged unlike those of a MobileNetV3.
    """
    found = _with_head(arrange(shapes, (_TORCHVISION, _TIMM), _FAMILY))
    blocks = block_shapes(found, shapes, _FAMILY)
    variant = _variant(blocks)
    return [_candidate(shapes, found, blocks, variant, numerics) for numerics in _NUMERICS[found.naming.author]]


def _with_head(found: Arrangement) -> Arrangement:
    """The same where the head is among the ends and not the last block."""
    heads = {place: steps for place, steps in found.blocks.items() if "head" in steps}
    if not heads and "head" in found.ends:
        return found
    last = max(found.blocks)
    if list(heads) != [last]:
        raise NotInFamily(_FAMILY, "its blocks do not end in a 1x1 convolution", distance=max(len(heads), 1))
    blocks = {place: steps for place, steps in found.blocks.items() if place != last}
    return replace(found, blocks=blocks, ends=found.ends | heads[last])


def _variant(blocks: Sequence[BlockShape]) -> Variant:
    seen = [(block.kernel, block.squeezed is not None) for block in blocks]
    differing = {
        variant: sum(ours != theirs for ours, theirs in zip_longest(seen, table.blocks))
        for variant, table in _TABLES.items()
    }
    nearest = min(differing, key=lambda variant: differing[variant])
    if differing[nearest]:
        problem = (
            f"{differing[nearest]} blocks differ in kernel or squeeze-and-excite from the {nearest} form, the nearest"
        )
        raise NotInFamily(_FAMILY, problem.replace("_", " "), distance=differing[nearest])
    return nearest


def _candidate(
    shapes: Shapes, found: Arrangement, blocks: Sequence[BlockShape], variant: Variant, numerics: Numerics
) -> Candidate:
    with sizes_of(_FAMILY):
        spec = _spec(shapes, found, blocks, variant, numerics)
    count, relus = len(blocks), _TABLES[variant].relus
    ends = {
        "stem": ("features.0.0", "features.0.1"),
        "head": (f"features.{count + 1}.0", f"features.{count + 1}.1"),
        "hidden": ("classifier.0",),
        "classifier": ("classifier.3",),
    }
    prefixes = [f"features.{index}." for index in range(1, count + 1)]
    activations = "ReLU" if relus == count else f"hard swish, and ReLU in the first {relus} blocks"
    arranged = f"arranged as in the {variant.replace('_', ' ')} form"
    return Candidate(
        spec,
        renamed(shapes, found, prefixes, COUNTED_LAYOUTS, ends),
        reasons=(
            f"The tensors are named as in {found.naming.author}.",
            f"The kernels and the squeeze-and-excite of {count} inverted residual blocks are {arranged}.",
        ),
        assumptions=(
            strides_assumption(spec),
            activation_assumption(activations, found),
            numerics_assumption(spec, numerics.origin),
        ),
    )


def _spec(
    shapes: Shapes, found: Arrangement, blocks: Sequence[BlockShape], variant: Variant, numerics: Numerics
) -> MobileNetV3Spec:
    stem, table = weight(shapes, found.ends["stem"][0], 4, _FAMILY), _TABLES[variant]
    late: Activation = "relu" if table.relus == len(blocks) else "hardswish"
    activations: list[Activation] = ["relu" if index < table.relus else late for index in range(len(blocks))]
    convolves = found.naming is _TIMM
    return MobileNetV3Spec(
        channels=stem[1],
        num_classes=weight(shapes, found.ends["classifier"][0], 2, _FAMILY)[0],
        variant=variant,
        stem_width=stem[0],
        stem_stride=2,
        blocks=joined(blocks, stem[0], table.strides, activations, ("relu", "hardsigmoid")),
        head_width=weight(shapes, found.ends["head"][0], 4, _FAMILY)[0],
        hidden_width=weight(shapes, found.ends["hidden"][0], 4 if convolves else 2, _FAMILY)[0],
        hidden="convolution" if convolves else "linear",
        activation=late,
        padding=numerics.padding,
        epsilon=numerics.epsilon,
        batch_norm=found.batch_norm,
    )
