"""Stage: a float student to a fake-quantized one, on synthetic images only.

The activations' ranges come from calibration; then the network, with its rounding, is trained for a while to answer as
the teacher does. Images that neither saw decide which of the two is kept.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress.exporters.calibration import observe
from compress.exporters.placement import Runtime
from compress.exporters.qdq import (
    Scheme,
    float_layers,
    insert_fake_quantization,
    quantized_layers,
    refresh_weight_scales,
)
from compress.exporters.targets import Target
from compress.pipeline.errors import CompressError
from compress.pipeline.metrics import kl_divergence, top_k_agreement
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import QuantizeRecord
from compress.pipeline.settings import QuantizeSettings
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.losses import distillation

MOMENTUM = 0.9
MAX_HELD_OUT = 1024

TeacherLogits = Callable[[Tensor], Tensor]
OnProgress = Callable[[int, int, str], None]
"""Called with the steps done, all steps, and figures worth watching."""

Score = tuple[float, float]
"""Agreement with the teacher, and minus the mean KL divergence, which decides between equals."""


def quantize(
    student: nn.Module,
    teacher_logits: TeacherLogits,
    images: Tensor,
    settings: QuantizeSettings,
    scheme: Scheme,
    *,
    seed: int,
    runtime: Runtime | None = None,
    on_progress: OnProgress = lambda done, total, figures: None,
) -> tuple[fx.GraphModule, QuantizeRecord]:
    """The fake-quantized student, calibrated and trained on a pool of images, uint8 `[N, C, H, W]`.

    Works on the device of the student and leaves the student as it is. The same seed gives the same result.

    Raises:
        CompressError: the pool has fewer than four images.
        InputError: the student cannot be traced.
        UsageError: `settings.exclude` names a convolution that the student does not have.
    """
    if len(images) < 4:
        raise CompressError(f"Quantization needs at least 4 images, the pool has {len(images)}.", "Synthesise more.")
    generator = torch.Generator().manual_seed(seed)
    shuffled = images[torch.randperm(len(images), generator=generator)]
    held_out, seen = shuffled.tensor_split([min(len(images) // 4, MAX_HELD_OUT)])
    module = calibrate(student, seen, settings, scheme, runtime)
    calibrated = {name: value.clone() for name, value in module.state_dict().items()}
    before = _score(module, teacher_logits, held_out, settings.batch_size)
    train(module, teacher_logits, seen, settings, generator, on_progress)
    after = _score(module, teacher_logits, held_out, settings.batch_size)
    improved = after > before
    if not improved:
        module.load_state_dict(calibrated)
    return module, QuantizeRecord(
        scheme=scheme,
        quantized_layers=quantized_layers(module),
        float_layers=float_layers(module),
        tail_steps=settings.tail_steps if improved else 0,
        agreement_calibrated=before[0],
        agreement=max(before, after)[0],
    )


def check_exclusions(plan: StudentPlan, settings: QuantizeSettings, target: Target) -> None:
    """Refuse what the student does not have before it has learned for hours.

    Raises:
        UsageError: `settings.exclude` names a convolution that the student does not have.
    """
    if settings.exclude and target.int8:
        channels = plan.spec.channels
        student = Normalised(build(plan.spec), (0.0,) * channels, (1.0,) * channels).eval()
        insert_fake_quantization(student, target.int8, settings.exclude, target.runtime)


def calibrate(
    student: nn.Module, images: Tensor, settings: QuantizeSettings, scheme: Scheme, runtime: Runtime | None = None
) -> fx.GraphModule:
    """The student with fake quantization, every range chosen on the first of these images, uint8 `[N, C, H, W]`."""
    module = insert_fake_quantization(student, scheme, settings.exclude, runtime).to(_device_of(student))
    chosen = images[: max(2, settings.calibration_images)]
    size = min(settings.batch_size, math.ceil(len(chosen) / 2))  # one half fits, the other chooses
    observe(module, [_to_float(batch, _device_of(student)) for batch in torch.split(chosen, size)])
    return module


def train(
    module: fx.GraphModule,
    teacher_logits: TeacherLogits,
    images: Tensor,
    settings: QuantizeSettings,
    generator: torch.Generator,
    on_progress: OnProgress,
) -> None:
    """Trains a calibrated module towards the teacher; weight scales follow the weights, activation scales are fixed.

    Source: arXiv 1806.08342, section 3.2, with the teacher's answers in the place of labels.
    """
    module.requires_grad_(True)
    optimiser = torch.optim.SGD(module.parameters(), settings.learning_rate, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, settings.tail_steps))
    for step in range(1, settings.tail_steps + 1):
        drawn = torch.randint(len(images), (settings.batch_size,), generator=generator)
        batch = _to_float(images[drawn], _device_of(module))
        with torch.no_grad():
            wanted = teacher_logits(batch)
        loss = distillation(wanted, module(batch), settings.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        refresh_weight_scales(module)
        on_progress(step, settings.tail_steps, f"loss {loss.item():.4f}")


@torch.no_grad()
def _score(module: fx.GraphModule, teacher_logits: TeacherLogits, images: Tensor, batch_size: int) -> Score:
    batches = [_to_float(batch, _device_of(module)) for batch in torch.split(images, batch_size)]
    teacher, student = (
        np.concatenate([logits(batch).float().cpu().numpy() for batch in batches])
        for logits in (teacher_logits, module)
    )
    return float(top_k_agreement(teacher, student).mean()), -float(kl_divergence(teacher, student).mean())


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _to_float(images: Tensor, device: torch.device) -> Tensor:
    """uint8 `[N, C, H, W]` to float32 in [0, 1]."""
    return images.to(device).float() / 255
