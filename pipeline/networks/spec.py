"""What every family of architectures has in common: a frozen spec that says how to build its network."""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field

from compress.pipeline.records import Record

MOST_CHANNELS = 1 << 20
"""Of a layer; more is nonsense, and would overflow the size of a tensor."""

Count = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
"""A number of channels, classes or layers."""


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
