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


class ImagePool:
    """Images `[N, C, H, W]` uint8 and the classes `[N]` they were made for, on one device; the oldest leave first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.images = torch.empty(0, dtype=torch.uint8)
        self.targets = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Append a batch."""
        if len(self):
            images, targets = torch.cat([self.images, images]), torch.cat([self.targets, targets])
        self.images, self.targets = images[-self.limit :], targets[-self.limit :]

    def sample(self, count: int) -> Tensor:
        """Random images `[count, C, H, W]` as float32 in [0, 1], drawn with replacement by torch's global generator."""
        index = torch.randint(len(self), (count,)).to(self.images.device)
        return as_float(self.images[index])

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
