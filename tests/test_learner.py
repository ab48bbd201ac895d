import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.distillation.learner import Learner, Monitor, optimiser_of
from compress.pipeline.networks import StagedNetwork
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import ResNet
from compress.pipeline.settings import DistillSettings, StudentSettings
from compress.pipeline.students import build_student, inheritance, plan_student
from compress.pipeline.students.unfolding import unfolded
from compress.pipeline.synthesis.losses import distillation, stage_matching
from compress.pipeline.teacher import Teacher, open_teacher
from tests.networks import folded
from tests.tiny import CPU, blobs, copied, record_of, same_tensors, tiny_settings, tiny_spec, tiny_teacher


def tiny_learner(
    name: str = "inherit-1-1", *, teacher: Teacher | None = None, seed: int = 0, **distill: Any
) -> Learner:
    teacher = teacher or tiny_teacher()
    plan = plan_student(teacher.record, StudentSettings(name=name))
    return Learner(teacher, plan, tiny_settings(seed=seed, distill=distill), CPU)


def images(count: int = 16) -> Tensor:
    return blobs(count, tiny_teacher().record)


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def as_bytes(floats: Tensor) -> Tensor:
    return (floats * 255).round().to(torch.uint8)


# The monitor


class FirstPixel(nn.Module):
    """Answers with the class that the first pixel's byte names."""

    def forward(self, images: Tensor) -> Tensor:
        classes = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(classes, 4).float()


def test_agreement_is_the_share_of_images_on_which_the_student_names_the_teachers_class() -> None:
    shown = torch.arange(300).remainder(4)  # more than one batch of 256
    asked = shown.clone()
    asked[[0, 10, 299]] += 1  # classes 1, 3 and 4, which the student does not name
    pictures = shown.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    student = FirstPixel().train()
    assert Monitor(pictures, asked).agreement(student) == pytest.approx(297 / 300)
    assert not student.training


# The start


def test_a_student_is_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    once = tiny_learner("resnet8")
    torch.manual_seed(2)
    assert same_tensors(copied(tiny_learner("resnet8").student), copied(once.student))
    assert not same_tensors(copied(tiny_learner("resnet8", seed=1).student), copied(once.student))


def test_the_average_starts_where_the_student_does_and_goes_its_own_way() -> None:
    learner = tiny_learner("resnet8")
    assert same_tensors(copied(learner.average), copied(learner.student))
    nn.init.zeros_(learner.student.get_parameter("network.fc.weight"))
    assert learner.average.get_parameter("network.fc.weight").abs().sum() > 0


def test_an_inherited_student_begins_at_a_rate_of_its_own() -> None:
    rates: dict[str, Any] = {"learning_rate": 0.3, "inherited_learning_rate": 0.07}
    assert tiny_learner("inherit-1-1", **rates).first_rate == 0.07
    assert tiny_learner("resnet8", **rates).first_rate == 0.3


def test_the_optimiser_is_the_one_that_is_asked_for() -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))

    def stepped(**settings: Any) -> float:
        """Where a step of 0.1 against the gradient 2 leads."""
        with torch.no_grad():
            parameter.fill_(3.0)
        parameter.grad = torch.tensor([2.0])
        optimiser_of([parameter], 0.1, DistillSettings(**settings)).step()
        return parameter.item()

    # SGD: decay joins the gradient, 3 - 0.1 * (2 + 0.5 * 3)
    assert stepped(optimiser="sgd", weight_decay=0.5) == pytest.approx(2.65)
    # AdamW: decay on its own, 3 * (1 - 0.1 * 0.5), and a first step of the sign of the gradient alone
    assert stepped(optimiser="adamw", weight_decay=0.5) == pytest.approx(2.85 - 0.1)


# A step


