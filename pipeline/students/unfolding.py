"""Gives a network whose batch norms were folded into its convolutions new ones that compute the same.

What folding took away does not come back, but a student needs batch norms to learn at the usual rate: without them, one
that has lost some of its teacher's blocks diverges.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.synthesis.losses import Statistics, batch_statistics

FILTER_LENGTH = 2.0
"""Mean Euclidean length of a layer's filters. Behind them a batch norm makes any length compute the same, yet the longer
they are, the less a step turns them; at this length a folded ResNet-56's student learns as its BN original's does."""


def unfolded(network: StagedNetwork) -> StagedNetwork:
    """A frozen network with batch norm, of the spec's `learnable` form, that computes what this one computes without.

    Each batch norm takes over the bias of its convolution and what lengthening the filters would change; its running
    statistics are mean 0 and variance 1, until `settle` chooses better ones.
    """
    with torch.device("meta"):
        result = build(network.spec.learnable)
    norms = dict(_convolutions_and_norms(result))
    state: dict[str, Tensor] = {}
    # The names differ where layers are numbered; their order does not.
    for (name, _), (_, source) in zip(_weighted_layers(result), _weighted_layers(network), strict=True):
        if name in norms:
            state |= _with_norm(name, norms[name], source, result.get_submodule(norms[name]))
        else:
            state |= {f"{name}.{key}": tensor.clone() for key, tensor in source.state_dict().items()}
    result.load_state_dict(state, assign=True)
    return result.eval().requires_grad_(False)


def _with_norm(name: str, norm_name: str, convolution: nn.Module, norm: nn.Module) -> dict[str, Tensor]:
    """The tensors of a convolution, its filters lengthened, and of the batch norm that undoes it."""
    filters, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    length = torch.linalg.vector_norm(filters.flatten(1), dim=1).mean().clamp_min(1e-12)
    assert isinstance(norm, nn.BatchNorm2d)
    return {
        f"{name}.weight": filters * (FILTER_LENGTH / length),
        f"{norm_name}.weight": (length / FILTER_LENGTH).expand_as(bias).clone(),
        f"{norm_name}.bias": bias.clone(),
        f"{norm_name}.running_mean": torch.zeros_like(bias),
        f"{norm_name}.running_var": torch.full_like(bias, 1 - norm.eps),
        f"{norm_name}.num_batches_tracked": torch.tensor(0, device=bias.device),
    }


@torch.no_grad()
def settle(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let every batch norm normalise by the statistics of what it meets, without changing what the network computes.

    From mean M and variance V to the measured m and v, the function stays as it is when the weight w and the bias b
    become w sqrt((v + eps) / (V + eps)) and b + w (m - M) / sqrt(V + eps).

    Args:
        network: in evaluation mode.
        batches: of what the network takes; mean and variance are the averages of theirs.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: dict[nn.Module, list[Statistics]] = {norm: [] for norm in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda norm, x: seen[norm].append(batch_statistics(x[0]))) for norm in norms
    ]
    for batch in batches:
        network(batch)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        if seen[norm]:  # Some authors' networks hold layers that never run.
            _settle(norm, Statistics(*(torch.stack(values).mean(0) for values in zip(*seen[norm], strict=True))))


def _settle(norm: nn.BatchNorm2d, now: Statistics) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("a batch norm that tracks no statistics cannot be given any")
    before, after = ((variance + norm.eps).sqrt() for variance in (norm.running_var, now.variance))
    norm.bias.add_(norm.weight * (now.mean - norm.running_mean) / before)
    norm.weight.mul_(after / before)
    norm.running_mean.copy_(now.mean)
    norm.running_var.copy_(now.variance)


def _weighted_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    named = network.named_modules()
    return [(name, module) for name, module in named if isinstance(module, nn.Conv2d | nn.Linear)]


def _convolutions_and_norms(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each batch norm's convolution, which is defined right before it, and of the batch norm."""
    convolution = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):
            yield convolution, name
