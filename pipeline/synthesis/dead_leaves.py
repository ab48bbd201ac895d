"""Images of dead leaves: shapes that hide each other, the simplest model of photographs that has edges.

Networks respond to them in their early layers as they do to photographs, which makes them something to learn from where
a teacher cannot say by its batch norms what images of its training were like.

Source: Lee, Mumford & Huang, "Occlusion models for natural images", IJCV 2001; Baradad et al., "Learning to See by
Looking at Noise", NeurIPS 2021, who trained networks on them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.records import InputSpec
from compress.pipeline.synthesis.losses import CHANNEL_CORRELATION

SMALLEST, LARGEST = 0.06, 0.5
"""Half the size of a leaf, as a share of the image's longer side; its density falls as 1 / size^2."""

LEAVES = 100
"""Leaves that fall on an image; less than a hundredth of it stays bare, and has the mean colour."""

FINEST_GRID = 64
"""Points on the longer side that leaves are drawn on at least; averaging them to pixels softens the edges."""


def dead_leaves(count: int, images: InputSpec, device: torch.device) -> Tensor:
    """Random images `[count, C, H, W]` in [0, 1] on the device; randomness is that of torch's global CPU generator.

    Colours have the mean and the deviation that the input is normalised by, and the correlation of photographs.
    """
    finer = max(FINEST_GRID // max(images.height, images.width), 1)
    rows, columns = _grid(images, finer, device)
    top = torch.zeros(count, len(rows), columns.shape[1], dtype=torch.uint8, device=device)  # 0 is bare
    for leaf in range(1, LEAVES + 1):
        top = torch.where(_inside(count, leaf % 2 == 0, rows, columns), leaf, top)
    colours = _colours(count, images).to(device)
    drawn = colours[torch.arange(count, device=device)[:, None, None], top.long()].permute(0, 3, 1, 2)
    return F.avg_pool2d(drawn.clamp(0, 1), finer)


def _grid(images: InputSpec, finer: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row `[h, 1]` and column `[1, w]` of each point, in units of the longer side."""
    longer = finer * max(images.height, images.width)
    rows, columns = (
        (torch.arange(finer * side, device=device) + 0.5) / longer for side in (images.height, images.width)
    )
    return rows[:, None], columns[None]


def _inside(count: int, is_disc: bool, rows: Tensor, columns: Tensor) -> Tensor:
    """The points `[count, h, w]` that one leaf covers in each image: a disc or a square, turned and stretched."""
    draws = torch.rand(5, count, 1, 1).to(rows.device)  # on the CPU, so that every device draws alike
    size = 1 / (1 / SMALLEST + draws[0] * (1 / LARGEST - 1 / SMALLEST))
    # Centres lie up to a fifth of the longer side outside, so that the border of an image is like its middle.
    down, right = rows + 0.2 - 1.4 * draws[1], columns + 0.2 - 1.4 * draws[2]
    turn, stretch = math.pi * draws[3], (1.2 * (draws[4] - 0.5)).exp()
    along = (right * turn.cos() + down * turn.sin()) * (stretch / size)
    across = (down * turn.cos() - right * turn.sin()) / (stretch * size)
    if is_disc:
        return along.square() + across.square() < 1
    return torch.maximum(along.abs(), across.abs()) < 1


def _colours(count: int, images: InputSpec) -> Tensor:
    """What is bare and each leaf of each image, `[count, 1 + LEAVES, C]`, not yet kept to [0, 1]."""
    grey, own = torch.randn(count, LEAVES, 1), torch.randn(count, LEAVES, images.channels)
    mixed = CHANNEL_CORRELATION**0.5 * grey + (1 - CHANNEL_CORRELATION) ** 0.5 * own
    return torch.tensor(images.mean) + torch.tensor(images.std) * F.pad(mixed, (0, 0, 1, 0))
