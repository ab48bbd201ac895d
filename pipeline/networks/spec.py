"""What every family of architectures has in common: a frozen spec that says how to build its network."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Annotated, Self, TypeVar

from pydantic import Field

from compress.pipeline.records import Record

MOST_CHANNELS = 1 << 20
"""Of a layer; more is nonsense, and would overflow the size of a tensor."""

_CHANNELS_AT_A_TIME = 8

Count = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
"""A number of channels, classes or layers."""

Kept = Sequence[Sequence[int]]
"""Of each stage, the positions of the blocks that stay, in ascending order."""

_Item = TypeVar("_Item")


class NetworkSpec(Record):
    """What it takes to build a network; each family adds its own fields, and sets `family` to its own name."""

    family: str
    channels: Count = 3
    num_classes: Count

    @property
    @abstractmethod
    def name(self) -> str:
        """The short name that the field knows it by, such as `resnet56`."""

    @property
    @abstractmethod
    def title(self) -> str:
        """One line for people: the usual name, and in brackets the form and what else sets it apart."""

    @property
    @abstractmethod
    def usual_size(self) -> int:
        """Height and width in pixels of the images that this form was made for."""

    @property
    @abstractmethod
    def minimum_size(self) -> int:
        """The least height and width in pixels that the network can take."""

    @property
    def maximum_size(self) -> int | None:
        """The greatest that it can take; None where it takes any."""
        return None

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """Of each block of each stage, whether the network works without it; () where nothing is known of blocks."""
        return ()

    @property
    def block_kinds(self) -> tuple[tuple[Hashable, ...], ...]:
        """Of each block of each stage, its kind: a network has the same spec with another block of the same kind."""
        return tuple((None,) * len(stage) for stage in self.droppable)

    def keeping(self, kept: Kept) -> "NetworkSpec":
        """The spec of the network that has only these blocks."""
        raise NotImplementedError

    def narrowed(self, share: float) -> "NetworkSpec":
        """The spec with about this share of the channels that only the inside of a block sees; itself if there are none."""
        return self

    @property
    def learnable(self) -> Self:
        """The form that computes the same and that a student learns best in: with batch norms, if there can be any."""
        return self


def narrower(channels: int, share: float) -> int:
    """About this share of a number of channels, a multiple of 8 for the device's sake, and no more than there are."""
    return min(channels, max(_CHANNELS_AT_A_TIME, _CHANNELS_AT_A_TIME * round(share * channels / _CHANNELS_AT_A_TIME)))


def kept_of(stages: Sequence[Sequence[_Item]], kept: Kept) -> list[_Item]:
    """What belongs to the blocks that stay, of all stages in a row."""
    return [stage[index] for stage, positions in zip(stages, kept, strict=True) for index in positions]


def counts_of(kept: Kept) -> tuple[int, ...]:
    """Blocks that each stage keeps."""
    return tuple(len(positions) for positions in kept)


def same_width_droppable(counts: Sequence[int], widths: Sequence[int], entering: int) -> tuple[tuple[bool, ...], ...]:
    """Of blocks that each change the shape at the beginning of their stage if at all, as `droppable` has it.

    Args:
        counts: blocks a stage; all stages but the first begin at a lower resolution.
        widths: channels that the blocks of each stage put out.
        entering: channels that enter the first stage.
    """
    first = entering == widths[0]
    return tuple((first and index == 0,) + (True,) * (count - 1) for index, count in enumerate(counts))
