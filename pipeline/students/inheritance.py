"""Takes a student's weights from its teacher's, whatever the family: the kept blocks, and all that is no block."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.networks.resnet import PadShortcut, ResNet
from compress.pipeline.networks.spec import Kept
from compress.pipeline.networks.staged import Block
from compress.pipeline.students.narrowing import Channels, choose_channels, narrowed_weights
from compress.pipeline.students.unfolding import unfolded


def donor_of(teacher: nn.Module) -> StagedNetwork:
    """A frozen network of the teacher's function in the form that its students have, `NetworkSpec.learnable`.

    Raises:
        TypeError: nothing is known of the network's blocks.
    """
    if not isinstance(teacher, StagedNetwork):
        raise TypeError(f"cannot inherit from {type(teacher).__name__}")
    if isinstance(teacher, ResNet) and teacher.spec.shortcut == "pad":
        teacher = _with_linear_shortcuts(teacher)
    return teacher if teacher.spec == teacher.spec.learnable else unfolded(teacher)


def inherit_weights(student: StagedNetwork, donor: StagedNetwork, kept: Kept, channels: Channels | None = None) -> None:
    """Copy the kept blocks, and all that lies between and around the stages.

    Args:
        student: of the spec `donor.spec.keeping(kept)`, or of that narrowed.
        donor: what `donor_of` gives.
        kept: positions of blocks in the donor's stages.
        channels: which stay inside the blocks of a narrowed student; by default those with the largest weights.
    """
    weights = _weights_for(student, donor, kept)
    if is_narrowed(student, donor, kept):
        channels = choose_channels(student, thinned(donor, kept)) if channels is None else channels
        weights = narrowed_weights(weights, student.inner_channels(), channels)
    student.load_state_dict(weights)


def is_narrowed(student: StagedNetwork, donor: StagedNetwork, kept: Kept) -> bool:
    """Whether the student has fewer channels inside its blocks than the donor."""
    return student.spec != donor.spec.keeping(kept)


def thinned(donor: StagedNetwork, kept: Kept) -> StagedNetwork:
    """A network of the kept blocks that shares its tensors with the donor as far as it can, in evaluation mode."""
    with torch.device("meta"):
        network = build(donor.spec.keeping(kept))
    network.load_state_dict(_weights_for(network, donor, kept), assign=True)
    return network.eval()


def _weights_for(student: StagedNetwork, donor: StagedNetwork, kept: Kept) -> dict[str, Tensor]:
    weights, left = donor.state_dict(), donor.inputs_left(kept)
    for layer, inputs in left.items():
        weights |= _with_inputs(layer, donor.get_submodule(layer), inputs)
    return {mine: weights[yours] for mine, yours in corresponding(student, donor, kept).items()}


def corresponding(student: StagedNetwork, donor: StagedNetwork, kept: Kept) -> dict[str, str]:
    """The name of each of the student's tensors, and that of the donor's tensor in the same place."""
    pairs: dict[str, str] = {}
    for mine, yours, chosen in zip(student.stage_list(), donor.stage_list(), kept, strict=True):
        for block, index in zip(mine.blocks, chosen, strict=True):
            pairs |= zip(_tensors(student, block), _tensors(donor, yours.blocks[index]), strict=True)
    return pairs | dict(zip(_between(student), _between(donor), strict=True))


def _tensors(network: StagedNetwork, block: Block) -> Iterator[str]:
    names = {module: name for name, module in network.named_modules()}
    return (f"{names[module]}.{tensor}" for module in block for tensor in module.state_dict())


def _between(network: StagedNetwork) -> Iterator[str]:
    """Tensors that belong to no block, which every depth of a network has in the same order."""
    blocks = [block for stage in network.stage_list() for block in stage.blocks]
    inside = {name for block in blocks for name in _tensors(network, block)}
    return (name for name in network.state_dict() if name not in inside)


def _with_inputs(name: str, layer: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """What of a layer's tensors belongs to these input channels: of a weight `[out, in, ...]`, or of a norm's `[in]`."""
    tensors = layer.state_dict()
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return {f"{name}.weight": tensors["weight"].index_select(1, inputs.to(tensors["weight"].device))}
    return {
        f"{name}.{key}": tensor.index_select(0, inputs.to(tensor.device))
        for key, tensor in tensors.items()
        if tensor.dim()
    }


def _with_linear_shortcuts(network: ResNet) -> ResNet:
    """The same function with option-A shortcuts written as convolutions."""
    with torch.device("meta"):
        result = ResNet(network.spec.model_copy(update={"shortcut": "linear"}))
    shortcuts = {
        f"{name}.weight": module.as_convolution().to(network.fc.weight.device)
        for name, module in network.named_modules()
        if isinstance(module, PadShortcut)
    }
    result.load_state_dict(network.state_dict() | shortcuts, assign=True)
    return result.eval().requires_grad_(False)
