"""What the tests of several families share: random weights, and shapes that no layer has."""

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

HOSTILE_SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (0, 0, 0, 0),
    (1 << 60,),
    (1 << 60, 1 << 60),
    (1 << 20, 1 << 20, 1 << 20, 1 << 20),
    (1, 1, 1, 1, 1),
]
"""Among them such whose numbers of elements do not fit into 64 bits."""


@torch.no_grad()
def randomised(network: nn.Module) -> nn.Module:
    """The network with parameters all of which matter, those that begin as zeros or ones too."""
    for parameter in network.parameters():
        parameter.normal_()
    return network


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
