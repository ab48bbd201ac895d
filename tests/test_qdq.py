from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import fx, nn

from compress.exporters.calibration import observe
from compress.exporters.placement import Runtime
from compress.exporters.qdq import (
    ActivationQuantizer,
    Levels,
    QuantizedConv2d,
    Scheme,
    WeightQuantizer,
    activation_quantizers,
    float_layers,
    insert_fake_quantization,
    levels_of,
    quantized_layers,
    refresh_weight_scales,
)
from tests.networks import student

SYMMETRIC = Levels(-128, 127, symmetric=True)
UNSIGNED = Levels(0, 255, symmetric=False)


def calibrated(scheme: Scheme, runtime: Runtime | None = None, seed: int = 0) -> fx.GraphModule:
    module = insert_fake_quantization(student(seed=seed), scheme, runtime=runtime)
    generator = torch.Generator().manual_seed(1)
    observe(module, [torch.rand(16, 1, 8, 8, generator=generator) for _ in range(2)])
    return module


@pytest.mark.parametrize(
    ("levels", "low", "high", "scale", "zero_point"),
    [
        (SYMMETRIC, -1.0, 2.54, 0.02, 0),  # 2.54 / 127
        (SYMMETRIC, -2.54, 1.0, 0.02, 0),
        (UNSIGNED, 0.0, 5.1, 0.02, 0),  # 5.1 / 255
        (UNSIGNED, -1.0, 4.1, 0.02, 50),  # round(1 / 0.02)
        (UNSIGNED, 2.0, 5.1, 0.02, 0),  # widened to contain 0
        (UNSIGNED, -5.1, -1.0, 0.02, 255),
        (Levels(-128, 127, symmetric=False), 0.0, 5.1, 0.02, -128),
    ],
)
def test_scale_and_zero_point_follow_from_the_range(
    levels: Levels, low: float, high: float, scale: float, zero_point: int
) -> None:
    found_scale, found_zero_point = levels.parameters(low, high)
    assert found_scale == pytest.approx(scale)
    assert found_zero_point == zero_point


def test_levels_are_what_each_runtime_takes() -> None:
    assert levels_of("s8s8", "tensorrt") == SYMMETRIC
    assert levels_of("u8s8", "onnxruntime") == UNSIGNED
    assert levels_of("s8s8", "onnxruntime") == Levels(-128, 127, symmetric=False)


def test_activations_are_rounded_to_levels_and_clipped_at_the_last() -> None:
    quantizer = ActivationQuantizer(UNSIGNED)
    quantizer.set_range(-1.0, 4.1)  # scale 0.02, zero point 50: levels from -1.00 to 4.10
    rounded = quantizer(torch.tensor([-7.0, -0.031, 0.0, 0.009, 0.011, 9.0]))
    torch.testing.assert_close(rounded, torch.tensor([-1.0, -0.04, 0.0, 0.0, 0.02, 4.1]))


def test_gradients_pass_inside_the_range_only() -> None:
    quantizer = ActivationQuantizer(SYMMETRIC)
    quantizer.set_range(-1.27, 1.27)
    x = torch.tensor([-5.0, -0.333, 0.777, 5.0], requires_grad=True)
    torch.autograd.backward(quantizer(x).sum())
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_weights_have_one_scale_an_output_channel() -> None:
    weight = torch.tensor([[[[1.27, -0.5]]], [[[0.0, 0.0]]], [[[-2.54, 0.011]]]])
    quantizer = WeightQuantizer(weight)
    torch.testing.assert_close(quantizer.scale, torch.tensor([0.01, 1e-8, 0.02]))  # largest magnitude / 127
    rounded = torch.tensor([[[[1.27, -0.5]]], [[[0.0, 0.0]]], [[[-2.54, 0.02]]]])  # 0.011 / 0.02 rounds to 1
    torch.testing.assert_close(quantizer(weight), rounded)


def test_weight_scales_follow_the_weights_when_refreshed() -> None:
    module = insert_fake_quantization(student(), "s8s8")
    layer = module.get_submodule("network.conv1")
    assert isinstance(layer, QuantizedConv2d)
    before = layer.weight_quantizer.scale.clone()
    with torch.no_grad():
        layer.weight *= 3
    refresh_weight_scales(module)
    torch.testing.assert_close(layer.weight_quantizer.scale, before * 3)


def test_layers_are_reported_as_quantized_or_float() -> None:
    module = insert_fake_quantization(student(), "s8s8", exclude=("network.layer1.0.conv2",))
    assert quantized_layers(module) == (
        "network.conv1",
        "network.layer1.0.conv1",
        "network.layer2.0.conv1",
        "network.layer2.0.conv2",
        "network.layer2.0.downsample.0",
    )
    assert float_layers(module) == ("network.layer1.0.conv2", "network.fc")


def test_quantizers_stand_on_the_tensors_that_were_chosen() -> None:
    assert list(activation_quantizers(insert_fake_quantization(student(), "s8s8"))) == [
        "truediv",  # the normalised images
        "relu",  # both the first convolution of the block and its identity skip
        "relu_1",
        "relu_2",
        "relu_3",
        "network_layer2_0_downsample_0",
        "relu_4",  # before the global average pool
    ]


def test_no_batch_norm_remains() -> None:
    module = insert_fake_quantization(student(), "u8s8")
    assert not any(isinstance(child, nn.BatchNorm2d) for child in module.modules())


@pytest.mark.parametrize(("scheme", "runtime"), [("s8s8", "tensorrt"), ("u8s8", None), ("s8s8", "onnxruntime")])
def test_a_calibrated_network_answers_nearly_as_the_float_one(scheme: Scheme, runtime: Runtime | None) -> None:
    images = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        expected = student()(images)
        error = (calibrated(scheme, runtime)(images) - expected).std() / expected.std()
    assert 0 < float(error) < 0.05


@pytest.mark.parametrize("scheme", ["s8s8", "u8s8"])
def test_the_state_of_one_network_makes_another_bit_equal(scheme: Scheme, tmp_path: Path) -> None:
    module, images = calibrated(scheme), torch.rand(8, 1, 8, 8)
    save_file(module.state_dict(), tmp_path / "state.safetensors")
    other = insert_fake_quantization(student(seed=7), scheme)
    assert not torch.equal(other(images), module(images))
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(other(images), module(images))


def test_inserting_quantizers_draws_no_random_numbers() -> None:
    network = student()
    before = torch.get_rng_state()
    insert_fake_quantization(network, "s8s8")
    assert torch.equal(torch.get_rng_state(), before)
