"""Chooses and builds the student.

A student that keeps some of its teacher's blocks starts with most of what the teacher knows; it is preferred wherever
the teacher's family allows it.
"""

from collections.abc import Sequence

from compress.pipeline.errors import BudgetError, UsageError
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import Finding, TeacherRecord
from compress.pipeline.settings import StudentSettings, nearest
from compress.pipeline.students.inheritance import donor_of, inherit_weights
from compress.pipeline.students.inheriting import inheriting_named, inheriting_students, spec_of
from compress.pipeline.students.plan import StudentPlan
from compress.pipeline.students.zoo import zoo_students
from compress.pipeline.teacher import Teacher


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


def size_findings(plan: StudentPlan, teacher: TeacherRecord) -> tuple[Finding, ...]:
    """What is odd about the size of a student that was asked for by name."""
    if plan.parameters < teacher.parameters:
        return ()
    return (
        Finding(
            severity="warning",
            topic="student",
            message=f"{plan.name} has {plan.parameters:,} parameters, its teacher {teacher.parameters:,}: it is no smaller.",
            advice="Leave the choice to --student auto, or name a smaller one.",
        ),
    )


def build_student(plan: StudentPlan, teacher: Teacher) -> Normalised:
    """The student in float32, its input normalised as the teacher's, its weights inherited where the plan says so.

    Random weights come from torch's global generator.
    """
    network = build(plan.spec)
    if plan.kept_blocks is not None:
        inherit_weights(network, donor_of(teacher.network.network), plan.kept_blocks)
    return Normalised(network, teacher.record.input.mean, teacher.record.input.std)


def _named(name: str, teacher: TeacherRecord, candidates: Sequence[StudentPlan]) -> StudentPlan:
    for plan in candidates:
        if plan.name == name:
            return plan
    spec = spec_of(teacher)
    asked = inheriting_named(name, spec) if spec else None
    if asked is not None:
        return asked
    names = [plan.name for plan in candidates]
    raise UsageError(
        f"There is no student '{name}' for this teacher.", f"{nearest(name, names)}Students: {', '.join(names)}."
    )
