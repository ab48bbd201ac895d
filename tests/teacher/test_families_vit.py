"""Vision transformers from bare weights, against a forward pass written out from the paper."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.networks import build
from compress.pipeline.networks.vit import ViTSpec
from compress.pipeline.teacher.families import NotInFamily, Shapes
from compress.pipeline.teacher.families.vit import vit_candidates
from compress.pipeline.teacher.inference import expected_shapes, load, recognise
from compress.pipeline.teacher.inputs import resolve_input
from tests.teacher.families import HOSTILE_SHAPES, Weights, randomised, shapes_of

# Tensors and modules of layer b. Sources: torchvision/models/vision_transformer.py (and its MLPBlock for the names of
# before version 0.13), timm/models/vision_transformer.py, whose names are DeiT's.
AUTHORS: dict[str, dict[str, str]] = {
    "torchvision": {
        "class token": "class_token",
        "position": "encoder.pos_embedding",
        "patches": "conv_proj",
        "norm 1": "encoder.layers.encoder_layer_{b}.ln_1",
        "joint": "encoder.layers.encoder_layer_{b}.self_attention.in_proj_{t}",
        "out": "encoder.layers.encoder_layer_{b}.self_attention.out_proj",
        "norm 2": "encoder.layers.encoder_layer_{b}.ln_2",
        "mlp 1": "encoder.layers.encoder_layer_{b}.mlp.0",
        "mlp 2": "encoder.layers.encoder_layer_{b}.mlp.3",
        "last norm": "encoder.ln",
        "head": "heads.head",
    },
    "timm": {
        "class token": "cls_token",
        "position": "pos_embed",
        "patches": "patch_embed.proj",
        "norm 1": "blocks.{b}.norm1",
        "joint": "blocks.{b}.attn.qkv.{t}",
        "out": "blocks.{b}.attn.proj",
        "norm 2": "blocks.{b}.norm2",
        "mlp 1": "blocks.{b}.mlp.fc1",
        "mlp 2": "blocks.{b}.mlp.fc2",
        "last norm": "norm",
        "head": "head",
    },
}
AUTHORS["torchvision before 0.13"] = AUTHORS["torchvision"] | {
    "mlp 1": "encoder.layers.encoder_layer_{b}.mlp.linear_1",
    "mlp 2": "encoder.layers.encoder_layer_{b}.mlp.linear_2",
}
AUTHORS["torchvision with a head of one's own"] = AUTHORS["torchvision"] | {"head": "heads"}
AUTHORS["torchvision with a sequence for a head"] = AUTHORS["torchvision"] | {"head": "heads.0"}

SPECS = {
    "two heads": {},
    "eleven layers": {"depth": 11},
    "narrow heads": {"width": 48, "heads": 3},
    "one patch, grey": {"grid": 1, "channels": 1, "num_classes": 7},
    "large patches, narrow inside": {"patch": 7, "mlp_width": 5},
}

# Parameters as torchvision publishes them with its classification weights; DeiT's two small ones as timm rounds them.
PUBLISHED = {
    "vit_b_16": (86_567_656, {"width": 768, "depth": 12, "heads": 12, "patch": 16, "grid": 14}),
    "vit_b_32": (88_224_232, {"width": 768, "depth": 12, "heads": 12, "patch": 32, "grid": 7}),
    "vit_l_16": (304_326_632, {"width": 1024, "depth": 24, "heads": 16, "patch": 16, "grid": 14}),
    "vit_l_32": (306_535_400, {"width": 1024, "depth": 24, "heads": 16, "patch": 32, "grid": 7}),
    "vit_h_14": (633_470_440, {"width": 1280, "depth": 32, "heads": 16, "patch": 14, "grid": 37}),
    "vit_ti_16": (5_717_416, {"width": 192, "depth": 12, "heads": 3, "patch": 16, "grid": 14}),  # 5.72 M
    "vit_s_16": (22_050_664, {"width": 384, "depth": 12, "heads": 6, "patch": 16, "grid": 14}),  # 22.05 M
}


def tiny(**changes: Any) -> ViTSpec:
    """Two layers of width 128 with two heads, 3x3 patches of 4 px, 3 classes."""
    usual = {"patch": 4, "grid": 3, "width": 128, "depth": 2, "heads": 2, "mlp_width": 20, "num_classes": 3}
    return ViTSpec.model_validate(usual | changes)


def names_of(author: str) -> Callable[..., str]:
    def name(part: str, b: int = 0, tensor: str = "weight") -> str:
        template = AUTHORS[author][part]
        whole = template if "{t}" in template else f"{template}.{{t}}"
        return whole.format(b=b, t=tensor)

    return name


def weights_by(author: str, spec: ViTSpec) -> Weights:
    """Random weights of a vision transformer under an author's names."""
    name, width = names_of(author), spec.width
    tokens = 1 + spec.grid**2
    shapes: dict[str, tuple[int, ...]] = {
        AUTHORS[author]["class token"]: (1, 1, width),
        AUTHORS[author]["position"]: (1, tokens, width),
    }

    def layer(part: str, *shape: int, b: int = 0) -> None:
        shapes[name(part, b)] = shape
        shapes[name(part, b, "bias")] = shape[:1]

    layer("patches", width, spec.channels, spec.patch, spec.patch)
    for b in range(spec.depth):
        layer("norm 1", width, b=b)
        layer("joint", 3 * width, width, b=b)
        layer("out", width, width, b=b)
        layer("norm 2", width, b=b)
        layer("mlp 1", spec.mlp_width, width, b=b)
        layer("mlp 2", width, spec.mlp_width, b=b)
    layer("last norm", width)
    layer("head", spec.num_classes, width)
    return {key: torch.randn(shape, dtype=torch.float64) / math.sqrt(shape[-1]) for key, shape in shapes.items()}


