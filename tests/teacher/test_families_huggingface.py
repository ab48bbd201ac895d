"""ConvNeXt and ViT as transformers builds them: another implementation, with random weights, against ours."""

import re
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification, ViTConfig, ViTForImageClassification

from compress.pipeline.networks import NetworkSpec
from compress.pipeline.networks.convnext import ConvNeXtSpec
from compress.pipeline.networks.vit import ViTSpec
from compress.pipeline.teacher.inference import load, recognise
from tests.teacher.families import Weights, shapes_of

Model = TypeVar("Model", bound=nn.Module)

# How transformers before version 5, and what it saves to this day, name the layers of a ViT.
CLASSIC = {
    r"^vit\.layers\.": "vit.encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


LABELS = {index: f"class {index}" for index in range(5)}


def tiny_vit() -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
        id2label=LABELS,
    )
    return scattered(ViTForImageClassification(config))


def tiny_convnext() -> ConvNextForImageClassification:
    config = ConvNextConfig(hidden_sizes=[4, 6, 8], depths=[1, 2, 1], num_stages=3, patch_size=2, id2label=LABELS)
    return scattered(ConvNextForImageClassification(config))


def scattered(model: Model) -> Model:
    """The model in float64, no parameter of it at 0 or 1, where it begins."""
    with torch.no_grad():
        for parameter in model.double().eval().parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def classic(weights: Weights) -> Weights:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in CLASSIC.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def check(model: nn.Module, weights: Weights, spec: NetworkSpec, images: Tensor) -> None:
    """The weights are recognised as the spec, and answer as the model does."""
    (candidate,) = recognise(shapes_of(weights), "t.pt")
    assert candidate.spec == spec
    wanted = model(pixel_values=images).logits
    torch.testing.assert_close(load(candidate, weights).eval()(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("naming", [dict, classic])
def test_a_vit_of_transformers_answers_the_same_here(naming: Callable[[Weights], Weights]) -> None:
    model = tiny_vit()
    spec = ViTSpec(
        patch=4,
        grid=3,
        width=128,
        depth=3,
        mlp_width=40,
        heads=2,
        attention="separate",
        epsilon=model.config.layer_norm_eps,
        num_classes=5,
    )
    check(model, naming(model.state_dict()), spec, torch.randn(2, 3, 12, 12, dtype=torch.float64))


def test_a_convnext_of_transformers_answers_the_same_here() -> None:
    model = tiny_convnext()
    spec = ConvNeXtSpec(
        blocks=(1, 2, 1), widths=(4, 6, 8), patch=2, final_epsilon=model.config.layer_norm_eps, num_classes=5
    )
    check(model, dict(model.state_dict()), spec, torch.randn(2, 3, 20, 16, dtype=torch.float64))
