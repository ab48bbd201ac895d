"""Which of the channels inside its teacher's blocks a narrower student keeps, and their weights.

What a block puts out keeps its width, so that stages can still be matched and blocks exchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork
from compress.pipeline.networks.staged import Inner

Channels = Sequence[Sequence[int]]
"""Of each group of `StagedNetwork.inner_channels`, the channels that stay, in ascending order."""


@torch.no_grad()
def choose_channels(student: StagedNetwork, whole: StagedNetwork, images: Tensor | None = None) -> Channels:
    """The channels of each group that matter most to the layer that takes them in.

    A channel x with the weights w that take it in adds w x to every output; its score is the mean square of x times the
    squared length of w, which is the power of what it adds.

    Source: Wanda (Sun et al., ICLR 2024, equation 1) for the product of a weight and its input's norm, summed up over the
    weights that go with a channel.

    Args:
        student: whose groups say how many channels stay.
        whole: of the same blocks with all their channels.
        images: normalised, `[N, C, H, W]`; without them all channels count as equally strong.
    """
    groups = whole.inner_channels()
    powers = {} if images is None else _powers(whole, [inner.taken_in[0] for inner in groups], images)
    return [
        _strongest(_score(whole, inner, powers), _count(student, mine))
        for inner, mine in zip(groups, student.inner_channels(), strict=True)
    ]


def narrowed_weights(weights: Mapping[str, Tensor], groups: Sequence[Inner], channels: Channels) -> dict[str, Tensor]:
    """The tensors of a network, those that belong to a group with the chosen channels only."""
    narrow = dict(weights)
    for inner, chosen in zip(groups, channels, strict=True):
        for layer in inner.put_out:
            narrow |= {name: _at(tensor, 0, chosen) for name, tensor in _of(layer, narrow) if tensor.dim()}
        for layer in inner.taken_in:
            narrow[f"{layer}.weight"] = _at(narrow[f"{layer}.weight"], 1, chosen)
    return narrow


def _of(layer: str, weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in weights.items() if name.rpartition(".")[0] == layer]


def _at(tensor: Tensor, dim: int, chosen: Sequence[int]) -> Tensor:
    return tensor.index_select(dim, torch.tensor(chosen, device=tensor.device))


def _count(network: StagedNetwork, inner: Inner) -> int:
    return network.get_parameter(f"{inner.put_out[0]}.weight").shape[0]


def _score(network: StagedNetwork, inner: Inner, powers: Mapping[str, Tensor]) -> Tensor:
    """Of each channel of a group, `[C]`."""
    layer = inner.taken_in[0]
    lengths = network.get_parameter(f"{layer}.weight").float().transpose(0, 1).flatten(1).square().sum(1)
    return lengths * powers[layer] if layer in powers else lengths


def _strongest(score: Tensor, count: int) -> list[int]:
    """Indices of the highest scores, in ascending order; of equals, those that come first."""
    ranked: list[int] = torch.argsort(score, descending=True, stable=True)[:count].tolist()
    return sorted(ranked)


def _powers(network: StagedNetwork, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Mean square of every channel that enters each of these layers, `[C]`, while the network sees the images."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            hook: Callable[..., None] = partial(_note_power, found, layer)
            hooks.callback(network.get_submodule(layer).register_forward_pre_hook(hook).remove)
        network(images)
    return found


def _note_power(found: dict[str, Tensor], layer: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Channels come last in a linear layer's input, and behind the images in a convolution's."""
    squares = inputs[0].float().square()
    channels = squares if isinstance(module, nn.Linear) else squares.movedim(1, -1)
    found[layer] = channels.flatten(0, -2).mean(0)
