"""How far images lie from a teacher's training."""

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline import likeness
from compress.pipeline.likeness import batch_norm_shift
from compress.pipeline.teacher import Teacher
from tests.tiny import tiny_teacher


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained_on(shown: Tensor) -> Teacher:
    """A teacher whose running statistics are those of these images."""
    teacher = tiny_teacher()
    layers = [module for module in teacher.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = None  # a plain mean
        layer.reset_running_stats()
    teacher.network.train()
    with torch.no_grad():
        teacher.network(shown / 255)
    return Teacher(teacher.record, teacher.network.eval())


def test_images_of_the_training_itself_lie_no_way_off() -> None:
    shown = images(64)
    assert batch_norm_shift(trained_on(shown), shown) == pytest.approx(0, abs=0.01)


def test_darker_images_lie_further_off_than_the_noise_of_a_sample() -> None:
    shown = images(64)
    teacher = trained_on(shown)
    near, far = batch_norm_shift(teacher, shown[:32]), batch_norm_shift(teacher, shown // 4)
    assert near is not None and far is not None
    assert near < 0.1
    assert far > 0.2


def test_the_distance_is_the_mean_of_what_the_layers_show() -> None:
    shown = images(40)
    teacher = tiny_teacher()
    _, features = teacher.logits_and_bn_inputs(shown / 255)
    expected = torch.stack(
        [
            ((layer.mean((0, 2, 3)) - wanted.mean).abs() / (wanted.variance + 1e-5).sqrt()).mean()
            for layer, wanted in zip(features, teacher.bn_statistics, strict=True)
        ]
    ).mean()
    assert batch_norm_shift(teacher, shown) == pytest.approx(float(expected), rel=1e-4)


def test_images_are_looked_at_in_batches_of_which_the_last_may_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, teacher = images(40), tiny_teacher()
    whole = batch_norm_shift(teacher, shown)
    monkeypatch.setattr(likeness, "AT_ONCE", 16)
    assert batch_norm_shift(teacher, shown) == pytest.approx(whole, rel=1e-4)


def test_without_images_nothing_is_known() -> None:
    assert batch_norm_shift(tiny_teacher(), images(0)) is None
