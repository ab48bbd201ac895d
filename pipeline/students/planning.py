"""Students: compact architectures by name, and students derived from their teacher.

A student that keeps some of its teacher's blocks starts with most of what the teacher knows; it is preferred wherever
the teacher's family allows it. The zoo is for all other teachers, and for who wants to start from random weights.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.pipeline.errors import BudgetError, UsageError
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import PadShortcut, ResNet, ResNetSpec
from compress.pipeline.records import TeacherRecord
from compress.pipeline.settings import StudentSettings, nearest
from compress.pipeline.students.unfolding import unfolded
from compress.pipeline.teacher import Teacher

SMALL_INPUT = 64
"""Pixels up to which a network keeps full resolution in its first stage."""

ZOO_BLOCKS = {"resnet8": 1, "resnet14": 2, "resnet20": 3, "resnet32": 5}
"""CIFAR-form residual networks and their blocks a stage."""

ZOO_BLOCKS_LARGE = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""ImageNet-form residual networks and their blocks a stage."""

ZOO_WIDTHS = {"": 1.0, "-w0.75": 0.75, "-w0.5": 0.5}
"""Suffix of a name, and the share of the usual channels; all widths stay multiples of 8 for the device's sake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPlan:
    """A student before it is built."""

    name: str
    spec: ResNetSpec
    parameters: int
    kept_blocks: tuple[tuple[int, ...], ...] | None
    """For a student derived from its teacher: which of the teacher's blocks each stage keeps."""

    @property
    def inherited(self) -> bool:
        return self.kept_blocks is not None


def plan_student(teacher: TeacherRecord, settings: StudentSettings) -> StudentPlan:
    """Choose the student: the one that is named, or for `auto` the largest that the parameter ratio allows.

    Raises:
        UsageError: there is no student of that name for this teacher; the hint names the nearest.
        BudgetError: no student is small enough.
    """
    candidates = [*inheriting_students(teacher), *zoo_students(teacher)]
    if settings.name != "auto":
        return _named(settings.name, teacher, candidates)
    limit = settings.max_parameter_ratio * teacher.parameters
    if not settings.inherit:
        candidates = [plan for plan in candidates if not plan.inherited]
    fitting = [plan for plan in candidates if plan.parameters <= limit]
    if not fitting:
        smallest = min(candidates, key=lambda plan: plan.parameters)
        raise BudgetError(
            f"No student has at most {limit:,.0f} parameters; the smallest, {smallest.name}, has {smallest.parameters:,}.",
            "Raise student.max_parameter_ratio.",
        )
    return max(fitting, key=lambda plan: (plan.inherited, plan.parameters))


def inheriting_students(teacher: TeacherRecord) -> list[StudentPlan]:
    """Students that keep the same share of blocks in every stage of a residual teacher; [] for other families."""
    if teacher.spec.get("family") != "resnet":
        return []
    spec = ResNetSpec.model_validate(teacher.spec)
    counts = {
        tuple(max(1, round(kept * n / max(spec.blocks))) for n in spec.blocks) for kept in range(1, max(spec.blocks))
    }
    return [inheriting_student(spec, blocks) for blocks in sorted(counts) if blocks != spec.blocks]


def inheriting_student(teacher: ResNetSpec, blocks: Sequence[int]) -> StudentPlan:
    """The teacher with fewer blocks a stage, evenly spread ones, the first always among them.

    Option-A shortcuts become 1x1 convolutions that compute the same at first: they fuse on the device, and learn. A
    teacher whose batch norms were folded gives the student new ones, see `unfolding`.
    """
    shortcut = "linear" if teacher.shortcut == "pad" else teacher.shortcut
    spec = teacher.model_copy(update={"blocks": tuple(blocks), "shortcut": shortcut, "batch_norm": True})
    kept = tuple(spread(count, total) for count, total in zip(blocks, teacher.blocks, strict=True))
    name = "inherit-" + "-".join(str(count) for count in blocks)
    return StudentPlan(name=name, spec=spec, parameters=count_parameters(spec), kept_blocks=kept)


