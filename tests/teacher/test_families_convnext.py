"""ConvNeXt from bare weights, against a forward pass written out from the paper under the names of each author."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.networks import build
from compress.pipeline.networks.convnext import ConvNeXtSpec
from compress.pipeline.teacher.families import NotInFamily, Shapes
from compress.pipeline.teacher.families.convnext import convnext_candidates
from compress.pipeline.teacher.inference import expected_shapes, load, recognise
from tests.teacher.families import HOSTILE_SHAPES, Weights, randomised, shapes_of

# Module names for stage s, block b and, as torchvision counts, 2 s and 2 s + 1.
# Sources: facebookresearch/ConvNeXt models/convnext.py, torchvision/models/convnext.py, timm/models/convnext.py.
AUTHORS: dict[str, dict[str, str]] = {
    "the original repository": {
        "stem": "downsample_layers.0.0",
        "stem norm": "downsample_layers.0.1",
        "between norm": "downsample_layers.{s}.0",
        "between": "downsample_layers.{s}.1",
        "depthwise": "stages.{s}.{b}.dwconv",
        "norm": "stages.{s}.{b}.norm",
        "expand": "stages.{s}.{b}.pwconv1",
        "project": "stages.{s}.{b}.pwconv2",
        "scale": "stages.{s}.{b}.gamma",
        "last norm": "norm",
        "head": "head",
    },
    "torchvision": {
        "stem": "features.0.0",
        "stem norm": "features.0.1",
        "between norm": "features.{even}.0",
        "between": "features.{even}.1",
        "depthwise": "features.{odd}.{b}.block.0",
        "norm": "features.{odd}.{b}.block.2",
        "expand": "features.{odd}.{b}.block.3",
        "project": "features.{odd}.{b}.block.5",
        "scale": "features.{odd}.{b}.layer_scale",
        "last norm": "classifier.0",
        "head": "classifier.2",
    },
    "timm": {
        "stem": "stem.0",
        "stem norm": "stem.1",
        "between norm": "stages.{s}.downsample.0",
        "between": "stages.{s}.downsample.1",
        "depthwise": "stages.{s}.blocks.{b}.conv_dw",
        "norm": "stages.{s}.blocks.{b}.norm",
        "expand": "stages.{s}.blocks.{b}.mlp.fc1",
        "project": "stages.{s}.blocks.{b}.mlp.fc2",
        "scale": "stages.{s}.blocks.{b}.gamma",
        "last norm": "head.norm",
        "head": "head.fc",
    },
}

SPECS = {
    "four stages": {"blocks": (1, 2, 3, 1), "widths": (4, 6, 8, 10)},
    "eleven blocks of one width": {"blocks": (11, 1), "widths": (4, 4)},
    "one stage": {"blocks": (2,), "widths": (5,)},
    "small patches and kernels": {"blocks": (1, 1), "widths": (4, 8), "patch": 2, "kernel": 3},
    "grey, and less wide inside": {"blocks": (1, 1), "widths": (4, 8), "channels": 1, "expansion": 2, "num_classes": 7},
    "no layer scale": {"blocks": (1, 1), "widths": (4, 8), "layer_scale": "none"},
}

# Parameters as torchvision publishes them with its classification weights, and as timm's table of results rounds them.
PUBLISHED = {
    "convnext_tiny": (28_589_128, (3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": (50_223_688, (3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": (88_591_464, (3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": (197_767_336, (3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_atto": (3_695_520, (2, 2, 6, 2), (40, 80, 160, 320)),  # 3.70 M
}


def tiny(**changes: Any) -> ConvNeXtSpec:
    """Two stages of one and two blocks, 4 and 6 channels, 3 classes."""
    usual = {"blocks": (1, 2), "widths": (4, 6), "num_classes": 3}
    return ConvNeXtSpec.model_validate(usual | changes)


def names_of(author: str) -> Callable[..., str]:
    def name(part: str, s: int = 0, b: int = 0) -> str:
        return AUTHORS[author][part].format(s=s, b=b, even=2 * s, odd=2 * s + 1)

    return name


def weights_by(author: str, spec: ConvNeXtSpec) -> Weights:
    """Random weights of a ConvNeXt under an author's names, in the shapes of figure 4 of the paper."""
    name = names_of(author)
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(part: str, *shape: int, s: int = 0, b: int = 0) -> None:
        shapes[f"{name(part, s, b)}.weight"] = shape
        shapes[f"{name(part, s, b)}.bias"] = shape[:1]

    layer("stem", spec.widths[0], spec.channels, spec.patch, spec.patch)
    layer("stem norm", spec.widths[0])
    for s, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        if s:
            layer("between norm", spec.widths[s - 1], s=s)
            layer("between", width, spec.widths[s - 1], 2, 2, s=s)
        for b in range(count):
            one = (1, 1) if spec.pointwise == "convolution" else ()
            layer("depthwise", width, 1, spec.kernel, spec.kernel, s=s, b=b)
            layer("norm", width, s=s, b=b)
            layer("expand", spec.expansion * width, width, *one, s=s, b=b)
            layer("project", width, spec.expansion * width, *one, s=s, b=b)
            if spec.layer_scale != "none":
                shapes[name("scale", s, b)] = (width, 1, 1) if spec.layer_scale == "map" else (width,)
    layer("last norm", spec.widths[-1])
    layer("head", spec.num_classes, spec.widths[-1])
    return {key: torch.randn(shape, dtype=torch.float64) for key, shape in shapes.items()}


