"""Images of noise that is as smooth as photographs are, and how surprised a teacher's batch norms are by it.

Nothing real is needed to see whether a network was put together as it was trained: on images with the statistics of
photographs, every batch norm should meet inputs roughly like those of its training.
"""

import math

import torch
from torch import Tensor

from compress.pipeline.records import InputSpec
from compress.pipeline.teacher.model import Teacher

MEAN, STD = 0.45, 0.25
"""Of photographs in [0, 1], about. Source: the means and deviations that ImageNet and CIFAR-10 are normalised by."""

GREY_SHARE = 0.9
"""Share of a photograph's variance that its three channels have in common, about."""


def smooth_noise(count: int, images: InputSpec, *, seed: int = 0, exponent: float = 1.0) -> Tensor:
    """Random images `[count, C, H, W]` in [0, 1] whose amplitude falls with spatial frequency f as 1 / f^exponent.

    Source: van der Schaaf & van Hateren, "Modelling the power spectra of natural images", Vision Research 1996: the
    amplitude of natural images falls about as 1 / f.
    """
    generator = torch.Generator().manual_seed(seed)
    grey = _field(count, 1, images, generator, exponent)
    own = _field(count, images.channels, images, generator, exponent)
    mixed = math.sqrt(GREY_SHARE) * grey + math.sqrt(1 - GREY_SHARE) * own
    return (MEAN + STD * mixed).clamp(0, 1)


@torch.no_grad()
def batch_norm_surprise(teacher: Teacher, images: Tensor) -> float | None:
    """How far the inputs of the batch norms are from those of training; about 0 where they are alike, None without any.

    Mean over layers of sqrt(mean_c (m_c - M_c)^2 / V_c) + mean_c |log(v_c / V_c)| / 2, where m_c and v_c are a
    channel's mean and variance on `images` `[N, C, H, W]`, and M_c and V_c those that the batch norm recorded.
    """
    terms = []
    for entering, recorded in zip(teacher.logits_and_bn_inputs(images)[1], teacher.bn_statistics, strict=True):
        variance = recorded.variance.clamp_min(1e-8)
        mean = entering.mean((0, 2, 3))
        shift = ((mean - recorded.mean).square() / variance).mean().sqrt()
        scale = (entering.var((0, 2, 3)).clamp_min(1e-8) / variance).log().abs().mean() / 2
        terms.append((shift + scale).item())
    return sum(terms) / len(terms) if terms else None


def _field(count: int, channels: int, images: InputSpec, generator: torch.Generator, exponent: float) -> Tensor:
    """Gaussian noise of unit variance, smoothed in the frequency domain."""
    height, width = images.height, images.width
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    amplitude = frequency.clamp_min(1 / max(height, width)) ** -exponent
    white = torch.randn(count, channels, height, width, generator=generator)
    field: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
    return field / field.std().clamp_min(1e-8)
