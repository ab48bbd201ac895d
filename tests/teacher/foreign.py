"""What the tests of families do with networks that are written as in other people's repositories."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.networks import NetworkSpec
from compress.pipeline.teacher.families import Candidate, Family, NotInFamily, Shapes
from compress.pipeline.teacher.inference import expected_shapes, load, recognise
from tests.networks import unsettle
from tests.teacher.families import HOSTILE_SHAPES

BATCH_STATISTICS = ("running_mean", "running_var")


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """A network's state as intake hands it on, without batch counters."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(network).items()}


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return make()


def count_parameters(spec: NetworkSpec) -> int:
    """Trainable parameters of a network, without allocating it."""
    shapes = expected_shapes(spec).items()
    return sum(torch.Size(shape).numel() for name, shape in shapes if not name.endswith(BATCH_STATISTICS))


def recognised(network: nn.Module) -> list[Candidate]:
    """The candidates for a network's state_dict; all are of one family."""
    candidates = recognise(shapes_of(network), "t.pt")
    assert len({candidate.spec.family for candidate in candidates}) == 1
    return candidates


def answers_as(network: nn.Module, candidate: Candidate, images: Tensor) -> bool:
    """Whether the candidate with the network's weights computes what the network does on images `[N, C, H, W]`."""
    unsettle(network).eval()
    loaded = load(candidate, tensors_of(network)).eval()
    return bool(torch.allclose(loaded(images), network(images), rtol=1e-4, atol=1e-5))


def stages(
    block: Callable[[int, int, int], nn.Module], blocks: tuple[int, ...], widths: tuple[int, ...], entering: int
) -> list[nn.Sequential]:
    """Stages of blocks `block(in_channels, out_channels, stride)`, all but the first with stride 2."""
    made = []
    for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        stage = nn.Sequential(block(entering, width, 2 if index else 1))
        stage.extend([block(width, width, 1) for _ in range(count - 1)])
        entering = width
        made.append(stage)
    return made


def misfit(family: Family, shapes: Shapes) -> NotInFamily:
    """Why a family refuses such tensors."""
    with pytest.raises(NotInFamily) as caught:
        family(shapes)
    return caught.value


def refusal(family: Family, shapes: Shapes) -> str:
    """The sentence with which intake refuses such tensors where only this family is known."""
    with pytest.raises(InputError) as caught:
        recognise(shapes, "t.pt", [family])
    return caught.value.message


def nonsense(shapes: Shapes) -> Iterator[Shapes]:
    """A checkpoint's shapes with one tensor missing or of a senseless shape, and with all sizes out of reason.

    To be quick, each tensor has two of the senseless shapes only, others than its neighbours have.
    """
    for index, name in enumerate(shapes):
        yield {other: shape for other, shape in shapes.items() if other != name}
        for offset in (0, 3):
            yield {**shapes, name: HOSTILE_SHAPES[(index + offset) % len(HOSTILE_SHAPES)]}
    for size in (0, 1, 1 << 20, 1 << 60):
        yield {name: (size,) * len(shape) for name, shape in shapes.items()}
    yield {name: (*(size << 50 for size in shape[:2]), *shape[2:]) for name, shape in shapes.items()}
