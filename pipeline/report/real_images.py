"""What is told of real images that a user gave: beside the verdict, never in it."""

from compress.pipeline.fidelity import find_artifact
from compress.pipeline.records import HoldoutRecord, HoldoutRow, Proportion, ValidateRecord
from compress.pipeline.report import text


def on_real_images(validation: ValidateRecord) -> str:
    """How the judged artifact does on them, and how far that is from the probes; empty where there were none."""
    holdout = validation.holdout
    if holdout is None:
        return ""
    row = judged_row(holdout, validation.shipped)
    on_probes = find_artifact(validation.ledger, row.artifact).agreement
    return (
        f"On {holdout.images:,} real images that you gave, {row.artifact} gives the teacher's answer on "
        f"{_told(row.agreement)}, {_gap(row.agreement, on_probes)}.{_accuracies(holdout, row)} "
        f"The verdict does not rest on them.{' ' if holdout.warning else ''}{holdout.warning}"
    )


def beside_probes(validation: ValidateRecord) -> list[tuple[HoldoutRow, Proportion]]:
    """Every artifact on them, and its agreement on the probes."""
    rows = validation.holdout.rows if validation.holdout else ()
    return [(row, find_artifact(validation.ledger, row.artifact).agreement) for row in rows]


def judged_row(holdout: HoldoutRecord, artifact: str) -> HoldoutRow:
    """That of the artifact which decides the verdict."""
    return next(row for row in holdout.rows if row.artifact == artifact)


def _told(part: Proportion) -> str:
    return f"{text.share(part)} ({text.interval(part)})"


def _gap(real: Proportion, probes: Proportion) -> str:
    points = 100 * (real.value - probes.value)
    if abs(points) < 0.05:
        return "as on the probes"
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'} than on the probes"


def _accuracies(holdout: HoldoutRecord, row: HoldoutRow) -> str:
    if row.accuracy is None or holdout.teacher_accuracy is None:
        return ""
    return f" It names the true class on {_told(row.accuracy)}, the teacher on {_told(holdout.teacher_accuracy)}."