def reference(author: str, spec: ViTSpec, weights: Weights, images: Tensor) -> Tensor:
    """Logits `[N, K]` straight from the weights: equations 1 to 4 and, for attention, 5 to 8 of the paper, head by head."""
    name = names_of(author)

    def linear(x: Tensor, part: str, b: int = 0) -> Tensor:
        return x @ weights[name(part, b)].flatten(1).T + weights[name(part, b, "bias")]

    def norm(x: Tensor, part: str, b: int = 0) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return weights[name(part, b)] * (x - mean) / (variance + 1e-6).sqrt() + weights[name(part, b, "bias")]

    def attend(x: Tensor, b: int) -> Tensor:
        width = spec.width // spec.heads
        query, key, value = linear(x, "joint", b).split(spec.width, -1)
        heads = []
        for start in range(0, spec.width, width):
            q, k, v = (part[..., start : start + width] for part in (query, key, value))
            heads.append((q @ k.transpose(1, 2) / math.sqrt(width)).softmax(-1) @ v)
        return linear(torch.cat(heads, -1), "out", b)

    patches = F.unfold(images, spec.patch, stride=spec.patch).transpose(1, 2)
    first = weights[AUTHORS[author]["class token"]].expand(len(images), 1, -1)
    x = torch.cat([first, linear(patches, "patches")], 1) + weights[AUTHORS[author]["position"]]
    for b in range(spec.depth):
        x = x + attend(norm(x, "norm 1", b), b)
        inner = linear(norm(x, "norm 2", b), "mlp 1", b)
        x = x + linear(inner * (1 + torch.erf(inner / 2**0.5)) / 2, "mlp 2", b)
    return linear(norm(x[:, 0], "last norm"), "head")


