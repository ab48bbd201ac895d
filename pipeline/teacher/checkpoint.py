"""What the readers of all formats hand to intake."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A network that came as a graph or as code and not as weights alone.

    It maps what its author fed it, `[N, C, H, W]`, to `[N, K]`, in evaluation mode and float32; gradients reach the
    input. Its batch norms are `nn.BatchNorm2d` modules, so that `Teacher` finds what enters them.
    """

    network: nn.Module
    title: str
    """In words, such as `TorchScript program of 61 operations`."""
    code_sha256: str = ""
    """Digest of the Python code that computes it; empty where the file itself says all."""
    input_shape: tuple[int | None, ...] | None = None
    """`[N, C, H, W]` as the file states it, None for what it leaves open; None where it says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint as read: dense float32 tensors under names without wrappers' prefixes."""

    file_name: str
    sha256: str
    format: str
    """In words."""
    tensors: dict[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)
    """`input_size`, `mean` and `std`, those that the file carries."""
    batches_tracked: Mapping[str, int] = field(default_factory=dict)
    """Batches that each batch norm has seen in training, by the name of its module, where the file says."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the outputs, where the file carries them."""
    warnings: tuple[str, ...] = ()
    program: Program | None = None
    """The network itself, where the file holds more than its weights."""
