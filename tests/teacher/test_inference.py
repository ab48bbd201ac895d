import re

import pytest
import torch
from torch import nn

from compress.pipeline.errors import InputError
from compress.pipeline.networks.resnet import ResNetSpec
from compress.pipeline.teacher.families import Candidate, Family, NotInFamily, Shapes
from compress.pipeline.teacher.inference import expected_shapes, load, recognise
from tests.teacher.checkpoints import Renaming, Weights, renamed, tiny_spec, tiny_weights, trained, weights_of


def from_zero(template: str) -> Renaming:
    """Stages that are counted from zero."""
    return [(r"^layer(\d+)\.(\d+)", lambda found: template.format(int(found[1]) - 1, found[2]))]


SHORTCUT: Renaming = [("downsample", "shortcut")]
NAMINGS: dict[str, Renaming] = {
    "torchvision": [],
    "shortcut and linear": [*SHORTCUT, ("^fc", "linear")],
    "stages and classifier": [
        *SHORTCUT,
        ("^layer", "stage"),
        ("^fc", "classifier"),
        ("^conv1", "conv"),
        ("^bn1", "bn"),
    ],
    "stages from zero, lists of blocks": [
        *from_zero("stages.{}.blocks.{}"),
        ("downsample", "skip"),
        ("^fc", "head.fc"),
    ],
    "nested sequences": [
        *from_zero("layers.{}.{}"),
        *SHORTCUT,
        ("^conv1", "stem.0"),
        ("^bn1", "stem.1"),
        ("^fc", "head.1"),
    ],
    "letters": [
        (r"^layer(\d+)", r"stage_\1"),
        (r"conv(\d)\.", lambda found: f"conv_{' abc'[int(found[1])]}."),
        (r"bn(\d)\.", lambda found: f"bn_{' abc'[int(found[1])]}."),
    ],
    "digits that are no numbers": [(r"(conv|bn)(\d)\.", lambda found: f"{found[1]}1{' ²³⁴'[int(found[2])]}.")],
    "residual function": [
        *SHORTCUT,
        (r"^layer(\d+)", lambda found: f"conv{int(found[1]) + 1}_x"),
        (r"(_x\.\d+)\.conv(\d)", lambda found: f"{found[1]}.residual_function.{3 * int(found[2]) - 3}"),
        (r"(_x\.\d+)\.bn(\d)", lambda found: f"{found[1]}.residual_function.{3 * int(found[2]) - 2}"),
        (r"^conv1\.", "conv1.0."),
        (r"^bn1\.", "conv1.1."),
    ],
    "units with bodies": [
        (r"^layer(\d+)\.(\d+)\.(conv|bn)(\d)", r"features.stage\1.unit\2.body.conv\4.\3"),
        (r"^layer(\d+)\.(\d+)\.downsample\.0", r"features.stage\1.unit\2.identity_conv.conv"),
        (r"^layer(\d+)\.(\d+)\.downsample\.1", r"features.stage\1.unit\2.identity_conv.bn"),
        (r"^conv1", "features.init_block.conv"),
        (r"^bn1", "features.init_block.bn"),
        (r"^fc", "output"),
    ],
    "encoder": [
        *from_zero("resnet.encoder.stages.{}.layers.{}"),
        (r"(layers\.\d+)\.conv(\d)", r"\1.layer.\2.convolution"),
        (r"(layers\.\d+)\.bn(\d)", r"\1.layer.\2.normalization"),
        (r"downsample\.0", "shortcut.convolution"),
        (r"downsample\.1", "shortcut.normalization"),
        (r"^conv1", "resnet.embedder.embedder.convolution"),
        (r"^bn1", "resnet.embedder.embedder.normalization"),
        (r"^fc", "classifier.1"),
    ],
}

SPECS = {
    "basic": tiny_spec(),
    "three stages": tiny_spec(blocks=(2, 1, 2), widths=(4, 6, 8)),
    "eleven blocks": tiny_spec(blocks=(11, 1), widths=(4, 4)),
    "bottleneck": tiny_spec(block="bottleneck", stem="imagenet"),
    "grouped": tiny_spec(block="bottleneck", groups=2, base_width=64),
}

