"""DenseNets as torchvision and the usual CIFAR repositories name their tensors."""

import re
from collections import Counter
from collections.abc import Callable

from compress.pipeline.networks.densenet import DenseNetSpec, Order
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.naming import sizes_of
from compress.pipeline.teacher.families.renaming import INDEX, Placed, Rules, place

_FAMILY = "DenseNet"

_NORM = r"(?:weight|bias|running_mean|running_var)"
_OURS = rf"""(?x)
    features\.conv0\.weight | features\.norm[05]\.{_NORM} | classifier\.(?:weight|bias)
    | features\.denseblock{INDEX}\.denselayer{INDEX}\. (?: norm[12]\.{_NORM} | conv[12]\.weight )
    | features\.transition{INDEX}\. (?: norm\.{_NORM} | conv\.weight )"""
_LAYER = re.compile(r"features\.denseblock(\d+)\.(denselayer\d+)\..+")


def _layer(first_block: int, first_layer: int) -> Callable[[re.Match[str]], str]:
    """A dense layer's name, where blocks and layers are counted from those numbers."""
    return lambda found: (
        f"features.denseblock{int(found[1]) + 1 - first_block}.denselayer{int(found[2]) + 1 - first_layer}."
    )


def _transition(layer: str) -> Callable[[re.Match[str]], str]:
    """The name of a transition's layer, where transitions are counted from zero."""
    return lambda found: f"features.transition{int(found[1]) + 1}.{layer}."


_TORCHVISION = "torchvision"
_KUANGLIU = "kuangliu/pytorch-cifar"
_OTHERS = "the repositories for DenseNet-BC on CIFAR"
_WEIAICUNZAI = "weiaicunzai/pytorch-cifar100"
_AUTHORS: dict[str, Rules] = {
    _TORCHVISION: (
        # Before torchvision 0.3 `norm.1`, today `norm1`.
        (r"\.(norm|conv)\.([12])\.", r".\1\2."),
        (r"^features\.norm_final\.", "features.norm5."),
    ),
    _KUANGLIU: (
        (r"^conv1\.", "features.conv0."),
        (r"^dense(\d{1,4})\.(\d{1,4})\.", _layer(1, 0)),
        (r"(\.denselayer\d+)\.bn([12])\.", r"\1.norm\2."),
        (r"^trans(\d+)\.bn\.", r"features.transition\1.norm."),
        (r"^trans(\d+)\.conv\.", r"features.transition\1.conv."),
        (r"^bn\.", "features.norm5."),
        (r"^linear\.", "classifier."),
    ),
    _OTHERS: (
        (r"^conv1\.", "features.conv0."),
        (r"^(?:dense|block)(\d{1,4})\.(?:layer\.)?(\d{1,4})\.", _layer(1, 0)),
        (r"(\.denselayer\d+)\.bn([12])\.", r"\1.norm\2."),
        (r"^trans(\d+)\.bn1?\.", r"features.transition\1.norm."),
        (r"^trans(\d+)\.conv1?\.", r"features.transition\1.conv."),
        (r"^bn1?\.", "features.norm5."),
        (r"^(?:fc|linear)\.", "classifier."),
    ),
    _WEIAICUNZAI: (
        (r"^conv1\.", "features.conv0."),
        (r"^features\.dense_block(?:_layer_)?(\d{1,4})\.bottle_neck_layer_(\d{1,4})\.bottle_neck\.", _layer(0, 0)),
        (r"(\.denselayer\d+)\.0\.", r"\1.norm1."),
        (r"(\.denselayer\d+)\.2\.", r"\1.conv1."),
        (r"(\.denselayer\d+)\.3\.", r"\1.norm2."),
        (r"(\.denselayer\d+)\.5\.", r"\1.conv2."),
        (r"^features\.transition_layer_(\d{1,4})\.down_sample\.0\.", _transition("norm")),
        (r"^features\.transition_layer_(\d{1,4})\.down_sample\.1\.", _transition("conv")),
        (r"^features\.bn\.", "features.norm5."),
        (r"^linear\.", "classifier."),
    ),
}
_ORDERS: dict[str, tuple[Order, ...]] = {
    _KUANGLIU: ("newest first", "oldest first"),
    _OTHERS: ("oldest first", "newest first"),
}
"""Orders in which networks of these names are written, likeliest first; all others put the oldest first."""


def densenet_candidates(shapes: Shapes) -> list[Candidate]:
    """The DenseNet that such tensors can be, in each order in which networks of these names keep their channels.

    Raises:
        NotInFamily: tensors have no place in one, or those that its size is read off are missing or make no sense.
    """
    placed = place(shapes, _FAMILY, _AUTHORS, _OURS)
    orders: tuple[Order, ...] = _ORDERS.get(placed.author, ("oldest first",))
    specs = [_spec(placed, order) for order in orders]
    return [Candidate(spec, placed.names, _reasons(placed, spec), _assumptions(placed, spec)) for spec in specs]


def _spec(placed: Placed, order: Order) -> DenseNetSpec:
    width, channels, *kernel = placed.shape("features.conv0.weight", 4)
    if kernel not in ([3, 3], [7, 7]):
        raise placed.misfit(f"the stem is {kernel[0]}x{kernel[1]} and not 3x3 or 7x7", "features.conv0.weight")
    counts = _layers_by_block(placed)
    layer = "features.denseblock1.denselayer1"
    bottleneck = f"{layer}.conv2.weight" in placed.shapes
    transitions = [placed.shape(f"features.transition{block}.conv.weight", 4) for block in range(1, len(counts))]
    with sizes_of(_FAMILY):
        return DenseNetSpec(
            stem="imagenet" if kernel == [7, 7] else "cifar",
            layers=tuple(counts[str(block)] for block in range(1, len(counts) + 1)),
            growth=placed.shape(f"{layer}.conv{2 if bottleneck else 1}.weight", 4)[0],
            bottleneck=placed.shape(f"{layer}.conv1.weight", 4)[0] if bottleneck else None,
            transitions=tuple(transition[0] for transition in transitions),
            stem_width=width,
            stem_norm="features.norm0.weight" in placed.shapes,
            order=order,
            transition_relu=placed.author != _WEIAICUNZAI,
            channels=channels,
            num_classes=placed.shape("classifier.weight", 2)[0],
        )


def _layers_by_block(placed: Placed) -> Counter[str]:
    """How many layers each block has a tensor of."""
    layers = {(found[1], found[2]) for found in map(_LAYER.fullmatch, placed.shapes) if found}
    if not layers:
        raise NotInFamily(_FAMILY, "the checkpoint lacks its dense layers", distance=len(placed.shapes))
    return Counter(block for block, _ in layers)


def _assumptions(placed: Placed, spec: DenseNetSpec) -> tuple[str, ...]:
    side = "behind" if spec.order == "oldest first" else "before"
    order = (
        f"Weights do not show in which order channels are kept; those of each layer are taken to go {side} those that "
        "it was given."
    )
    relu = f"As in {_WEIAICUNZAI}, transitions are taken to have no ReLU."
    return (*((order,) if placed.author in _ORDERS else ()), *(() if spec.transition_relu else (relu,)))


def _reasons(placed: Placed, spec: DenseNetSpec) -> tuple[str, ...]:
    layers = " + ".join(str(count) for count in spec.layers)
    form, kernel = ("CIFAR", "3x3") if spec.stem == "cifar" else ("ImageNet", "7x7")
    return (
        f"The tensors are named as in {placed.author}.",
        f"The first convolution is {kernel}: the {form} form.",
        f"{len(spec.layers)} dense blocks of {layers} layers, each of which adds {spec.growth} channels.",
    )