@pytest.mark.parametrize("changes", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("author", AUTHORS)
def test_bare_weights_of_every_author_are_recognised_and_answer_as_the_paper_says(
    author: str, changes: dict[str, Any]
) -> None:
    spec = tiny(**changes)
    weights = weights_by(author, spec)
    (candidate,) = recognise(shapes_of(weights), "t.pt")
    assert candidate.spec == spec
    images = torch.randn(2, spec.channels, spec.usual_size, spec.usual_size, dtype=torch.float64)
    with torch.no_grad():
        answer = load(candidate, weights).eval()(images)
    torch.testing.assert_close(answer, reference(author, spec, weights, images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changes", [*SPECS.values(), {"attention": "separate"}], ids=[*SPECS, "separate"])
def test_a_network_saved_under_our_own_names_comes_back_as_it_was(changes: dict[str, Any]) -> None:
    spec = tiny(**changes)
    network = randomised(build(spec)).eval()
    (candidate,) = recognise(expected_shapes(spec), "t.pt")
    images = torch.randn(2, spec.channels, spec.usual_size, spec.usual_size)
    assert candidate.spec == spec
    assert torch.equal(load(candidate, dict(network.state_dict())).eval()(images), network(images))


def test_query_key_and_value_in_one_tensor_or_in_three_are_the_same_attention() -> None:
    joint, separate = (randomised(build(tiny(attention=form))).eval() for form in ("joint", "separate"))
    weights = dict(joint.state_dict())
    for name in [name for name in weights if ".inputs.0." in name]:
        for index, part in enumerate(weights.pop(name).chunk(3)):
            weights[name.replace(".inputs.0.", f".inputs.{index}.")] = part
    separate.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(separate(images), joint(images))


def test_the_order_of_the_tensors_in_the_file_does_not_matter() -> None:
    shapes = expected_shapes(tiny(depth=12))
    assert recognise(dict(sorted(shapes.items())), "t.pt")[0].spec == recognise(shapes, "t.pt")[0].spec


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_published_architectures_have_their_parameter_counts_and_names(
    name: str, published: tuple[int, dict[str, Any]]
) -> None:
    parameters, fields = published
    spec = ViTSpec(**fields, mlp_width=4 * fields["width"], num_classes=1000)
    shapes = expected_shapes(spec)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    assert recognise(shapes, "t.pt")[0].spec == spec
    assert spec.name == name


def test_sizes_without_a_name_are_called_by_their_layers_and_width() -> None:
    assert tiny().name == "vit_2x128_4"
    assert tiny().title == "ViT (2 layers of width 128, 2 heads, 4x4 patches, no batch norm)"
    base = ViTSpec.model_validate(PUBLISHED["vit_b_16"][1] | {"mlp_width": 3072, "num_classes": 1000})
    assert base.title == "ViT-B/16 (12 layers of width 768, 12 heads, 16x16 patches, no batch norm)"


def test_what_the_weights_cannot_show_is_said() -> None:
    (candidate,) = recognise(shapes_of(weights_by("timm", tiny())), "t.pt")
    naming, structure = candidate.reasons
    (assumption,) = candidate.assumptions
    assert naming == "The tensors are named as in timm."
    assert structure == (
        "The first convolution cuts the image into 4x4 patches, and positions for 3x3 of them make 12 px; "
        "2 layers of width 128 follow."
    )
    assert assumption == (
        "The number of attention heads leaves no trace in the weights; 2 heads of 64 channels are assumed, as is usual."
    )


def test_heads_that_do_not_share_out_the_channels_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="128 channels cannot be shared out to 3 heads"):
        tiny(heads=3)


# The size of the images


def asked_for(input_size: int | None, **changes: Any) -> tuple[int, int]:
    images = resolve_input(tiny(**changes), {}, input_size=input_size, mean=None, std=None)
    return images.height, images.width


@pytest.mark.parametrize("input_size", [None, 12])
def test_only_the_size_of_the_position_embedding_is_taken(input_size: int | None) -> None:
    assert asked_for(input_size) == (12, 12)


@pytest.mark.parametrize("input_size", [8, 16, 224])
def test_another_size_is_refused_with_the_one_that_fits(input_size: int) -> None:
    with pytest.raises(UsageError) as caught:
        asked_for(input_size)
    assert caught.value.message == (
        "ViT (2 layers of width 128, 2 heads, 4x4 patches, no batch norm) cannot take images of "
        f"{input_size}x{input_size} pixels (from the command line)."
    )
    assert caught.value.hint == "--input-size can only be 12."


def test_images_too_large_to_synthesise_are_refused() -> None:
    with pytest.raises(InputError, match="cannot take images of 2048x2048 pixels") as caught:
        asked_for(None, patch=16, grid=128)
    assert caught.value.hint == "Images larger than 1024 pixels are out of reach."


# What is not a vision transformer


def misfit(shapes: Shapes) -> NotInFamily:
    with pytest.raises(NotInFamily) as caught:
        vit_candidates(shapes)
    return caught.value


def test_foreign_names_are_as_far_away_as_there_are_tensors() -> None:
    found = misfit({"conv1.weight": (4, 3, 3, 3), "fc.weight": (3, 4), "fc.bias": (3,)})
    assert (found.problem, found.distance) == ("no tensor is named like one of its", 3)


def test_a_distilled_deit_is_refused_with_the_tensors_that_set_it_apart() -> None:
    extra = {"dist_token": (1, 1, 128), "head_dist.weight": (3, 128), "head_dist.bias": (3,)}
    found = misfit(shapes_of(weights_by("timm", tiny())) | extra)
    assert (found.problem, found.tensors, found.distance) == ("it has no place for", tuple(extra), 3)


def test_two_tensors_for_one_place_are_named() -> None:
    twice = {"encoder.layers.encoder_layer_1.mlp.linear_2.bias": (128,)}
    found = misfit(shapes_of(weights_by("torchvision", tiny())) | twice)
    assert found.problem == "several tensors have the same place"
    assert found.tensors == ("encoder.layers.encoder_layer_1.mlp.3.bias", *twice)


def test_positions_that_make_no_square_are_refused() -> None:
    found = misfit(shapes_of(weights_by("timm", tiny())) | {"pos_embed": (1, 11, 128)})
    assert found.problem == "10 positions and one for the class token do not make a square"
    assert found.tensors == ("pos_embed",)


def test_patches_that_are_not_square_are_refused() -> None:
    found = misfit(shapes_of(weights_by("timm", tiny())) | {"patch_embed.proj.weight": (128, 3, 4, 8)})
    assert found.problem == "the patches are 4x8 pixels, not square"


def test_a_checkpoint_without_layers_is_refused() -> None:
    found = misfit({name: shape for name, shape in expected_shapes(tiny()).items() if "blocks." not in name})
    assert found.problem == "the checkpoint lacks its blocks"


def refused(shapes: Shapes) -> None:
    with pytest.raises(InputError, match="is not recognised; the nearest is ViT"):
        recognise(shapes, "t.pt", [vit_candidates])


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
    refused(expected_shapes(tiny()) | {f"blocks.{index}.norm1.bias": (128,)})
    refused({f"encoder.layers.encoder_layer_{index}.ln_1.bias": (128,), "encoder.ln.bias": (128,)})