# Parameters as published: torchvision's table of classification weights, and table 6 of He et al. (0.27 M and 0.85 M),
# which for ten classes and option A are exactly these.
PUBLISHED = {
    "ResNet-20": (269_722, {"stem": "cifar", "shortcut": "pad", "blocks": (3,) * 3}),
    "ResNet-56": (853_018, {"stem": "cifar", "shortcut": "pad", "blocks": (9,) * 3}),
    "ResNet-18": (11_689_512, {"stem": "imagenet", "blocks": (2, 2, 2, 2)}),
    "ResNet-34": (21_797_672, {"stem": "imagenet", "blocks": (3, 4, 6, 3)}),
    "ResNet-50": (25_557_032, {"stem": "imagenet", "block": "bottleneck", "blocks": (3, 4, 6, 3)}),
    "ResNet-152": (60_192_808, {"stem": "imagenet", "block": "bottleneck", "blocks": (3, 8, 36, 3)}),
    "Wide ResNet-50-2": (
        68_883_240,
        {"stem": "imagenet", "block": "bottleneck", "blocks": (3, 4, 6, 3), "base_width": 128},
    ),
    "ResNeXt-50 32x4d": (
        25_028_904,
        {"stem": "imagenet", "block": "bottleneck", "blocks": (3, 4, 6, 3), "groups": 32, "base_width": 4},
    ),
    "ResNeXt-101 64x4d": (
        83_455_272,
        {"stem": "imagenet", "block": "bottleneck", "blocks": (3, 4, 23, 3), "groups": 64, "base_width": 4},
    ),
    # 11,689,512 - 3 x 64 x (49 - 9) for the smaller stem - 513 x 990 for fewer classes
    "ResNet-18 with a small stem": (11_173_962, {"stem": "cifar", "blocks": (2, 2, 2, 2), "num_classes": 10}),
}


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


def without_counters(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


def refused(shapes: Shapes) -> str:
    """The sentence that refuses a network of which a ResNet is the nearest known."""
    with pytest.raises(InputError) as caught:
        recognise(shapes, "t.pt")
    assert caught.value.message.startswith("The architecture of 't.pt' is not recognised; the nearest is ResNet")
    return caught.value.message


def only_candidate(shapes: Shapes) -> Candidate:
    (candidate,) = recognise(shapes, "t.pt")
    return candidate


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_a_network_is_recognised_and_answers_the_same_whatever_its_layers_are_called(
    naming: Renaming, spec: ResNetSpec
) -> None:
    network = trained(spec)
    weights = renamed(without_counters(weights_of(network)), naming)
    candidate = only_candidate(shapes_of(weights))
    assert candidate.spec == spec
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(candidate, weights).eval()(images), network(images))


def test_the_order_of_the_tensors_in_the_file_does_not_matter() -> None:
    shapes = shapes_of(tiny_weights(blocks=(12, 2)))
    assert only_candidate(dict(sorted(shapes.items()))).spec == only_candidate(shapes).spec


