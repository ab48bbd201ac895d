"""Normalisation belongs to the model, so that nobody can deploy it with the wrong mean."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A network behind its own input normalisation.

    Takes images `[N, C, H, W]`, float32 in [0, 1]; returns what the network returns for `(images - mean) / std`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]` in [0, 1] to what the network was trained on, of the same shape."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalise(images))
        return logits
