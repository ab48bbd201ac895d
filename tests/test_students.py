import itertools

import pytest
import torch
from torch import nn

from compress.pipeline.errors import BudgetError, UsageError
from compress.pipeline.networks import build
from compress.pipeline.networks.resnet import PadShortcut, ResNetSpec, Shortcut, Zeros
from compress.pipeline.records import TeacherRecord
from compress.pipeline.settings import StudentSettings
from compress.pipeline.students import (
    StudentPlan,
    build_student,
    count_parameters,
    donor_of,
    inheriting_student,
    inheriting_students,
    plan_student,
    size_findings,
    spread,
    zoo_students,
)
from tests.tiny import record_of, same_tensors, tiny_spec, tiny_teacher

RESNET56 = record_of(
    ResNetSpec(stem="cifar", shortcut="pad", blocks=(9, 9, 9), widths=(16, 32, 64), stem_width=16, num_classes=10), 32
)
RESNET34 = record_of(
    ResNetSpec(stem="imagenet", blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512), stem_width=64, num_classes=1000), 224
)


def resnet(plan: StudentPlan) -> ResNetSpec:
    assert isinstance(plan.spec, ResNetSpec)
    return plan.spec


def of_another_family(teacher: TeacherRecord) -> TeacherRecord:
    return teacher.model_copy(update={"spec": {"family": "plain"}})


# Students that keep blocks of their teacher


