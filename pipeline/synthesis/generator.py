"""NAYER's generator: the label's text embedding goes in, and the randomness sits in a noisy layer.

Source: NAYER (Tran et al., CVPR 2024), section 3.2 and figure 2; the layers are those of its published code for 32 and
64 px, with the start size and the number of upsamplings worked out for any other image size.
"""

import math

import torch
from torch import Tensor, nn


class NoisyLayers(nn.Module):
    """`[N, dimension]` to `[N, latent]`: batch norm, then linear layers that are drawn anew for every batch of images.

    Rows `i * K .. (i + 1) * K - 1` of a batch, one of each class, go through layer `i`, so that one layer of noise
    serves K labels ("K-to-1"). With more rows than layers the layers are used in turn.
    """

    def __init__(self, dimension: int, latent: int, num_classes: int, layers: int) -> None:
        super().__init__()
        self.num_classes = num_classes
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

    def forward(self, embeddings: Tensor) -> Tensor:
        rows = self.norm(embeddings)
        block = self.num_classes
        blocks = [
            torch.addmm(
                self.bias[index % len(self.weight)], rows[start : start + block], self.weight[index % len(self.weight)]
            )
            for index, start in enumerate(range(0, len(rows), block))
        ]
        return torch.cat(blocks)


class Generator(nn.Module):
    """Classes `[N]` to images `[N, channels, height, width]` in [0, 1].

    Always in training mode: its batch norms see the batch that is being made.

    Args:
        embeddings: label-text embeddings `[K, dimension]`; frozen.
        size: height and width of the images.
        channels: 1 or 3.
        layers: noisy layers, see `noisy_layers_for`.
        latent: what a noisy layer puts out.
        width: channels of the last stage; the stages before have twice as many.
    """

    embeddings: Tensor

    def __init__(
        self, embeddings: Tensor, size: tuple[int, int], channels: int, *, layers: int, latent: int, width: int
    ) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.size = size
        doublings = upsamplings_for(max(size))
        self.start = tuple(math.ceil(side / 2**doublings) for side in size)
        self.noisy = NoisyLayers(embeddings.shape[1], latent, len(embeddings), layers)
        self.project = nn.Linear(latent, 2 * width * self.start[0] * self.start[1])
        self.images = nn.Sequential(
            nn.BatchNorm2d(2 * width), *_stages(doublings, width), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, targets: Tensor) -> Tensor:
        maps = self.project(self.noisy(self.embeddings[targets])).unflatten(1, (-1, *self.start))
        images = torch.sigmoid(self.images(maps).float())
        return images[:, :, : self.size[0], : self.size[1]]


def _stages(doublings: int, width: int) -> list[nn.Module]:
    """Upsample twice, then 3x3 convolution, batch norm and LeakyReLU; the first ones have `2 * width` channels."""
    stages: list[nn.Module] = []
    for index in range(doublings):
        before, after = (2 * width, 2 * width if index < doublings - 1 else width)
        stages += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.2),
        ]
    return stages


def upsamplings_for(side: int) -> int:
    """Doublings between the generator's first map and an image: 2 up to 64 px, as published, 4 for larger ones."""
    return 2 if side <= 64 else 4


def noisy_layers_for(batch_size: int, num_classes: int, most: int) -> int:
    """`ceil(batch_size / num_classes)` noisy layers, one for each block of classes, but not more than `most`."""
    return min(math.ceil(batch_size / num_classes), most)


def balanced_targets(batch_size: int, num_classes: int) -> Tensor:
    """Classes `[batch_size]`: as many whole runs of 0..K-1 as fit, and random ones for what is left over."""
    whole = torch.arange(num_classes).repeat(batch_size // num_classes)
    return torch.cat([whole, torch.randint(num_classes, (batch_size % num_classes,))])
