"""Tiny residual networks and the checkpoints that training code would have made of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.pipeline.networks.resnet import ResNet, ResNetSpec

Weights = dict[str, Tensor]
Renaming = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def tiny_spec(**changes: Any) -> ResNetSpec:
    """Two stages of one and two blocks, 4 and 8 channels, 3 classes."""
    usual = {"stem": "cifar", "blocks": (1, 2), "widths": (4, 8), "stem_width": 4, "num_classes": 3}
    return ResNetSpec.model_validate(usual | changes)


def trained(spec: ResNetSpec) -> ResNet:
    """A network in evaluation mode whose batch norms have seen something."""
    network = ResNet(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return network


def weights_of(network: ResNet) -> Weights:
    return dict(network.state_dict())


def tiny_weights(**changes: Any) -> Weights:
    return weights_of(trained(tiny_spec(**changes)))


def renamed(weights: Weights, renaming: Renaming) -> Weights:
    """The weights under names in which each pattern was replaced, one after the other."""

    def apply(name: str) -> str:
        for pattern, replacement in renaming:
            name = re.sub(pattern, replacement, name)
        return name

    result = {apply(name): tensor for name, tensor in weights.items()}
    assert len(result) == len(weights)
    return result


def saved(content: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
