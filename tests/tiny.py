"""A teacher so small that distilling it takes a second, and everything that goes with it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.device import Compute
from compress.pipeline.networks import NetworkSpec, build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import ResNet, ResNetSpec
from compress.pipeline.progress import Silent
from compress.pipeline.records import InputSpec, TeacherRecord
from compress.pipeline.settings import Settings, merge, resolve_settings
from compress.pipeline.teacher import Teacher
from tests.networks import unsettle

CPU = Compute(device=torch.device("cpu"), bf16=False)


def tiny_spec(**changes: Any) -> ResNetSpec:
    """Two stages of two blocks, 8 and 16 channels, 4 classes."""
    usual = {"stem": "cifar", "blocks": (2, 2), "widths": (8, 16), "stem_width": 8, "num_classes": 4}
    return ResNetSpec.model_validate(usual | changes)


def record_of(spec: NetworkSpec, size: int | tuple[int, int] = 8) -> TeacherRecord:
    """What intake would say about a network of this spec; no weights are allocated."""
    height, width = (size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        network = build(spec)
    return TeacherRecord(
        file_name="teacher.pt",
        sha256="0" * 64,
        format="PyTorch checkpoint",
        name=spec.name,
        architecture=spec.title,
        spec=spec.model_dump(mode="json"),
        input=InputSpec(
            channels=spec.channels, height=height, width=width, mean=(0.4,) * spec.channels, std=(0.2,) * spec.channels
        ),
        num_classes=spec.num_classes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        batch_norm_layers=sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()),
    )


def tiny_teacher(*, size: int | tuple[int, int] = 8, **spec: Any) -> Teacher:
    """A teacher of random weights whose batch norms have seen images; the same one at every call."""
    record = record_of(tiny_spec(**spec), size)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = unsettle(ResNet(tiny_spec(**spec)))
        teacher = Normalised(network, record.input.mean, record.input.std)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # A plain average over the batches.
        with torch.no_grad():
            teacher.train()(blobs(64, record))
    return Teacher(record, teacher)


def blobs(count: int, record: TeacherRecord) -> Tensor:
    """Images `[N, C, H, W]` of soft blobs."""
    coarse = torch.rand(count, record.input.channels, 3, 3)
    return F.interpolate(coarse, (record.input.height, record.input.width), mode="bilinear", align_corners=True)


def tiny_embeddings(num_classes: int = 4, dimension: int = 6) -> Tensor:
    """Label-text embeddings that are all different."""
    return torch.randn(num_classes, dimension, generator=torch.Generator().manual_seed(5))


def tiny_settings(**changes: Any) -> Settings:
    """The smoke recipe on the CPU in full precision, sections given by name and merged."""
    plain = {"recipe": "smoke", "target": "onnx", "device": "cpu", "precision": "fp32"}
    return resolve_settings(merge(plain, changes), environment={})


class Listener(Silent):
    """Hears how the long part moves on, and may interrupt it."""

    def __init__(self, *, interrupt_after: int | None = None) -> None:
        self.heard: list[tuple[int, int, str]] = []
        self.interrupt_after = interrupt_after

    def advance(self, done: int, total: int, figures: str) -> None:
        self.heard.append((done, total, figures))
        if done == self.interrupt_after:
            raise KeyboardInterrupt


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bit for bit the same."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as it is now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def numerical_gradient(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-3) -> Tensor:
    """Central differences of a scalar function, one coordinate at a time."""
    gradient = torch.zeros_like(point)
    for index in range(point.numel()):
        offset = torch.zeros_like(point)
        offset.view(-1)[index] = step
        gradient.view(-1)[index] = (function(point + offset) - function(point - offset)) / (2 * step)
    return gradient
