"""The mean and contrast of the images of training, solved for from what the first batch norm recorded.

Where an affine layer, usually the first convolution, is all that lies before that batch norm, its recorded mean is the
layer's response to the mean image, and its recorded variance grows with the square of the images' contrast.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.pipeline.teacher.model import BatchNormStatistics, Teacher
from compress.pipeline.teacher.noise import smooth_noise

NOISE_IMAGES = 16

EXPONENTS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
"""How fast the amplitude of images falls with frequency: about 1 for photographs, more for what is small or soft."""

AFFINE_TOLERANCE = 1e-3
"""Largest departure from an affine function, by the function's own range; float32 rounds a thousand times finer."""

DEAD_VARIANCE = 1e-6
"""Share of the largest channel's variance below which a channel carries no equation."""

RELIABLE_ERROR = 0.25
"""Largest standard error of an estimate that is used: of the mean by the contrast of the images, and of the contrast's
logarithm. A ResNet-56 of CIFAR-10 and the example's teacher of digits have 0.02 and 0.04 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEstimate:
    """The images of training as the network itself took them, after whatever normalisation they went through."""

    mean: tuple[float, ...]
    """One a channel."""
    std: float
    """Of every channel alike."""
    mean_error: float
    """Standard error of the least certain channel's mean."""
    std_error: float
    """Standard error of log(std)."""


def estimate_images(teacher: Teacher) -> ImageEstimate | None:
    """The images of training; nothing in the result depends on the mean and std that the teacher has now.

    Augmentation is part of it: zero padding around random crops, for one, darkens the mean of CIFAR-10 by 13 %.
    None where nothing can be told: there is no batch norm or it never saw an image, what enters it is no affine
    function of the image, or the equations contradict each other.
    """
    statistics = teacher.bn_statistics
    if not statistics or never_updated(statistics[0]) or not _is_affine(teacher):
        return None
    offset, gains = _affine_response(teacher)
    usable = statistics[0].variance > DEAD_VARIANCE * statistics[0].variance.max()
    offset, gains = offset[usable], gains[:, usable]
    recorded = BatchNormStatistics(statistics[0].mean[usable], statistics[0].variance[usable])
    solved = solve_mean(gains.mean((2, 3)).T, offset.mean((1, 2)), recorded)
    if solved is None:
        return None
    mean, mean_error = solved
    flat = (offset + torch.tensordot(mean, gains, 1)).var((1, 2), correction=0)
    std, std_error = solve_std([spread[usable] for spread in _spreads(teacher)], flat, recorded.variance)
    if not (mean_error <= RELIABLE_ERROR * std and std_error <= RELIABLE_ERROR):  # nor where they are NaN
        return None
    return ImageEstimate(mean=tuple(mean.tolist()), std=std, mean_error=mean_error, std_error=std_error)


def never_updated(statistics: BatchNormStatistics) -> bool:
    """Whether mean and variance are still the zeros and ones that a batch norm begins with."""
    return bool((statistics.mean == 0).all()) and bool((statistics.variance == 1).all())


def solve_mean(gains: Tensor, offset: Tensor, recorded: BatchNormStatistics) -> tuple[Tensor, float] | None:
    """The mean `[C]` of images whose response is nearest to the recorded mean, and its largest standard error.

    Least squares of gains @ mean + offset = recorded mean, each equation weighted by 1 / sqrt(recorded variance), since
    the recorded mean of a channel is the less certain the more the channel varies. None where equations are too few.

    Args:
        gains: each output channel's mean response to a 1 in each input channel, `[L, C]`.
        offset: its mean response to zeros, `[L]`.
        recorded: `[L]` each.
    """
    weight = recorded.variance.double().rsqrt()
    design, target = gains.double() * weight[:, None], (recorded.mean - offset).double() * weight
    equations, unknowns = design.shape
    if equations < unknowns or int(torch.linalg.matrix_rank(design, rtol=1e-4)) < unknowns:
        return None
    mean = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    residual = (target - design @ mean).square().sum() / max(equations - unknowns, 1)
    errors = (residual * torch.linalg.inv(design.T @ design).diagonal()).sqrt()
    return mean.float(), errors.max().item()


def solve_std(spreads: Sequence[Tensor], flat: Tensor, recorded: Tensor) -> tuple[float, float]:
    """The std of the images, and the standard error of its logarithm; infinite where the variances leave no std.

    In every channel, recorded variance = flat + std^2 spread. The std is the geometric mean over channels, for the kind
    of noise under which the channels agree best.

    Args:
        spreads: for each kind of noise, of std 1, the variance `[L]` of the response.
        flat: variance `[L]` over positions of the response to the mean image, which padding alone causes.
        recorded: variance `[L]`.
    """
    left = recorded - flat
    usable = left > recorded / 2
    if int(usable.sum()) < 2:
        return 1.0, float("inf")
    logarithms = [(left[usable] / spread[usable].clamp_min(1e-12)).log() / 2 for spread in spreads]
    best = min(logarithms, key=lambda values: values.std().item())
    return best.mean().exp().item(), best.std().item() / len(best) ** 0.5


class _Reached(Exception):
    """Ends a forward pass at the first batch norm."""

    def __init__(self, entering: Tensor) -> None:
        super().__init__()
        self.entering = entering


@torch.no_grad()
def _first_inputs(teacher: Teacher, normalised: Tensor) -> Tensor:
    """What enters the first batch norm, `[N, L, H', W']`, for images `[N, C, H, W]` that are normalised already.

    What lies behind it is not computed, so that this costs little in a network of any depth.
    """

    def stop(norm: nn.BatchNorm2d, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].dim() == 4 and norm.running_mean is not None:
            raise _Reached(arguments[0])

    network = teacher.network.network
    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                hooks.enter_context(module.register_forward_pre_hook(stop))
        try:
            network(normalised)
        except _Reached as reached:
            return reached.entering
    raise ValueError("the teacher has no batch norm of images")


def _is_affine(teacher: Teacher) -> bool:
    """Whether f(-2 x) - f(0) = -2 (f(x) - f(0)) for what enters the first batch norm; a ReLU fails at the sign."""
    noise = smooth_noise(1, teacher.record.input) - 0.5
    blank, once, twice = _first_inputs(teacher, torch.cat([torch.zeros_like(noise), noise, -2 * noise]))
    expected = -2 * (once - blank)
    scale = expected.abs().max()
    return bool(scale > 0) and bool((twice - blank - expected).abs().max() <= AFFINE_TOLERANCE * scale)


def _affine_response(teacher: Teacher) -> tuple[Tensor, Tensor]:
    """What enters the first batch norm for zeros, `[L, H', W']`, and by how much a 1 in each channel changes it,
    `[C, L, H', W']`; constant images make padding count as it does in the network."""
    images = teacher.record.input
    ones = torch.eye(images.channels)[:, :, None, None].expand(-1, -1, images.height, images.width)
    responses = _first_inputs(teacher, torch.cat([torch.zeros_like(ones[:1]), ones]))
    return responses[0], responses[1:] - responses[0]


def _spreads(teacher: Teacher) -> list[Tensor]:
    """For each kind of noise, of std 1 in every channel, the variance `[L]` of what enters the first batch norm."""
    spreads = []
    for exponent in EXPONENTS:
        noise = smooth_noise(NOISE_IMAGES, teacher.record.input, exponent=exponent)
        unit = (noise - noise.mean((0, 2, 3), keepdim=True)) / noise.std((0, 2, 3), keepdim=True)
        spreads.append(_first_inputs(teacher, unit).var((0, 2, 3)))
    return spreads
