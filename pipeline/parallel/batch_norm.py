"""Batch statistics over the images of all processes.

`torch.nn.SyncBatchNorm` runs on GPUs only. This one runs everywhere, so that a test can hold a step of several
processes against the step of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.parallel.world import ALONE, World
from compress.pipeline.synthesis.losses import Statistics, batch_statistics


def joint_statistics(mine: Sequence[Statistics], world: World) -> list[Statistics]:
    """Mean and biased variance `[C]` of every layer over the images of all ranks, of which each has equally many.

    From the means of mean and of mean square, in one message, with gradients to every rank. They are added in float64:
    the difference E[x^2] - E[x]^2 would lose a small variance beside a large mean in float32.
    """
    if world.size == 1 or not mine:
        return list(mine)
    moments = [torch.cat([mean, variance + mean.square()]) for mean, variance in (_double(layer) for layer in mine)]
    joint = world.average(torch.cat(moments)).split([len(layer) for layer in moments])
    return [_statistics(*layer.chunk(2)) for layer in joint]


class JointBatchNorm(nn.BatchNorm2d):
    """Batch norm of features `[N, C]` or `[N, C, H, W]` that normalises by the images of all ranks while it trains."""

    world: World = ALONE

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        maps = features.view(*features.shape, *(1,) * (4 - features.dim()))
        (joint,) = joint_statistics([batch_statistics(maps.detach())], self.world)
        self._remember(joint, self.world.size * maps.numel() // maps.shape[1])
        normalised: Tensor = _Normalised.apply(maps, self.weight, self.bias, *joint, self.eps, self.world)  # type: ignore[no-untyped-call]
        return normalised.view_as(features)

    @torch.no_grad()
    def _remember(self, joint: Statistics, count: int) -> None:
        """Running statistics as `nn.BatchNorm2d` keeps them: the variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            raise TypeError("a batch norm that tracks no statistics has none to remember")
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(joint.mean, share)
        self.running_var.lerp_(joint.variance * (count / (count - 1)), share)


def with_joint_batch_norms(module: nn.Module, world: World) -> None:
    """Let every batch norm below a module see the images of all ranks; nothing changes where there is one."""
    if world.size == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _joint(child, world))
        else:
            with_joint_batch_norms(child, world)


def _joint(norm: nn.BatchNorm1d | nn.BatchNorm2d, world: World) -> JointBatchNorm:
    joint = JointBatchNorm(norm.num_features, norm.eps, norm.momentum, device=norm.weight.device)
    joint.load_state_dict(norm.state_dict())
    joint.world = world
    return joint.train(norm.training)


class _Normalised(torch.autograd.Function):
    """`(x - m) / sqrt(v + eps) * w + b` with m and v of all ranks' x, and the gradient through both.

    With z = (x - m) / sqrt(v + eps), gradient g of the sum of all ranks' losses and means over all images and pixels,
    dx = w / sqrt(v + eps) * (g - mean(g) - z mean(g z)).
    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3, with the sums over all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        world: World,
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, variance)
        ctx.eps, ctx.world = eps, world
        return F.batch_norm(features, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, variance = ctx.saved_tensors
        of_features, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], features, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        count = features.numel() / features.shape[1]
        mean_gz, mean_g = ctx.world.average(torch.stack([of_weight, of_bias]) / count)
        inverse = torch.rsqrt(variance + ctx.eps)
        slope = -weight * inverse.square() * mean_gz
        offset = -weight * inverse * mean_g - slope * mean
        slope, offset = (value.view(1, -1, 1, 1) for value in (slope, offset))
        of_features.add_(features.float().mul(slope).add_(offset))
        return of_features, of_weight, of_bias, None, None, None, None


def _double(layer: Statistics) -> Statistics:
    return Statistics(layer.mean.double(), layer.variance.double())


def _statistics(mean: Tensor, mean_square: Tensor) -> Statistics:
    return Statistics(mean.float(), (mean_square - mean.square()).float())
