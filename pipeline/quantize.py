"""Stage: a float student to a fake-quantized one, on synthetic images only.

The activations' ranges come from calibration; then the network, with its rounding, is trained for a while to answer as
the teacher does. Images that neither saw decide which of the two is kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
from compress.pipeline.metrics import kl_divergence, top_k_agreement, wilson_interval
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import QuantizeRecord
from compress.pipeline.sensitivity import layer_costs
from compress.pipeline.settings import QuantizeSettings
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.losses import distillation

MOMENTUM = 0.9
MAX_HELD_OUT = 1024
COST_IMAGES = 128
"""Held-out images that tell what a layer costs: the rounding of each is seen in all of their logits."""

Logits = NDArray[np.float32]

TeacherLogits = Callable[[Tensor], Tensor]
OnProgress = Callable[[int, int, str], None]
"""Called with the steps done, all steps, and figures worth watching."""


def quantize(
    student: nn.Module,
    teacher_logits: TeacherLogits,
    images: Tensor,
    settings: QuantizeSettings,
    scheme: Scheme,
    *,
    seed: int,
    runtime: Runtime | None = None,
    min_agreement: float | None = None,
    on_progress: OnProgress = lambda done, total, figures: None,
) -> tuple[fx.GraphModule, QuantizeRecord]:
    """The fake-quantized student, calibrated and trained on a pool of images, uint8 `[N, C, H, W]`.

    Works on the device of the student and leaves the student as it is. The same seed gives the same result. `min_agreement`
    is the gate of the target, which spares it the layers that would be left in floating point.

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
    jury = _Jury.of(teacher_logits, held_out, settings.batch_size, _device_of(student))
    in_float = jury.score(student)
    module = calibrate(student, seen, settings, scheme, runtime)
    calibrated = jury.score(module)
    costs = layer_costs(module, [_to_float(batch, _device_of(student)) for batch in held_out[:COST_IMAGES].split(64)])
    left_float: tuple[str, ...] = ()
    # A network without any rounding would be no int8 network.
    for cost in costs[: min(settings.max_left_float, len(costs) - 1)]:
        if calibrated.agreement >= in_float.agreement - settings.max_loss or jury.clears(min_agreement, calibrated):
            break
        fewer = settings.model_copy(update={"exclude": (*settings.exclude, *left_float, cost.layer)})
        candidate = calibrate(student, seen, fewer, scheme, runtime)
        score = jury.score(candidate)
        if score.agreement > calibrated.agreement:
            module, calibrated, left_float = candidate, score, (*left_float, cost.layer)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, teacher_logits, seen, settings, generator, on_progress)
    trained = jury.score(module)
    improved = trained.mean_kl < calibrated.mean_kl
    if not improved:
        module.load_state_dict(weights)
    return module, QuantizeRecord(
        scheme=scheme,
        quantized_layers=quantized_layers(module),
        float_layers=float_layers(module),
        left_float=left_float,
        layer_costs=costs,
        tail_steps=settings.tail_steps if improved else 0,
        held_out=len(held_out),
        agreement_float=in_float.agreement,
        agreement_calibrated=calibrated.agreement,
        agreement=(trained if improved else calibrated).agreement,
    )


class _Score(NamedTuple):
    agreement: float
    """With the teacher."""
    mean_kl: float
    """From the teacher, in nats; it says more than agreement where few images decide."""


@dataclass(frozen=True)
class _Jury:
    """Held-out images, and what the teacher says of them."""

    batches: tuple[Tensor, ...]
    teacher: Logits

    @classmethod
    @torch.no_grad()
    def of(cls, teacher_logits: TeacherLogits, images: Tensor, batch_size: int, device: torch.device) -> "_Jury":
        batches = tuple(_to_float(batch, device) for batch in images.split(batch_size))
        return cls(batches, np.concatenate([teacher_logits(batch).float().cpu().numpy() for batch in batches]))

    def clears(self, limit: float | None, score: _Score) -> bool:
        """Whether the whole interval of the agreement does, as the verdict will ask of the probes."""
        images = len(self.teacher)
        return limit is not None and wilson_interval(score.agreement * images, images)[0] >= limit

    @torch.no_grad()
    def score(self, network: nn.Module) -> _Score:
        network.eval()
        logits = np.concatenate([network(batch).float().cpu().numpy() for batch in self.batches])
        agreement = top_k_agreement(self.teacher, logits).mean()
        return _Score(float(agreement), float(kl_divergence(self.teacher, logits).mean()))


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


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _to_float(images: Tensor, device: torch.device) -> Tensor:
    """uint8 `[N, C, H, W]` to float32 in [0, 1]."""
    return images.to(device).float() / 255
