"""How near images come to those of a teacher's training, by the statistics that its batch norms kept of them."""

import torch
from torch import Tensor

from compress.pipeline.synthesis.losses import batch_statistics
from compress.pipeline.synthesis.pool import as_float
from compress.pipeline.teacher import Teacher

MOST_IMAGES = 256
"""That are looked at; means over images and pixels are settled long before."""

AT_ONCE = 64
"""Images whose features are held at the same time."""

EPSILON = 1e-5
"""For channels whose features did not vary in training; what PyTorch's batch norm adds unless told otherwise."""

MOST_OF_A_CHANNEL = 3.0
"""Standard deviations that one channel counts for: a dead one must not decide for all."""


@torch.no_grad()
def batch_norm_shift(teacher: Teacher, images: Tensor) -> float | None:
    """How far the features of images, uint8 `[N, C, H, W]`, lie from those of the training, in standard deviations.

    The mean over batch norms of the mean over their channels of |mean - running mean| / √(running variance + ε), of which a
    channel counts for no more than `MOST_OF_A_CHANNEL`. None without batch norms, or without images.
    """
    wanted = teacher.bn_statistics
    batches = images[:MOST_IMAGES].split(AT_ONCE)
    if not wanted or not len(images):
        return None
    sums = [torch.zeros_like(layer.mean) for layer in wanted]
    for batch in batches:
        _, features = teacher.logits_and_bn_inputs(as_float(batch.to(wanted[0].mean.device)))
        for total, layer in zip(sums, features, strict=True):
            total += len(batch) * batch_statistics(layer).mean
    count = sum(len(batch) for batch in batches)
    shifts = [
        ((total / count - layer.mean).abs() / (layer.variance + EPSILON).sqrt()).clamp(max=MOST_OF_A_CHANNEL).mean()
        for total, layer in zip(sums, wanted, strict=True)
    ]
    return float(torch.stack(shifts).mean())
