"""Which step's images a synthetic batch ends up with."""

import torch
from torch import Tensor

from compress.pipeline.settings import Selection


class BestOfSteps:
    """The images of the steps with the lowest loss, kept without waiting for the device.

    By `batch`, as published, they are those of one step, whose loss was the lowest. By `image` each of them comes from the
    step where its own part of the loss was: batch statistics, which no image has alone, are left out of it.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.images = self.loss = self._scores = torch.empty(0)

    def see(self, images: Tensor, loss: Tensor, of_each: Tensor) -> None:
        """Take in a step.

        Args:
            images: `[N, C, H, W]`.
            loss: of the batch, a scalar.
            of_each: each image's own part of it, `[N]`.
        """
        scores = of_each if self.selection == "image" else loss.expand(len(images))
        if not len(self.images):
            self.images, self.loss, self._scores = images, loss, scores
            return
        better = scores < self._scores
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self._scores = torch.where(better, scores, self._scores)
        self.loss = torch.minimum(self.loss, loss)
