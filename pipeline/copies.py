"""Images that are there twice, or nearly so: probes that the student learned from, on which agreement would say nothing, and
probes that are like each other, which count as one."""

import torch
import torch.nn.functional as F
from torch import Tensor

THUMBNAIL = 8
"""Pixels a side; what differs in detail only is the same image to a student."""

SAME_LEVELS = 1.5
"""Root mean square difference of two thumbnails, in levels of 255, up to which two images count as one."""

REPEATED_LEVELS = 4
"""The same for two probes of one generator. Where it has not collapsed, the nearest two are ten levels apart and more."""

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


@torch.no_grad()
def repeated(images: Tensor) -> int:
    """How many of the images `[N, C, H, W]`, uint8, have their like among those before them."""
    thumbnails = _thumbnails(images)
    limit = REPEATED_LEVELS * thumbnails.shape[1] ** 0.5
    count = 0
    for start in range(0, len(thumbnails), AT_ONCE):
        part = thumbnails[start : start + AT_ONCE]
        # Row r of this part is image start + r: only what lies left of it came before.
        alike = (torch.cdist(part, thumbnails[: start + len(part)]) <= limit).tril(start - 1)
        count += int(alike.any(1).sum())
    return count


def _thumbnails(images: Tensor) -> Tensor:
    """Means over areas, in levels, `[N, C * h * w]`."""
    height, width = (min(side, THUMBNAIL) for side in images.shape[2:])
    parts = images.split(AT_ONCE)  # one of them is floats at a time
    return torch.cat([F.adaptive_avg_pool2d(part.float(), (height, width)).flatten(1) for part in parts])
