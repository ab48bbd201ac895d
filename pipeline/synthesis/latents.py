"""Where the randomness of images comes from: classes go in, latents come out that are drawn anew for every batch.

Source: NAYER (Tran et al., CVPR 2024, arXiv 2310.00258), section 3.2 and its published code.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLayers(nn.Module):
    """Classes `[N]` to latents `[N, latent]`: embedding, batch norm, and a linear layer that is random.

    Rows `i * K .. (i + 1) * K - 1` of a batch, one of each class, go through layer `i`, so that one layer of noise
    serves K labels ("K-to-1"). With more rows than layers the layers are used in turn.

    Args:
        embeddings: label-text embeddings `[K, dimension]`; frozen.
        latent: values that a layer puts out.
        layers: noisy layers, see `noisy_layers_for`.
    """

    DRAWN: ClassVar = ("weight", "bias")
    """Parameters that `redraw` gives new values."""

    embeddings: Tensor

    def __init__(self, embeddings: Tensor, latent: int, layers: int) -> None:
        super().__init__()
        num_classes, dimension = embeddings.shape
        self.num_classes = num_classes
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.norm = nn.BatchNorm1d(dimension)
        self.weight = nn.Parameter(torch.empty(layers, dimension, latent))
        self.bias = nn.Parameter(torch.empty(layers, latent))
        self.redraw()

    @torch.no_grad()
    def redraw(self) -> None:
        """New noise: weights from N(0, 1), biases 0."""
        # Drawn on the CPU, so that every device sees the same noise.
        self.weight.copy_(torch.randn(self.weight.shape))
        self.bias.zero_()

    def forward(self, targets: Tensor) -> Tensor:
        rows = self.norm(self.embeddings[targets])
        count, layers = len(rows), len(self.weight)
        block = min(self.num_classes, count)
        turns = math.ceil(count / (layers * block))
        # One product for all layers, [layers, turns * block, dimension] times [layers, dimension, latent].
        padded = F.pad(rows, (0, 0, 0, turns * layers * block - count))
        by_layer = padded.view(turns, layers, block, -1).transpose(0, 1).flatten(1, 2)
        latents = torch.baddbmm(self.bias[:, None], by_layer, self.weight)
        by_row: Tensor = latents.unflatten(1, (turns, block)).transpose(0, 1).flatten(0, 2)
        return by_row[:count]


class DirectLatents(nn.Module):
    """Classes `[N]` to latents `[N, latent]` that are drawn as such, with the covariance that noisy layers would give.

    The control experiment to `NoisyLayers`. A layer of N(0, 1) weights makes of normalised embeddings E `[K, dimension]`
    latents E W, whose values are normal with covariance E E^T between classes and independent of each other. Here they
    are drawn so, once for each class and block of classes, and the generator's optimiser moves them in place of the
    weights. What remains different is that a step for one class moves no other, and that E is normalised over the
    classes, not over the batch, without a scale and a shift that are trained.
    """

    DRAWN: ClassVar = ("latents",)
    """Parameters that `redraw` gives new values."""

    factor: Tensor

    def __init__(self, embeddings: Tensor, latent: int, layers: int) -> None:
        super().__init__()
        self.num_classes = len(embeddings)
        self.register_buffer("factor", gram_factor(embeddings), persistent=False)
        self.latents = nn.Parameter(torch.empty(layers, self.num_classes, latent))
        self.redraw()

    @torch.no_grad()
    def redraw(self) -> None:
        """New latents."""
        layers, _, latent = self.latents.shape
        self.latents.copy_(self.factor.cpu() @ torch.randn(layers, self.factor.shape[1], latent))

    def forward(self, targets: Tensor) -> Tensor:
        blocks = torch.arange(len(targets), device=targets.device) // self.num_classes
        latents: Tensor = self.latents[blocks % len(self.latents), targets]
        return latents


def gram_factor(embeddings: Tensor) -> Tensor:
    """A factor A `[K, min(K, dimension)]` with A A^T = E E^T, E being embeddings `[K, dimension]` behind batch norm.

    By the singular value decomposition E = U S V^T it is U S.
    """
    normalised = F.batch_norm(embeddings.double(), None, None, training=True)
    directions, lengths, _ = torch.linalg.svd(normalised, full_matrices=False)
    factor: Tensor = directions * lengths
    return factor.to(embeddings.dtype)


def noisy_layers_for(batch_size: int, num_classes: int, most: int | None = None) -> int:
    """`ceil(batch_size / num_classes)` noisy layers, one for each block of classes, but not more than `most`."""
    layers = math.ceil(batch_size / num_classes)
    return layers if most is None else min(layers, most)


def balanced_targets(batch_size: int, num_classes: int) -> Tensor:
    """Classes `[batch_size]`: as many whole runs of 0..K-1 as fit, and random ones, no two alike, for what is left over.

    In the published settings nothing is left over, except on ImageNet, where the published code deals out a random
    order of the classes.
    """
    whole = torch.arange(num_classes).repeat(batch_size // num_classes)
    return torch.cat([whole, torch.randperm(num_classes)[: batch_size % num_classes]])
