import copy

import pytest
import torch
from torch import Tensor

from compress.exporters.qdq import Scheme
from compress.pipeline.errors import CompressError
from compress.pipeline.quantize import quantize
from compress.pipeline.settings import QuantizeSettings
from tests.networks import student

POOL = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
SETTINGS = QuantizeSettings(calibration_images=32, tail_steps=8, batch_size=16, learning_rate=1e-2)
TEACHER = student(seed=1)


def noisy_teacher() -> torch.nn.Module:
    """A student of the teacher that has lost its way a little, so that there is something to learn."""
    network = copy.deepcopy(TEACHER)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return network


def test_the_tail_brings_a_student_closer_to_its_teacher() -> None:
    _, record = quantize(noisy_teacher(), TEACHER, POOL, SETTINGS, "s8s8", seed=0)
    assert record.tail_steps == 8
    assert record.agreement >= record.agreement_calibrated
    assert record.scheme == "s8s8"
    assert len(record.quantized_layers) == 6
    assert record.float_layers == ("network.fc",)


def test_a_tail_that_does_harm_is_thrown_away() -> None:
    ruinous = SETTINGS.model_copy(update={"learning_rate": 1e4})
    module, record = quantize(TEACHER, TEACHER, POOL, ruinous, "s8s8", seed=0)
    calibrated, _ = quantize(TEACHER, TEACHER, POOL, SETTINGS.model_copy(update={"tail_steps": 0}), "s8s8", seed=0)
    assert record.tail_steps == 0
    assert record.agreement == record.agreement_calibrated
    images = POOL[:8].float() / 255
    assert torch.equal(module(images), calibrated(images))


@pytest.mark.parametrize("scheme", ["s8s8", "u8s8"])
def test_the_same_seed_gives_the_same_network(scheme: Scheme) -> None:
    once, again = (quantize(noisy_teacher(), TEACHER, POOL, SETTINGS, scheme, seed=7)[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in once.items())


def test_the_student_itself_is_left_as_it_was() -> None:
    network = noisy_teacher()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize(network, TEACHER, POOL, SETTINGS, "s8s8", seed=0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_no_global_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    quantize(TEACHER, TEACHER, POOL, SETTINGS, "s8s8", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_step_by_step() -> None:
    seen: list[tuple[int, int, str]] = []
    quantize(TEACHER, TEACHER, POOL, SETTINGS, "s8s8", seed=0, on_progress=lambda *step: seen.append(step))
    assert [(done, total) for done, total, _ in seen] == [(step, 8) for step in range(1, 9)]
    assert seen[0][2].startswith("loss ")


def test_the_images_that_decide_are_never_trained_on() -> None:
    # Calibration and the decision before the tail see the teacher on the held-out quarter only, then the tail on others.
    asked: list[set[bytes]] = []

    def teacher(images: Tensor) -> Tensor:
        asked.append({image.numpy().tobytes() for image in images})
        logits: Tensor = TEACHER(images)
        return logits

    quantize(TEACHER, teacher, POOL, SETTINGS, "s8s8", seed=0)
    held_out, trained = set().union(*asked[:2]), set().union(*asked[2:10])
    assert len(held_out) == 24
    assert held_out == set().union(*asked[10:])
    assert not held_out & trained


def test_one_calibration_image_is_taken_as_two() -> None:
    settings = SETTINGS.model_copy(update={"tail_steps": 0, "calibration_images": 1})
    _, record = quantize(TEACHER, TEACHER, POOL, settings, "s8s8", seed=0)
    assert record.agreement > 0.5


def test_layers_can_be_kept_float() -> None:
    settings = SETTINGS.model_copy(update={"tail_steps": 0, "exclude": ("network.conv1",)})
    _, record = quantize(TEACHER, TEACHER, POOL, settings, "u8s8", seed=0)
    assert record.float_layers == ("network.conv1", "network.fc")


def test_a_pool_that_is_too_small_is_refused() -> None:
    with pytest.raises(CompressError, match="at least 4 images, the pool has 3"):
        quantize(TEACHER, TEACHER, POOL[:3], SETTINGS, "s8s8", seed=0)
