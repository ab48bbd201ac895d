"""The network of an ONNX file, never run on a size of image for which its cost is not known."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.meter import Meter
from compress.pipeline.teacher.programs.onnx.dry_run import DryRun, refusal
from compress.pipeline.teacher.programs.onnx.file import OnnxRefusal


class OnnxNetwork(nn.Module):
    """`[N, C, H, W]` to `[N, K]`."""

    def __init__(self, graph: fx.GraphModule, file_name: str, memory_limit: int) -> None:
        super().__init__()
        self.graph, self.file_name = graph, file_name
        self.eval()
        self.images_at_a_time: int | None = None
        """None where any number is fine."""
        self._most_numbers = memory_limit // torch.float32.itemsize
        self._known: set[tuple[int, ...]] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]` to what the graph puts out, `[N, K]`.

        Raises:
            InputError: the network does not take images of that size, or would cost too much on them.
        """
        size = tuple(images.shape[1:])
        if size not in self._known:
            self._check(size)
        if self.images_at_a_time is None:
            logits: Tensor = self.graph(images)
            return logits
        return self._in_batches(images, self.images_at_a_time)

    def classes(self, images: int, size: Sequence[int]) -> int:
        """How many logits each of so many images of a size `[C, H, W]` gets.

        Raises:
            OnnxRefusal: the network does not take such images, does not answer `[N, K]`, or would cost too much.
        """
        meter = Meter(most=self._most_numbers)
        try:
            with torch.device("meta"), meter:
                blank = torch.empty(images, *size)
            answer = DryRun(self.graph, meter).run(blank)
        except Exception as error:  # torch has many types for sizes that do not fit
            raise refusal(error, f"images of {'x'.join(map(str, size))}") from error
        if not _is_logits(answer, images):
            kind = str(answer.dtype).removeprefix("torch.")
            raise OnnxRefusal(
                f"answers {counted(images)} with a {kind} tensor {list(answer.shape)}; a classifier answers [N, K]",
                "Detectors, segmenters and networks without their last layer cannot be compressed.",
            )
        self._known.add(tuple(size))
        return int(answer.shape[1])

    def _check(self, size: tuple[int, ...]) -> None:
        try:
            self.classes(self.images_at_a_time or 1, size)
        except OnnxRefusal as error:
            raise InputError(f"'{self.file_name}' {error.predicate}.", error.hint) from error

    def _in_batches(self, images: Tensor, size: int) -> Tensor:
        """As many at a time as the graph was made for; the last image fills up the last batch."""
        missing = -len(images) % size
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        return torch.cat([self.graph(batch) for batch in filled.split(size)])[: len(images)]


def _is_logits(answer: Tensor, images: int) -> bool:
    return answer.dim() == 2 and answer.shape[0] == images and answer.numel() > 0 and answer.is_floating_point()


def counted(images: int) -> str:
    """A number of images in words."""
    return "1 image" if images == 1 else f"{images} images"
