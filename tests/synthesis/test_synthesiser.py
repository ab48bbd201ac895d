import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.device import Compute
from compress.pipeline.settings import SynthesisSettings
from compress.pipeline.synthesis.losses import (
    Statistics,
    adversarial,
    batch_norm_matching,
    batch_statistics,
    image_prior,
    one_hot,
)
from compress.pipeline.synthesis.synthesiser import Synthesiser, SyntheticBatch
from compress.pipeline.teacher import Teacher
from tests.tiny import CPU, copied, same_tensors, tiny_embeddings, tiny_teacher

STILL: dict[str, Any] = {"crop_padding": 0, "flip": False}
"""Settings under which the teacher sees the images as they are."""


def tiny_settings(**changes: Any) -> SynthesisSettings:
    return SynthesisSettings(**({"batch_size": 12, "steps": 4, "latent": 8, "generator_width": 8} | changes))


class Watched(Synthesiser):
    """Remembers images, loss and statistics of every step."""

    def __init__(self, teacher: Teacher, embeddings: Tensor, settings: SynthesisSettings, compute: Compute) -> None:
        super().__init__(teacher, embeddings, settings, compute)
        self.seen: list[tuple[Tensor, float, list[Statistics]]] = []

    def _step(self, targets: Tensor, student: nn.Module | None) -> tuple[Tensor, Tensor, Tensor, list[Statistics]]:
        images, loss, of_each, statistics = super()._step(targets, student)
        detached = [Statistics(mean.detach(), variance.detach()) for mean, variance in statistics]
        self.seen.append((images.detach(), loss.item(), detached))
        return images, loss, of_each, statistics


def synthesiser(*, seed: int = 0, compute: Compute = CPU, teacher: Teacher | None = None, **settings: Any) -> Watched:
    torch.manual_seed(seed)
    teacher = teacher or tiny_teacher()
    embeddings = tiny_embeddings(teacher.record.num_classes)
    return Watched(teacher, embeddings, tiny_settings(**settings), compute)


def make(student: nn.Module | None = None, **options: Any) -> Watched:
    """A synthesiser that has made one batch."""
    watched = synthesiser(**options)
    watched.make(student)
    return watched


def student() -> nn.Module:
    """Always of the tiny teacher's opinion, but less sure."""
    network = tiny_teacher().network.requires_grad_(True)
    with torch.no_grad():
        for parameter in network.get_submodule("network.fc").parameters():
            parameter.mul_(0.3)
    return network


# What comes out


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_has_the_teachers_size_and_every_class(channels: int) -> None:
    made = synthesiser(teacher=tiny_teacher(channels=channels, size=(9, 12))).make()
    assert made.images.shape == (12, channels, 9, 12)
    assert made.images.dtype == torch.uint8
    assert made.targets.tolist() == [0, 1, 2, 3] * 3


def test_the_images_are_those_of_the_best_step_in_bytes() -> None:
    # A learning rate this high makes the loss jump about, so that the best step is not the last one.
    watched = synthesiser(steps=8, learning_rate=0.3)
    made = watched.make()
    losses = [loss for _, loss, _ in watched.seen]
    best = losses.index(min(losses))
    assert len(losses) == 8
    assert best < 7
    assert made.loss == losses[best]
    assert torch.equal(made.images, (watched.seen[best][0] * 255).round().to(torch.uint8))


def test_images_selected_one_by_one_come_from_several_steps() -> None:
    made = synthesiser(steps=8, learning_rate=0.3, selection="image")
    batch = made.make()
    steps = torch.stack([(images * 255).round().to(torch.uint8) for images, _, _ in made.seen])
    same = (steps == batch.images).flatten(2).all(2)  # [steps, images]
    assert same.any(0).all()
    assert same.any(1).sum() > 1


def test_the_loss_falls_while_the_generator_learns() -> None:
    watched = synthesiser(steps=40)
    made = watched.make()
    first = watched.seen[0][1]
    assert made.loss < 0.75 * first
    assert sum(loss for _, loss, _ in watched.seen[-5:]) / 5 < 0.8 * first


def test_the_teacher_comes_to_see_the_classes_that_were_asked_for() -> None:
    def on_target(made: SyntheticBatch) -> int:
        return int((tiny_teacher().logits(made.images / 255).argmax(1) == made.targets).sum())

    only_classes: dict[str, Any] = {"one_hot_weight": 1.0, "batch_norm_weight": 0.0}
    untrained, trained = (synthesiser(steps=steps, **STILL, **only_classes).make() for steps in (1, 40))
    assert on_target(untrained) <= 6
    assert on_target(trained) >= 10


# The loss


