"""What the processes of rank 1 and above do: wait for rank 0, distil with it, and end as it ends.

Rank 0 runs the pipeline as one process would. When it really distils, because no earlier result can be reused, it hands
out the work; all other stages are its own.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from compress.pipeline.device import choose_compute
from compress.pipeline.distillation.stage import assist
from compress.pipeline.errors import InputError, MissingResourceError
from compress.pipeline.parallel.world import World
from compress.pipeline.records import Record
from compress.pipeline.settings import Settings
from compress.pipeline.stages import code_version
from compress.pipeline.students import plan_student
from compress.pipeline.teacher import Teacher, open_teacher


class Work(Record):
    """A distillation as rank 0 hands it out; the embeddings follow in a message of their own."""

    task: Literal["distill"] = "distill"
    teacher: str
    """Of the checkpoint, see `identity_of`."""
    settings: Settings
    device: str
    bf16: bool
    code: str
    budget_seconds: float | None


class End(Record):
    """The run is over."""

    task: Literal["end"] = "end"
    exit_code: int


def identity_of(teacher: Teacher) -> str:
    """What tells one teacher from another, as text."""
    return json.dumps(teacher.record.identity, sort_keys=True)


def hand_out(world: World, work: Work, embeddings: Tensor) -> None:
    """Let the other processes take part in a distillation; rank 0 must begin it next."""
    world.tell(work.model_dump(mode="json"))
    world.tell_tensors({"embeddings": embeddings})


def dismiss(world: World, exit_code: int) -> None:
    """Tell the other processes how the run ended."""
    world.tell(End(exit_code=exit_code).model_dump(mode="json"))


def follow(checkpoint: Path, settings: Settings) -> int:
    """Do what rank 0 hands out until it says with which exit code to end.

    Args:
        checkpoint: the teacher, which every machine must have.
        settings: those of its own command line; what is distilled, and how, rank 0 says.

    Raises:
        InputError: the teacher is not that of rank 0.
        MissingResourceError: another kind of device, or another version of the code.
    """
    world = World.current()
    while (content := world.tell())["task"] != "end":
        work, embeddings = Work.model_validate(content), world.tell_tensors()["embeddings"]
        _take_part(checkpoint, settings, work, embeddings)
    return End.model_validate(content).exit_code


def _take_part(checkpoint: Path, settings: Settings, work: Work, embeddings: Tensor) -> None:
    teacher = open_teacher(checkpoint, **dict(settings.teacher))
    compute = replace(choose_compute(settings), bf16=work.bf16)
    _check_alike(checkpoint, teacher, compute.device, work)
    plan = plan_student(teacher.record, work.settings.student)
    nowhere = Path()  # Only rank 0 writes.
    assist(teacher, embeddings, plan, work.settings, compute, nowhere, work.budget_seconds)


def _check_alike(checkpoint: Path, teacher: Teacher, device: torch.device, work: Work) -> None:
    """Raise unless this process would compute what rank 0 computes."""
    if identity_of(teacher) != work.teacher:
        raise InputError(f"'{checkpoint}' is not the file that rank 0 reads.", "Copy one teacher to all machines.")
    if device.type != work.device:
        raise MissingResourceError(
            f"Rank 0 has a {work.device} device, this process has not.",
            "Say --device cpu, or use machines of one kind.",
        )
    if code_version() != work.code:
        raise MissingResourceError("Rank 0 runs another version of compress.", "Install the same on all machines.")
