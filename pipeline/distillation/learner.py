"""The student while it learns: steps against the teacher, the running average that is shipped, the monitor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.pipeline.device import Compute, derived_seed, on_device
from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.spec import counts_of
from compress.pipeline.settings import Settings
from compress.pipeline.students import StudentPlan, build_student, donor_of, inherit_weights
from compress.pipeline.students.choice import IMAGES, choose_blocks
from compress.pipeline.students.unfolding import settle
from compress.pipeline.synthesis.losses import distillation, stage_matching
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
        self.teacher, self.settings, self.compute = teacher, settings.distill, compute
        self.kept_blocks = plan.kept_blocks
        self.student = on_device(build_student(plan, teacher), compute)
        self.average = on_device(build_student(plan, teacher), compute)
        self.average.load_state_dict(self.student.state_dict())
        self.first_rate = self.settings.inherited_learning_rate if plan.inherited else self.settings.learning_rate
        self.match_stages = self.settings.stage_weight > 0 and _same_stages(teacher, plan)
        self.optimiser = torch.optim.SGD(
            self.student.parameters(), self.first_rate, self.settings.momentum, weight_decay=self.settings.weight_decay
        )

    def step(self, images: Tensor, rate: float) -> Tensor:
        """One step on images `[N, C, H, W]`; returns the loss, a scalar that stays on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.student.train()
        loss = self._loss(images)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self._average_weights()
        return loss.detach()

    @torch.no_grad()
    def recalibrate(self, images: Tensor) -> None:
        """Choose the blocks to inherit, and estimate the student's batch-norm statistics anew.

        Blocks that lost their neighbours see other inputs. `images` are the pool's, uint8 `[N, C, H, W]`.
        """
        # Near-equal batches: one image alone would weigh as much as a full batch, and has no variance at 1x1 pixels.
        batches = images.tensor_split(max(len(images) // self.settings.batch_size, 1))
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
        shown = images[torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long()]
        self.kept_blocks = choose_blocks(donor, counts_of(self.kept_blocks), normalise(as_float(shown)))
        inherit_weights(_staged(self.student), donor, self.kept_blocks)

    def _loss(self, images: Tensor) -> Tensor:
        temperature = self.settings.temperature
        with self.compute.autocast():
            if not self.match_stages:
                with torch.no_grad():
                    wanted = self.teacher.logits(images)
                return distillation(wanted, self.student(images), temperature)
            with torch.no_grad():
                wanted, wanted_stages = self.teacher.logits_and_stage_outputs(images)
            logits, stages = _staged(self.student).logits_and_stage_outputs(self.student.normalise(images))
        matching = stage_matching(wanted_stages, stages)
        return distillation(wanted, logits, temperature) + self.settings.stage_weight * matching

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


def _same_stages(teacher: Teacher, plan: StudentPlan) -> bool:
    """Whether the student's stages put out the same shapes as the teacher's."""
    if not isinstance(teacher.network.network, StagedNetwork):
        return False
    with torch.device("meta"):
        networks = build(plan.spec).eval(), build(teacher.network.network.spec).eval()
        blank = torch.empty(1, teacher.record.input.channels, teacher.record.input.height, teacher.record.input.width)
    mine, yours = ([maps.shape for maps in network.logits_and_stage_outputs(blank)[1]] for network in networks)
    return mine == yours