def test_the_loss_weighs_its_two_terms() -> None:
    watched = synthesiser(steps=1, batch_norm_weight=3.0, one_hot_weight=7.0, **STILL)
    teacher, targets = tiny_teacher(), watched.make().targets
    images, loss, _ = watched.seen[0]
    logits, bn_inputs = teacher.logits_and_bn_inputs(images)
    found = [batch_statistics(features) for features in bn_inputs]
    wanted = [Statistics(layer.mean, layer.variance) for layer in teacher.bn_statistics]
    expected = 3 * batch_norm_matching(found, wanted) + 7 * one_hot(logits, targets).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_only_with_a_student_there_is_an_adversarial_term() -> None:
    teacher, network = tiny_teacher(), student().eval()
    alone, against = (make(who, steps=1, adversarial_weight=100.0, **STILL) for who in (None, network))
    images = alone.seen[0][0]
    assert torch.equal(images, against.seen[0][0])
    term = adversarial(teacher.logits(images), network(images)).mean().item()
    assert term < -0.001
    assert against.seen[0][1] - alone.seen[0][1] == pytest.approx(100 * term, rel=1e-3)


def test_the_student_changes_what_is_made() -> None:
    network = student().eval()
    alone, against = (make(who) for who in (None, network))
    assert torch.equal(alone.seen[0][0], against.seen[0][0])  # the first step's images, when nothing has learned yet
    assert not torch.equal(alone.seen[-1][0], against.seen[-1][0])


# The running statistics


def test_the_first_batch_is_matched_by_itself_and_remembered_as_it_is() -> None:
    watched = synthesiser()
    assert watched.running is None
    watched.make()
    assert watched.running is not None
    for remembered, last in zip(watched.running, watched.seen[-1][2], strict=True):
        assert torch.equal(remembered.mean, last.mean)
        assert torch.equal(remembered.variance, last.variance)
        assert not remembered.mean.requires_grad


def test_later_batches_move_the_running_statistics_by_a_tenth() -> None:
    watched = synthesiser(statistics_momentum=0.9)
    watched.make()
    before = watched.running or []
    watched.make()
    assert before
    # m old + (1 - m) new with the statistics of the batch's last step
    for old, new, now in zip(before, watched.seen[-1][2], watched.running or [], strict=True):
        torch.testing.assert_close(now.mean, 0.9 * old.mean + 0.1 * new.mean)
        torch.testing.assert_close(now.variance, 0.9 * old.variance + 0.1 * new.variance)


def test_later_batches_are_matched_together_with_those_before() -> None:
    watched = synthesiser(steps=1, one_hot_weight=0.0, batch_norm_weight=1.0, **STILL)
    watched.make()
    before = watched.running or []
    watched.make()
    _, loss, found = watched.seen[-1]
    wanted = tiny_teacher().bn_statistics
    # sum over layers of |wanted - (0.9 old + 0.1 new)| for means and for variances
    expected = sum(
        float((want.mean - 0.9 * old.mean - 0.1 * new.mean).norm())
        + float((want.variance - 0.9 * old.variance - 0.1 * new.variance).norm())
        for want, old, new in zip(wanted, before, found, strict=True)
    )
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_running_statistics_outlive_the_generator() -> None:
    watched = synthesiser()
    watched.make()
    generator, running = watched.generator, watched.running
    weights = copied(generator.images)
    watched.renew()
    assert watched.generator is not generator
    assert not same_tensors(copied(watched.generator.images), weights)
    assert watched.running is running


# The generator


def test_only_the_noise_is_drawn_anew_for_a_batch() -> None:
    watched = synthesiser(learning_rate=1e-9)  # so small that training changes nothing to speak of
    watched.make()
    before = copied(watched.generator)
    watched.make()
    moved = {
        name
        for name, parameter in watched.generator.named_parameters()
        if not torch.allclose(parameter, before[name], atol=1e-6)
    }
    assert moved == {"noisy.weight"}


def test_all_of_the_generator_is_trained_and_stays_in_training_mode() -> None:
    watched = synthesiser()
    before = copied(watched.generator)
    watched.make()
    assert all(not torch.equal(value, before[name]) for name, value in watched.generator.named_parameters())
    assert all(module.training for module in watched.generator.modules())


def noisy_layers(**settings: Any) -> int:
    return len(synthesiser(batch_size=12, **settings).generator.get_parameter("noisy.weight"))


def test_few_classes_do_not_make_noisy_layers_without_end() -> None:
    assert noisy_layers(max_noisy_layers=2) == 2
    assert noisy_layers(max_noisy_layers=3) == noisy_layers(max_noisy_layers=None) == 3


# Seeds


def test_the_same_seed_makes_the_same_batches() -> None:
    network = student()

    def batches() -> list[SyntheticBatch]:
        watched = synthesiser(seed=1)
        return [watched.make(against) for against in (None, network)]

    for first, second in zip(batches(), batches(), strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.targets, second.targets)
        assert first.loss == second.loss


