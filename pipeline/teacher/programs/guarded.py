"""A program's network for images of any shape, whose cost is known before any of it is paid."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.dry_run import shape_of_answer
from compress.pipeline.teacher.programs.graph import ProgramGraph, TensorRef, ValueRef, build_network

_CONVOLUTIONS = ("conv2d", "convolution")
_KEEP_CHANNELS = ("add", "batch_norm", "clone", "contiguous", "detach", "div", "mul", "pad", "rsub", "sub", "type_as")
"""Operators that a network may put before its first convolution."""

_BATCH_HINT = "Flatten with x.flatten(1) rather than into a fixed shape, and save it again."


class GuardedNetwork(nn.Module):
    """Runs a program whose author did not say which images it takes; each new shape is tried without numbers first."""

    def __init__(self, graph: ProgramGraph, tensors: Mapping[str, Tensor], name: str) -> None:
        """Build the network.

        Args:
            graph: the program.
            tensors: the file's, by the names that the graph uses.
            name: the file's, for messages.

        Raises:
            InputError: an operator is not allowed, or refers to something that is not there.
        """
        super().__init__()
        self.network = build_network(graph, tensors, name)
        self._graph, self._file_name = graph, name
        self._shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
        self._accepted: set[torch.Size] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]` to what the program answers.

        Raises:
            InputError: images of this shape cannot be computed, would cost too much, or do not get one answer each.
        """
        if images.shape[1:] not in self._accepted:
            self._try(images.shape[1:])
            self._accepted.add(images.shape[1:])
        answer: Tensor = self.network(images)
        return answer

    def _try(self, image: torch.Size) -> None:
        for count in (1, 2):
            shape = shape_of_answer(self._graph, self._shapes, (count, *image), self._file_name)
            if shape[:1] != (count,):
                raise InputError(
                    f"'{self._file_name}' answers {count} images with a tensor {list(shape)}.", _BATCH_HINT
                )


def channels_of(graph: ProgramGraph, tensors: Mapping[str, Tensor]) -> int | None:
    """Channels of the images that a program takes, where its first convolution tells; None where it does not."""
    images = {graph.input}
    for operation in graph.operations:
        base = operation.operator.split(".")[1]
        match operation.arguments:
            case (ValueRef(value), *_) if value in images and base in _KEEP_CHANNELS:
                images.add(operation.name)
            case (ValueRef(value), TensorRef(weight), *_, int(groups)) if value in images and base in _CONVOLUTIONS:
                return tensors[weight].shape[1] * groups if tensors[weight].dim() == 4 else None
    return None
