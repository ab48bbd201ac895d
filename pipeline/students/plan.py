"""What a student is before it is built."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from compress.pipeline.networks import NetworkSpec, build


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPlan:
    """A student before it is built."""

    name: str
    spec: NetworkSpec
    parameters: int
    kept_blocks: tuple[tuple[int, ...], ...] | None
    """For a student derived from its teacher: which of the teacher's blocks each stage keeps until images say more."""

    @property
    def inherited(self) -> bool:
        return self.kept_blocks is not None


@lru_cache(maxsize=256)
def count_parameters(spec: NetworkSpec) -> int:
    """Trainable parameters of a network, without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(spec).parameters())
