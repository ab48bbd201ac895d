"""The pool of synthetic images that the student learns from."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.pipeline.tensor_files import write_tensors

NO_CLASS = -1
"""Of an image that was made for none."""

NO_LIMIT = 2**62
"""Of a pool that keeps everything."""


LEAST_SURPRISE = 1e-6
"""Keeps every image in the draw."""


class ImagePool:
    """Images `[N, C, H, W]` uint8 and the classes `[N]` they were made for, on one device; the oldest leave first.

    Images are replayed the more often the less the student knew about them when it last saw them, in proportion to
    `surprise ** priority`; new ones count as the most surprising of all, so that each is seen soon. With priority 0 all are
    drawn alike. Source: Schaul et al., "Prioritized Experience Replay", ICLR 2016, section 3.3, without the correction of
    the gradient: what is sought are the teacher's answers everywhere, not the mean over the pool.
    """

    def __init__(self, limit: int, priority: float = 0.0) -> None:
        self.limit, self.priority = limit, priority
        self.images = torch.empty(0, dtype=torch.uint8)
        self.targets = torch.empty(0, dtype=torch.int64)
        self.surprise = torch.empty(0)
        """Of each image, `[N]`, on the CPU, where all random numbers are drawn."""

    def __len__(self) -> int:
        return len(self.images)

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Append a batch."""
        if len(self):
            images, targets = torch.cat([self.images, images]), torch.cat([self.targets, targets])
        new = torch.full((len(images) - len(self.surprise),), self.surprise.max().item() if len(self) else 1.0)
        self.surprise = torch.cat([self.surprise, new])[-self.limit :]
        self.images, self.targets = images[-self.limit :], targets[-self.limit :]

    def draw(self, count: int) -> Tensor:
        """Positions `[count]` of random images, drawn with replacement by torch's global generator."""
        if not self.priority:
            return torch.randint(len(self), (count,))
        return torch.multinomial(self.surprise**self.priority, count, replacement=True)

    def at(self, index: Tensor) -> Tensor:
        """Images `[N, C, H, W]` at positions `[N]`, as float32 in [0, 1]."""
        return as_float(self.images[index.to(self.images.device)])

    def seen(self, index: Tensor, divergences: Tensor) -> None:
        """Remember how far the student was from the teacher on images `[N]`; waits for the device."""
        self.surprise[index] = divergences.detach().float().cpu().clamp_min(LEAST_SURPRISE)

    def save(self, path: Path) -> None:
        """Write images and targets as one safetensors file."""
        write_tensors(path, {"images": self.images, "targets": self.targets})

    @classmethod
    def load(cls, path: Path, limit: int = NO_LIMIT) -> "ImagePool":
        """Read what `save` wrote."""
        pool, tensors = cls(limit), load_file(path)
        pool.add(tensors["images"], tensors["targets"])
        return pool


def as_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1], laid out as convolutions like it."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] to uint8, rounded."""
    return (images * 255).round().to(torch.uint8)
