"""Students of every family that start from their teacher's blocks."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.exporters.calibration import observe
from compress.exporters.onnx_graph import export_onnx
from compress.exporters.qdq import insert_fake_quantization, quantized_layers
from compress.pipeline.errors import UsageError
from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.networks.densenet import DenseNetSpec
from compress.pipeline.networks.efficientnet import EfficientNetSpec
from compress.pipeline.networks.spec import Kept
from compress.pipeline.networks.vit import ViTSpec
from compress.pipeline.settings import StudentSettings
from compress.pipeline.students import build_student, donor_of, inherit_weights, inheriting_students, plan_student
from compress.pipeline.students.inheriting import evenly, inheriting_student, least_counts
from tests.families import SIZE, SPECS, images, network_of, teacher_of
from tests.tiny import record_of

DROPPABLE = {
    # A dot is a block that must stay, an x one that may go.
    "ResNet": "xxx .xx",
    "ResNet of bottlenecks, shortcuts padded": ".xx .xx",
    "PreActResNet": "xxx .xx",
    "PreActResNet of bottlenecks": ".x .xx",
    "VGG": ".xx .xx",
    "VGG ending in convolutions": ".x xxx",
    "VGG without batch norm": ".xx .xx",
    "DenseNet": "xxx xxx",
    "DenseNet, newest first": "xx xxx",
    "MobileNetV2": "xxx .xx.x",
    "MobileNetV2 without batch norm": "xxx .xx.x",
    "MobileNetV3": "xxx .xx.x",
    "EfficientNet": "xxx .xx.x",
    "EfficientNet without head": "xxx .xx.x",
    "ShuffleNetV2": ".xx .xx",
    "ShuffleNetV2 without batch norm": ".xx .xx",
    "ConvNeXt": "xxx xxx",
    "ViT": "xxx xxx",
}


def student_of(name: str, kept: Kept) -> StagedNetwork:
    """The student that keeps these blocks, in evaluation mode."""
    donor = donor_of(network_of(name))
    student = build(donor.spec.keeping(kept))
    inherit_weights(student, donor, kept)
    return student.eval()


def all_but_one(name: str) -> list[Kept]:
    """Every way to drop one of the blocks that may go."""
    droppable = SPECS[name].droppable
    places = [(stage, index) for stage, blocks in enumerate(droppable) for index, may in enumerate(blocks) if may]
    return [
        [[i for i in range(len(blocks)) if (number, i) != place] for number, blocks in enumerate(droppable)]
        for place in places
    ]


@pytest.mark.parametrize("name", SPECS)
def test_every_family_says_which_blocks_it_can_do_without(name: str) -> None:
    marks = ["".join("x" if may_go else "." for may_go in stage) for stage in SPECS[name].droppable]
    assert " ".join(marks) == DROPPABLE[name]


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_a_student_that_keeps_every_block_computes_what_its_teacher_computes(name: str) -> None:
    network = network_of(name)
    student = student_of(name, [range(len(stage)) for stage in network.spec.droppable])
    assert student.spec.learnable == student.spec
    wanted = network(images())
    if student.spec == network.spec.keeping([range(len(stage)) for stage in network.spec.droppable]):
        assert torch.equal(student(images()), wanted)
    else:
        torch.testing.assert_close(student(images()), wanted, rtol=1e-4, atol=1e-4 * wanted.std().item())


@pytest.mark.parametrize("name", [name for name in SPECS if "DenseNet" not in name])
@torch.no_grad()
def test_a_student_computes_what_its_teacher_computes_when_the_other_blocks_do_nothing(name: str) -> None:
    donor = donor_of(network_of(name))
    for kept in all_but_one(name):
        x = donor.enter(images())
        for stage, chosen in zip(donor.stage_list(), kept, strict=True):
            x = stage._replace(blocks=[stage.blocks[index] for index in chosen]).run(x)
        assert torch.equal(student_of(name, kept)(images()), donor.leave(x))


@pytest.mark.parametrize("name", ["DenseNet", "DenseNet, newest first"])
@torch.no_grad()
def test_a_dense_layer_that_nothing_listens_to_can_go(name: str) -> None:
    # What a layer adds is ignored when the weights for it are zero in all that comes behind.
    for kept in all_but_one(name):
        network = network_of(name)
        spec = network.spec
        assert isinstance(spec, DenseNetSpec)
        for module_name, left in network.inputs_left(kept).items():
            module = network.get_submodule(module_name)
            if not isinstance(module, nn.BatchNorm2d):
                weight = module.get_parameter("weight")
                weight.data[:, [i for i in range(weight.shape[1]) if i not in left]] = 0
        student = build(spec.keeping(kept)).eval()
        inherit_weights(student, network, kept)
        # A convolution without bottleneck or bias, or with: all paths from the layer are cut.
        torch.testing.assert_close(student(images()), network(images()), rtol=1e-5, atol=1e-5)


def test_a_dense_layers_channels_lie_behind_those_it_was_given_or_before_them() -> None:
    # Two blocks of 8 and 10 channels; each layer adds 4. The first block loses its second layer, the other its first.
    kept = [(0, 2), (1, 2)]
    oldest = build(SPECS["DenseNet"]).inputs_left(kept)
    assert oldest["features.denseblock1.denselayer3.norm1"].tolist() == [*range(8), 8, 9, 10, 11]
    assert oldest["features.transition1.conv"].tolist() == [*range(12), 16, 17, 18, 19]
    assert oldest["classifier"].tolist() == [*range(10), *range(14, 22)]
    newest = build(SPECS["DenseNet, newest first"]).inputs_left([(1,), (1, 2)])
    # What entered is at the end; before it the first layer's, and before that the second's.
    assert newest["features.denseblock1.denselayer2.conv1"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert newest["features.transition1.norm"].tolist() == [0, 1, 2, 3, *range(8, 16)]


def test_a_group_of_an_efficientnet_that_loses_all_its_blocks_disappears() -> None:
    spec = SPECS["EfficientNet without head"]
    assert isinstance(spec, EfficientNetSpec)
    assert spec.repeats == (1, 5, 2)
    left = spec.keeping([(1, 2), (0, 3, 4)])
    assert isinstance(left, EfficientNetSpec)
    assert left.repeats == (3, 2)


def test_a_vision_transformers_student_keeps_the_stages_of_its_teacher() -> None:
    left = SPECS["ViT"].keeping([(0,), (0, 2)])
    assert isinstance(left, ViTSpec)
    assert (left.depth, left.stages) == (3, (1, 2))


@pytest.mark.parametrize("name", SPECS)
def test_every_student_that_is_offered_can_be_built_and_is_no_larger_than_it_says(name: str) -> None:
    teacher = teacher_of(name)
    plans = inheriting_students(teacher.record)
    assert plans
    for plan in plans:
        student = build_student(plan, teacher).eval()
        assert sum(parameter.numel() for parameter in student.parameters()) == plan.parameters
        assert student(images()).isfinite().all()
        name = "inherit-" + "-".join(str(len(stage)) for stage in plan.spec.droppable)
        assert plan.name.partition("-w")[0] == name


@pytest.mark.parametrize(
    ("count", "droppable", "expected"),
    [
        (3, "xxxxxxxxx", (0, 4, 8)),
        (3, ".xxxxxxxx", (0, 4, 8)),
        (3, ".xx.x", (0, 1, 3)),  # 0 and 3 must stay; one of 1, 2 and 4 is the first
        (4, ".xx.x", (0, 1, 3, 4)),  # two of them are both ends
        (2, ".xx.x", (0, 3)),
    ],
)
def test_blocks_that_must_stay_are_among_the_kept(count: int, droppable: str, expected: tuple[int, ...]) -> None:
    assert evenly(count, [mark == "x" for mark in droppable]) == expected


def test_a_stage_keeps_what_it_cannot_do_without() -> None:
    spec = SPECS["MobileNetV2"]
    assert least_counts(spec) == (1, 2)
    assert plan_student(record_of(spec, SIZE), StudentSettings(name="inherit-1-2")).name == "inherit-1-2"
    with pytest.raises(UsageError) as caught:
        plan_student(record_of(spec, SIZE), StudentSettings(name="inherit-1-1"))
    assert caught.value.hint == "It has 3-5 blocks a stage; keep at least 1-2 of them."


def test_no_more_than_eight_depths_are_offered_by_name() -> None:
    # Of 23 blocks, 1 + round(21 k / 7) for k = 0 to 7.
    spec = SPECS["ResNet"].model_copy(update={"blocks": (1, 23)})
    names = [plan.name for plan in inheriting_students(record_of(spec, SIZE)) if "-w" not in plan.name]
    assert names == [f"inherit-1-{count}" for count in (1, 4, 7, 10, 13, 16, 19, 22)]


# Deployment


ONE_LESS = {name: tuple(max(1, len(stage) - 1) for stage in spec.droppable) for name, spec in SPECS.items()}
EXPORTED = ("ResNet", "PreActResNet", "VGG ending in convolutions", "DenseNet", "MobileNetV2", "MobileNetV3",
            "EfficientNet", "ShuffleNetV2", "ConvNeXt", "ViT")  # fmt: skip


@pytest.mark.slow  # two seconds each
@pytest.mark.parametrize("name", EXPORTED)
def test_an_inherited_student_of_every_family_can_be_exported(name: str, tmp_path: Path) -> None:
    student = build_student(inheriting_student(SPECS[name], ONE_LESS[name]), teacher_of(name)).eval()
    graph = export_onnx(student, tmp_path / "student.onnx", example=images(2), opset=17, ir_version=8, metadata={})
    assert graph.max_abs_difference < 1e-3


@pytest.mark.parametrize("name", EXPORTED)
def test_an_inherited_student_of_every_family_can_be_quantized(name: str) -> None:
    student = build_student(inheriting_student(SPECS[name], ONE_LESS[name]), teacher_of(name)).eval()
    module = insert_fake_quantization(student, "s8s8")
    observe(module, [images(4), images(4).flip(0)])
    with torch.no_grad():
        assert (module(images()) - student(images())).abs().max() < 0.5 * student(images()).abs().max()
    assert quantized_layers(module) or name in ("ConvNeXt", "ViT")
