"""Network architectures, described by frozen specs; teachers are recognised as one, students are built from one."""

from typing import Any

from compress.pipeline.networks.resnet import ResNet, ResNetSpec

NetworkSpec = ResNetSpec
"""Any family's spec; `family` in its JSON tells them apart."""

Network = ResNet
"""Any family's network."""


def spec_from_json(spec: dict[str, Any]) -> NetworkSpec:
    """The spec that a record stores as JSON.

    Raises:
        pydantic.ValidationError: no family has such a spec.
    """
    return ResNetSpec.model_validate(spec)


def build(spec: dict[str, Any]) -> Network:
    """The network that a record's spec describes, with random weights, without input normalisation."""
    return ResNet(spec_from_json(spec))


__all__ = ["Network", "NetworkSpec", "build", "spec_from_json"]