@pytest.mark.parametrize(("parameters", "fields"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_architectures_are_recognised_with_their_parameter_counts(
    parameters: int, fields: dict[str, object]
) -> None:
    small = len(fields["blocks"]) == 3  # type: ignore[arg-type]
    sizes = {"widths": (16, 32, 64), "stem_width": 16} if small else {"widths": (64, 128, 256, 512), "stem_width": 64}
    spec = ResNetSpec.model_validate({"num_classes": 10 if small else 1000} | sizes | fields)
    shapes = expected_shapes(spec)
    assert recognise(shapes, "t.pt")[0].spec == spec
    counted = (torch.Size(shape).numel() for name, shape in shapes.items() if ".running_" not in f".{name}")
    assert sum(counted) == parameters


@pytest.mark.parametrize("shortcut", ["pad", "projection", "linear", "pooled"])
def test_the_kind_of_shortcut_is_read_off_its_weights(shortcut: str) -> None:
    spec = tiny_spec(shortcut=shortcut)
    candidates = recognise(expected_shapes(spec), "t.pt")
    assert candidates[0].spec == spec
    assert len(candidates) == (2 if shortcut == "pad" else 1)
    assert bool(candidates[0].assumptions) == (shortcut in ("pad", "pooled"))


def test_shortcuts_that_never_change_the_shape_leave_nothing_open() -> None:
    candidate = only_candidate(expected_shapes(tiny_spec(shortcut="pad", blocks=(2,), widths=(4,), stem="imagenet")))
    assert candidate.assumptions == ()


@pytest.mark.parametrize("shortcut", ["pad", "projection", "linear", "pooled"])
def test_a_network_whose_batch_norm_was_fused_away_is_recognised(shortcut: str) -> None:
    spec = tiny_spec(shortcut=shortcut, batch_norm=False)
    assert recognise(expected_shapes(spec), "t.pt")[0].spec == spec


def test_a_deep_stem_is_recognised_without_its_batch_norms_too() -> None:
    spec = tiny_spec(stem="imagenet", deep_stem=(2, 3), batch_norm=False)
    assert only_candidate(expected_shapes(spec)).spec == spec


def test_grey_images_and_classes_are_read_off_the_first_and_the_last_layer() -> None:
    spec = tiny_spec(channels=1, num_classes=7)
    assert only_candidate(expected_shapes(spec)).spec == spec


def test_the_reasons_say_what_was_seen() -> None:
    reasons = " ".join(recognise(expected_shapes(tiny_spec(shortcut="pad")), "t.pt")[0].reasons)
    assert "The first convolution is 3x3: the CIFAR form." in reasons
    assert "2 stages of 1 + 2 blocks with two convolutions each; no shortcut has weights" in reasons
    deep = tiny_spec(stem="imagenet", deep_stem=(2, 3))
    assert only_candidate(expected_shapes(deep)).reasons[0] == (
        "The first convolution is 3x3, as are the two others of a deep stem: the ImageNet form."
    )


def test_a_plain_convolutional_network_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(
        InputError, match=r"not recognised by the names of its tensors: 0\.weight, 0\.bias, 2\.weight and"
    ):
        recognise(shapes_of(dict(network.state_dict())), "t.pt")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"scale": (1,)}, "a layer is neither convolution, batch norm nor classifier: scale"),
        ({"layer1.0.se.weight": (4, 4)}, "a block has 2 convolutions, 2 batch norms and 1 linear layers"),
        ({"layer1.0.conv3.weight": (4, 4, 3, 3)}, "a block has 3 convolutions, 2 batch norms"),
        ({f"layer{'1' * 5000}.0.conv.weight": (4, 4, 3, 3)}, "stem and classifier has 2 convolutions"),
        ({"fc2.weight": (3, 3)}, "stem and classifier has 1 convolutions, 1 batch norms and 2 linear layers"),
        ({"conv1.bias": (4,)}, "it has no place for: conv1.bias."),
        ({"layer1.0.downsample.0.weight": (4, 4, 1, 1)}, "it has no place for: layer1.0.downsample.0.weight."),
    ],
)
def test_a_tensor_too_many_is_named(extra: dict[str, tuple[int, ...]], reason: str) -> None:
    assert reason in refused(expected_shapes(tiny_spec()) | extra)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("fc.bias", "the checkpoint lacks its: fc.bias."),
        ("bn1.running_var", "the checkpoint lacks its: bn1.running_var."),
        ("layer2.1.conv2.weight", "a block has 1 convolutions, 2 batch norms"),
    ],
)
def test_a_missing_tensor_is_named(missing: str, reason: str) -> None:
    assert reason in refused({name: shape for name, shape in expected_shapes(tiny_spec()).items() if name != missing})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"fc.weight": (3, 9)}, "shapes differ: fc.weight [3, 9] (expected [3, 8])."),
        ({"conv1.weight": (4, 3, 5, 5)}, "the stem is 5x5 and not 3x3 or 7x7: conv1."),
        ({"fc.weight": (0, 8)}, "a layer is neither convolution, batch norm nor classifier: fc.weight, fc.bias."),
        ({"fc.weight": (1 << 60, 8)}, "no such network has its sizes (num_classes: Input should be less than"),
        ({"layer2.0.bn1.weight": (4,)}, "shapes differ: layer2.0.bn1.weight [4] (expected [8])."),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(changed: dict[str, tuple[int, ...]], reason: str) -> None:
    assert reason in refused(expected_shapes(tiny_spec()) | changed)


