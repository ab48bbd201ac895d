"""What `compress inspect` says: the teacher, its diagnosis, and that of its class names."""

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import computed_field

from compress.pipeline.labels import check_label_count, read_labels
from compress.pipeline.lte import embed_labels
from compress.pipeline.records import EmbeddingRecord, Finding, TeacherRecord
from compress.pipeline.students.inheriting import block_counts, dashed, least_counts, spec_of
from compress.pipeline.teacher import open_teacher
from compress.pipeline.teacher.diagnosis import by_gravity
from compress.pipeline.teacher.readers.formats import printable


class Inspection(TeacherRecord):
    """A teacher, and its class names where they were given."""

    class_names: EmbeddingRecord | None = None

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """Of the teacher and of its class names, gravest first."""
        return by_gravity(self.findings + (self.class_names.findings if self.class_names else ()))

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def outlook(self) -> str:
        """What the findings come to."""
        return outlook(self.all_findings)

    def facts(self) -> dict[str, str]:
        """The teacher in words."""
        image = self.input
        return {
            "file": f"{self.file_name}, SHA-256 {self.sha256[:16]}…",
            "format": self.format,
            "architecture": f"{self.name}: {self.architecture}",
            "parameters": f"{self.parameters:,}",
            "classes": f"{self.num_classes}{_named(self.labels)}",
            "input": f"{image.channels} x {image.height} x {image.width}, "
            f"mean {_listed(image.mean)}, std {_listed(image.std)}",
            "input from": image.source,
            "output": self.output,
            "batch-norm layers": str(self.batch_norm_layers),
            "student": student_outlook(self),
            "recognised because": "\n".join(self.reasons),
        }


def student_outlook(teacher: TeacherRecord) -> str:
    """Whether a student can start from the teacher's blocks, and which depths it can have."""
    spec = spec_of(teacher)
    if spec is None:
        return "starts from random weights: nothing is known of the teacher's blocks"
    most, least = block_counts(spec), least_counts(spec)
    if most == least:
        return f"starts from random weights: the teacher's {dashed(most)} blocks a stage can do without none"
    return f"can start from the teacher's blocks: {dashed(least)} to {dashed(most)} a stage (--student inherit-...)"


def outlook(findings: tuple[Finding, ...]) -> str:
    """What the findings come to, in a sentence."""
    counts = Counter(finding.severity for finding in findings)
    if counts["problem"]:
        return "Little can be expected of distillation before the problems are solved."
    if counts["warning"]:
        return "Distillation can work; the warnings say what it may cost."
    return "Nothing was found that stands in the way of distillation."


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _named(labels: tuple[str, ...], most: int = 4) -> str:
    """The names that the checkpoint carries, the first of them."""
    more = ", ..." if len(labels) > most else ""
    return f", in the checkpoint: {', '.join(printable(label) for label in labels[:most])}{more}" if labels else ""


def inspect_teacher(
    checkpoint: Path, labels_file: Path | None = None, *, text_encoder: str | None = None, **options: Any
) -> Inspection:
    """Open a teacher and diagnose it, and its class names where there are any.

    Args:
        checkpoint: as in `open_teacher`, which takes the `options`, too.
        labels_file: one class name a line.
        text_encoder: as in `lte.find_encoder`.

    Raises:
        CompressError: as the run itself would.
    """
    record = open_teacher(checkpoint, **options).record
    if labels_file is None:
        return Inspection(**dict(record))
    labels = read_labels(labels_file)
    check_label_count(labels, record.num_classes)
    return Inspection(**dict(record), class_names=embed_labels(labels, encoder=text_encoder, carried=record.labels)[1])
