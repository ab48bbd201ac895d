"""Two delivered folders side by side.

A delivery keeps the teacher's answers to the probes and not the students', so whether two agreements differ is told by
their intervals; a test on the pairs of answers, which would see smaller differences, is not possible.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from compress.exporters.bundle import sha256_of
from compress.pipeline.delivered import read_report
from compress.pipeline.records import Proportion, Record, ValidateRecord, Verdict
from compress.pipeline.report import ReportData
from compress.pipeline.report.text import visible

Intervals = Literal["intervals overlap", "intervals do not overlap"]


class Side(Record):
    """What one folder holds."""

    folder: str
    target: str
    student: str
    parameters: int
    verdict: Verdict
    judged: str
    """The artifact that decided the verdict."""
    seconds: float
    """Of all stages."""
    cpu: str
    """That latencies are of, those of engines apart."""
    teacher_file: str
    teacher_sha256: str


class Measured(Record):
    """What was found out about an artifact, as in the ledger of its report."""

    size_bytes: int
    agreement: Proportion
    latency_ms: float | None
    mean_kl: float
    real_agreement: Proportion | None
    """On real images, where the folder's command was given some."""


class Pair(Record):
    """An artifact in either folder; None where a folder has none of that name."""

    artifact: str
    one: Measured | None
    other: Measured | None
    agreement: Intervals | None
    """How the 95 % intervals of the agreements lie; None where there is only one."""


class Comparison(Record):
    """Two folders, what was measured of their artifacts, and the settings that differ."""

    remarks: tuple[str, ...]
    """What keeps the numbers from being of the same thing, or makes them so; the gravest first."""
    same_probes: bool
    one: Side
    other: Side
    artifacts: tuple[Pair, ...]
    settings: dict[str, tuple[Any, Any]]
    """But the target, which each side names; by the names that `--set` takes; None where a folder has no such setting."""


def compare(one: Path, other: Path) -> Comparison:
    """Set two delivered folders side by side.

    Raises:
        GateError: a file is not as it was delivered.
        UsageError: there is no such folder, or it is none that was delivered.
        InputError: a report is of another version.
    """
    reports = read_report(one), read_report(other)
    sides = _side(one, reports[0]), _side(other, reports[1])
    same_probes = sha256_of(one / "probes.npz") == sha256_of(other / "probes.npz")
    return Comparison(
        remarks=(*_remarks(*sides), *_on_labels(*reports), *_on_images(*reports), _on_probes(same_probes)),
        same_probes=same_probes,
        one=sides[0],
        other=sides[1],
        artifacts=tuple(_pairs(*reports)),
        settings=_differing(reports[0].settings, reports[1].settings),
    )


def _side(folder: Path, report: ReportData) -> Side:
    return Side(
        folder=str(folder),
        target=report.target.name,
        student=report.distill.student,
        parameters=report.distill.parameters,
        verdict=report.validation.verdict,
        judged=report.validation.shipped,
        seconds=sum(report.timings.values()),
        cpu=report.validation.cpu,
        teacher_file=report.teacher.file_name,
        teacher_sha256=report.teacher.sha256,
    )


def _remarks(one: Side, other: Side) -> Iterator[str]:
    if one.teacher_sha256 != other.teacher_sha256:
        teachers = [f"{visible(side.teacher_file)} (SHA-256 {side.teacher_sha256[:12]})" for side in (one, other)]
        yield (
            f"The two have different teachers, {teachers[0]} and {teachers[1]}: "
            "each agrees, as far as it does, with answers of its own."
        )
    if one.cpu != other.cpu:
        yield f"Their latencies are of different CPUs, {visible(one.cpu)} and {visible(other.cpu)}."


def _on_labels(one: ReportData, other: ReportData) -> Iterator[str]:
    if sorted(one.labels) == sorted(other.labels) and one.labels != other.labels:
        yield "Their class names are in different orders: at most one of them is that of the teacher's outputs."
    elif one.labels != other.labels:
        yield "Their class names are not the same."


def _on_images(one: ReportData, other: ReportData) -> Iterator[str]:
    left, right = one.validation.holdout, other.validation.holdout
    if left is None or right is None:
        return
    if left.sha256 == right.sha256:
        yield f"Both were measured on the same {left.images:,} real images."
    else:
        names = [f"{holdout.images:,} in {visible(holdout.name)}" for holdout in (left, right)]
        yield f"Their real images, {names[0]} and {names[1]}, are not the same: agreement on them does not compare."


def _on_probes(same: bool) -> str:
    return f"Both were judged on {'the same' if same else 'different'} probes."


def _pairs(one: ReportData, other: ReportData) -> Iterator[Pair]:
    artifacts = [row.artifact for report in (one, other) for row in report.validation.ledger]
    for artifact in dict.fromkeys(artifacts):
        left, right = (_measured(report.validation, artifact) for report in (one, other))
        intervals = intervals_of(left.agreement, right.agreement) if left and right else None
        yield Pair(artifact=artifact, one=left, other=right, agreement=intervals)


def _measured(validation: ValidateRecord, artifact: str) -> Measured | None:
    rows = {row.artifact: row for row in validation.ledger}
    if artifact not in rows:
        return None
    row, real = rows[artifact], validation.holdout.rows if validation.holdout else ()
    return Measured(
        size_bytes=row.size_bytes,
        agreement=row.agreement,
        latency_ms=row.latency_ms,
        mean_kl=row.mean_kl,
        real_agreement={row.artifact: row.agreement for row in real}.get(artifact),
    )


def intervals_of(one: Proportion, other: Proportion) -> Intervals:
    """Whether the 95 % intervals of two shares have a value in common."""
    overlap = one.low <= other.high and other.low <= one.high
    return "intervals overlap" if overlap else "intervals do not overlap"


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    left, right = dict(_leaves(one)), dict(_leaves(other))
    names = [name for name in dict.fromkeys([*left, *right]) if name != "target"]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `distill.rounds` and their values."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
