"""The student while it learns: steps against the teacher, the running average that is shipped, the monitor."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.pipeline.device import Compute, derived_seed, on_device
from compress.pipeline.distillation.adapters import StageAdapters, stage_shapes
from compress.pipeline.distillation.divergence import silent_loss
from compress.pipeline.networks import StagedNetwork
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.parallel.batch_norm import with_joint_batch_norms
from compress.pipeline.settings import DistillSettings, Settings
from compress.pipeline.students import StudentPlan, build_student, donor_of, inherit_weights
from compress.pipeline.students.choice import IMAGES, as_recalibrated, choose_blocks
from compress.pipeline.students.inheritance import is_narrowed
from compress.pipeline.students.narrowing import choose_channels
from compress.pipeline.students.unfolding import settle
from compress.pipeline.synthesis.loss_parts import LossParts
from compress.pipeline.synthesis.losses import distillation_of_each, stage_matching
from compress.pipeline.synthesis.pool import as_float
from compress.pipeline.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Monitor:
    """Held-out images that the best moment of the student is chosen on."""

    images: Tensor
    teacher_classes: Tensor

    @torch.no_grad()
    def agreement(self, student: nn.Module) -> float:
        """Share of images on which the student names the teacher's class."""
        student.eval()
        classes = torch.cat([student(as_float(batch)).argmax(1) for batch in torch.split(self.images, 256)])
        return (classes == self.teacher_classes).float().mean().item()


