"""Tiny float classifiers whose batch norms do something."""

import torch
from torch import nn

from compress.exporters.folding import fold_batch_norm
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import ResNet, ResNetSpec, Shortcut


def student(
    *, channels: int = 1, imagenet_stem: bool = False, shortcut: Shortcut = "projection", seed: int = 0
) -> Normalised:
    """Two residual blocks of 16 and 32 channels behind their normalisation; images to 5 logits, in evaluation mode."""
    torch.manual_seed(seed)
    spec = ResNetSpec(
        stem="imagenet" if imagenet_stem else "cifar",
        shortcut=shortcut,
        blocks=(1, 1),
        widths=(16, 32),
        stem_width=16,
        channels=channels,
        num_classes=5,
    )
    return Normalised(unsettle(ResNet(spec)), [0.4] * channels, [0.2] * channels).eval()


def unsettle(network: nn.Module) -> nn.Module:
    """Gives every batch norm statistics and weights as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
    return network


def folded(network: ResNet) -> ResNet:
    """The same function with the batch norms fused into the convolutions, as deployment tools leave a network."""
    result = ResNet(network.spec.model_copy(update={"batch_norm": False}))
    result.load_state_dict(fold_batch_norm(network).state_dict(), strict=True)
    return result.eval()
