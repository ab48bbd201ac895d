"""MobileNetV2, MobileNetV3, EfficientNet and ShuffleNetV2, as the known authors write them and name their layers."""

from collections.abc import Callable, Sequence
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.pipeline.networks import spec_from_json
from compress.pipeline.networks.efficientnet import EfficientNetSpec, round_channels
from compress.pipeline.networks.inverted_residual import InvertedResidualSpec
from compress.pipeline.teacher.families.mobilenet_v3 import mobilenet_v3_candidates
from compress.pipeline.teacher.inference import expected_shapes, load, recognise
from tests.teacher import foreign_mobile as mobile
from tests.teacher import foreign_mobile_others as others
from tests.teacher import foreign_shufflenet as shufflenet
from tests.teacher.foreign import BATCH_STATISTICS, count_parameters, on_meta, recognised, shapes_of, tensors_of
from tests.teacher.foreign_mobile import Function, Row, lived_in
from tests.teacher.mobile_instances import (
    CLASSES,
    FAMILIES,
    HEAD,
    INSTANCES,
    SMALL_STRIDES,
    STEM,
    USUAL_STRIDES,
    family_of,
    shapes_of_instance,
    stages,
    v2_rows,
)

EVERY_INSTANCE = pytest.mark.parametrize("name", INSTANCES)


@EVERY_INSTANCE
def test_a_network_answers_as_its_author_wrote_it_and_the_other_candidates_do_not(name: str) -> None:
    instance = INSTANCES[name]
    network, images = lived_in(instance.make()), torch.rand(2, 3, 48, 48)
    candidates = recognised(network)
    expected, tensors = network(images), tensors_of(network)
    for index, candidate in enumerate(candidates):
        assert candidate.spec.family == instance.family
        assert spec_from_json(candidate.spec.model_dump(mode="json")) == candidate.spec
        answers = load(candidate, tensors).eval()(images)
        difference = ((answers - expected).abs().max() / expected.abs().max()).item()
        assert difference < 1e-5 if index == instance.right else difference > 1e-4


@EVERY_INSTANCE
def test_neither_order_nor_classes_nor_channels_of_a_checkpoint_matter(name: str) -> None:
    shapes = shapes_of_instance(name)
    stem = next(tensor for tensor, shape in shapes.items() if len(shape) == 4 and shape[1] == 3)
    last = [tensor for tensor, shape in shapes.items() if shape[:1] == (CLASSES,)]
    changed = {
        **shapes,
        stem: (shapes[stem][0], 1, *shapes[stem][2:]),
        **{tensor: (7, *shapes[tensor][1:]) for tensor in last},
    }
    family = family_of(name)
    assert [candidate.spec for candidate in family(dict(sorted(changed.items())))] == [
        candidate.spec.model_copy(update={"channels": 1, "num_classes": 7}) for candidate in family(shapes)
    ]


@EVERY_INSTANCE
def test_a_network_whose_batch_norm_was_fused_away_is_recognised(name: str) -> None:
    network = on_meta(INSTANCES[name].make)
    modules = dict(network.named_modules())
    norms = tuple(f"{path}." for path, module in modules.items() if isinstance(module, nn.BatchNorm2d))
    fused = {tensor: shape for tensor, shape in shapes_of(network).items() if not tensor.startswith(norms)}
    fused |= {
        f"{path}.bias": (module.out_channels,) for path, module in modules.items() if isinstance(module, nn.Conv2d)
    }
    family = family_of(name)
    assert [candidate.spec for candidate in recognise(fused, "t.pt", [family])] == [
        candidate.spec.model_copy(update={"batch_norm": False, "bias": False})
        for candidate in family(shapes_of(network))
    ]


def test_the_mobilenets_differ_in_relu_and_relu6() -> None:
    # What the answers above prove would prove nothing if no signal exceeded 6.
    six, plain = (lived_in(others.RepDistillerV2(STEM, v2_rows(act), HEAD, CLASSES)) for act in (F.relu6, F.relu))
    for module in six.modules():
        if isinstance(module, mobile.Act):
            module.function = F.relu6
    images = torch.rand(2, 3, 48, 48)
    assert (six(images) - plain(images)).abs().max() > 0.1 * plain(images).abs().max()


# Full sizes

V3Table = Sequence[tuple[int, int, int, bool, int, Function]]

