"""Infers the architecture from the names and shapes of a checkpoint's tensors, and verifies it by strict loading."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.networks import Network, NetworkSpec, build
from compress.pipeline.teacher.families import Candidate, Family, NotInFamily, Shapes
from compress.pipeline.teacher.families.resnet import resnet_candidates
from compress.pipeline.teacher.formats import printable

FAMILIES: tuple[Family, ...] = (resnet_candidates,)


def recognise(shapes: Shapes, name: str, families: Sequence[Family] = FAMILIES) -> Candidate:
    """The first candidate of all families into which every tensor fits, none missing and none left over.

    Raises:
        InputError: there is none; the sentence names the nearest and the tensors that keep it from fitting.
    """
    misfits: list[NotInFamily] = []
    for family in families:
        try:
            for candidate in family(shapes):
                _verify(candidate, shapes)
                return candidate
        except NotInFamily as misfit:
            misfits.append(misfit)
    nearest = min(misfits, key=lambda misfit: len(misfit.tensors))
    raise InputError(
        f"The architecture of '{name}' is not recognised; the nearest is a {nearest.family}, but {nearest.problem}"
        f"{_listed(nearest.tensors)}.",
        "Known are residual networks of the CIFAR and the ImageNet form with basic or bottleneck blocks.",
    )


def load(candidate: Candidate, tensors: dict[str, Tensor]) -> Network:
    """The candidate's network with a checkpoint's weights."""
    with torch.device("meta"):
        network = build(candidate.spec.model_dump(mode="json"))
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    weights = {candidate.names[name]: tensor for name, tensor in tensors.items()}
    network.load_state_dict(weights | counters, strict=True, assign=True)
    return network


def expected_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors without batch counters, found without allocating it."""
    with torch.device("meta"):
        state = build(spec.model_dump(mode="json")).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _verify(candidate: Candidate, shapes: Shapes) -> None:
    expected, title = expected_shapes(candidate.spec), candidate.spec.title
    given = {candidate.names[name]: name for name in shapes}
    left_over = tuple(original for name, original in given.items() if name not in expected)
    if left_over:
        raise NotInFamily(title, "it has no place for", left_over)
    missing = tuple(name for name in expected if name not in given)
    if missing:
        raise NotInFamily(title, "the checkpoint lacks its", missing)
    differing = tuple(
        f"{original} {list(shapes[original])} (expected {list(expected[name])})"
        for name, original in given.items()
        if shapes[original] != expected[name]
    )
    if differing:
        raise NotInFamily(title, "shapes differ", differing)


def _listed(tensors: Sequence[str], most: int = 3) -> str:
    more = f" and {len(tensors) - most} more" if len(tensors) > most else ""
    return f": {', '.join(printable(tensor) for tensor in tensors[:most])}{more}" if tensors else ""
