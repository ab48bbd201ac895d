"""Teachers of a few layers, and the example's real one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import InputSpec, Output, TeacherRecord
from compress.pipeline.teacher import Teacher, open_teacher
from compress.pipeline.teacher.noise import smooth_noise

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "teacher.pt"
DIGITS_MEAN, DIGITS_STD = 0.3052, 0.3760
"""What the example's training code normalises by: the mean and std of its images."""


def images_of(channels: int = 3, size: int = 16) -> InputSpec:
    return InputSpec(channels=channels, height=size, width=size, mean=(0.5,) * channels, std=(0.25,) * channels)


def teacher_of(network: nn.Module, images: InputSpec | None = None, *, output: Output = "logits") -> Teacher:
    """The network, with three classes, behind the normalisation of its input."""
    images = images or images_of()
    record = TeacherRecord(
        file_name="teacher.pt",
        sha256="0" * 64,
        format="",
        name="",
        architecture="",
        spec={},
        input=images,
        output=output,
        num_classes=3,
        parameters=0,
        batch_norm_layers=0,
    )
    return Teacher(record, Normalised(network, images.mean, images.std))


def classifier(first: nn.Module, width: int, *behind: nn.Module) -> nn.Sequential:
    """A first layer of that width, its batch norm, and three classes from the mean over all pixels."""
    norm = nn.BatchNorm2d(width, momentum=None)
    return nn.Sequential(first, norm, nn.ReLU(), *behind, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def unit_noise(images: InputSpec, count: int = 16) -> Tensor:
    """Smooth noise `[count, C, H, W]` with mean 0 and std 1 in every channel."""
    noise = smooth_noise(count, images)
    return (noise - noise.mean((0, 2, 3), keepdim=True)) / noise.std((0, 2, 3), keepdim=True)


def seen(network: nn.Module, mean: Sequence[float], std: float, images: InputSpec | None = None) -> nn.Module:
    """The network after its batch norms have seen noise of that mean and std."""
    images = images or images_of(len(mean))
    with torch.no_grad():
        network.train()(std * unit_noise(images) + torch.tensor(mean).view(1, -1, 1, 1))
    return network.eval()


def digits_teacher(mean: float = DIGITS_MEAN, std: float = DIGITS_STD) -> Teacher:
    return open_teacher(DIGITS, mean=(mean,), std=(std,))