@pytest.mark.parametrize("shortcut", ["pad", "projection", "linear", "pooled"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_student_that_keeps_every_block_computes_what_the_teacher_computes(
    shortcut: Shortcut, block: str, batch_norm: bool
) -> None:
    teacher = tiny_teacher(shortcut=shortcut, block=block, batch_norm=batch_norm)
    plan = inheriting_student(tiny_spec(shortcut=shortcut, block=block, batch_norm=batch_norm), (2, 2))
    student = build_student(plan, teacher).eval()
    images = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(student(images), teacher.logits(images), rtol=1e-5, atol=1e-5)
    if shortcut != "pad" and batch_norm:
        assert student.state_dict().keys() == teacher.network.state_dict().keys()
        assert torch.equal(student(images), teacher.logits(images))


@pytest.mark.parametrize("zeros", ["around", "after"])
def test_padding_shortcuts_become_convolutions_that_compute_the_same(zeros: Zeros) -> None:
    teacher = tiny_teacher(shortcut="pad", zeros=zeros)
    plan = inheriting_student(tiny_spec(shortcut="pad", zeros=zeros), (1, 1))
    assert resnet(plan).shortcut == "linear"
    padding, convolution = (
        network.get_submodule("layer2.0.downsample")
        for network in (teacher.network.network, build_student(plan, teacher).network)
    )
    assert isinstance(padding, PadShortcut) and isinstance(convolution, nn.Conv2d)
    maps = torch.randn(2, 8, 6, 6)
    assert torch.equal(convolution(maps), padding(maps))


def test_a_deep_stem_is_inherited_whole() -> None:
    deep = {"stem": "imagenet", "deep_stem": (4, 6)}
    teacher = tiny_teacher(**deep, size=32)
    student = build_student(inheriting_student(tiny_spec(**deep), (1, 1)), teacher)
    ours, theirs = (network.network.get_submodule("conv1").state_dict() for network in (student, teacher.network))
    assert len(ours) > 3 and same_tensors(ours, theirs)


def test_a_student_has_the_stem_the_classifier_and_the_kept_blocks_of_its_teacher() -> None:
    teacher = tiny_teacher(blocks=(3, 4))
    plan = inheriting_student(tiny_spec(blocks=(3, 4)), (2, 3))
    assert plan.kept_blocks == ((0, 2), (0, 2, 3))
    student, network = build_student(plan, teacher).network, teacher.network.network
    pairs = {"conv1": "conv1", "bn1": "bn1", "fc": "fc", "layer1.0": "layer1.0", "layer1.1": "layer1.2"}
    pairs |= {"layer2.0": "layer2.0", "layer2.1": "layer2.2", "layer2.2": "layer2.3"}
    compared = 0
    for mine, yours in pairs.items():
        weights = student.get_submodule(mine).state_dict()
        for name, value in network.get_submodule(yours).state_dict().items():
            assert torch.equal(weights[name], value), f"{mine}.{name}"
            compared += 1
    assert compared == len(student.state_dict())


def test_inherited_weights_are_a_copy() -> None:
    teacher = tiny_teacher()
    student = build_student(inheriting_student(tiny_spec(), (1, 1)), teacher)
    with torch.no_grad():
        student.get_parameter("network.fc.bias").add_(1)
    assert not torch.equal(student.get_parameter("network.fc.bias"), teacher.network.get_parameter("network.fc.bias"))
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_student_has_batch_norms_even_where_its_teacher_has_lost_them() -> None:
    teacher = tiny_teacher(batch_norm=False)
    plan = inheriting_student(tiny_spec(batch_norm=False), (1, 1))
    student = build_student(plan, teacher)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in student.modules()) == 1 + 4 + 1
    assert plan.parameters == count_parameters(tiny_spec(blocks=(1, 1)))


def test_only_a_network_of_known_blocks_gives_them_away() -> None:
    with pytest.raises(TypeError, match="cannot inherit from Linear"):
        donor_of(nn.Linear(2, 2))


def test_every_stage_keeps_the_same_share_of_blocks_and_at_least_one() -> None:
    # Of 3, 4, 6 and 3 blocks, k sixths: 3 k / 6, 4 k / 6, k and 3 k / 6, halves rounded to the even number.
    depths = ["inherit-1-1-1-1", "inherit-1-1-2-1", "inherit-2-2-3-2", "inherit-2-3-4-2", "inherit-2-3-5-2"]
    narrow = ["inherit-1-1-1-1-w0.25", "inherit-1-1-1-1-w0.5"]
    assert {plan.name for plan in inheriting_students(RESNET34)} == {*narrow, *with_three_quarters(depths)}
    depths = [f"inherit-{n}-{n}-{n}" for n in range(1, 9)]
    narrow = ["inherit-1-1-1-w0.25", "inherit-1-1-1-w0.5"]
    assert {plan.name for plan in inheriting_students(RESNET56)} == {*narrow, *with_three_quarters(depths)}


def with_three_quarters(names: list[str]) -> list[str]:
    """Students, and those of three quarters of their width."""
    return [*names, *(f"{name}-w0.75" for name in names)]


def test_students_are_listed_by_size_and_none_twice() -> None:
    plans = inheriting_students(RESNET56)
    assert [plan.parameters for plan in plans] == sorted(plan.parameters for plan in plans)
    assert len({plan.spec for plan in plans}) == len(plans)


def test_a_teacher_of_one_block_a_stage_has_none_to_spare_but_their_insides() -> None:
    names = [plan.name for plan in inheriting_students(record_of(tiny_spec(blocks=(1, 1), widths=(8, 32))))]
    assert names == [f"inherit-1-1-w{width}" for width in (0.25, 0.5, 0.75)]
    assert inheriting_students(record_of(tiny_spec(blocks=(1, 1), widths=(8, 8)))) == []


def test_a_teacher_of_another_family_gives_no_blocks() -> None:
    assert inheriting_students(of_another_family(RESNET56)) == []


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(3, 9, (0, 4, 8)), (1, 9, (0,)), (2, 3, (0, 2)), (3, 4, (0, 2, 3)), (4, 4, (0, 1, 2, 3)), (1, 1, (0,))],
)
def test_kept_blocks_are_spread_evenly(count: int, total: int, expected: tuple[int, ...]) -> None:
    assert spread(count, total) == expected


def test_kept_blocks_are_all_different_with_both_ends_among_them() -> None:
    for total in range(2, 40):
        for count in range(2, total + 1):
            kept = spread(count, total)
            assert len(set(kept)) == count
            assert (kept[0], kept[-1]) == (0, total - 1)
            gaps = [after - before for before, after in itertools.pairwise(kept)]
            assert min(gaps) > 0
            assert max(gaps) - min(gaps) <= 2


# The zoo


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (33, 3), (64, 3), ((28, 20), 1)])
def test_every_small_student_takes_the_teachers_images(size: int | tuple[int, int], channels: int) -> None:
    teacher = record_of(tiny_spec(channels=channels, num_classes=7), size)
    plans = zoo_students(teacher)
    assert len(plans) == 12
    assert "resnet20" in {plan.name for plan in plans}
    for plan in plans:
        check_shapes(plan, teacher)


