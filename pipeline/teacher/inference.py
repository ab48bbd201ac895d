"""Infers the architecture from the names and shapes of a checkpoint's tensors, and verifies it by strict loading."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.networks import NetworkSpec, build
from compress.pipeline.teacher.families import Candidate, Family, NotInFamily, Shapes
from compress.pipeline.teacher.families.convnext import convnext_candidates
from compress.pipeline.teacher.families.densenet import densenet_candidates
from compress.pipeline.teacher.families.efficientnet import efficientnet_candidates
from compress.pipeline.teacher.families.mobilenet_v2 import mobilenet_v2_candidates
from compress.pipeline.teacher.families.mobilenet_v3 import mobilenet_v3_candidates
from compress.pipeline.teacher.families.preact_resnet import preact_resnet_candidates
from compress.pipeline.teacher.families.resnet import resnet_candidates
from compress.pipeline.teacher.families.shufflenet_v2 import shufflenet_v2_candidates
from compress.pipeline.teacher.families.vgg import vgg_candidates
from compress.pipeline.teacher.families.vit import vit_candidates
from compress.pipeline.teacher.readers.formats import printable

FAMILIES: tuple[Family, ...] = (
    convnext_candidates,
    vit_candidates,
    densenet_candidates,
    efficientnet_candidates,
    mobilenet_v3_candidates,
    mobilenet_v2_candidates,
    shufflenet_v2_candidates,
    vgg_candidates,
    resnet_candidates,
    preact_resnet_candidates,
)
"""The more particular before the more general, since the first of two that fit alike is the likelier."""

NEAREST = 3
"""Families named when none fits."""


def recognise(shapes: Shapes, name: str, families: Sequence[Family] = FAMILIES) -> list[Candidate]:
    """All candidates of all families into which every tensor fits, none missing and none left over; likeliest first.

    Raises:
        InputError: there is none; the sentence names the nearest and the tensors that keep them from fitting.
    """
    fitting: list[Candidate] = []
    misfits: list[NotInFamily] = []
    for family in families:
        try:
            candidates = family(shapes)
        except NotInFamily as misfit:
            misfits.append(misfit)
            continue
        for candidate in candidates:
            try:
                _verify(candidate, shapes)
                fitting.append(candidate)
            except NotInFamily as misfit:
                misfits.append(misfit)
    if not fitting:
        raise _not_recognised(name, shapes, misfits)
    return fitting


def load(candidate: Candidate, tensors: dict[str, Tensor]) -> nn.Module:
    """The candidate's network with a checkpoint's weights."""
    with torch.device("meta"):
        network = build(candidate.spec)
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    weights = {candidate.names[name]: tensor for name, tensor in tensors.items()}
    network.load_state_dict(weights | counters, strict=True, assign=True)
    return network


def expected_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors without batch counters, found without allocating it."""
    with torch.device("meta"):
        state = build(spec).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _not_recognised(name: str, shapes: Shapes, misfits: Sequence[NotInFamily]) -> InputError:
    """Nearest is the family with the fewest tensors out of place; one to which all are foreign is not near at all."""
    near = sorted((misfit for misfit in misfits if misfit.distance < len(shapes)), key=lambda misfit: misfit.distance)
    nearest = [f"{misfit.family}, but {misfit.problem}{_listed(misfit.tensors)}" for misfit in near[:NEAREST]]
    further = "".join(f"Next: {sentence}.\n" for sentence in nearest[1:])
    problem = f"; the nearest is {nearest[0]}" if nearest else f" by the names of its tensors{_listed(tuple(shapes))}"
    return InputError(
        f"The architecture of '{name}' is not recognised{problem}.",
        f"{further}Where the model's code is at hand, name what builds it: --arch package.module:function."
        "\nOr save the network with its weights, as a TorchScript, torch.export or ONNX file.",
    )


def _verify(candidate: Candidate, shapes: Shapes) -> None:
    expected, title = expected_shapes(candidate.spec), candidate.spec.title
    given = {candidate.names[name]: name for name in shapes}
    left_over = tuple(original for name, original in given.items() if name not in expected)
    missing = tuple(name for name in expected if name not in given)
    differing = tuple(
        f"{original} {list(shapes[original])} (expected {list(expected[name])})"
        for name, original in given.items()
        if name in expected and shapes[original] != expected[name]
    )
    distance = len(left_over) + len(missing) + len(differing)
    if len(given) < len(shapes):
        doubles = tuple(original for original in shapes if original not in given.values())
        raise NotInFamily(title, "another tensor is in the place of", doubles, distance=len(doubles) + distance)
    if left_over:
        raise NotInFamily(title, "it has no place for", left_over, distance=distance)
    if missing:
        raise NotInFamily(title, "the checkpoint lacks its", missing, distance=distance)
    if differing:
        raise NotInFamily(title, "shapes differ", differing, distance=distance)


def _listed(tensors: Sequence[str], most: int = 3) -> str:
    more = f" and {len(tensors) - most} more" if len(tensors) > most else ""
    return f": {', '.join(printable(tensor) for tensor in tensors[:most])}{more}" if tensors else ""