# Channels inside and put out, kernel, squeeze-and-excite, stride and activation of each block.
# Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, tables 1 and 2.
V3_LARGE: V3Table = (
    (16, 16, 3, False, 1, F.relu),
    (64, 24, 3, False, 2, F.relu),
    (72, 24, 3, False, 1, F.relu),
    (72, 40, 5, True, 2, F.relu),
    (120, 40, 5, True, 1, F.relu),
    (120, 40, 5, True, 1, F.relu),
    (240, 80, 3, False, 2, F.hardswish),
    (200, 80, 3, False, 1, F.hardswish),
    (184, 80, 3, False, 1, F.hardswish),
    (184, 80, 3, False, 1, F.hardswish),
    (480, 112, 3, True, 1, F.hardswish),
    (672, 112, 3, True, 1, F.hardswish),
    (672, 160, 5, True, 2, F.hardswish),
    (960, 160, 5, True, 1, F.hardswish),
    (960, 160, 5, True, 1, F.hardswish),
)
V3_SMALL: V3Table = (
    (16, 16, 3, True, 2, F.relu),
    (72, 24, 3, False, 2, F.relu),
    (88, 24, 3, False, 1, F.relu),
    (96, 40, 5, True, 2, F.hardswish),
    (240, 40, 5, True, 1, F.hardswish),
    (240, 40, 5, True, 1, F.hardswish),
    (120, 48, 5, True, 1, F.hardswish),
    (144, 48, 5, True, 1, F.hardswish),
    (288, 96, 5, True, 2, F.hardswish),
    (576, 96, 5, True, 1, F.hardswish),
    (576, 96, 5, True, 1, F.hardswish),
)


def v2_at(width: float, strides: Sequence[int] = USUAL_STRIDES) -> tuple[int, list[Row], int]:
    """Stem, stages and head. Source: Sandler et al., CVPR 2018, table 2."""
    widths = [round_channels(width * base) for base in (16, 24, 32, 64, 96, 160, 320)]
    rows = stages((1, 6, 6, 6, 6, 6, 6), widths, (1, 2, 3, 4, 3, 3, 1), strides, F.relu6)
    return round_channels(width * 32), rows, round_channels(1280 * max(width, 1))


def efficientnet_at(width: float, depth: float) -> tuple[int, list[Row], int]:
    """Stem, stages and head. Source: Tan & Le, ICML 2019, table 1."""
    widths = [round_channels(width * base) for base in (16, 24, 40, 80, 112, 192, 320)]
    counts = [ceil(depth * base) for base in (1, 2, 2, 3, 3, 4, 1)]
    columns = zip((1, 6, 6, 6, 6, 6, 6), widths, counts, USUAL_STRIDES, (3, 3, 5, 3, 5, 5, 3), strict=True)
    rows = [Row(*column, act=F.silu, quarter=True) for column in columns]
    return round_channels(width * 32), rows, round_channels(1280 * width)


