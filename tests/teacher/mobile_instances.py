"""A narrow and shallow instance of each mobile network, by the author of its names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import nn

from compress.pipeline.teacher.families import Family, Shapes
from compress.pipeline.teacher.families.efficientnet import efficientnet_candidates
from compress.pipeline.teacher.families.mobilenet_v2 import mobilenet_v2_candidates
from compress.pipeline.teacher.families.mobilenet_v3 import mobilenet_v3_candidates
from compress.pipeline.teacher.families.shufflenet_v2 import shufflenet_v2_candidates
from tests.teacher import foreign_mobile as mobile
from tests.teacher import foreign_mobile_others as others
from tests.teacher import foreign_shufflenet as shufflenet
from tests.teacher.foreign import on_meta, shapes_of
from tests.teacher.foreign_mobile import Function, Row

STEM, HEAD, HIDDEN, CLASSES = 8, 20, 24, 5


def stages(
    ratios: Sequence[float],
    widths: Sequence[int],
    counts: Sequence[int],
    strides: Sequence[int],
    act: Function,
    kernels: Sequence[int] = (3,) * 7,
    squeezed: Sequence[int] = (0,) * 7,
) -> list[Row]:
    columns = zip(ratios, widths, counts, strides, kernels, squeezed, strict=True)
    return [
        Row(ratio, width, count, stride, kernel, squeeze, act)
        for ratio, width, count, stride, kernel, squeeze in columns
    ]


USUAL_STRIDES, SMALL_STRIDES = (1, 2, 2, 2, 1, 2, 1), (1, 1, 2, 2, 1, 2, 1)


def v2_rows(act: Function, strides: Sequence[int] = USUAL_STRIDES) -> list[Row]:
    return stages((1, 3, 3, 2, 3, 2, 3), (4, 6, 8, 10, 12, 14, 16), (1, 2, 1, 2, 1, 2, 1), strides, act)


EFFICIENTNET_ROWS = stages(
    (1, 3, 3, 2, 3, 2, 3),
    (4, 6, 8, 10, 12, 14, 16),
    (2, 2, 1, 2, 1, 2, 1),
    USUAL_STRIDES,
    F.silu,
    (3, 3, 5, 3, 5, 5, 3),
    (2, 1, 2, 2, 3, 3, 4),
)


def v3_rows(widths: Sequence[int], kernels: str, squeezed: str, strides: str, relus: int) -> list[Row]:
    """A row a block; the first expands nothing."""
    columns = zip(widths, kernels, squeezed, strides, strict=True)
    return [
        Row(2 if index else 1, width, 1, int(stride), int(kernel), 2 if squeeze == "+" else 0, act)
        for index, (width, kernel, squeeze, stride) in enumerate(columns)
        for act in [F.relu if index < relus else F.hardswish]
    ]


LARGE_WIDTHS = (8, 10, 10, 12, 12, 12, 14, 14, 14, 14, 16, 16, 18, 18, 18)
SMALL_WIDTHS = (8, 10, 10, 12, 12, 12, 14, 14, 16, 16, 16)
# Howard et al., "Searching for MobileNetV3", ICCV 2019, tables 1 and 2
LARGE_ROWS = v3_rows(LARGE_WIDTHS, "333555333333555", "---+++----+++++", "121211211111211", 6)
SMALL_ROWS = v3_rows(SMALL_WIDTHS, "33355555555", "+--++++++++", "22121111211", 3)
MINIMAL_ROWS = v3_rows(SMALL_WIDTHS, "3" * 11, "-" * 11, "22121111211", 11)


def _timm(rows: Sequence[Row], act: Function, hidden: int = 0, *, ported: bool = False) -> mobile.Timm:
    """Stages as timm groups them; ported from TensorFlow, it pads as there and has that epsilon."""
    grouped = [rows[:1], rows[1:3], rows[3:]] if hidden else [[row] for row in rows]
    eps = 1e-3 if ported else 1e-5
    return mobile.Timm(STEM, grouped, HEAD, CLASSES, act, hidden, eps, ported)


FAMILIES: dict[str, Family] = {
    "mobilenet_v2": mobilenet_v2_candidates,
    "mobilenet_v3": mobilenet_v3_candidates,
    "efficientnet": efficientnet_candidates,
    "shufflenet_v2": shufflenet_v2_candidates,
}


class Instance(NamedTuple):
    family: str
    right: int
    """Which of the candidates it is."""
    make: Callable[[], nn.Module]


def _v2(author: Callable[..., nn.Module], act: Function, *strides: int, right: int = 0, **options: int) -> Instance:
    return Instance("mobilenet_v2", right, lambda: author(STEM, v2_rows(act, strides), HEAD, CLASSES, **options))


def _v3(rows: Sequence[Row]) -> Instance:
    return Instance("mobilenet_v3", 0, lambda: mobile.TorchvisionV3(STEM, rows, HEAD, HIDDEN, CLASSES))


def _efficientnet(author: Callable[..., nn.Module], head: int = HEAD) -> Instance:
    return Instance("efficientnet", 0, lambda: author(STEM, EFFICIENTNET_ROWS, head, CLASSES))


def _shufflenet(author: Callable[..., nn.Module], right: int = 0, **options: int) -> Instance:
    return Instance("shufflenet_v2", right, lambda: author(STEM, (12, 16, 20), (2, 3, 1), HEAD, CLASSES, **options))


INSTANCES = {
    "MobileNetV2, torchvision": _v2(mobile.TorchvisionV2, F.relu6, *USUAL_STRIDES),
    "MobileNetV2, chenyaofo": _v2(mobile.TorchvisionV2, F.relu6, *SMALL_STRIDES, right=1, stem_stride=1),
    "MobileNetV2, tonylins": _v2(mobile.TorchvisionV2, F.relu6, *USUAL_STRIDES, flat=True),
    "MobileNetV2, d-li14": _v2(mobile.DLi14V2, F.relu6, *USUAL_STRIDES),
    "MobileNetV2, timm": Instance("mobilenet_v2", 0, lambda: _timm(v2_rows(F.relu6, USUAL_STRIDES), F.relu6)),
    "MobileNetV2, kuangliu": _v2(others.Kuangliu, F.relu, *SMALL_STRIDES),
    "MobileNetV2, RepDistiller": _v2(others.RepDistillerV2, F.relu, *SMALL_STRIDES),
    "MobileNetV2, weiaicunzai": _v2(others.WeiaicunzaiV2, F.relu6, 1, 2, 2, 2, 1, 1, 1),
    "MobileNetV3 large, torchvision": _v3(LARGE_ROWS),
    "MobileNetV3 small, torchvision": _v3(SMALL_ROWS),
    "MobileNetV3 large, timm": Instance("mobilenet_v3", 0, lambda: _timm(LARGE_ROWS, F.hardswish, HIDDEN)),
    "MobileNetV3 small, timm from TensorFlow": Instance(
        "mobilenet_v3", 1, lambda: _timm(SMALL_ROWS, F.hardswish, HIDDEN, ported=True)
    ),
    "MobileNetV3 minimal, timm from TensorFlow": Instance(
        "mobilenet_v3", 1, lambda: _timm(MINIMAL_ROWS, F.relu, HIDDEN, ported=True)
    ),
    "EfficientNet, torchvision": _efficientnet(mobile.TorchvisionEfficientNet),
    "EfficientNet, timm": Instance("efficientnet", 0, lambda: _timm(EFFICIENTNET_ROWS, F.silu)),
    "EfficientNet, timm from TensorFlow": Instance(
        "efficientnet", 1, lambda: _timm(EFFICIENTNET_ROWS, F.silu, ported=True)
    ),
    "EfficientNet, lukemelas": _efficientnet(others.Lukemelas),
    "EfficientNet, kuangliu": _efficientnet(others.Kuangliu, head=0),
    "ShuffleNetV2, torchvision": _shufflenet(shufflenet.TorchvisionShuffle),
    "ShuffleNetV2, chenyaofo": _shufflenet(shufflenet.TorchvisionShuffle, right=1, small=True),
    "ShuffleNetV2, kuangliu": _shufflenet(shufflenet.KuangliuShuffle),
    "ShuffleNetV2, RepDistiller": _shufflenet(shufflenet.KuangliuShuffle, stem_kernel=1),
    "ShuffleNetV2, weiaicunzai": _shufflenet(shufflenet.WeiaicunzaiShuffle),
}


def shapes_of_instance(name: str) -> Shapes:
    return shapes_of(on_meta(INSTANCES[name].make))


def family_of(name: str) -> Family:
    return FAMILIES[INSTANCES[name].family]
