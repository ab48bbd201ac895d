"""Compact students: architectures by name, and students derived from their teacher."""

from compress.pipeline.students.inheritance import donor_of, inherit_weights
from compress.pipeline.students.inheriting import inheriting_student, inheriting_students, spread
from compress.pipeline.students.plan import StudentPlan, count_parameters
from compress.pipeline.students.planning import build_student, plan_student, size_findings
from compress.pipeline.students.zoo import zoo_students

__all__ = [
    "StudentPlan",
    "build_student",
    "count_parameters",
    "donor_of",
    "inherit_weights",
    "inheriting_student",
    "inheriting_students",
    "plan_student",
    "size_findings",
    "spread",
    "zoo_students",
]
