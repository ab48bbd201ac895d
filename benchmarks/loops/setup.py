"""What both kinds of loops start from: the same teacher, student, settings and images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compress.pipeline.device import Compute, choose_compute
from compress.pipeline.settings import Settings
from compress.pipeline.students import StudentPlan, plan_student
from compress.pipeline.synthesis.pool import as_bytes
from compress.pipeline.teacher import Teacher, open_teacher
from compress.pipeline.teacher.noise import smooth_noise


class Loop(Protocol):
    """One side of a comparison."""

    def run(self) -> float:
        """One unit of work, as often as is wanted; returns its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that a loop is built from."""

    teacher: Teacher
    embeddings: Tensor
    plan: StudentPlan
    settings: Settings
    compute: Compute
    images: Tensor
    """The pool, uint8 `[N, C, H, W]`."""
    folder: Path
    """Where a loop may keep files."""


def load_setup(checkpoint: Path, embeddings: Tensor, settings: Settings, pool: int, folder: Path) -> Setup:
    """Open the teacher, plan the student as a run would, and fill a pool with `pool` images of smooth noise."""
    compute = choose_compute(settings)
    teacher = open_teacher(checkpoint, **dict(settings.teacher))
    torch.manual_seed(settings.seed)
    return Setup(
        teacher=teacher,
        embeddings=embeddings,
        plan=plan_student(teacher.record, settings.student),
        settings=settings,
        compute=compute,
        images=as_bytes(smooth_noise(pool, teacher.record.input)),
        folder=folder,
    )
