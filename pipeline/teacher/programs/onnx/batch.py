"""Makes a graph take any number of images, although many files are exported for one alone."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from compress.pipeline.teacher.programs.modules import USUAL_SIZES
from compress.pipeline.teacher.programs.onnx.dry_run import refusal
from compress.pipeline.teacher.programs.onnx.file import OnnxRefusal
from compress.pipeline.teacher.programs.onnx.network import OnnxNetwork, counted
from compress.pipeline.teacher.programs.onnx.operators.shapes import (
    expand,
    expand_for_any_batch,
    images_in,
    reshape,
    reshape_5,
    reshape_for_any_batch,
)

ImageSize = tuple[int, int, int]
"""Channels, height, width."""

_ADAPTED = {reshape: reshape_for_any_batch, reshape_5: reshape_for_any_batch, expand: expand_for_any_batch}
"""Functions that are given sizes, and what takes the batch out of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A network that takes any number of images."""

    network: OnnxNetwork
    image: ImageSize
    """A size that it takes."""
    classes: int
    warnings: tuple[str, ...] = ()


def fit(
    graph: fx.GraphModule,
    shape: Sequence[int | None],
    metadata: Mapping[str, object],
    file_name: str,
    memory_limit: int,
) -> Fitted:
    """The graph made to take any number of images, and proven to on images of noise.

    A graph that was exported for a fixed number has that number in its shapes. Put in terms of the batch, these mostly
    take others; where they do not, the graph is given the number that it was made for.

    Args:
        graph: as translated.
        shape: `[N, C, H, W]` of the input as far as the file states them.
        metadata: `input_size`, where the file says so there.
        file_name: for messages.
        memory_limit: bytes that may be in use at a time.

    Raises:
        OnnxRefusal: it takes images of no usual size, or does not answer `[N, K]`, or works on batches of one size alone
            although it has batch norms.
    """
    build = partial(OnnxNetwork, file_name=file_name, memory_limit=memory_limit)
    if shape[0] is None:
        fitted = _as_it_is(build(graph), shape, metadata)
        if fitted is not None:
            return fitted
    stated, network = shape[0] or 1, build(_for_any_batch(graph, shape[0] or 1))
    image, classes = _first_that_fits(network, stated, shape, metadata)
    if _takes(network, (1, stated + 1), image, classes) and _answers_alike(network, stated, image):
        return Fitted(network=network, image=image, classes=classes)
    return _in_fixed_batches(build(graph), stated, image, classes)


def _as_it_is(network: OnnxNetwork, shape: Sequence[int | None], metadata: Mapping[str, object]) -> Fitted | None:
    """A graph that leaves the number of images open, if it takes one as well as three."""
    try:
        image, classes = _first_that_fits(network, 3, shape, metadata)
    except OnnxRefusal:
        return None
    if _try(network, 1, image).shape != (1, classes):
        return None
    return Fitted(network=network, image=image, classes=classes)


def _for_any_batch(graph: fx.GraphModule, batch: int) -> fx.GraphModule:
    """The graph with the batch that it was exported for taken out of the constant shapes that it reshapes to."""
    copied = copy.deepcopy(graph.graph)
    images = next(iter(copied.nodes))
    with copied.inserting_after(images):
        count = copied.call_function(images_in, (images,))
    for node in copied.nodes:
        adapted = _ADAPTED.get(node.target)
        if adapted is not None and isinstance(node.args[1], tuple):
            node.target, node.args, node.kwargs = adapted, (*node.args, count, batch), {}
    return fx.GraphModule(graph, copied)


def _first_that_fits(
    network: OnnxNetwork, images: int, shape: Sequence[int | None], metadata: Mapping[str, object]
) -> tuple[ImageSize, int]:
    """The first of the sizes that an image may have, and the number of classes."""
    failure: OnnxRefusal | None = None
    for size in _sizes(shape, metadata):
        try:
            return size, network.classes(images, size)
        except OnnxRefusal as error:
            failure = failure or error
    assert failure is not None  # there is always a size to try
    raise failure


def _sizes(shape: Sequence[int | None], metadata: Mapping[str, object]) -> Iterator[ImageSize]:
    """Of images, as the file states them; what it leaves open is tried."""
    asked = metadata.get("input_size")
    pixels = asked[-1:] if isinstance(asked, list) else [asked]
    usual = [size for size in (*pixels, *USUAL_SIZES) if isinstance(size, int) and 0 < size <= 1024]
    _, channels, height, width = shape
    for count in (channels,) if channels else (3, 1):
        for size in usual if not (height and width) else usual[:1]:
            yield count, height or size, width or size


def _takes(network: OnnxNetwork, numbers: Sequence[int], image: ImageSize, classes: int) -> bool:
    """Whether the network takes each of these numbers of images."""
    try:
        return all(network.classes(number, image) == classes for number in numbers)
    except OnnxRefusal:
        return False


def _answers_alike(network: OnnxNetwork, batch: int, image: ImageSize) -> bool:
    """Whether the answers to `batch` images are the same where there is another image before them."""
    images = torch.rand(batch + 1, *image, generator=torch.Generator().manual_seed(0))
    together, alone = _try(network, batch + 1, image, images)[1:], _try(network, batch, image, images[1:])
    largest = float(alone.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)


def _in_fixed_batches(network: OnnxNetwork, batch: int, image: ImageSize, classes: int) -> Fitted:
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise OnnxRefusal(
            f"was exported for {counted(batch)} at a time and does not take another number",
            "Export it with an open number of images: torch.onnx.export(..., dynamic_shapes=({0: 'batch'},)).",
        )
    network.images_at_a_time = batch
    _try(network, batch, image)
    warning = (
        f"The graph was exported for {counted(batch)} at a time and takes no other number; it is run on that many, one "
        "batch after the other, which is slow. Export it with an open number of images."
    )
    return Fitted(network=network, image=image, classes=classes, warnings=(warning,))


def _try(network: OnnxNetwork, count: int, image: ImageSize, images: Tensor | None = None) -> Tensor:
    """What the network really says."""
    try:
        answer: Tensor = network(torch.zeros(count, *image) if images is None else images)
        return answer
    except Exception as error:  # kernels have limits of their own
        raise refusal(error, "images of noise") from error
