import copy

import pytest
import torch
from torch import Tensor

from compress.exporters.qdq import Scheme
from compress.pipeline.errors import CompressError
from compress.pipeline.metrics import kl_divergence
from compress.pipeline.quantize import quantize
from compress.pipeline.settings import QuantizeSettings
from tests.networks import student

POOL = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
SETTINGS = QuantizeSettings(calibration_images=32, tail_steps=8, batch_size=16, learning_rate=1e-2)
TEACHER = student(seed=1)


def without_tail() -> QuantizeSettings:
    return SETTINGS.model_copy(update={"tail_steps": 0})


def noisy_teacher() -> torch.nn.Module:
    """A student of the teacher that has lost its way a little, so that there is something to learn."""
    network = copy.deepcopy(TEACHER)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return network


def divergence(network: torch.nn.Module) -> float:
    """Mean KL from the teacher over the pool, in nats."""
    images = POOL.float() / 255
    with torch.no_grad():
        return float(kl_divergence(TEACHER(images).numpy(), network(images).numpy()).mean())


def test_the_tail_brings_a_student_closer_to_its_teacher() -> None:
    module, record = quantize(noisy_teacher(), TEACHER, POOL, SETTINGS, "s8s8", seed=0)
    calibrated, _ = quantize(noisy_teacher(), TEACHER, POOL, without_tail(), "s8s8", seed=0)
    assert record.tail_steps == 8
    assert divergence(module) < divergence(calibrated)
    assert record.scheme == "s8s8"
    assert len(record.quantized_layers) == 6
    assert record.float_layers == ("network.fc",)


def test_a_tail_that_does_harm_is_thrown_away() -> None:
    ruinous = SETTINGS.model_copy(update={"learning_rate": 1e4})
    module, record = quantize(TEACHER, TEACHER, POOL, ruinous, "s8s8", seed=0)
    calibrated, _ = quantize(TEACHER, TEACHER, POOL, without_tail(), "s8s8", seed=0)
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
    # All decisions see the teacher on the held-out quarter only, asked once; the tail sees others.
    asked: list[set[bytes]] = []

    def teacher(images: Tensor) -> Tensor:
        asked.append({image.numpy().tobytes() for image in images})
        logits: Tensor = TEACHER(images)
        return logits

    quantize(TEACHER, teacher, POOL, SETTINGS, "s8s8", seed=0)
    held_out, trained = set().union(*asked[:2]), set().union(*asked[2:10])
    assert len(held_out) == 24
    assert len(asked) == 10
    assert not held_out & trained


def test_what_each_layer_costs_is_told_costliest_first() -> None:
    _, record = quantize(TEACHER, TEACHER, POOL, without_tail(), "s8s8", seed=0)
    assert {cost.layer for cost in record.layer_costs} == set(record.quantized_layers)
    noise = [cost.sqnr_db for cost in record.layer_costs]
    assert noise == sorted(noise) and all(10 < value < 80 for value in noise)
    assert all(0.5 < cost.agreement <= 1 for cost in record.layer_costs)


def outlier(layer: str = "layer1.0.conv2") -> torch.nn.Module:
    """The teacher with one huge weight in each channel of a layer, which leaves the others a level or two."""
    network = copy.deepcopy(TEACHER)
    with torch.no_grad():
        network.get_parameter(f"network.{layer}.weight")[:, 0, 0, 0] = 10.0
    return network


def test_a_layer_that_does_not_bear_rounding_stays_in_floating_point() -> None:
    network = outlier()
    strict = without_tail().model_copy(update={"max_loss": 0.0})
    _, record = quantize(network, network, POOL, strict, "s8s8", seed=0)
    assert record.layer_costs[0].layer == "network.layer1.0.conv2" == record.left_float[0]
    assert "network.layer1.0.conv2" in record.float_layers
    _, all_rounded = quantize(network, network, POOL, strict.model_copy(update={"max_left_float": 0}), "s8s8", seed=0)
    assert all_rounded.left_float == () and "network.layer1.0.conv2" in all_rounded.quantized_layers
    assert all_rounded.agreement_calibrated < record.agreement_calibrated


def test_one_layer_stays_quantized_and_an_exclusion_that_does_not_help_is_taken_back() -> None:
    network = outlier()
    harmless = tuple(
        f"network.{name}" for name in ("conv1", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0")
    )
    strict = without_tail().model_copy(update={"max_loss": 0.0, "max_left_float": 9, "exclude": harmless})
    _, record = quantize(network, network, POOL, strict, "s8s8", seed=0)
    assert record.left_float == ("network.layer1.0.conv2",)
    assert record.quantized_layers == ("network.layer1.0.conv1",)


def test_no_layer_is_spared_where_the_gate_is_met_or_little_is_lost() -> None:
    network = outlier()
    strict = without_tail().model_copy(update={"max_loss": 0.0})
    _, met = quantize(network, network, POOL, strict, "s8s8", seed=0, min_agreement=0.01)
    _, little = quantize(network, network, POOL, strict.model_copy(update={"max_loss": 1.0}), "s8s8", seed=0)
    assert met.left_float == little.left_float == ()


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