def reference(author: str, spec: ConvNeXtSpec, weights: Weights, images: Tensor) -> Tensor:
    """Logits `[N, K]` straight from the weights: section 2 and figure 4 of the paper, in maps `[N, C, H, W]` all the way."""
    name = names_of(author)

    def of(part: str, s: int, b: int) -> tuple[Tensor, Tensor]:
        return weights[f"{name(part, s, b)}.weight"], weights[f"{name(part, s, b)}.bias"]

    def norm(x: Tensor, part: str, s: int = 0, b: int = 0) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        weight, bias = (value[:, None, None] for value in of(part, s, b))
        return weight * (x - mean) / (variance + 1e-6).sqrt() + bias

    def convolve(x: Tensor, part: str, s: int = 0, b: int = 0, **options: Any) -> Tensor:
        weight, bias = of(part, s, b)
        return F.conv2d(x, weight if weight.dim() == 4 else weight[:, :, None, None], bias, **options)

    x = norm(convolve(images, "stem", stride=spec.patch), "stem norm")
    for s, (count, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        if s:
            x = convolve(norm(x, "between norm", s), "between", s, stride=2)
        for b in range(count):
            inner = norm(convolve(x, "depthwise", s, b, padding="same", groups=width), "norm", s, b)
            inner = convolve(inner, "expand", s, b)
            inner = convolve(inner * (1 + torch.erf(inner / 2**0.5)) / 2, "project", s, b)
            x = x + inner * (weights[name("scale", s, b)].view(-1, 1, 1) if spec.layer_scale != "none" else 1)
    return convolve(norm(x.mean((2, 3), keepdim=True), "last norm"), "head").flatten(1)


def in_authors_form(spec: ConvNeXtSpec, author: str) -> ConvNeXtSpec:
    """Torchvision's layer scale is a map."""
    maps = author == "torchvision" and spec.layer_scale == "vector"
    return spec.model_copy(update={"layer_scale": "map"}) if maps else spec


def recognised(weights: Weights, author: str, spec: ConvNeXtSpec) -> None:
    """Assert that the weights are this spec, and answer as the reference does."""
    (candidate,) = recognise(shapes_of(weights), "t.pt")
    assert candidate.spec == spec
    images = torch.randn(2, spec.channels, 20, 16, dtype=torch.float64)
    with torch.no_grad():
        answer = load(candidate, weights).eval()(images)
    torch.testing.assert_close(answer, reference(author, spec, weights, images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changes", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("author", AUTHORS)
def test_bare_weights_of_every_author_are_recognised_and_answer_as_the_paper_says(
    author: str, changes: dict[str, Any]
) -> None:
    spec = in_authors_form(tiny(**{"patch": 2} | changes), author)
    recognised(weights_by(author, spec), author, spec)


def test_pointwise_layers_that_are_convolutions_stay_convolutions() -> None:
    spec = tiny(pointwise="convolution")
    recognised(weights_by("timm", spec), "timm", spec)


@pytest.mark.parametrize("changes", SPECS.values(), ids=SPECS)
def test_a_network_saved_under_our_own_names_comes_back_as_it_was(changes: dict[str, Any]) -> None:
    spec = tiny(**changes)
    network = randomised(build(spec)).eval()
    (candidate,) = recognise(expected_shapes(spec), "t.pt")
    images = torch.randn(2, spec.channels, 32, 32)
    assert candidate.spec == spec
    assert torch.equal(load(candidate, dict(network.state_dict())).eval()(images), network(images))


def test_the_order_of_the_tensors_in_the_file_does_not_matter() -> None:
    shapes = expected_shapes(tiny(blocks=(12, 2)))
    assert recognise(dict(sorted(shapes.items())), "t.pt")[0].spec == recognise(shapes, "t.pt")[0].spec


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_published_architectures_have_their_parameter_counts_and_names(
    name: str, published: tuple[int, tuple[int, ...], tuple[int, ...]]
) -> None:
    parameters, blocks, widths = published
    spec = ConvNeXtSpec(blocks=blocks, widths=widths, num_classes=1000)
    shapes = expected_shapes(spec)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    assert recognise(shapes, "t.pt")[0].spec == spec
    assert (spec.name, spec.usual_size, spec.minimum_size) == (name, 224, 32)


def test_sizes_without_a_name_are_called_by_their_blocks_and_widths() -> None:
    assert tiny().name == "convnext_1-2_4-6"
    assert tiny().title == "ConvNeXt (blocks 1-2, widths 4-6, 4x4 patches, no batch norm)"
    tiny_by_name = ConvNeXtSpec(blocks=(3, 3, 9, 3), widths=(96, 192, 384, 768), num_classes=1000)
    assert tiny_by_name.title.startswith("ConvNeXt-tiny (blocks 3-3-9-3, ")


def test_small_patches_are_for_small_images_as_long_as_those_suffice() -> None:
    assert tiny(patch=2).usual_size == 32
    deep = tiny(patch=2, blocks=(1,) * 6, widths=(4,) * 6)
    assert (deep.usual_size, deep.minimum_size) == (64, 64)


def test_the_least_size_is_taken_and_less_is_not() -> None:
    spec = tiny(blocks=(1, 1, 1), widths=(4, 4, 4))
    with torch.device("meta"):
        network = build(spec)
        assert network(torch.empty(1, 3, spec.minimum_size, spec.minimum_size)).shape == (1, 3)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            network(torch.empty(1, 3, spec.minimum_size - 1, spec.minimum_size - 1))


def test_the_reasons_say_what_was_seen() -> None:
    (candidate,) = recognise(shapes_of(weights_by("timm", tiny())), "t.pt")
    naming, structure = candidate.reasons
    assert naming == "The tensors are named as in timm."
    assert structure == (
        "The first convolution cuts the image into 4x4 patches; 2 stages of 1 + 2 blocks with 7x7 depthwise "
        "convolutions follow."
    )
    assert candidate.assumptions == ()


# What is not a ConvNeXt


def misfit(shapes: Shapes) -> NotInFamily:
    with pytest.raises(NotInFamily) as caught:
        convnext_candidates(shapes)
    return caught.value


def test_foreign_names_are_as_far_away_as_there_are_tensors() -> None:
    found = misfit({"conv1.weight": (4, 3, 3, 3), "fc.weight": (3, 4), "fc.bias": (3,)})
    assert (found.problem, found.distance) == ("no tensor is named like one of its", 3)


def test_a_tensor_without_a_place_is_named() -> None:
    found = misfit(expected_shapes(tiny()) | {"stages.0.blocks.0.mlp.grn.weight": (16,), "stages.0000.x": (1,)})
    assert found.problem == "it has no place for"
    assert found.tensors == ("stages.0.blocks.0.mlp.grn.weight", "stages.0000.x")
    assert found.distance == 2


def test_two_tensors_for_one_place_are_named() -> None:
    shapes = expected_shapes(tiny()) | {"stages.1.blocks.1.gamma": (6,)}
    found = misfit(shapes)
    assert found.problem == "several tensors have the same place"
    assert found.tensors == ("stages.1.blocks.1.scale", "stages.1.blocks.1.gamma")


@pytest.mark.parametrize("side", [3, 7])
def test_a_stem_that_may_overlap_is_refused(side: int) -> None:
    found = misfit(expected_shapes(tiny()) | {"stem.0.weight": (4, 3, side, side)})
    assert found.problem == f"the stem is {side}x{side} and does not cut the image into patches"
    assert found.tensors == ("stem.0.weight",)


def test_an_even_depthwise_kernel_is_refused() -> None:
    found = misfit(expected_shapes(tiny()) | {"stages.0.blocks.0.depthwise.weight": (4, 1, 4, 4)})
    assert found.problem == "a depthwise convolution is 4x4, not square and odd"


def test_a_checkpoint_without_blocks_is_refused() -> None:
    found = misfit({name: shape for name, shape in expected_shapes(tiny()).items() if ".blocks." not in name})
    assert found.problem == "the checkpoint lacks its blocks"


def refused(shapes: Shapes) -> None:
    with pytest.raises(InputError, match="is not recognised; the nearest is ConvNeXt"):
        recognise(shapes, "t.pt", [convnext_candidates])


@pytest.mark.parametrize("name", expected_shapes(tiny()))
def test_a_missing_tensor_is_refused(name: str) -> None:
    refused({other: shape for other, shape in expected_shapes(tiny()).items() if other != name})


@pytest.mark.parametrize("shape", HOSTILE_SHAPES, ids=str)
def test_a_senseless_shape_anywhere_is_refused(shape: tuple[int, ...]) -> None:
    shapes = expected_shapes(tiny())
    for name in shapes:
        refused(shapes | {name: shape})


@pytest.mark.parametrize("index", ["9", "1000", "99999999", "00", "-1", "1" * 5000, "²"])
def test_an_absurd_index_is_refused(index: str) -> None:
    refused(expected_shapes(tiny()) | {f"stages.{index}.blocks.0.norm.bias": (4,)})
    refused(expected_shapes(tiny()) | {f"stages.0.blocks.{index}.norm.bias": (4,)})
    refused({f"features.{index}.0.block.0.bias": (4,), "features.0.0.bias": (4,)})
