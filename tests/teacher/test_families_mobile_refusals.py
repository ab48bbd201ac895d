"""What is no MobileNet, EfficientNet or ShuffleNet, and what a hostile checkpoint may claim to be."""

from itertools import islice

import pytest
import torch.nn.functional as F

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.families import Family, NotInFamily
from compress.pipeline.teacher.families.efficientnet import efficientnet_candidates
from compress.pipeline.teacher.families.mobilenet_v2 import mobilenet_v2_candidates
from compress.pipeline.teacher.families.mobilenet_v3 import mobilenet_v3_candidates
from compress.pipeline.teacher.inference import recognise
from tests.teacher import foreign_mobile as mobile
from tests.teacher.foreign import misfit, nonsense, on_meta, refusal, shapes_of
from tests.teacher.foreign_mobile import Row
from tests.teacher.mobile_instances import (
    CLASSES,
    EFFICIENTNET_ROWS,
    FAMILIES,
    HEAD,
    INSTANCES,
    STEM,
    family_of,
    shapes_of_instance,
    v2_rows,
)

EVERY_INSTANCE = pytest.mark.parametrize("name", INSTANCES)


@EVERY_INSTANCE
def test_no_other_family_takes_a_network(name: str) -> None:
    shapes = shapes_of_instance(name)
    for family, candidates in FAMILIES.items():
        if family != INSTANCES[name].family:
            assert misfit(candidates, shapes).distance > 0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_names_of_another_kind_are_as_far_away_as_there_are_tensors(family: Family) -> None:
    shapes = {"layers.0.attention.weight": (4, 4), "encoder.norm.weight": (4,), "head": (2, 4)}
    problem = misfit(family, {name.replace("layers", "words"): shape for name, shape in shapes.items()})
    assert problem.distance == 3
    assert problem.problem.startswith("no layer is named like one in its blocks, such as '")


def test_a_stage_too_many_is_refused() -> None:
    rows = [*v2_rows(F.relu6), Row(3, 18, 2, 2)]
    shapes = shapes_of(on_meta(lambda: mobile.TorchvisionV2(STEM, rows, HEAD, CLASSES)))
    assert misfit(mobilenet_v2_candidates, shapes).problem == "its blocks form 8 stages and not 7"


def test_large_kernels_without_squeeze_and_excite_are_no_mobilenet_v2() -> None:
    # MNASNet and EfficientNet-Lite go by timm's names, too.
    rows = [Row(row.ratio, row.out, row.count, row.stride, row.kernel) for row in EFFICIENTNET_ROWS]
    problem = misfit(
        mobilenet_v2_candidates,
        shapes_of(on_meta(lambda: mobile.Timm(STEM, [[row] for row in rows], HEAD, CLASSES, F.relu))),
    )
    assert problem.problem == "not all of its depthwise convolutions are 3x3"
    assert problem.tensors == ("blocks.2.0.conv_dw", "blocks.4.0.conv_dw", "blocks.5.0.conv_dw", "blocks.5.1.conv_dw")


def test_a_v3_with_a_block_too_few_is_refused_with_the_form_that_it_is_nearest_to() -> None:
    shapes = shapes_of_instance("MobileNetV3 large, torchvision")
    fewer = {name: shape for name, shape in shapes.items() if not name.startswith("features.15.")}
    problem = misfit(mobilenet_v3_candidates, fewer)
    assert problem.problem == "1 blocks differ in kernel or squeeze-and-excite from the large form, the nearest"
    assert problem.distance == 1


@pytest.mark.parametrize(("old", "new"), [("blocks.3.0.", "blocks.0.9."), ("blocks.2.0.conv_dw", "blocks.2.0.conv")])
def test_a_v3_head_in_the_middle_of_the_blocks_is_refused(old: str, new: str) -> None:
    shapes = shapes_of_instance("MobileNetV3 large, timm")
    moved = {name.replace(old, new): shape for name, shape in shapes.items()}
    assert misfit(mobilenet_v3_candidates, moved).distance > 0


def test_a_missing_and_a_surplus_tensor_are_named_by_the_checkpoint_s_names() -> None:
    shapes = shapes_of_instance("EfficientNet, timm")
    fewer = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.1.0.bn2.")}
    more = {**shapes, "blocks.1.0.bn4.weight": (4,), "extra": (1,)}
    assert misfit(efficientnet_candidates, fewer).tensors == ("blocks.1.0.bn2",)
    assert misfit(efficientnet_candidates, more).tensors == ("blocks.1.0.bn4.weight", "extra")
    assert misfit(efficientnet_candidates, more).distance == 2
    assert "it has no place for: blocks.1.0.bn4.weight, extra." in refusal(efficientnet_candidates, more)


HOSTILE = ["MobileNetV2, torchvision", "MobileNetV2, weiaicunzai", "MobileNetV3 small, timm from TensorFlow",
           "EfficientNet, lukemelas", "EfficientNet, kuangliu", "ShuffleNetV2, kuangliu"]  # fmt: skip


def refused_in_words(name: str, step: int) -> None:
    family, shapes = family_of(name), shapes_of_instance(name)
    for number, senseless in enumerate(islice(nonsense(shapes), 0, None, step)):
        with pytest.raises(InputError):
            recognise(senseless, f"{number}.pt", [family])


@pytest.mark.parametrize("name", HOSTILE)
def test_senseless_shapes_and_missing_tensors_are_refused_in_words(name: str) -> None:
    refused_in_words(name, step=61)


@pytest.mark.slow
@EVERY_INSTANCE
def test_more_senseless_shapes_and_missing_tensors_are_refused_in_words(name: str) -> None:
    refused_in_words(name, step=7)


@pytest.mark.parametrize("index", ["9", "1000000000", "1" * 5000, "00", "-1", "\u00b2", "\u0663"])
@pytest.mark.parametrize("name", ["MobileNetV2, chenyaofo", "EfficientNet, torchvision", "ShuffleNetV2, torchvision"])
def test_absurd_indices_are_refused_in_words(name: str, index: str) -> None:
    shapes = shapes_of_instance(name)
    layers = ("features.{0}.conv.0.0", "features.{0}.{0}.block.0.0", "stage{0}.{0}.branch2.0")
    surplus = {f"{layer.format(index)}.weight": (4, 4, 1, 1) for layer in layers}
    assert refusal(family_of(name), {**shapes, **surplus})


def test_two_tensors_for_one_place_are_refused() -> None:
    shapes = shapes_of_instance("EfficientNet, timm")
    double = {name.replace("blocks.1.0.", "blocks.01.0."): shape for name, shape in shapes.items()}
    problem = misfit(efficientnet_candidates, {**shapes, **double})
    assert problem.problem == "it has no place for"
    assert all(name.startswith("blocks.01.0.") for name in problem.tensors) and problem.tensors


def test_a_layer_that_is_not_what_its_name_says_is_refused() -> None:
    shapes = {
        **shapes_of_instance("MobileNetV3 small, torchvision"),
        "classifier.0.weight": (24, 20, 1, 1),
    }
    with pytest.raises(NotInFamily, match=r"a layer is named like a linear layer but is none") as caught:
        mobilenet_v3_candidates(shapes)
    assert caught.value.tensors == ("classifier.0",)
