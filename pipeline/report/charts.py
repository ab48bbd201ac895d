"""The classes that the report's chart and table of confusions show."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.pipeline.records import Confusion, LedgerRow, Proportion, ValidateRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """The agreement on the images of one class."""

    label: str
    part: Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedPair:
    """One class that is taken for another."""

    teacher: str
    artifact: str
    probes: str
    """How many of those that the teacher gives the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Probes of one class by the teacher that the artifact gives a class."""

    count: int
    share: float
    """Of the probes that the teacher gives the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRow:
    """What becomes of the probes that the teacher gives one class."""

    label: str
    cells: tuple[Cell, ...]


def heat_map(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[MapRow]:
    """Counts by the teacher's class, the rows, and the artifact's, each as a share of its row."""
    return [
        MapRow(label=label, cells=tuple(Cell(count=count, share=count / max(1, sum(row))) for count in row))
        for label, row in zip(labels, confusion, strict=True)
    ]


def step_by_step(validation: ValidateRecord) -> list[LedgerRow]:
    """Every form of the student, those that are not delivered among them, each behind the one that it was made from."""
    rows: list[LedgerRow] = [form for form in validation.undelivered if form.step is None]
    for row in validation.ledger:
        rows.append(row)
        rows += [form for form in validation.undelivered if form.step and form.step.origin == row.artifact]
    return rows


def confused_pairs(labels: Sequence[str], confusions: Sequence[Confusion]) -> list[ConfusedPair]:
    """The pairs by name, as `14 of 60` probes."""
    return [
        ConfusedPair(
            teacher=labels[pair.teacher], artifact=labels[pair.artifact], probes=f"{pair.count:,} of {pair.total:,}"
        )
        for pair in confusions
    ]


def lowest_classes(labels: Sequence[str], parts: Sequence[Proportion], most: int) -> list[ClassShare]:
    """The `most` classes of lowest agreement, lowest first; at equal agreement the one with more images first."""
    shares = [ClassShare(label=label, part=part) for label, part in zip(labels, parts, strict=True) if part.total > 0]
    return sorted(shares, key=lambda share: (share.part.value, -share.part.total))[:most]


def unseen_classes(labels: Sequence[str], parts: Sequence[Proportion]) -> list[str]:
    """The classes that the teacher names on no image, about which nothing is known."""
    return [label for label, part in zip(labels, parts, strict=True) if part.total == 0]