def v3_rows(table: V3Table) -> list[Row]:
    entering = [16, *(out for _, out, *_ in table[:-1])]
    return [
        Row(inner / width, out, 1, stride, kernel, round_channels(inner // 4) if squeeze else 0, act)
        for width, (inner, out, kernel, squeeze, stride, act) in zip(entering, table, strict=True)
    ]


def timm(stem: int, rows: Sequence[Row], head: int, act: Function, hidden: int = 0) -> nn.Module:
    return mobile.Timm(stem, [[row] for row in rows], head, 1000, act, hidden)


def of_torchvision(width: float, depth: float) -> Callable[[], nn.Module]:
    return lambda: mobile.TorchvisionEfficientNet(*efficientnet_at(width, depth), 1000)


def of_shufflenet(widths: Sequence[int], head: int) -> Callable[[], nn.Module]:
    return lambda: shufflenet.TorchvisionShuffle(24, widths, (4, 8, 4), head, 1000)


PUBLISHED: list[tuple[str, int, int, Callable[[], nn.Module]]] = [
    # Parameters as in torchvision's table of classification weights; timm and lukemelas have the same layers.
    ("mobilenet_v2", 3_504_872, 224, lambda: mobile.TorchvisionV2(*v2_at(1), 1000)),
    ("mobilenet_v2", 3_504_872, 224, lambda: timm(*v2_at(1), F.relu6)),
    ("mobilenet_v3_large", 5_483_032, 224, lambda: mobile.TorchvisionV3(16, v3_rows(V3_LARGE), 960, 1280, 1000)),
    ("mobilenet_v3_large", 5_483_032, 224, lambda: timm(16, v3_rows(V3_LARGE), 960, F.hardswish, 1280)),
    ("mobilenet_v3_small", 2_542_856, 224, lambda: mobile.TorchvisionV3(16, v3_rows(V3_SMALL), 576, 1024, 1000)),
    ("mobilenet_v3_small", 2_542_856, 224, lambda: timm(16, v3_rows(V3_SMALL), 576, F.hardswish, 1024)),
    ("efficientnet_b0", 5_288_548, 224, of_torchvision(1.0, 1.0)),
    ("efficientnet_b1", 7_794_184, 240, of_torchvision(1.0, 1.1)),
    ("efficientnet_b2", 9_109_994, 260, of_torchvision(1.1, 1.2)),
    ("efficientnet_b3", 12_233_232, 300, of_torchvision(1.2, 1.4)),
    ("efficientnet_b1", 7_794_184, 240, lambda: others.Lukemelas(*efficientnet_at(1.0, 1.1), 1000)),
    ("efficientnet_b2", 9_109_994, 260, lambda: timm(*efficientnet_at(1.1, 1.2), F.silu)),
    ("shufflenet_v2_x0_5", 1_366_792, 224, of_shufflenet((48, 96, 192), 1024)),
    ("shufflenet_v2_x1_0", 2_278_604, 224, of_shufflenet((116, 232, 464), 1024)),
    ("shufflenet_v2_x1_5", 3_503_624, 224, of_shufflenet((176, 352, 704), 1024)),
    ("shufflenet_v2_x2_0", 7_393_996, 224, of_shufflenet((244, 488, 976), 2048)),
]


@pytest.mark.parametrize(("name", "parameters", "size", "make"), PUBLISHED)
def test_published_networks_have_their_names_sizes_and_parameter_counts(
    name: str, parameters: int, size: int, make: Callable[[], nn.Module]
) -> None:
    shapes = shapes_of(on_meta(make))
    family = next(family for prefix, family in FAMILIES.items() if name.startswith(prefix))
    candidate = family(shapes)[0]
    assert expected_shapes(candidate.spec) == {candidate.names[tensor]: shape for tensor, shape in shapes.items()}
    counted = (torch.Size(shape).numel() for tensor, shape in shapes.items() if not tensor.endswith(BATCH_STATISTICS))
    assert (candidate.spec.name, sum(counted), candidate.spec.usual_size) == (name, parameters, size)


def test_kuangliu_s_mobilenet_has_its_expansion_in_the_first_block_and_its_shortcuts() -> None:
    # torchvision's 3,504,872 - 1281 x 990 for ten classes; an expansion of 32 channels to 32; and shortcuts from 32 to
    # 16, from 16 to 24, from 64 to 96 and from 160 to 320, each with its batch norm.
    stem, rows, head = v2_at(1, SMALL_STRIDES)
    (candidate,) = recognised(on_meta(lambda: others.Kuangliu(stem, rows, head, 10)))
    shortcuts = sum(inputs * out + 2 * out for inputs, out in ((32, 16), (16, 24), (64, 96), (160, 320)))
    assert count_parameters(candidate.spec) == 3_504_872 - 1281 * 990 + 32 * 32 + 2 * 32 + shortcuts
    assert (candidate.spec.name, candidate.spec.usual_size) == ("mobilenet_v2", 32)


@pytest.mark.parametrize(
    ("width", "name"),
    [(0.35, "mobilenet_v2_x0_35"), (0.5, "mobilenet_v2_x0_5"), (0.6, "mobilenet_v2_x0_6"), (1.4, "mobilenet_v2_x1_4")],
)
def test_any_width_is_recognised_where_names_only_count_blocks(width: float, name: str) -> None:
    # At 0.35 the first two stages both put out 8 channels, so that widths alone would show six stages.
    specs = [candidate.spec for candidate in recognised(on_meta(lambda: mobile.TorchvisionV2(*v2_at(width), 10)))]
    strided = [
        [index for index, block in enumerate(spec.blocks) if block.stride == 2]
        for spec in specs
        if isinstance(spec, InvertedResidualSpec)
    ]
    assert strided == [[1, 3, 6, 13], [3, 6, 13]]
    assert [(spec.name, spec.usual_size) for spec in specs] == [(name, 224), (name, 32)]


def test_depths_and_widths_that_have_no_name_are_described() -> None:
    names = {
        "MobileNetV2, kuangliu": "mobilenet_v2_x0_05_10_blocks",  # 16 / 320 channels
        "MobileNetV3 small, torchvision": "mobilenet_v3_small_x0_167",  # 16 / 96
        "MobileNetV3 minimal, timm from TensorFlow": "mobilenet_v3_small_minimal_x0_167",
        "EfficientNet, lukemelas": "efficientnet_x0_05_11_blocks",
        "ShuffleNetV2, weiaicunzai": "shufflenet_v2_12_16_20_6_units",
    }
    for name, expected in names.items():
        assert family_of(name)(shapes_of_instance(name))[0].spec.name == expected


@pytest.mark.parametrize(("scale", "epsilon"), [((1.2, 1.4), 1e-5), ((1.6, 2.2), 1e-3)])
def test_torchvision_has_another_epsilon_from_b5_on(scale: tuple[float, float], epsilon: float) -> None:
    (candidate,) = recognised(on_meta(of_torchvision(*scale)))
    assert isinstance(candidate.spec, EfficientNetSpec)
    assert candidate.spec.epsilon == epsilon
    assert f"on all sides and {epsilon:g}, as in torchvision." in candidate.assumptions[-1]


# What is said


def test_what_weights_cannot_show_is_said_in_sentences() -> None:
    (small,), ported = (
        recognised(on_meta(INSTANCES[name].make)) for name in ("MobileNetV2, kuangliu", "EfficientNet, timm")
    )
    strides = "Strides leave no trace in a checkpoint; they are taken to be"
    activations = "Activations leave no trace in a checkpoint; they are taken to be"
    numerics = "Padding and the epsilon of batch norm leave no trace in a checkpoint; they are taken to be"
    assert small.assumptions == (
        f"{strides} 1 in the stem and 1-1-2-2-1-2-1 in the stages, the CIFAR form.",
        f"{activations} ReLU, as in kuangliu/pytorch-cifar.",
    )
    assert ported[1].assumptions == (
        f"{strides} 2 in the stem and 1-2-2-2-1-2-1 in the stages, the ImageNet form.",
        f"{activations} SiLU, as in timm.",
        f"{numerics} TensorFlow's (SAME) and 0.001, as in what timm ported from TensorFlow.",
    )


def test_the_activations_and_strides_of_the_v3_variants_are_said() -> None:
    def said(name: str) -> tuple[str, ...]:
        return mobilenet_v3_candidates(shapes_of_instance(name))[0].assumptions

    assert "hard swish, and ReLU in the first 6 blocks" in said("MobileNetV3 large, timm")[1]
    assert "hard swish, and ReLU in the first 3 blocks" in said("MobileNetV3 small, torchvision")[1]
    assert "taken to be ReLU, as in timm" in said("MobileNetV3 minimal, timm from TensorFlow")[1]
    assert "2 in the stem and 2-2-1-2-1-1-1-1-2-1-1 in the blocks" in said("MobileNetV3 small, torchvision")[0]


def test_both_stems_of_a_shufflenet_are_said() -> None:
    imagenet, cifar = recognised(on_meta(INSTANCES["ShuffleNetV2, torchvision"].make))
    assert "the stem's is taken to be 2, with pooling after it, and 2 begins each stage." in imagenet.assumptions[0]
    assert "the stem's is taken to be 1 and 2 begins each stage." in cifar.assumptions[0]
    assert "taken to be ReLU, as in torchvision." in cifar.assumptions[1]


def test_the_oddities_of_weiaicunzai_s_stems_are_said() -> None:
    (mobilenet,), (shuffle,) = (
        recognised(on_meta(INSTANCES[f"{name}, weiaicunzai"].make)) for name in ("MobileNetV2", "ShuffleNetV2")
    )
    padded = "The 1x1 stem is taken to be padded by one pixel, as in weiaicunzai/pytorch-cifar100."
    assert mobilenet.assumptions[2] == padded
    assert "taken to be ReLU, and none in the stem, as in weiaicunzai/pytorch-cifar100." in shuffle.assumptions[1]


def test_idle_weights_are_mentioned() -> None:
    assumptions = recognised(on_meta(INSTANCES["EfficientNet, kuangliu"].make))[0].assumptions
    assert assumptions[-1].startswith("Where a block does not widen, its weights for that are taken not to be used")


def test_the_reasons_say_what_was_seen() -> None:
    small = recognised(on_meta(INSTANCES["MobileNetV3 small, timm from TensorFlow"].make))[0]
    assert small.reasons == (
        "The tensors are named as in timm.",
        "The kernels and the squeeze-and-excite of 11 inverted residual blocks are arranged as in the small form.",
    )
    shuffle = recognised(on_meta(INSTANCES["ShuffleNetV2, weiaicunzai"].make))[0]
    assert shuffle.reasons == (
        "The tensors are named as in weiaicunzai/pytorch-cifar100.",
        "6 units of two branches in 3 stages.",
    )