def test_a_block_that_normalises_before_it_convolves_is_not_mistaken() -> None:
    # In pre-activation blocks the first batch norm has the channels of the block's input.
    shapes = expected_shapes(tiny_spec())
    changed = {name: (4,) for name in shapes if name.startswith("layer2.0.bn1.")}
    assert "layer2.0.bn1" in refused(shapes | changed)


def test_blocks_of_two_kinds_are_refused() -> None:
    shapes = expected_shapes(tiny_spec())
    third = {
        re.sub("2", "3", name): shape for name, shape in shapes.items() if re.match(r"layer1\.0\.(conv|bn)2", name)
    }
    problem = "a block has 3 convolutions, 3 batch norms and 0 linear layers instead of 2, 2 and 0: layer1.0.conv1"
    assert problem in refused(shapes | third)


def test_a_shortcut_that_does_more_than_pool_before_it_projects_is_refused() -> None:
    shapes = expected_shapes(tiny_spec())
    moved = {name.replace("downsample.1", "downsample.3").replace("downsample.0", "downsample.2"): shape
             for name, shape in shapes.items()}  # fmt: skip
    assert "a shortcut does something without weights before it projects: layer2.0.downsample.2" in refused(moved)


def test_shortcuts_of_which_only_some_pool_are_refused() -> None:
    shapes = expected_shapes(tiny_spec(blocks=(1, 1, 1), widths=(4, 6, 8)))
    later = {"layer3.0.downsample.1": "layer3.0.downsample.2", "layer3.0.downsample.0": "layer3.0.downsample.1"}
    moved = {f"{later.get(module, module)}.{tensor}": shape for (module, _, tensor), shape in
             ((name.rpartition("."), shape) for name, shape in shapes.items())}  # fmt: skip
    assert "a shortcut does something without weights before it projects: layer3.0.downsample.1" in refused(moved)


def test_long_lists_of_tensors_are_cut() -> None:
    assert "extra.a, extra.b, extra.c and 2 more." in refused(
        expected_shapes(tiny_spec()) | {f"extra.{letter}": (1,) for letter in "abcde"}
    )


def test_the_three_nearest_families_are_named() -> None:
    def family(name: str, tensors: tuple[str, ...], distance: int | None = None) -> Family:
        def refuses(shapes: Shapes) -> list[Candidate]:
            raise NotInFamily(name, f"{name.lower()}s differ", tensors, distance=distance)

        return refuses

    families = [family("VGG", ("a", "b")), family("DenseNet", ("c",)), family("ViT", ("d",), 4), family("WRN", (), 3)]
    with pytest.raises(InputError) as caught:
        recognise(dict.fromkeys("abcde", (1,)), "t.pt", families)
    assert caught.value.message == (
        "The architecture of 't.pt' is not recognised; the nearest is DenseNet, but densenets differ: c."
    )
    assert caught.value.hint.startswith("Next: VGG, but vggs differ: a, b.\nNext: WRN, but wrns differ.\nWhere the")


def test_all_candidates_that_fit_are_given_and_others_left_out() -> None:
    spec, smaller = tiny_spec(), tiny_spec(blocks=(1, 1))
    shapes = expected_shapes(spec)

    def family(shapes: Shapes) -> list[Candidate]:
        return [Candidate(each, {name: name for name in shapes}, ()) for each in (smaller, spec, spec)]

    assert [candidate.spec for candidate in recognise(shapes, "t.pt", [family])] == [spec, spec]


def test_two_tensors_in_one_place_are_no_fit() -> None:
    shapes = expected_shapes(tiny_spec()) | {"copy.weight": (3, 8)}

    def family(shapes: Shapes) -> list[Candidate]:
        return [Candidate(tiny_spec(), {name: name.replace("copy", "fc") for name in shapes}, ())]

    with pytest.raises(InputError, match=r"another tensor is in the place of: fc\.weight"):
        recognise(shapes, "t.pt", [family])
