import pytest
import torch
from torch import nn

from compress.pipeline.distillation.adapters import StageAdapters, stage_shapes
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.settings import StudentSettings
from compress.pipeline.students import plan_student
from compress.pipeline.teacher import Teacher
from tests.tiny import record_of, tiny_spec, tiny_teacher


def test_stages_of_the_teachers_shapes_are_compared_as_they_are() -> None:
    adapters = StageAdapters([(8, 4, 4), (16, 2, 2)], [(8, 4, 4), (16, 2, 2)])
    assert list(adapters.parameters()) == []
    teacher = [torch.rand(3, 8, 4, 4), torch.rand(3, 16, 2, 2)]
    student = [torch.rand(3, 8, 4, 4), torch.rand(3, 16, 2, 2)]
    wanted, mine = adapters(teacher, student)
    assert all(one is other for one, other in zip(wanted + mine, teacher + student, strict=True))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(4, 4, 4), (6, 2, 2)], [(8, 4, 4), (16, 2, 2)]),  # narrower
        ([(4, 8, 8), (6, 4, 4), (6, 2, 2)], [(8, 4, 4), (16, 2, 2)]),  # more stages
        ([(6, 2, 2)], [(8, 4, 4), (16, 1, 1)]),  # fewer stages, larger maps
        ([(16, 3, 5)], [(16, 7, 4)]),  # sides that do not divide
    ],
)
def test_the_last_stages_are_paired_at_the_smaller_size_with_the_teachers_channels(
    student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]]
) -> None:
    made = ([torch.rand(2, *shape) for shape in shapes] for shapes in (teacher, student))
    wanted, mine = StageAdapters(student, teacher)(*made)
    count = min(len(student), len(teacher))
    expected = [
        (2, full[0], min(full[1], own[1]), min(full[2], own[2]))
        for full, own in zip(teacher[-count:], student[-count:], strict=True)
    ]
    assert [tuple(maps.shape) for maps in wanted] == [tuple(maps.shape) for maps in mine] == expected


def test_larger_maps_are_averaged_and_channels_mixed_by_a_learned_matrix() -> None:
    adapters = StageAdapters([(2, 2, 2)], [(1, 1, 1)])
    adapter = adapters.adapters[0]
    assert isinstance(adapter, nn.Conv2d)
    with torch.no_grad():
        adapter.weight.copy_(torch.tensor([1.0, 10.0]).view(1, 2, 1, 1))
    maps = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]])[None]
    _, (mine,) = adapters([torch.zeros(1, 1, 1, 1)], [maps])
    assert mine.item() == pytest.approx(3 + 10 * 1)  # the channels' means are 3 and 1


@pytest.mark.parametrize("name", ["resnet8", "resnet14-w0.5", "inherit-1-1"])
def test_shapes_are_those_that_the_networks_put_out(name: str) -> None:
    teacher = tiny_teacher()
    plan = plan_student(teacher.record, StudentSettings(name=name))
    shapes = stage_shapes(teacher, plan)
    assert shapes[1] == [(8, 8, 8), (16, 4, 4)]
    assert len(shapes[0]) == (2 if name == "inherit-1-1" else 3)


def test_a_teacher_whose_stages_are_not_known_has_none() -> None:
    teacher = Teacher(record_of(tiny_spec()), Normalised(nn.Identity(), (0.4,) * 3, (0.2,) * 3))
    assert stage_shapes(teacher, plan_student(teacher.record, StudentSettings(name="resnet8"))) == ([], [])
