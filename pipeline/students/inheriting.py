"""Plans of students that keep some of their teacher's blocks, for every family that says which it can do without."""

import re
from collections.abc import Sequence

from compress.pipeline.errors import UsageError
from compress.pipeline.networks import NetworkSpec, spec_from_json
from compress.pipeline.records import TeacherRecord
from compress.pipeline.students.plan import StudentPlan, count_parameters

MOST_SHARES = 8
"""Students of different depth that are offered by name; any other can be asked for."""

WIDTHS = (0.25, 0.5, 0.75)
"""Shares of the channels inside blocks that are offered where a stage cannot do with fewer blocks."""

DEEP_WIDTH = 0.75
"""The share that is offered at every depth: of two students of one size, the deeper and narrower one agrees more often."""

_NAME = re.compile(r"inherit((?:-\d+)+)(?:-w(0?\.(?!0+$)\d{1,4}))?")


def spec_of(teacher: TeacherRecord) -> NetworkSpec | None:
    """The teacher's spec, where its family is known here and says which blocks it can do without."""
    try:
        spec = spec_from_json(teacher.spec)
    except KeyError:
        return None
    return spec if spec.droppable else None


def inheriting_students(teacher: TeacherRecord) -> list[StudentPlan]:
    """Students that keep the same share of blocks in every stage, as far as they can, by size; [] where there are no stages.

    All are offered a little narrower, too, and the shallowest narrower still.
    """
    spec = spec_of(teacher)
    if spec is None:
        return []
    all_blocks, least = block_counts(spec), least_counts(spec)
    most = max(all_blocks)
    shares = {1 + step for step in spread(min(MOST_SHARES, most - 1), most - 1)}
    counts = {
        tuple(max(few, round(kept * n / most)) for n, few in zip(all_blocks, least, strict=True)) for kept in shares
    }
    asked = [(least, width) for width in WIDTHS]
    for blocks in sorted(counts):
        asked += [(blocks, DEEP_WIDTH)] if blocks == all_blocks else [(blocks, DEEP_WIDTH), (blocks, 1.0)]
    plans = (inheriting_student(spec, blocks, width) for blocks, width in asked)
    # Where a family's blocks cannot be narrower, the name of the whole width is the right one.
    known = {plan.spec: plan for plan in sorted(plans, key=lambda plan: "-w" in plan.name, reverse=True)}
    known.pop(inheriting_student(spec, all_blocks).spec, None)
    return sorted(known.values(), key=lambda plan: plan.parameters)


def inheriting_student(teacher: NetworkSpec, blocks: Sequence[int], width: float = 1.0) -> StudentPlan:
    """The teacher with fewer blocks a stage, or narrower ones; which of them is decided anew once there are images.

    Args:
        blocks: how many of each stage are kept.
        width: share of the channels inside the blocks that is kept.
    """
    kept = tuple(evenly(count, droppable) for count, droppable in zip(blocks, teacher.droppable, strict=True))
    spec = teacher.keeping(kept).learnable
    name = f"inherit-{dashed(blocks)}"
    if width < 1:
        spec, name = spec.narrowed(width), f"{name}-w{width:g}"
    return StudentPlan(name=name, spec=spec, parameters=count_parameters(spec), kept_blocks=kept)


def inheriting_named(name: str, teacher: NetworkSpec) -> StudentPlan | None:
    """The student of such a name, as `inherit-3-3-3`; None for a name of another form.

    Raises:
        UsageError: the teacher does not have those blocks to give.
    """
    matched = _NAME.fullmatch(name)
    if not matched:
        return None
    blocks = [int(count) for count in matched[1].split("-")[1:]]
    most, least = block_counts(teacher), least_counts(teacher)
    fits = len(blocks) == len(most) and all(few <= n <= many for few, n, many in zip(least, blocks, most, strict=False))
    if not fits:
        few = "one of each" if set(least) == {1} else f"{dashed(least)} of them"
        raise UsageError(
            f"The teacher cannot give the student '{name}'.",
            f"It has {dashed(most)} blocks a stage; keep at least {few}.",
        )
    whole = inheriting_student(teacher, blocks)
    if matched[2] is None:
        return whole
    narrow = inheriting_student(teacher, blocks, float(matched[2]))
    if narrow.spec == whole.spec:
        raise UsageError(
            f"The teacher cannot give the student '{name}'.",
            "Inside its blocks nothing can be made so much narrower: widths are multiples of 8, and of some families none.",
        )
    return narrow


def block_counts(spec: NetworkSpec) -> tuple[int, ...]:
    """Blocks of each stage."""
    return tuple(len(stage) for stage in spec.droppable)


def least_counts(spec: NetworkSpec) -> tuple[int, ...]:
    """Blocks that each stage cannot do without, one at least."""
    return tuple(max(1, stage.count(False)) for stage in spec.droppable)


def evenly(count: int, droppable: Sequence[bool]) -> tuple[int, ...]:
    """`count` of a stage's blocks, evenly spread among those that can be dropped where all of them cannot be.

    evenly(3, (True,) * 9) = (0, 4, 8); evenly(3, (False, True, True, False, True)) = (0, 1, 3)
    """
    usual = spread(count, len(droppable))
    fixed = [index for index, may_go in enumerate(droppable) if not may_go]
    if set(fixed) <= set(usual):
        return usual
    free = [index for index, may_go in enumerate(droppable) if may_go]
    return tuple(sorted(fixed + [free[position] for position in spread(count - len(fixed), len(free))]))


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` of the indices 0..total-1, evenly spread, both ends among them; one alone is the first.

    spread(3, 9) = (0, 4, 8)
    """
    return tuple(round(position * (total - 1) / max(count - 1, 1)) for position in range(count))


def dashed(counts: Sequence[int]) -> str:
    """Counts of stages as names have them, such as `3-3-3`."""
    return "-".join(str(count) for count in counts)
