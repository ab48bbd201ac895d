"""Compact students: architectures by name, and students derived from their teacher."""

from compress.pipeline.students.planning import (
    StudentPlan,
    build_student,
    count_parameters,
    inherit_weights,
    inheriting_student,
    inheriting_students,
    plan_student,
    spread,
    zoo_students,
)

__all__ = [
    "StudentPlan",
    "build_student",
    "count_parameters",
    "inherit_weights",
    "inheriting_student",
    "inheriting_students",
    "plan_student",
    "spread",
    "zoo_students",
]
