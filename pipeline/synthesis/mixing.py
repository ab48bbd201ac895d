"""Images mixed in pairs, for a student that learns the teacher's answers to more than the pool holds.

No labels are mixed with them: the teacher says what it sees in each mixture (Beyer et al., "Knowledge distillation: a good
teacher is patient and consistent", CVPR 2022).
"""

import torch
from torch import Tensor

from compress.pipeline.settings import Mixing


def mixed(images: Tensor, mixing: Mixing, share: float) -> Tensor:
    """A batch `[N, C, H, W]` whose images are mixed, or, with probability `1 - share`, left as they are.

    `both` leaves it to chance, batch by batch, which way they are mixed.

    All chances come from torch's global random generator of the CPU, so that every device draws alike.
    """
    if mixing == "none" or torch.rand(()) >= share:
        return images
    if mixing == "both":
        mixing = "cutmix" if torch.rand(()) < 0.5 else "mixup"
    return cutmix(images) if mixing == "cutmix" else mixup(images)


def mixup(images: Tensor) -> Tensor:
    """Each image `[N, C, H, W]` blended with its successor, in a proportion drawn uniformly for each.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with alpha = 1.
    """
    share = torch.rand(len(images), 1, 1, 1).to(images.device)
    return torch.lerp(images.roll(1, dims=0), images, share)


def cutmix(images: Tensor) -> Tensor:
    """Each image `[N, C, H, W]` with a rectangle of its successor pasted in at the same place.

    The rectangle has the image's proportions and covers `1 - lambda` of it, lambda drawn uniformly; what would lie outside
    is cut off. Source: Yun et al., "CutMix", ICCV 2019, equations 1 and 2, with alpha = 1.
    """
    height, width = images.shape[2:]
    inside = rectangles(torch.rand(3, len(images)), height, width).to(images.device)
    return torch.where(inside[:, None], images.roll(1, dims=0), images)


def rectangles(draws: Tensor, height: int, width: int) -> Tensor:
    """Masks `[N, H, W]`, true inside a rectangle each.

    Args:
        draws: `[3, N]` in [0, 1): the share of the area left outside, and the centre's row and column over the sides.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    half = (1 - draws[0]).sqrt() / 2
    rows, columns = ((torch.arange(side) + 0.5) / side for side in (height, width))
    in_rows = (rows - draws[1, :, None]).abs() < half[:, None]
    in_columns = (columns - draws[2, :, None]).abs() < half[:, None]
    return in_rows[:, :, None] & in_columns[:, None, :]
