"""Network architectures, described by frozen specs; teachers are recognised as one, students are built from one."""

from collections.abc import Callable
from typing import Any

from compress.pipeline.networks.convnext import ConvNeXt, ConvNeXtSpec
from compress.pipeline.networks.densenet import DenseNet, DenseNetSpec
from compress.pipeline.networks.efficientnet import EfficientNet, EfficientNetSpec
from compress.pipeline.networks.mobilenet_v2 import MobileNetV2, MobileNetV2Spec
from compress.pipeline.networks.mobilenet_v3 import MobileNetV3, MobileNetV3Spec
from compress.pipeline.networks.preact_resnet import PreActResNet, PreActResNetSpec
from compress.pipeline.networks.resnet import ResNet, ResNetSpec
from compress.pipeline.networks.shufflenet_v2 import ShuffleNetV2, ShuffleNetV2Spec
from compress.pipeline.networks.spec import NetworkSpec
from compress.pipeline.networks.staged import StagedNetwork
from compress.pipeline.networks.vgg import VGG, VGGSpec
from compress.pipeline.networks.vit import ViT, ViTSpec

_FAMILIES: dict[str, tuple[type[NetworkSpec], Callable[[Any], StagedNetwork]]] = {
    # the family's name in a spec, the spec's class, and what builds the network from it
    "convnext": (ConvNeXtSpec, ConvNeXt),
    "densenet": (DenseNetSpec, DenseNet),
    "efficientnet": (EfficientNetSpec, EfficientNet),
    "mobilenet_v2": (MobileNetV2Spec, MobileNetV2),
    "mobilenet_v3": (MobileNetV3Spec, MobileNetV3),
    "preact_resnet": (PreActResNetSpec, PreActResNet),
    "resnet": (ResNetSpec, ResNet),
    "shufflenet_v2": (ShuffleNetV2Spec, ShuffleNetV2),
    "vgg": (VGGSpec, VGG),
    "vit": (ViTSpec, ViT),
}


def spec_from_json(spec: dict[str, Any]) -> NetworkSpec:
    """The spec that a record stores as JSON.

    Raises:
        KeyError: there is no such family.
        pydantic.ValidationError: the family has no such spec.
    """
    return _FAMILIES[spec["family"]][0].model_validate(spec)


def build(spec: NetworkSpec | dict[str, Any]) -> StagedNetwork:
    """The network that a spec describes, with random weights, without input normalisation."""
    spec = spec if isinstance(spec, NetworkSpec) else spec_from_json(spec)
    return _FAMILIES[spec.family][1](spec)


__all__ = ["NetworkSpec", "StagedNetwork", "build", "spec_from_json"]
