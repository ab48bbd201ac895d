"""Probes that are images which the student learned from, or nearly so: agreement on them would say nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

THUMBNAIL = 8
"""Pixels a side; what differs in detail only is the same image to a student."""

SAME_LEVELS = 1.5
"""Root mean square difference of two thumbnails, in levels of 255, up to which two images count as one."""

AT_ONCE = 4096
"""Images of the pool that are compared together."""


@torch.no_grad()
def copied(images: Tensor, pool: Tensor) -> int:
    """How many of the images `[N, C, H, W]` have their like in the pool `[M, C, H, W]`, both uint8."""
    probes = _thumbnails(images)
    nearest = torch.full((len(probes),), torch.inf)
    for part in pool.split(AT_ONCE):
        nearest = torch.minimum(nearest, torch.cdist(probes, _thumbnails(part)).amin(1))
    return int((nearest <= SAME_LEVELS * probes.shape[1] ** 0.5).sum())


def _thumbnails(images: Tensor) -> Tensor:
    """Means over areas, in levels, `[N, C * h * w]`."""
    height, width = (min(side, THUMBNAIL) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)
