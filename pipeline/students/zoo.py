"""Compact architectures by name, for teachers of any family and for who wants to start from random weights."""

from compress.pipeline.networks.resnet import ResNetSpec
from compress.pipeline.records import TeacherRecord
from compress.pipeline.students.plan import StudentPlan, count_parameters

SMALL_INPUT = 64
"""Pixels up to which a network keeps full resolution in its first stage."""

ZOO_BLOCKS = {"resnet8": 1, "resnet14": 2, "resnet20": 3, "resnet32": 5}
"""CIFAR-form residual networks and their blocks a stage."""

ZOO_BLOCKS_LARGE = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""ImageNet-form residual networks and their blocks a stage."""

ZOO_WIDTHS = {"": 1.0, "-w0.75": 0.75, "-w0.5": 0.5}
"""Suffix of a name, and the share of the usual channels; all widths stay multiples of 8 for the device's sake."""


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


def _small_zoo() -> dict[str, tuple[int, ...]]:
    return {name: (blocks,) * 3 for name, blocks in ZOO_BLOCKS.items()}