@pytest.mark.parametrize("size", [65, 96, 224, (224, 160)])
def test_every_large_student_takes_the_teachers_images(size: int | tuple[int, int]) -> None:
    teacher = record_of(tiny_spec(num_classes=7), size)
    plans = zoo_students(teacher)
    assert len(plans) == 9
    assert "resnet18" in {plan.name for plan in plans}
    for plan in plans:
        check_shapes(plan, teacher)


def check_shapes(plan: StudentPlan, teacher: TeacherRecord) -> None:
    """Without any arithmetic: names, widths and the shape of what comes out."""
    assert not plan.inherited
    assert all(width % 8 == 0 for width in (*resnet(plan).widths, resnet(plan).stem_width))
    images = teacher.input
    with torch.device("meta"):
        logits = build(plan.spec)(torch.empty(2, images.channels, images.height, images.width))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("size", [8, 72])
def test_a_student_of_the_zoo_answers_and_normalises_as_its_teacher_does(size: int) -> None:
    teacher = tiny_teacher(size=size)
    name = "resnet8-w0.5" if size == 8 else "resnet10-w0.5"
    student = build_student(plan_student(teacher.record, StudentSettings(name=name)), teacher).eval()
    images = torch.rand(2, 3, size, size)
    assert student(images).shape == (2, 4)
    torch.testing.assert_close(student.normalise(images), (images - 0.4) / 0.2)


def test_random_weights_come_from_the_global_seed() -> None:
    teacher = tiny_teacher()
    plan = plan_student(teacher.record, StudentSettings(name="resnet8"))
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build_student(plan, teacher).get_parameter("network.conv1.weight"))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_names_in_the_zoo_are_those_of_the_networks() -> None:
    for teacher in (RESNET56, RESNET34):
        for plan in zoo_students(teacher):
            assert plan.name.partition("-")[0] == f"resnet{resnet(plan).depth}"


def test_narrower_students_are_smaller() -> None:
    plans = {plan.name: plan for plan in zoo_students(RESNET34)}
    assert plans["resnet18"].parameters == 11_689_512  # as torchvision publishes it
    assert resnet(plans["resnet18-w0.75"]).widths == (48, 96, 192, 384)
    assert resnet(plans["resnet18-w0.5"]).widths == (32, 64, 128, 256)
    assert plans["resnet18"].parameters > plans["resnet18-w0.75"].parameters > plans["resnet18-w0.5"].parameters


# Counting


@pytest.mark.parametrize("plan", [*zoo_students(record_of(tiny_spec())), *inheriting_students(record_of(tiny_spec()))])
def test_parameters_are_counted_without_allocating_them(plan: StudentPlan) -> None:
    real = sum(parameter.numel() for parameter in build(plan.spec).parameters())
    assert plan.parameters == count_parameters(plan.spec) == real


# Choosing


def test_auto_is_the_largest_that_inherits_and_fits() -> None:
    # A third of 853,018 is 284,339. Three blocks a stage have 269,722 parameters with option A; the two linear shortcuts
    # add 16 * 32 + 32 * 64 = 2,560. Four of three quarters of the width inside are 10,624 more, and fit.
    plan = plan_student(RESNET56, StudentSettings())
    assert (plan.name, plan.parameters, plan.inherited) == ("inherit-4-4-4-w0.75", 282_906, True)
    just_less = StudentSettings(max_parameter_ratio=282_905 / 853_018)
    assert plan_student(RESNET56, just_less).name == "inherit-3-3-3"


def test_a_student_no_smaller_than_its_teacher_is_warned_of() -> None:
    small = RESNET56.model_copy(update={"parameters": 100_000})
    (finding,) = size_findings(plan_student(RESNET56, StudentSettings(name="inherit-2-2-2")), small)
    assert finding.severity == "warning" and "it is no smaller" in finding.message
    assert size_findings(plan_student(RESNET56, StudentSettings()), RESNET56) == ()


def test_auto_prefers_inherited_weights_to_more_parameters() -> None:
    # Below inherit-2-2-2-w0.75's 134,650 and above inherit-1-1-1's 77,850 there are larger students in the zoo.
    limit = StudentSettings(max_parameter_ratio=130_000 / 853_018)
    plan = plan_student(RESNET56, limit)
    assert plan.name == "inherit-1-1-1"
    assert any(plan.parameters < other.parameters <= 130_000 for other in zoo_students(RESNET56))


def test_auto_narrows_the_shallowest_where_no_depth_is_small_enough() -> None:
    shallowest = inheriting_student(ResNetSpec.model_validate(RESNET56.spec), (1, 1, 1)).parameters
    ratio = (shallowest - 1) / RESNET56.parameters
    assert plan_student(RESNET56, StudentSettings(max_parameter_ratio=ratio)).name == "inherit-1-1-1-w0.75"