def in_training(learner: Learner, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and stage outputs of the student in training mode, its statistics put back."""
    before, network = copied(learner.student), learner.student.train().network
    assert isinstance(network, ResNet)
    logits, stages = network.logits_and_stage_outputs(learner.student.normalise(batch))
    learner.student.load_state_dict(before)
    return logits.detach(), [stage.detach() for stage in stages]


@pytest.mark.parametrize("stage_weight", [0.0, 10.0])
def test_the_loss_is_distillation_and_where_wanted_stage_matching(stage_weight: float) -> None:
    learner = tiny_learner(temperature=3.0, stage_weight=stage_weight)
    batch = images()
    logits, stages = in_training(learner, batch)
    wanted, wanted_stages = learner.teacher.logits_and_stage_outputs(batch)
    expected = distillation(wanted, logits, 3.0) + stage_weight * stage_matching(wanted_stages, stages)
    loss = learner.step(batch, 0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert loss.shape == () and not loss.requires_grad


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_tells_how_far_the_student_was_from_the_teacher_on_each_image(parts: int) -> None:
    learner = tiny_learner(temperature=3.0, stage_weight=0.0)
    learner.micro_batches = parts
    batch = images()
    loss = learner.step(batch, 0.1)
    assert learner.divergences.shape == (len(batch),)
    torch.testing.assert_close(learner.divergences.mean(), loss)


def test_stages_are_matched_where_the_settings_give_them_weight() -> None:
    assert tiny_learner("inherit-1-1").match_stages
    assert not tiny_learner("inherit-1-1", stage_weight=0.0).match_stages


def test_stages_of_other_shapes_are_matched_through_adapters_that_begin_as_nothing() -> None:
    learner = tiny_learner("resnet8", stage_weight=10.0)  # has three stages to the teacher's two
    batch = images()
    answers = distillation(learner.teacher.logits(batch), in_training(learner, batch)[0], 4.0)
    # Zeros are as far from a stage of the teacher as the stage is large: 1 for each of two.
    torch.testing.assert_close(learner.step(batch, 0.1), answers + 10 * 2, rtol=1e-4, atol=1e-5)
    assert all(weight.abs().sum() > 0 for weight in learner.adapters.parameters())  # they learn


def test_adapters_come_closer_to_the_teacher_and_are_no_part_of_the_student() -> None:
    learner = tiny_learner("resnet8", stage_weight=10.0)
    batch = images()
    losses = []
    for _ in range(40):
        learner.step(batch, 5e-3)
        losses.append(learner.parts.take()["stage_loss"])
    assert losses[-1] < 0.7 * losses[0]
    assert set(learner.average.state_dict()) == set(build_student(learner.plan, learner.teacher).state_dict())


def test_a_narrower_student_keeps_the_channels_that_images_show_to_be_needed() -> None:
    teacher = tiny_teacher(widths=(16, 32))
    learner = tiny_learner("inherit-2-2-w0.5", teacher=teacher)
    conv = teacher.network.get_submodule("network.layer1.0.conv2")
    idle = list(range(0, 16, 2))
    with torch.no_grad():
        conv.get_parameter("weight")[:, idle] = 0  # no one needs what these channels hold
    learner.recalibrate(as_bytes(images(24)))
    kept = teacher.network.get_parameter("network.layer1.0.conv1.weight")[1::2]
    assert torch.equal(learner.student.get_parameter("network.layer1.0.conv1.weight"), kept)
    assert learner.step(images(), 1e-3).isfinite()


class Plain(nn.Module):
    """A classifier without stages."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(images).mean((2, 3)))
        return logits


def test_a_teacher_of_another_family_teaches_by_its_answers() -> None:
    record = record_of(tiny_spec()).model_copy(update={"spec": {"family": "plain"}})
    learner = tiny_learner("resnet8-w0.5", teacher=Teacher(record, Normalised(Plain(), (0.4,) * 3, (0.2,) * 3)))
    assert not learner.match_stages
    assert learner.step(images(), 0.1).item() > 0


def test_a_step_is_gradient_descent_with_momentum_and_weight_decay() -> None:
    learner = tiny_learner(optimiser="sgd", momentum=0.5, weight_decay=0.1)
    bias = learner.student.get_parameter("network.fc.bias")
    velocity = torch.zeros(4)
    for rate in (0.1, 0.02):
        before = bias.detach().clone()
        learner.step(images(), rate)
        assert bias.grad is not None
        # v = 0.5 v + (g + 0.1 w), w = w - rate * v
        velocity = 0.5 * velocity + bias.grad + 0.1 * before
        torch.testing.assert_close(bias.detach(), before - rate * velocity)


def test_the_shipped_weights_are_a_running_average() -> None:
    learner = tiny_learner(average_decay=0.75)
    expected = copied(learner.average)
    for _ in range(3):
        learner.step(images(), 0.1)
        now = copied(learner.student)
        # 0.75 of the average and 0.25 of the student; counters are the student's
        expected = {
            name: 0.75 * mean + 0.25 * now[name] if mean.is_floating_point() else now[name]
            for name, mean in expected.items()
        }
    for name, mean in copied(learner.average).items():
        torch.testing.assert_close(mean, expected[name], msg=name)
    assert not same_tensors(copied(learner.average), copied(learner.student))


def test_without_decay_the_student_itself_is_shipped() -> None:
    learner = tiny_learner(average_decay=0.0)
    learner.step(images(), 0.1)
    assert same_tensors(copied(learner.average), copied(learner.student))


def test_steps_bring_the_student_closer_and_leave_the_teacher_alone() -> None:
    learner, batch = tiny_learner("resnet8"), images(32)
    before = copied(learner.teacher.network)
    losses = [learner.step(batch, 0.05).item() for _ in range(25)]
    assert losses[-1] < 0.3 * losses[0]
    assert same_tensors(copied(learner.teacher.network), before)
    assert all(parameter.grad is None for parameter in learner.teacher.network.parameters())


# Batch-norm statistics after blocks were lost


def test_recalibration_estimates_statistics_anew_and_touches_nothing_else() -> None:
    learner = tiny_learner(batch_size=8)
    before = copied(learner.student)
    pool = as_bytes(images(32))
    learner.recalibrate(pool)
    after = copied(learner.student)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {name for name in before if name.endswith(statistics)}
    # The first batch norm sees the stem's output; four batches of eight weigh the same.
    entering = learner.student.network.get_submodule("conv1")(learner.student.normalise(pool.float() / 255))
    torch.testing.assert_close(after["network.bn1.running_mean"], entering.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    unbiased = torch.stack([batch.var((0, 2, 3)) for batch in entering.split(8)]).mean(0)
    torch.testing.assert_close(after["network.bn1.running_var"], unbiased, rtol=1e-4, atol=1e-5)
    assert after["network.bn1.num_batches_tracked"] == 4


def test_recalibration_does_not_remember_an_earlier_one() -> None:
    learner, other = tiny_learner(), tiny_learner()
    learner.recalibrate(as_bytes(1 - images(32)))
    pool = as_bytes(images(32))
    learner.recalibrate(pool)
    other.recalibrate(pool)
    assert same_tensors(copied(learner.student), copied(other.student))


def test_after_recalibration_the_average_follows_and_statistics_go_on_as_usual() -> None:
    learner = tiny_learner()
    learner.recalibrate(as_bytes(images(32)))
    assert same_tensors(copied(learner.average), copied(learner.student))
    assert {norm.momentum for norm in norms_of(learner.student)} == {0.1}


def test_recalibration_takes_any_number_of_images_even_at_one_pixel() -> None:
    # Four stages bring 8 pixels down to one, where a batch of a single image has no variance.
    teacher = tiny_teacher(blocks=(2, 2, 2, 2), widths=(8, 8, 8, 8))
    learner = tiny_learner("inherit-1-1-1-1", teacher=teacher, batch_size=16)
    for count in (17, 33, 3):
        learner.recalibrate(as_bytes(blobs(count, teacher.record)))
    assert all(value.isfinite().all() for value in copied(learner.student).values())


def test_a_student_that_lost_blocks_agrees_better_after_recalibration() -> None:
    teacher = tiny_teacher(blocks=(3, 3), widths=(16, 32))
    learner = tiny_learner("inherit-2-2", teacher=teacher)
    shown = blobs(128, teacher.record)

    def divergence() -> float:
        with torch.no_grad():
            return distillation(teacher.logits(shown), learner.student.eval()(shown), 1.0).item()

    before = divergence()
    learner.recalibrate(as_bytes(blobs(128, teacher.record)))
    assert divergence() < before


def test_the_student_inherits_the_blocks_that_images_show_to_be_needed() -> None:
    teacher = tiny_teacher(blocks=(3, 3))
    for name in ("layer1.0", "layer2.1"):
        for parameter in teacher.network.network.get_submodule(name).get_submodule("bn2").parameters():
            nn.init.zeros_(parameter)  # The block adds nothing to its input.
    learner = tiny_learner("inherit-2-2", teacher=teacher)
    assert learner.kept_blocks == ((0, 2), (0, 2))
    learner.recalibrate(as_bytes(images(32)))
    assert learner.kept_blocks == ((1, 2), (0, 2))
    for mine, yours in (("layer1.0", "layer1.1"), ("layer1.1", "layer1.2"), ("layer2.1", "layer2.2")):
        weight = f"network.{mine}.conv1.weight"
        assert torch.equal(
            learner.average.get_parameter(weight), teacher.network.get_parameter(f"network.{yours}.conv1.weight")
        )


# A teacher whose batch norms were folded


def without_batch_norm(teacher: Teacher) -> Teacher:
    """A teacher of the same function."""
    network = teacher.network.network
    assert isinstance(network, ResNet)
    record, without = teacher.record, folded(network)
    record = record.model_copy(update={"spec": without.spec.model_dump(mode="json")})
    return Teacher(record, Normalised(without, record.input.mean, record.input.std))


def losses(learner: Learner, batch: Tensor, steps: int = 25) -> list[float]:
    return [learner.step(batch, 0.05).item() for _ in range(steps)]


def test_the_student_of_a_folded_teacher_is_recalibrated_like_that_of_the_original() -> None:
    teacher, pool = tiny_teacher(), as_bytes(images(64))
    for norm in norms_of(teacher.network):
        norm.momentum = 1.0  # The statistics of these very images, so that settling on them finds the same.
    teacher.network.train()(pool / 255)
    teacher.network.eval()
    shown, answers = images(8), []
    for each in (teacher, without_batch_norm(teacher)):
        learner = tiny_learner(teacher=each, batch_size=64)
        learner.recalibrate(pool)
        answers.append(learner.average.eval()(shown).detach())
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0.01 * answers[0].std().item())


def test_the_student_of_a_folded_teacher_learns_where_one_without_batch_norm_does_not() -> None:
    # A trained teacher of fifteen blocks of which twelve are left out, at the rate for inherited students.
    original = open_teacher(Path(__file__).parents[1] / "examples" / "digits" / "teacher.pt")
    teacher, batch = without_batch_norm(original), blobs(32, original.record)
    learner, plain = (tiny_learner("inherit-1-1-1", teacher=teacher) for _ in range(2))
    learner.recalibrate(as_bytes(batch))
    found = losses(learner, batch)
    assert found[-1] < 0.3 * found[0]
    student = plain.student.network
    assert isinstance(student, ResNet)
    plain.student.network = folded(student)
    plain.average = copy.deepcopy(plain.student)
    plain.optimiser = torch.optim.SGD(plain.student.parameters(), momentum=0.9)
    found = losses(plain, batch)
    assert not min(found) < 0.8 * found[0]  # It goes up and down, and soon to NaN.


@pytest.mark.parametrize("name", ["inherit-1-1", "resnet8"])
def test_only_what_was_folded_gets_new_batch_norms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StagedNetwork] = []

    def counted(network: StagedNetwork) -> StagedNetwork:
        made.append(network)
        return unfolded(network)

    learner = tiny_learner(name)
    folded_learner = tiny_learner(name, teacher=without_batch_norm(tiny_teacher()))
    monkeypatch.setattr(inheritance, "unfolded", counted)
    learner.recalibrate(as_bytes(images(32)))
    assert not made
    folded_learner.recalibrate(as_bytes(images(32)))
    assert len(made) == (1 if name == "inherit-1-1" else 0)
