"""Pictures of what the student learns from: a few synthetic images of some classes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.exporters.bundle import write_file
from compress.pipeline.records import SampleGrid
from compress.pipeline.report.png import class_grid
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool

MOST_CLASSES = 16
IMAGES_A_CLASS = 6
PIXELS = 64
"""Longer side of an image in a picture: larger ones are averaged down to it, smaller ones enlarged as far as it allows."""


def write_samples(pool: ImagePool, path: Path, moment: str) -> SampleGrid:
    """A PNG with a row for each class that is shown: the newest images that were made for it.

    Args:
        moment: of the run, in words.
    """
    classes = shown_classes(pool.targets)
    rows = [_thumbnails(pool.images[pool.targets == number][-IMAGES_A_CLASS:]) for number in classes]
    scale = max(1, PIXELS // max(rows[0].shape[2:]))
    write_file(path, class_grid([row.cpu().numpy() for row in rows], IMAGES_A_CLASS, scale))
    return SampleGrid(file_name=path.name, moment=moment, classes=tuple(classes))


def shown_classes(targets: Tensor) -> list[int]:
    """At most `MOST_CLASSES` of the classes `[N]` that images were made for, spread evenly over them, in their order."""
    made_for = targets[targets != NO_CLASS].unique()
    chosen = torch.linspace(0, len(made_for) - 1, min(len(made_for), MOST_CLASSES)).round().long()
    classes: list[int] = made_for.cpu()[chosen].tolist()
    return classes


def _thumbnails(images: Tensor) -> Tensor:
    """Images uint8 `[N, C, H, W]` with no side longer than `PIXELS`."""
    height, width = images.shape[2:]
    factor = PIXELS / max(height, width)
    if factor >= 1:
        return images
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)
