"""ShuffleNetV2, as torchvision and the usual CIFAR repositories name its layers."""

from itertools import groupby
from operator import itemgetter
from typing import Literal

from compress.pipeline.networks.shufflenet_v2 import ShuffleNetV2Spec
from compress.pipeline.teacher.families import Candidate, Shapes
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

_FAMILY = "ShuffleNetV2"

Stem = Literal["imagenet", "cifar"]

_UNIT: Layout = {
    "expansion": ("branch2.0", "branch2.1"),
    "depthwise": ("branch2.3", "branch2.4"),
    "projection": ("branch2.5", "branch2.6"),
}
_STRIDED: Layout = {"left depthwise": ("branch1.0", "branch1.1"), "left": ("branch1.2", "branch1.3"), **_UNIT}
_WEIAICUNZAI_UNIT: Layout = {
    "expansion": ("residual.0", "residual.1"),
    "depthwise": ("residual.3", "residual.4"),
    "projection": ("residual.5", "residual.6"),
}

_TORCHVISION = Naming(
    author="torchvision",  # chenyaofo/pytorch-cifar-models is of the same names and of the CIFAR form
    block="stage*.*.",
    layouts=(_STRIDED, _UNIT),
    ends={"stem": ("conv1.0", "conv1.1"), "head": ("conv5.0", "conv5.1"), "classifier": ("fc",)},
)
_KUANGLIU = Naming(
    author="kuangliu/pytorch-cifar",  # and RepDistiller, which has a stem of one pixel
    block="layer*.*.",
    layouts=(
        {
            "left depthwise": ("conv1", "bn1"),
            "left": ("conv2", "bn2"),
            "expansion": ("conv3", "bn3"),
            "depthwise": ("conv4", "bn4"),
            "projection": ("conv5", "bn5"),
        },
        {"expansion": ("conv1", "bn1"), "depthwise": ("conv2", "bn2"), "projection": ("conv3", "bn3")},
    ),
    ends={"stem": ("conv1", "bn1"), "head": ("conv2", "bn2"), "classifier": ("linear",)},
)
_WEIAICUNZAI = Naming(
    author="weiaicunzai/pytorch-cifar100",
    block="stage*.*.",
    layouts=(
        {
            "left depthwise": ("shortcut.0", "shortcut.1"),
            "left": ("shortcut.2", "shortcut.3"),
            **_WEIAICUNZAI_UNIT,
        },
        _WEIAICUNZAI_UNIT,
    ),
    ends={"stem": ("pre.0", "pre.1"), "head": ("conv5.0", "conv5.1"), "classifier": ("fc",)},
)
_STEMS: dict[str, tuple[Stem, ...]] = {
    _TORCHVISION.author: ("imagenet", "cifar"),
    _KUANGLIU.author: ("cifar",),
    _WEIAICUNZAI.author: ("cifar",),
}


def shufflenet_v2_candidates(shapes: Shapes) -> list[Candidate]:
    """A ShuffleNetV2 for each stem that goes with such names.

    Raises:
        NotInFamily: layers are left over or missing.
    """
    found = arrange(shapes, (_TORCHVISION, _KUANGLIU, _WEIAICUNZAI), _FAMILY)
    return [_candidate(shapes, found, stem) for stem in _STEMS[found.naming.author]]


def _candidate(shapes: Shapes, found: Arrangement, stem: Stem) -> Candidate:
    with sizes_of(_FAMILY):
        spec = _spec(shapes, found, stem)
    prefixes = [
        f"stage{stage}.{index}." for stage, repeat in enumerate(spec.repeats, start=2) for index in range(repeat)
    ]
    strides = "2, with pooling after it," if stem == "imagenet" else "1"
    return Candidate(
        spec,
        renamed(shapes, found, prefixes, (_STRIDED, _UNIT), _TORCHVISION.ends),
        reasons=(
            f"The tensors are named as in {found.naming.author}.",
            f"{sum(spec.repeats)} units of two branches in {len(spec.repeats)} stages.",
        ),
        assumptions=(
            f"Strides leave no trace in a checkpoint; the stem's is taken to be {strides} and 2 begins each stage.",
            activation_assumption("ReLU" + ("" if spec.stem_activation == "relu" else ", and none in the stem"), found),
        ),
    )


def _spec(shapes: Shapes, found: Arrangement, stem: Stem) -> ShuffleNetV2Spec:
    stages = [[found.blocks[place] for place in places] for _, places in groupby(found.blocks, key=itemgetter(0))]
    first = weight(shapes, found.ends["stem"][0], 4, _FAMILY)
    widths = tuple(2 * weight(shapes, units[0]["projection"][0], 4, _FAMILY)[0] for units in stages)
    inner = weight(shapes, stages[0][0]["depthwise"][0], 4, _FAMILY)[0]
    return ShuffleNetV2Spec(
        channels=first[1],
        num_classes=weight(shapes, found.ends["classifier"][0], 2, _FAMILY)[0],
        stem=stem,
        stem_kernel=first[2],
        stem_activation="none" if found.naming is _WEIAICUNZAI else "relu",
        stem_width=first[0],
        repeats=tuple(len(units) for units in stages),
        widths=widths,
        head_width=weight(shapes, found.ends["head"][0], 4, _FAMILY)[0],
        inner="out" if 2 * inner == widths[0] else "in",
        batch_norm=found.batch_norm,
        bias=found.batch_norm and f"{found.ends['stem'][0]}.bias" in shapes,
    )
