"""The classes that the chart of agreement per class shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.pipeline.records import Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """The agreement on the images of one class."""

    label: str
    part: Proportion


def lowest_classes(labels: Sequence[str], parts: Sequence[Proportion], most: int) -> list[ClassShare]:
    """The `most` classes of lowest agreement, lowest first; at equal agreement the one with more images first."""
    shares = [ClassShare(label=label, part=part) for label, part in zip(labels, parts, strict=True) if part.total > 0]
    return sorted(shares, key=lambda share: (share.part.value, -share.part.total))[:most]


def unseen_classes(labels: Sequence[str], parts: Sequence[Proportion]) -> list[str]:
    """The classes that the teacher names on no image, about which nothing is known."""
    return [label for label, part in zip(labels, parts, strict=True) if part.total == 0]
