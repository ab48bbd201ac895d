"""A tiny network of every family, in as many forms as differ in how stages and blocks lie in them."""

from typing import Any

import torch
from torch import nn

from compress.pipeline.networks import NetworkSpec, StagedNetwork, build
from compress.pipeline.networks.convnext import ConvNeXtSpec
from compress.pipeline.networks.densenet import DenseNetSpec
from compress.pipeline.networks.efficientnet import EfficientNetSpec
from compress.pipeline.networks.inverted_residual import Block, Squeeze
from compress.pipeline.networks.mobilenet_v2 import MobileNetV2Spec
from compress.pipeline.networks.mobilenet_v3 import MobileNetV3Spec
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.preact_resnet import PreActResNetSpec
from compress.pipeline.networks.shufflenet_v2 import ShuffleNetV2Spec
from compress.pipeline.networks.vgg import VGGSpec
from compress.pipeline.networks.vit import ViTSpec
from compress.pipeline.teacher import Teacher
from tests.networks import unsettle
from tests.tiny import record_of, tiny_spec

SIZE = 16
"""Height and width in pixels that all of them take."""


def _block(out: int, entering: int, stride: int = 1, **changes: Any) -> Block:
    """Three times wider inside than it begins; with a shortcut wherever the shape allows it."""
    shortcut = "identity" if stride == 1 and out == entering else "none"
    usual = {"kernel": 3, "stride": stride, "expanded": 3 * entering, "out": out, "shortcut": shortcut}
    return Block.model_validate(usual | {"activation": "relu"} | changes)


def _blocks(**changes: Any) -> tuple[Block, ...]:
    """Of 8, 8 and 8, then 16, 16 and 16, then 24 and 24 channels; the last two of them at the resolution before."""
    first = _block(8, 8, expanded=8, expansion="none")
    rows = ((8, 8, 1), (8, 8, 1), (16, 8, 2), (16, 16, 1), (16, 16, 1), (24, 16, 1), (24, 24, 1))
    return first, *(_block(out, entering, stride, **changes) for out, entering, stride in rows)


_ENDS: dict[str, Any] = {"stem_width": 8, "stem_stride": 1, "head_width": 32, "num_classes": 4}
_SQUEEZE = Squeeze(width=4, activation="relu", gate="hardsigmoid")

SPECS: dict[str, NetworkSpec] = {
    "ResNet": tiny_spec(blocks=(3, 3)),
    "ResNet of bottlenecks, shortcuts padded": tiny_spec(
        blocks=(3, 3), block="bottleneck", widths=(4, 8), shortcut="pad"
    ),
    "PreActResNet": PreActResNetSpec(blocks=(3, 3), widths=(8, 16), stem_width=8, num_classes=4),
    "PreActResNet of bottlenecks": PreActResNetSpec(
        block="bottleneck", blocks=(2, 3), widths=(4, 8), stem_width=8, projected="raw", ending="none", num_classes=4
    ),
    "VGG": VGGSpec(blocks=((8, 8, 8), (16, 16, 16)), hidden=(12,), grid=2, num_classes=4),
    "VGG ending in convolutions": VGGSpec(
        blocks=((8, 8), (8, 8, 8)), hidden=(12,), grid=2, head="convolutional", last_pool=False, num_classes=4
    ),
    "VGG without batch norm": VGGSpec(blocks=((8, 8, 8), (16, 16, 16)), batch_norm=False, num_classes=4),
    "DenseNet": DenseNetSpec(
        stem="cifar", layers=(3, 3), growth=4, bottleneck=16, transitions=(10,), stem_width=8, stem_norm=False,
        num_classes=4,
    ),
    "DenseNet, newest first": DenseNetSpec(
        stem="imagenet", layers=(2, 3), growth=4, bottleneck=None, transitions=(10,), stem_width=8, stem_norm=True,
        order="newest first", num_classes=4,
    ),
    "MobileNetV2": MobileNetV2Spec(blocks=_blocks(), **_ENDS),
    "MobileNetV2 without batch norm": MobileNetV2Spec(blocks=_blocks(), batch_norm=False, **_ENDS),
    "MobileNetV3": MobileNetV3Spec(variant="small", blocks=_blocks(squeeze=_SQUEEZE), hidden_width=20, **_ENDS),
    "EfficientNet": EfficientNetSpec(blocks=_blocks(squeeze=_SQUEEZE), repeats=(3, 3, 2), **_ENDS),
    "EfficientNet without head": EfficientNetSpec(
        blocks=(*_blocks()[:-1], _block(24, 24, expanded=24, expansion="idle")), repeats=(1, 5, 2),
        **(_ENDS | {"head_width": None}),
    ),
    "ShuffleNetV2": ShuffleNetV2Spec(
        stem="cifar", stem_width=8, repeats=(3, 3), widths=(16, 32), head_width=24, num_classes=4
    ),
    "ShuffleNetV2 without batch norm": ShuffleNetV2Spec(
        stem="cifar", stem_width=8, repeats=(3, 3), widths=(16, 32), head_width=24, num_classes=4, batch_norm=False
    ),
    "ConvNeXt": ConvNeXtSpec(blocks=(3, 3), widths=(8, 16), patch=2, kernel=3, num_classes=4),
    "ViT": ViTSpec(patch=4, grid=4, width=16, depth=6, mlp_width=32, heads=2, stages=(3, 3), num_classes=4),
}  # fmt: skip


def network_of(name: str, seed: int = 3) -> StagedNetwork:
    """Random weights all of which matter, in evaluation mode; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(SPECS[name])
        for parameter in network.parameters():
            if parameter.dim() < 2:
                nn.init.uniform_(parameter, 0.5, 1.5)
        return unsettle(network).eval()  # type: ignore[return-value]  # it returns what it was given


def teacher_of(name: str) -> Teacher:
    """A teacher of that network."""
    record = record_of(SPECS[name], SIZE)
    return Teacher(record, Normalised(network_of(name), record.input.mean, record.input.std))


def images(count: int = 4) -> torch.Tensor:
    """Images `[N, 3, SIZE, SIZE]` in [0, 1]."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
