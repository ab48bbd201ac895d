"""What rounding single layers costs."""

import torch

from compress.exporters.calibration import observe
from compress.exporters.qdq import QuantizedConv2d, insert_fake_quantization
from compress.pipeline.sensitivity import layer_costs, rounding_only
from tests.networks import student

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def quantized() -> torch.fx.GraphModule:
    module = insert_fake_quantization(student(), "s8s8")
    observe(module, [IMAGES[:4], IMAGES[4:]])
    return module


def test_without_any_rounding_the_network_is_the_float_one() -> None:
    module = quantized()
    with rounding_only(module, ()), torch.no_grad():
        torch.testing.assert_close(module(IMAGES), student()(IMAGES), rtol=0, atol=1e-5)


def test_afterwards_everything_rounds_again() -> None:
    module = quantized()
    with torch.no_grad():
        before = module(IMAGES)
    layer_costs(module, [IMAGES])
    with torch.no_grad():
        assert torch.equal(module(IMAGES), before)


def test_a_layer_with_a_sixteenth_of_the_levels_costs_more_and_the_others_what_they_did() -> None:
    # Each bit less doubles the error of the weights, 6 dB; the error of what the layer takes stays.
    module = quantized()
    layer = "network.layer2.0.conv1"
    convolution = module.get_submodule(layer)
    assert isinstance(convolution, QuantizedConv2d)
    before = {cost.layer: cost.sqnr_db for cost in layer_costs(module, [IMAGES])}
    convolution.weight_quantizer.scale.mul_(16)
    after = {cost.layer: cost.sqnr_db for cost in layer_costs(module, [IMAGES])}
    assert after[layer] < before[layer] - 12
    assert {name: value for name, value in after.items() if name != layer} == {
        name: value for name, value in before.items() if name != layer
    }
