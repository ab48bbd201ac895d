import pytest
import torch

from compress.pipeline.networks import build
from compress.pipeline.networks.vit import ViTSpec
from tests.families import SPECS, images, network_of

STAGES = {
    # channels and pixels a side of what each stage puts out, from images of 16 px
    "ResNet": [(8, 16), (16, 8)],
    "ResNet of bottlenecks, shortcuts padded": [(16, 16), (32, 8)],
    "PreActResNet": [(8, 16), (16, 8)],
    "PreActResNet of bottlenecks": [(16, 16), (32, 8)],
    "VGG": [(8, 16), (16, 8)],
    "VGG ending in convolutions": [(8, 16), (8, 8)],
    "VGG without batch norm": [(8, 16), (16, 8)],
    "DenseNet": [(8 + 3 * 4, 16), (10 + 3 * 4, 8)],
    "DenseNet, newest first": [(8 + 2 * 4, 4), (10 + 3 * 4, 2)],
    "MobileNetV2": [(8, 16), (24, 8)],
    "MobileNetV2 without batch norm": [(8, 16), (24, 8)],
    "MobileNetV3": [(8, 16), (24, 8)],
    "EfficientNet": [(8, 16), (24, 8)],
    "EfficientNet without head": [(8, 16), (24, 8)],
    "ShuffleNetV2": [(16, 8), (32, 4)],
    "ShuffleNetV2 without batch norm": [(16, 8), (32, 4)],
    "ConvNeXt": [(8, 8), (16, 4)],
    "ViT": [(16, 4), (16, 4)],
}


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_every_family_shows_what_its_stages_put_out_and_answers_the_same(name: str) -> None:
    network = network_of(name)
    logits, stages = network.logits_and_stage_outputs(images())
    assert torch.equal(logits, network(images()))
    assert [tuple(maps.shape) for maps in stages] == [(4, width, size, size) for width, size in STAGES[name]]


@pytest.mark.parametrize("name", SPECS)
def test_every_block_takes_part_in_what_its_stage_puts_out(name: str) -> None:
    network = network_of(name)
    outputs = network.logits_and_stage_outputs(images())[1]
    for maps, stage in zip(outputs, network.stage_list(), strict=True):
        for block in stage.blocks:
            weights = [parameter for module in block for parameter in module.parameters() if parameter.dim() > 1]
            gradients = torch.autograd.grad(maps.square().sum(), weights, retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_the_layers_of_a_vision_transformer_are_shared_out_to_four_stages() -> None:
    # floor(12 k / 4) and floor(6 k / 4) for k = 0 to 4
    def spec(**depths: object) -> ViTSpec:
        sizes = {"patch": 4, "grid": 2, "width": 4, "mlp_width": 4, "heads": 1, "num_classes": 2}
        return ViTSpec.model_validate(sizes | depths)

    assert [spec(depth=depth).stage_depths for depth in (12, 6, 2)] == [(3,) * 4, (1, 2, 1, 2), (1, 1)]
    with pytest.raises(ValueError, match="the stages count 3 layers of 4"):
        spec(depth=4, stages=(1, 2))


def test_a_vision_transformers_stage_shows_its_patches_where_they_lie() -> None:
    network = build(SPECS["ViT"])
    tokens = torch.arange(17.0).view(1, 17, 1).expand(2, 17, 16)  # the class token, then patches row by row
    assert torch.equal(network.as_maps(tokens)[1, 5], torch.arange(1.0, 17.0).view(4, 4))


def test_a_stage_begins_where_a_block_strides() -> None:
    spec = SPECS["MobileNetV2"]
    assert [[block.out for block in stage] for stage in spec.stages] == [[8, 8, 8], [16, 16, 16, 24, 24]]  # type: ignore[attr-defined]