class Learner:
    """The student, the running average of its weights that is shipped, and its optimiser."""

    def __init__(self, teacher: Teacher, plan: StudentPlan, settings: Settings, compute: Compute) -> None:
        torch.manual_seed(derived_seed(settings.seed, "student"))
        self.teacher, self.plan, self.settings, self.compute = teacher, plan, settings.distill, compute
        self.world = compute.world
        self.kept_blocks = plan.kept_blocks
        self.student = on_device(build_student(plan, teacher), compute)
        self.world.copy_from_first(self.student)
        with_joint_batch_norms(self.student, self.world)
        self.average = on_device(build_student(plan, teacher), compute)
        self.average.load_state_dict(self.student.state_dict())
        self.first_rate = self.settings.inherited_learning_rate if plan.inherited else self.settings.learning_rate
        self.parts = LossParts()
        self._divergences: list[Tensor] = []
        self.micro_batches = 1
        """Parts that a step is taken in where the memory does not hold all of its images; batch norms see one at a time."""
        shapes = stage_shapes(teacher, plan) if self.settings.stage_weight else ([], [])
        self.adapters = on_device(StageAdapters(*shapes), compute)
        self.optimiser = optimiser_of(self._parameters(), self.first_rate, self.settings)

    @property
    def match_stages(self) -> bool:
        """Whether there are stages to be matched."""
        return len(self.adapters.adapters) > 0

    @property
    def silent_loss(self) -> float:
        """The most that a student loses which puts out nothing but zeros."""
        settings, classes = self.settings, self.teacher.record.num_classes
        return silent_loss(settings.temperature, classes, settings.stage_weight, len(self.adapters.adapters))

    def step(self, images: Tensor, rate: float) -> Tensor:
        """One step on images `[N, C, H, W]`; returns the loss, a scalar that stays on the device.

        Of several processes, each gives its share of the step's images; the loss is that on all of them.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.student.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._gradients(images)
        self.world.average_gradients(self._parameters())
        self.optimiser.step()
        self._average_weights()
        return self.world.average(loss)

    def _gradients(self, images: Tensor) -> Tensor:
        """Sum up the gradient over micro-batches of near-equal size, each weighted by its share; returns the loss."""
        total = torch.zeros((), device=images.device)
        self._divergences = []
        for part in images.tensor_split(self.micro_batches):
            loss = self._loss(part) * (len(part) / len(images))
            loss.backward()
            total = total + loss.detach()
        return total

    @property
    def divergences(self) -> Tensor:
        """How far the student was from the teacher on each image of the last step, `[N]`."""
        return torch.cat(self._divergences)

    @torch.no_grad()
    def recalibrate(self, images: Tensor) -> None:
        """Choose the blocks to inherit, and estimate the student's batch-norm statistics anew.

        Blocks that lost their neighbours see other inputs. `images` are the pool's, uint8 `[N, C, H, W]`.
        """
        # Near-equal batches: one image alone would weigh as much as a full batch, and has no variance at 1x1 pixels.
        at_a_time = max(self.world.share(self.settings.batch_size) // self.micro_batches, 1)
        batches = images.tensor_split(max(len(images) // at_a_time, 1))
        self._inherit(images, batches)
        norms = [module for module in self.student.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # A plain average over the batches.
        self.student.train()
        for batch in batches:
            self.student(as_float(batch))
        for norm in norms:
            norm.momentum = 0.1
        self.average.load_state_dict(self.student.state_dict())

    def _inherit(self, images: Tensor, batches: Sequence[Tensor]) -> None:
        """Take those blocks of the teacher that images show to be needed most.

        Where the teacher's batch norms were folded, its new ones see images before the student inherits them.
        """
        if self.kept_blocks is None:
            return
        donor, normalise = donor_of(self.teacher.network.network), self.teacher.network.normalise
        if not self.teacher.bn_statistics:
            settle(donor, (normalise(as_float(batch)) for batch in batches))
            # Whatever images they see, the network computes the same: those of one process will do for all.
            self.world.copy_from_first(donor)
        count = min(max(IMAGES // self.micro_batches, 8), len(images))
        shown = images[torch.linspace(0, len(images) - 1, count).long()]
        seen, student = normalise(as_float(shown)), _staged(self.student)
        kept = self.world.tell(choose_blocks(donor, self.kept_blocks, seen))
        self.kept_blocks = tuple(tuple(stage) for stage in kept)
        channels = None
        if is_narrowed(student, donor, self.kept_blocks):
            whole = as_recalibrated(donor, self.kept_blocks)
            channels = self.world.tell(choose_channels(student, whole, seen))
        inherit_weights(student, donor, self.kept_blocks, channels)

    def _loss(self, images: Tensor) -> Tensor:
        with self.compute.autocast():
            if not self.match_stages:
                with torch.no_grad():
                    wanted = self.teacher.logits(images)
                return self._divergence(wanted, self.student(images))
            with torch.no_grad():
                wanted, wanted_stages = self.teacher.logits_and_stage_outputs(images)
            logits, stages = _staged(self.student).logits_and_stage_outputs(self.student.normalise(images))
            wanted_stages, stages = self.adapters(wanted_stages, stages)
        matching = self.parts.seen("stage_loss", stage_matching(wanted_stages, stages, self.world.average))
        return self._divergence(wanted, logits) + self.settings.stage_weight * matching

    def _divergence(self, wanted: Tensor, logits: Tensor) -> Tensor:
        of_each = distillation_of_each(wanted, logits, self.settings.temperature)
        self._divergences.append(of_each.detach())
        return self.parts.seen("kl_loss", of_each.mean())

    def _parameters(self) -> Iterator[nn.Parameter]:
        return chain(self.student.parameters(), self.adapters.parameters())

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = self.settings.average_decay
        for mean, value in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def _staged(student: Normalised) -> StagedNetwork:
    if not isinstance(student.network, StagedNetwork):
        raise TypeError(f"{type(student.network).__name__} has no stages")
    return student.network


def optimiser_of(parameters: Iterable[nn.Parameter], rate: float, settings: DistillSettings) -> Optimizer:
    """The optimiser that the settings name; weight decay is decoupled in AdamW, and a part of the gradient in SGD."""
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parameters, rate, settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, rate, settings.adam_betas, weight_decay=settings.weight_decay)