def test_auto_takes_the_largest_of_the_zoo_where_nothing_can_be_inherited() -> None:
    plan = plan_student(of_another_family(RESNET56), StudentSettings())
    fitting = [other for other in zoo_students(RESNET56) if other.parameters <= RESNET56.parameters / 3]
    assert not plan.inherited
    assert plan.parameters == max(other.parameters for other in fitting)


def test_a_larger_ratio_never_gives_a_smaller_student() -> None:
    ratios = (0.1, 0.3, 0.5, 0.7, 1.0)
    sizes = [plan_student(RESNET56, StudentSettings(max_parameter_ratio=ratio)).parameters for ratio in ratios]
    assert sizes == sorted(sizes)
    assert sizes[-1] < RESNET56.parameters


def test_when_nothing_fits_the_smallest_student_is_named() -> None:
    smallest = min(zoo_students(RESNET56), key=lambda plan: plan.parameters)
    with pytest.raises(BudgetError) as caught:
        plan_student(RESNET56, StudentSettings(max_parameter_ratio=0.01))
    assert caught.value.exit_code == 6
    assert caught.value.message == (
        f"No student has at most 8,530 parameters; the smallest, {smallest.name}, has {smallest.parameters:,}."
    )
    assert caught.value.hint == "Raise student.max_parameter_ratio."


@pytest.mark.parametrize("name", ["inherit-2-2-2", "inherit-1-5-9", "inherit-9-9-9", "resnet20", "resnet14-w0.75"])
def test_a_student_is_found_by_its_name_whatever_its_size(name: str) -> None:
    plan = plan_student(RESNET56, StudentSettings(name=name, max_parameter_ratio=0.01))
    assert plan.name == name
    assert plan.inherited == name.startswith("inherit")


@pytest.mark.parametrize(
    ("teacher", "name", "nearest"),
    [
        (RESNET56, "resnet-20", "resnet20"),
        (RESNET56, "resnet20w0.5", "resnet20-w0.5"),
        (RESNET34, "resnet16", "resnet18"),
        (of_another_family(RESNET34), "resnet-34", "resnet34"),
    ],
)
def test_an_unknown_student_names_the_nearest_and_all_others(teacher: TeacherRecord, name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_student(teacher, StudentSettings(name=name))
    assert caught.value.exit_code == 2
    assert caught.value.message == f"There is no student '{name}' for this teacher."
    assert f"Did you mean '{nearest}'?" in caught.value.hint
    assert all(plan.name in caught.value.hint for plan in zoo_students(teacher))


@pytest.mark.parametrize("name", ["inherit-10-1-1", "inherit-0-1-1", "inherit-3-3", "inherit-1-1-1-1"])
def test_blocks_that_the_teacher_does_not_have_cannot_be_kept(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_student(RESNET56, StudentSettings(name=name))
    assert caught.value.message == f"The teacher cannot give the student '{name}'."
    assert caught.value.hint == "It has 9-9-9 blocks a stage; keep at least one of each."


def test_a_teacher_of_another_family_is_not_asked_for_its_blocks() -> None:
    with pytest.raises(UsageError, match="There is no student 'inherit-3-3-3' for this teacher"):
        plan_student(of_another_family(RESNET56), StudentSettings(name="inherit-3-3-3"))


def test_without_inheritance_auto_takes_the_largest_of_the_zoo_that_fits() -> None:
    settings = StudentSettings(inherit=False)
    plan = plan_student(RESNET56, settings)
    fitting = [each for each in zoo_students(RESNET56) if each.parameters <= RESNET56.parameters / 3]
    assert not plan.inherited
    assert plan.parameters == max(each.parameters for each in fitting)
    assert plan_student(RESNET56, StudentSettings()).inherited


def test_a_student_that_is_named_may_still_inherit() -> None:
    assert plan_student(RESNET56, StudentSettings(inherit=False, name="inherit-3-3-3")).inherited


def test_a_teacher_that_no_network_of_the_zoo_is_small_enough_for_is_refused_without_inheritance() -> None:
    with pytest.raises(BudgetError, match=r"the smallest, resnet8-w0\.5, has"):
        plan_student(RESNET56, StudentSettings(inherit=False, max_parameter_ratio=0.001))