def test_another_seed_makes_others_and_so_does_the_next_batch() -> None:
    watched = synthesiser(seed=1)
    first = watched.make().images
    assert not torch.equal(watched.make().images, first)
    assert not torch.equal(synthesiser(seed=2).make().images, first)


# What is left alone


@pytest.mark.parametrize("training", [False, True])
def test_the_student_is_left_as_it_was(training: bool) -> None:
    network = student().train(training)
    frozen = next(network.parameters()).requires_grad_(False)
    before = copied(network)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    synthesiser().make(network)
    assert same_tensors(copied(network), before)
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert not frozen.requires_grad
    assert all(module.training is training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_student_answers_in_evaluation_mode_without_gradients_of_its_own() -> None:
    asked: list[tuple[bool, bool]] = []

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = student()

        def forward(self, images: Tensor) -> Tensor:
            asked.append((self.network.training, any(p.requires_grad for p in self.parameters())))
            logits: Tensor = self.network(images)
            return logits

    synthesiser(steps=3).make(Asked().train())
    assert asked == [(False, False)] * 3


def test_a_student_is_put_back_after_an_error_too() -> None:
    network = nn.Sequential(nn.Conv2d(7, 4, 1)).train()  # of 7 channels, which no image has
    with pytest.raises(RuntimeError, match="channels"):
        synthesiser().make(network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = tiny_teacher()
    before = copied(teacher.network)
    synthesiser(teacher=teacher).make(student())
    assert same_tensors(copied(teacher.network), before)
    assert not any(module.training for module in teacher.network.modules())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


# Other teachers and devices


def test_a_teacher_without_batch_norm_has_the_image_prior_in_its_place() -> None:
    teacher = tiny_teacher(batch_norm=False)
    watched = synthesiser(teacher=teacher, prior_weight=3.0, one_hot_weight=7.0, steps=1, **STILL)
    made = watched.make()
    images = watched.seen[0][0]
    expected = (
        3 * image_prior(teacher.network.normalise(images)) + 7 * one_hot(teacher.logits(images), made.targets).mean()
    )
    assert made.loss == pytest.approx(expected.item(), rel=1e-5)
    assert not watched.running
    watched.make()


def test_the_image_prior_makes_images_more_like_photographs() -> None:
    teacher = tiny_teacher(batch_norm=False)

    def distance(weight: float) -> float:
        made = synthesiser(teacher=teacher, prior_weight=weight, steps=40).make()
        return image_prior(teacher.network.normalise(made.images / 255)).item()

    assert distance(10.0) < 0.6 * distance(0.0)


def test_where_there_is_batch_norm_the_image_prior_plays_no_part() -> None:
    without, with_it = (synthesiser(prior_weight=weight).make() for weight in (0.0, 1000.0))
    assert torch.equal(without.images, with_it.images)
    assert without.loss == with_it.loss


@pytest.mark.parametrize("latent_source", ["noisy_layer", "direct"])
@pytest.mark.parametrize(
    ("size", "channels", "num_classes", "batch_size"),
    [((8, 8), 1, 2, 2), ((13, 9), 3, 7, 10), ((20, 33), 1, 1203, 2), ((65, 40), 3, 3, 5), ((64, 70), 3, 1000, 3)],
)
def test_for_any_teacher_images_are_made_and_the_whole_generator_is_trained(
    size: tuple[int, int], channels: int, num_classes: int, batch_size: int, latent_source: str
) -> None:
    teacher = tiny_teacher(size=size, channels=channels, num_classes=num_classes)
    watched = synthesiser(teacher=teacher, batch_size=batch_size, steps=2, latent_source=latent_source)
    before = copied(watched.generator)
    made = watched.make(teacher.network)
    assert made.images.shape == (batch_size, channels, *size)
    assert watched.make(teacher.network).images.shape == made.images.shape
    assert math.isfinite(made.loss)
    for name, parameter in watched.generator.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name


def test_latents_that_are_drawn_directly_are_trained_like_noisy_layers() -> None:
    watched = synthesiser(steps=40, latent_source="direct")
    made = watched.make()
    assert made.loss < 0.75 * watched.seen[0][1]


def test_bf16_makes_images_alike() -> None:
    half = Compute(device=torch.device("cpu"), bf16=True)
    network = student()
    first, second = (synthesiser(steps=1, compute=compute, **STILL).make(network) for compute in (CPU, half))
    assert second.loss == pytest.approx(first.loss, rel=0.05)
    difference = (first.images.float() - second.images.float()).abs()
    assert difference.max() > 0 and difference.mean() < 3  # bytes; bf16 keeps 8 bits
