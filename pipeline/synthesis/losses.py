"""The losses of synthesis and of distillation, as pure functions.

Source: NAYER (Tran et al., CVPR 2024, arXiv 2310.00258) and its published code; the batch-norm term is DeepInversion's
(Yin et al., CVPR 2020), the masked adversarial term comes from the same line of work (Fang et al., CMI and Fast-Datafree).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_CORRELATION = 0.9
"""Of the colour channels of photographs, about."""

LARGER_OCTAVES = 2
"""Octaves larger than the image whose variance is found in the differences between images' means, about."""


class Statistics(NamedTuple):
    """Mean and variance `[C]` of one layer's input over images and pixels."""

    mean: Tensor
    variance: Tensor


class _BatchStatistics(torch.autograd.Function):
    """Mean and biased variance over images and pixels, with one pass over the features each way, whatever their type.

    Autograd through `torch.var_mean` took half the time of synthesis, and float32 copies of bf16 features a tenth. With
    M values a channel, d mean / dx = 1 / M and d variance / dx = 2 (x - mean) / M, which is affine in x for each
    channel; so is a batch norm in evaluation mode, whose kernel reads bf16 and computes in float32.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        # The running statistics, which momentum 0 leaves alone, make the kernel answer in their type.
        running = torch.zeros(2, features.shape[1], device=features.device)
        mean, variance = torch.ops.aten.batch_norm_update_stats(features, *running, 0.0)
        ctx.save_for_backward(features, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, mean = ctx.saved_tensors
        of_mean, of_variance = gradients
        count = features.numel() / features.shape[1]
        slope = 2 * of_variance / count
        return _affine(features, slope, of_mean / count - mean * slope)


def _affine(features: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """`slope * features + offset` with one `slope` and `offset` `[C]` a channel, computed in float32 in one pass."""
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    return F.batch_norm(features, zero, one, slope, offset, eps=0.0)


def batch_statistics(features: Tensor) -> Statistics:
    """Mean and biased variance `[C]` of features `[N, C, H, W]`, in float32."""
    mean, variance = _BatchStatistics.apply(features)  # type: ignore[no-untyped-call]
    return Statistics(mean, variance)


def blend(new: Statistics, old: Statistics, momentum: float) -> Statistics:
    """`(1 - momentum) * new + momentum * old`."""
    return Statistics(*(torch.lerp(before, now, 1 - momentum) for now, before in zip(new, old, strict=True)))


def batch_norm_matching(matched: Sequence[Statistics], wanted: Sequence[Statistics]) -> Tensor:
    """Sum over layers of `||wanted mean - mean||_2 + ||wanted variance - variance||_2`; a scalar.

    The norms are not squared and not weighted by layer. Source: NAYER's code, equation of `L_bn`.
    """
    terms = [
        torch.linalg.vector_norm(want.mean - have.mean) + torch.linalg.vector_norm(want.variance - have.variance)
        for have, want in zip(matched, wanted, strict=True)
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def unchanged(value: Tensor) -> Tensor:
    """The mean over the processes where there is one."""
    return value


def image_prior(images: Tensor, average: Callable[[Tensor], Tensor] = unchanged) -> Tensor:
    """How far images `[N, C, H, W]` are from the simplest statistics that photographs have in common; a scalar.

    Stands in for `batch_norm_matching` where a teacher has no batch norm. Images are normalised as for the teacher, so
    that those of its training have mean 0 and variance 1. With the channels' mean m and the covariances S_o of
    `octave_covariances`, it is ||m||_2 + sum_o ||S_o - w_o R||_F. R has 1 on its diagonal and the channels' correlation
    elsewhere; w_o shares the variance out to the octaves equally, because the power of natural images falls as
    1 / frequency^2, and to what is left, the means of the images, as much as to `LARGER_OCTAVES` of them.

    Source: Field, "Relations between the statistics of natural images and the response properties of cortical cells",
    JOSA A 1987, for equal variance in octaves; measured on CIFAR-10 for the two constants.

    Args:
        average: makes means over these images means over those of all processes, see `World.average`.
    """
    mean = average(images.float().mean((0, 2, 3)))
    found = [average(covariance) for covariance in octave_covariances(images.float() - mean[:, None, None])]
    octaves = len(found) - 1
    correlation = torch.eye(len(mean), device=mean.device).clamp_min(CHANNEL_CORRELATION)
    shares = [1] * octaves + [LARGER_OCTAVES]
    terms = [
        torch.linalg.vector_norm(covariance - share / (octaves + LARGER_OCTAVES) * correlation)
        for covariance, share in zip(found, shares, strict=True)
    ]
    return torch.stack([torch.linalg.vector_norm(mean), *terms]).sum()


def octave_covariances(images: Tensor) -> list[Tensor]:
    """Covariances of the channels, `[C, C]`, of what images `[N, C, H, W]` of mean 0 lose each time their size halves.

    The finest comes first; the last is that of what is left in the end, one pixel an image.
    """
    covariances = []
    while max(images.shape[2:]) > 1:
        height, width = (max(side // 2, 1) for side in images.shape[2:])
        smaller = F.adaptive_avg_pool2d(images, (height, width))
        covariances.append(_covariance(images - F.interpolate(smaller, size=images.shape[2:])))
        images = smaller
    return [*covariances, _covariance(images)]


def _covariance(images: Tensor) -> Tensor:
    channels = images.transpose(0, 1).flatten(1)
    return channels @ channels.T / channels.shape[1]


def one_hot(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the teacher's logits `[N, K]` with the classes `[N]` that were asked for, of each image `[N]`."""
    return F.cross_entropy(teacher_logits.float(), targets, reduction="none")


def adversarial(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """`-1[argmax S = argmax T] KL(p_T || p_S)` of logits `[N, K]`, at temperature 1, of each image `[N]`.

    Drives the generator to images on which the student still answers as the teacher does, yet less surely. Images on
    which it does not count as zero; gradients reach the images through both networks.
    """
    teacher, student = (F.log_softmax(logits.float(), dim=1) for logits in (teacher_logits, student_logits))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    agree = teacher_logits.argmax(dim=1) == student_logits.argmax(dim=1)
    return -(divergence * agree)


def distillation(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(t / T) || softmax(s / T))` of logits `[N, K]`, mean over images; a scalar."""
    return distillation_of_each(teacher_logits, student_logits, temperature).mean()


def distillation_of_each(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(t / T) || softmax(s / T))` of logits `[N, K]`, of each image `[N]`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    teacher, student = (
        F.log_softmax(logits.float() / temperature, dim=1) for logits in (teacher_logits, student_logits)
    )
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def stage_matching(
    teacher_stages: Sequence[Tensor], student_stages: Sequence[Tensor], average: Callable[[Tensor], Tensor] = unchanged
) -> Tensor:
    """Sum over stages of the mean squared difference over the teacher's mean square; a scalar.

    Both lists hold `[N, C_s, H_s, W_s]`. The quotient makes stages of different scale count alike.

    Args:
        average: makes means over these images means over those of all processes, see `World.average`.
    """
    scales = average(torch.stack([teacher.float().square().mean() for teacher in teacher_stages]))
    differences = [
        F.mse_loss(student.float(), teacher.float())
        for teacher, student in zip(teacher_stages, student_stages, strict=True)
    ]
    return (torch.stack(differences) / scales.clamp_min(1e-12)).sum()