def zoo_students(teacher: TeacherRecord) -> list[StudentPlan]:
    """Students with random weights for the teacher's input and classes."""
    small = max(teacher.input.height, teacher.input.width) <= SMALL_INPUT
    plans = []
    for suffix, scale in ZOO_WIDTHS.items():
        widths = tuple(
            max(8, 8 * round(scale * width / 8)) for width in ((16, 32, 64) if small else (64, 128, 256, 512))
        )
        for name, blocks in (_small_zoo() if small else ZOO_BLOCKS_LARGE).items():
            spec = ResNetSpec(
                stem="cifar" if small else "imagenet",
                blocks=blocks,
                widths=widths,
                stem_width=widths[0],
                channels=teacher.input.channels,
                num_classes=teacher.num_classes,
            )
            plans.append(
                StudentPlan(name=name + suffix, spec=spec, parameters=count_parameters(spec), kept_blocks=None)
            )
    return plans


def build_student(plan: StudentPlan, teacher: Teacher) -> Normalised:
    """The student in float32, its input normalised as the teacher's, its weights inherited where the plan says so.

    Random weights come from torch's global generator.
    """
    network = ResNet(plan.spec)
    if plan.kept_blocks is not None:
        inherit_weights(network, teacher.network.network, plan.kept_blocks)
    return Normalised(network, teacher.record.input.mean, teacher.record.input.std)


def inherit_weights(student: ResNet, teacher: nn.Module, kept_blocks: Sequence[Sequence[int]]) -> None:
    """Copy stem, classifier and the kept blocks of a residual teacher into a student of the same widths."""
    if not isinstance(teacher, ResNet):
        raise TypeError(f"cannot inherit from {type(teacher).__name__}")
    if not teacher.spec.batch_norm:
        teacher = unfolded(teacher)
    for name in ("conv1", "bn1", "fc"):
        student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
    for student_stage, teacher_stage, kept in zip(student.stages, teacher.stages, kept_blocks, strict=True):
        for block, index in zip(student_stage, kept, strict=True):
            block.load_state_dict(_inheritable(teacher_stage[index]))


def _inheritable(block: nn.Module) -> dict[str, Tensor]:
    """A block's weights, a padding shortcut written as the 1x1 convolution that computes it."""
    weights = dict(block.state_dict())
    shortcut = block.get_submodule("downsample") if "downsample" in dict(block.named_children()) else None
    if isinstance(shortcut, PadShortcut):
        weights["downsample.weight"] = shortcut.as_convolution()
    return weights


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` of the indices 0..total-1, evenly spread, both ends among them; one alone is the first.

    spread(3, 9) = (0, 4, 8)
    """
    return tuple(round(position * (total - 1) / max(count - 1, 1)) for position in range(count))


def count_parameters(spec: ResNetSpec) -> int:
    """Trainable parameters of a network, without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ResNet(spec).parameters())


def _small_zoo() -> dict[str, tuple[int, ...]]:
    return {name: (blocks,) * 3 for name, blocks in ZOO_BLOCKS.items()}


def _named(name: str, teacher: TeacherRecord, candidates: Sequence[StudentPlan]) -> StudentPlan:
    for plan in candidates:
        if plan.name == name:
            return plan
    names = [plan.name for plan in candidates]
    if re.fullmatch(r"inherit(-\d+)+", name) and teacher.spec.get("family") == "resnet":
        return _inheriting_named(name, ResNetSpec.model_validate(teacher.spec))
    raise UsageError(
        f"There is no student '{name}' for this teacher.", f"{nearest(name, names)}Students: {', '.join(names)}."
    )


def _inheriting_named(name: str, teacher: ResNetSpec) -> StudentPlan:
    blocks = [int(count) for count in name.split("-")[1:]]
    fits = len(blocks) == len(teacher.blocks) and all(
        1 <= n <= most for n, most in zip(blocks, teacher.blocks, strict=False)
    )
    if not fits:
        most = "-".join(str(count) for count in teacher.blocks)
        raise UsageError(
            f"The teacher cannot give the student '{name}'.",
            f"It has {most} blocks a stage; keep at least one of each.",
        )
    return inheriting_student(teacher, blocks)
