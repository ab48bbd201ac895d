"""Families of architectures: each knows its own from the names and shapes of a checkpoint's tensors alone.

A family is one module with one function from shapes to candidates. A candidate is a claim; `inference` verifies it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress.pipeline.networks import NetworkSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that a checkpoint may be, and where each of its tensors goes."""

    spec: NetworkSpec
    names: dict[str, str]
    """The checkpoint's name of each tensor to the network's."""
    reasons: tuple[str, ...]
    """Why this and not another, in sentences."""
    assumptions: tuple[str, ...] = ()
    """What weights cannot show, in sentences."""


class NotInFamily(Exception):
    """The checkpoint is none of this family's; says how near it comes."""

    def __init__(
        self, family: str, problem: str, tensors: tuple[str, ...] = (), *, distance: int | None = None
    ) -> None:
        super().__init__(f"{family}: {problem}")
        self.family, self.problem, self.tensors = family, problem, tensors
        self.distance = len(tensors) if distance is None else distance
        """How many tensors are out of place; families with fewer are nearer."""


Family = Callable[[Shapes], list[Candidate]]
"""Candidates, likeliest first.

Raises:
    NotInFamily: the names or shapes rule the family out.
"""
