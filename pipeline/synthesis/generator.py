"""NAYER's generator: classes go in, random latents are made of them, and images come out.

Source: NAYER (Tran et al., CVPR 2024), section 3.2 and figure 2; the layers are those of its published code for images
of 32 and 64 px and, deeper, of 224 px, with start size and number of upsamplings worked out for any other size.
"""

import math
from itertools import pairwise

from torch import Tensor, nn, sigmoid

from compress.pipeline.settings import LatentSource
from compress.pipeline.synthesis.latents import DirectLatents, NoisyLayers

LARGEST_START = 16
"""Pixels that the first map measures at most: the linear layer before it grows with their square."""


class Generator(nn.Module):
    """Classes `[N]` to images `[N, channels, height, width]` in [0, 1].

    Always in training mode: its batch norms see the batch that is being made.

    Args:
        embeddings: label-text embeddings `[K, dimension]`; frozen.
        size: height and width of the images.
        channels: 1 or 3.
        layers: noisy layers, see `noisy_layers_for`.
        latent: values that each image is made from.
        width: channels of the last stage; the first ones have twice as many.
        latent_source: `noisy_layer`, as published, or `direct`, see `DirectLatents`.
    """

    def __init__(
        self,
        embeddings: Tensor,
        size: tuple[int, int],
        channels: int,
        *,
        layers: int,
        latent: int,
        width: int,
        latent_source: LatentSource = "noisy_layer",
    ) -> None:
        super().__init__()
        self.size = size
        doublings = upsamplings_for(max(size))
        self.start = tuple(math.ceil(side / 2**doublings) for side in size)
        self.noisy = (NoisyLayers if latent_source == "noisy_layer" else DirectLatents)(embeddings, latent, layers)
        self.project = nn.Linear(latent, 2 * width * self.start[0] * self.start[1])
        stages = _shallow(width) if doublings == 2 else _deep(doublings, width)
        self.images = nn.Sequential(*stages, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, targets: Tensor) -> Tensor:
        maps = self.project(self.noisy(targets)).unflatten(1, (-1, *self.start))
        images = sigmoid(self.images(maps).float())
        return images[:, :, : self.size[0], : self.size[1]]


def upsamplings_for(side: int) -> int:
    """Doublings between the generator's first map and images with this longer side.

    As published, 2 up to 64 px and 4 at 224 px; beyond 256 px as many as keep the first map at `LARGEST_START`.
    """
    if side <= 4 * LARGEST_START:
        return 2
    return max(4, math.ceil(math.log2(side / LARGEST_START)))


def _shallow(width: int) -> list[nn.Module]:
    """Batch norm, then two upsamplings; for images up to 64 px."""
    return [nn.BatchNorm2d(2 * width), *_upsampled(2 * width, 2 * width), *_upsampled(2 * width, width)]


def _deep(doublings: int, width: int) -> list[nn.Module]:
    """A convolution, then all upsamplings, the first one still with `2 * width` channels; for larger images."""
    channels = [2 * width, 2 * width, *[width] * (doublings - 1)]
    stages = [stage for before, after in pairwise(channels) for stage in _upsampled(before, after)]
    return [*_convolution(2 * width, 2 * width), *stages]


def _upsampled(before: int, after: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), *_convolution(before, after)]


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
