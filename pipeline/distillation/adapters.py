"""What makes the stages of a student comparable with its teacher's where the two have other shapes; never exported."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.students import StudentPlan
from compress.pipeline.teacher import Teacher

Shape = tuple[int, int, int]
"""Of what a stage puts out for one image, `(C_s, H_s, W_s)`."""


class StageAdapters(nn.Module):
    """Pairs the last stages of a student with its teacher's, as many as both have.

    A 1x1 convolution gives the student's maps the teacher's number of channels, and the larger maps of a pair are
    averaged down to the smaller ones. Stages of the same shape are compared as they are.

    Source: Romero et al., "FitNets", ICLR 2015, section 2.2, for a learned regressor that only training has.
    """

    def __init__(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        super().__init__()
        from_the_last = zip(reversed(student), reversed(teacher), strict=False)
        self.adapters = nn.ModuleList(_adapter(mine[0], wanted[0]) for mine, wanted in from_the_last)

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's stages `[N, C_s, H_s, W_s]` and the student's, adapted: two lists of tensors of equal shapes."""
        from_the_last = zip(self.adapters, reversed(student), reversed(teacher), strict=False)
        pairs = [_same_size(wanted, adapter(maps)) for adapter, maps, wanted in from_the_last][::-1]
        return [wanted for wanted, _ in pairs], [mine for _, mine in pairs]


def stage_shapes(teacher: Teacher, plan: StudentPlan) -> tuple[list[Shape], list[Shape]]:
    """Of the student's stages and the teacher's; none of both where the teacher has no stages that are known."""
    if not isinstance(teacher.network.network, StagedNetwork):
        return [], []
    asked = teacher.record.input
    with torch.device("meta"):
        networks = build(plan.spec).eval(), build(teacher.network.network.spec).eval()
        blank = torch.empty(1, asked.channels, asked.height, asked.width)
    student, wanted = ([_shape(maps) for maps in network.logits_and_stage_outputs(blank)[1]] for network in networks)
    return student, wanted


def _shape(maps: Tensor) -> Shape:
    _, channels, height, width = maps.shape
    return channels, height, width


def _adapter(channels: int, wanted: int) -> nn.Module:
    """Begins as zero, so that no stage costs more at first than a student would that puts out nothing."""
    if channels == wanted:
        return nn.Identity()
    adapter = nn.Conv2d(channels, wanted, 1)
    nn.init.zeros_(adapter.weight)
    nn.init.zeros_(adapter.bias)  # type: ignore[arg-type]
    return adapter


def _same_size(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    size = min(teacher.shape[2], student.shape[2]), min(teacher.shape[3], student.shape[3])
    return _averaged(teacher, size), _averaged(student, size)


def _averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)
