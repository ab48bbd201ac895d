"""VGG networks as torchvision, timm and the usual CIFAR repositories name their tensors.

Convolutions, batch norms, ReLUs and poolings are counted through, so that a pooling shows as a number left out.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt

from compress.pipeline.networks.vgg import VGGSpec
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.naming import sizes_of
from compress.pipeline.teacher.families.renaming import INDEX, Placed, Rules, place

_FAMILY = "VGG"

_OURS = rf"(?:features\.{INDEX}\.(?:weight|bias|running_mean|running_var)|classifier\.{INDEX}\.(?:weight|bias))"

_TORCHVISION, _TIMM = "torchvision and most CIFAR repositories", "timm"
_SLIMMING = "Eric-mingjie/network-slimming"
_AUTHORS: dict[str, Rules] = {
    _TORCHVISION: (
        # Training on several GPUs wraps the features alone, in PyTorch's own example for ImageNet.
        (r"^features\.module\.", "features."),
        (r"^(?:classifier|fc|linear)\.(weight|bias)$", r"classifier.0.\1"),
    ),
    _TIMM: (
        (r"^pre_logits\.fc1\.", "classifier.0."),
        (r"^pre_logits\.fc2\.", "classifier.3."),
        (r"^head\.fc\.", "classifier.6."),
    ),
    _SLIMMING: (
        (r"^feature\.", "features."),
        (r"^classifier\.(weight|bias)$", r"classifier.0.\1"),
    ),
}
_POOLING = "Gaps in the numbers of the layers are taken for 2x2 max pooling"
_LAST_POOLING = {
    True: f"{_POOLING}, which is taken to follow the last convolution, too.",
    False: f"{_POOLING}; behind the last convolution none is taken to follow, as in {_SLIMMING}.",
}


def vgg_candidates(shapes: Shapes) -> list[Candidate]:
    """The one VGG that such tensors can be.

    Raises:
        NotInFamily: tensors have no place in one, or those that its size is read off are missing or make no sense.
    """
    placed = place(shapes, _FAMILY, _AUTHORS, _OURS)
    features, linears = _layers(placed, "features"), list(_layers(placed, "classifier"))
    convolutions = [number for number, dimensions in features.items() if dimensions == 4]
    norms = [number for number in features if number not in convolutions]
    if not convolutions or not linears:
        lacking = "linear layers" if convolutions else "convolutions"
        raise NotInFamily(_FAMILY, f"the checkpoint lacks its {lacking}", distance=len(shapes))
    if norms and norms != [number + 1 for number in convolutions]:
        odd = set(norms).symmetric_difference(number + 1 for number in convolutions)
        raise NotInFamily(_FAMILY, "batch norm does not follow each convolution", distance=4 * len(odd))
    blocks = _blocks(placed, convolutions, 3 if norms else _step(convolutions))
    spec = _spec(placed, blocks, linears, bool(norms))
    modules = _module_names(blocks, linears, bool(norms))
    names = {theirs: _renamed(ours, modules) for theirs, ours in placed.names.items()}
    return [Candidate(spec, names, _reasons(placed, spec), (_LAST_POOLING[spec.last_pool],))]


def _layers(placed: Placed, part: str) -> dict[int, int]:
    """The number of each layer of a part, in order, to the dimensions of its weight; 0 where it has none."""
    numbers = {int(name.split(".")[1]) for name in placed.shapes if name.startswith(f"{part}.")}
    return {number: len(placed.shapes.get(f"{part}.{number}.weight", ())) for number in sorted(numbers)}


def _step(convolutions: Sequence[int]) -> int:
    """By how much the number rises from one convolution to the next without batch norm and pooling between them.

    Batch norm that was fused away has left its number behind, so that no gap is as small as without it.
    """
    gaps = [after - before for before, after in pairwise(convolutions)]
    return 3 if min(gaps, default=0) >= 3 and max(gaps) >= 4 else 2


def _blocks(placed: Placed, convolutions: Sequence[int], step: int) -> list[list[int]]:
    """The numbers of the convolutions, a list for those between every two poolings."""
    blocks = [[convolutions[0]]]
    for before, number in pairwise(convolutions):
        if number - before not in (step, step + 1):
            problem = f"between its layers {before} and {number} there is not just a pooling"
            raise placed.misfit(problem, f"features.{number}.weight")
        if number - before > step:
            blocks.append([])
        blocks[-1].append(number)
    return blocks


def _spec(placed: Placed, blocks: Sequence[Sequence[int]], linears: Sequence[int], batch_norm: bool) -> VGGSpec:
    convolutions = [[placed.shape(f"features.{number}.weight", 4) for number in block] for block in blocks]
    *hidden, last = linears
    convolutional = len(placed.shapes.get(f"classifier.{linears[0]}.weight", ())) == 4
    sizes = [placed.shape(f"classifier.{number}.weight", 4 if convolutional else 2) for number in hidden]
    num_classes, inputs = placed.shape(f"classifier.{last}.weight", 2)
    pixels = (sizes[0][1] if sizes else inputs) // convolutions[-1][-1][0]
    with sizes_of(_FAMILY):
        return VGGSpec(
            blocks=tuple(tuple(shape[0] for shape in block) for block in convolutions),
            hidden=tuple(size[0] for size in sizes),
            grid=sizes[0][-1] if convolutional else max(isqrt(pixels), 1),
            head="convolutional" if convolutional else "linear",
            last_pool=placed.author != _SLIMMING,
            batch_norm=batch_norm,
            conv_bias=f"features.{blocks[0][0]}.bias" in placed.shapes,
            channels=convolutions[0][0][1],
            num_classes=num_classes,
        )


def _module_names(blocks: Sequence[Sequence[int]], linears: Sequence[int], batch_norm: bool) -> dict[str, str]:
    """Each layer as its author numbered it to our number, which counts no batch norm that was fused away."""
    names = {f"classifier.{number}": f"classifier.{3 * index}" for index, number in enumerate(linears)}
    ours = 0
    for block in blocks:
        for number in block:
            names |= {f"features.{number}": f"features.{ours}", f"features.{number + 1}": f"features.{ours + 1}"}
            ours += 3 if batch_norm else 2
        ours += 1
    return names


def _renamed(name: str, modules: dict[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{modules[module]}.{tensor}"


def _reasons(placed: Placed, spec: VGGSpec) -> tuple[str, ...]:
    convolutions = " + ".join(str(len(block)) for block in spec.blocks)
    head = "a convolution" if spec.head == "convolutional" else "a linear layer"
    return (
        f"The tensors are named as in {placed.author}.",
        f"The numbers of the layers leave room for poolings after {convolutions} convolutions.",
        f"The classifier begins with {head} for {spec.grid}x{spec.grid} pixels.",
    )
