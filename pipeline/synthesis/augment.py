"""Random crops and mirror images, drawn for each image of a batch; gradients pass through."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.records import InputSpec
from compress.pipeline.settings import SynthesisSettings


class Augmentation(NamedTuple):
    """What may be done to an image without changing its class."""

    padding: int
    flip: bool

    @classmethod
    def for_input(cls, input_spec: InputSpec, settings: SynthesisSettings) -> "Augmentation":
        """As set; by default shifts of an eighth of the shorter side (4 px at 32, as published), mirrors for colour."""
        padding = (
            min(input_spec.height, input_spec.width) // 8 if settings.crop_padding is None else settings.crop_padding
        )
        return cls(padding, input_spec.channels == 3 if settings.flip is None else settings.flip)

    def __call__(self, images: Tensor) -> Tensor:
        """Randomly shifted and mirrored images `[N, C, H, W]`."""
        return random_crop_and_flip(images, self.padding, self.flip)


def random_crop_and_flip(images: Tensor, padding: int, flip: bool) -> Tensor:
    """Shift each image `[N, C, H, W]` by up to `padding` pixels over a black border, and mirror every other one.

    The shifts and mirrors come from torch's global random generator of the CPU, so that every device draws alike.
    """
    count, _, height, width = images.shape
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count))
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    if flip:
        mirrored = torch.rand(count) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (padding, padding, padding, padding))
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1).to(images.device)
    flat = padded.flatten(2)
    return flat.gather(2, index[:, None, :].expand(-1, flat.shape[1], -1)).view_as(images)
