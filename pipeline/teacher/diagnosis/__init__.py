"""A pre-flight of seconds: will data-free distillation work on this teacher?"""

from collections.abc import Iterable

from compress.pipeline.records import Finding, Severity
from compress.pipeline.teacher.checkpoint import Checkpoint
from compress.pipeline.teacher.diagnosis.answer_findings import answer_findings, output_of
from compress.pipeline.teacher.diagnosis.image_estimate import estimate_images
from compress.pipeline.teacher.diagnosis.layer_findings import layer_findings
from compress.pipeline.teacher.diagnosis.normalisation import normalisation_finding
from compress.pipeline.teacher.model import Teacher

__all__ = ["by_gravity", "diagnose", "output_of"]

_GRAVEST_FIRST: tuple[Severity, ...] = ("problem", "warning", "note")


def diagnose(teacher: Teacher, checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Everything that bears on whether distillation will work, gravest first; the teacher's own findings are left out.

    Args:
        teacher: whose record says what its network puts out.
        checkpoint: what it was read from.
    """
    return by_gravity(
        (
            *layer_findings(teacher, checkpoint.batches_tracked),
            normalisation_finding(estimate_images(teacher), teacher.record.input),
            *answer_findings(teacher),
        )
    )


def by_gravity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Problems, then warnings, then notes, each in the order given."""
    return tuple(sorted(findings, key=lambda finding: _GRAVEST_FIRST.index(finding.severity)))
