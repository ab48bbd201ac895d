"""MobileNets and EfficientNets as other authors build them: their trees of modules and their arithmetic, at any width.

Written apart from `pipeline.networks`, so that equal outputs show that both mean the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """A stage, or a block: expansion ratio, channels put out, blocks, stride, kernel, squeezed channels, activation.

    With `quarter`, every block is squeezed to a quarter of the channels that enter it.
    """

    ratio: float
    out: int
    count: int
    stride: int
    kernel: int = 3
    squeezed: int = 0
    act: Function = F.relu
    quarter: bool = False

    def blocks(self, inputs: int) -> list[tuple[int, int, "Row"]]:
        """Input channels, channels inside, and the block, for each block of the stage."""
        firsts = [self.stride] + [1] * (self.count - 1)
        ins = [inputs] + [self.out] * (self.count - 1)
        return [
            (
                width,
                round(width * self.ratio),
                replace(self, count=1, stride=stride, squeezed=width // 4 if self.quarter else self.squeezed),
            )
            for width, stride in zip(ins, firsts, strict=True)
        ]


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with weights that keep signals alive and batch norms that have seen something."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.1, 4, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-1, 1, generator=generator)
    return network.eval()


class Act(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SameConv(nn.Conv2d):
    """TensorFlow's SAME, by padding to the size that the output needs."""

    def forward(self, x: Tensor) -> Tensor:
        for axis in (3, 2):
            kernel, stride, size = self.kernel_size[axis - 2], self.stride[axis - 2], x.shape[axis]
            lacking = max(kernel - (size % stride or stride), 0)
            sides = (lacking // 2, lacking - lacking // 2)
            x = F.pad(x, sides if axis == 3 else (0, 0, *sides))
        return super().forward(x)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False,
         same: bool = False) -> nn.Conv2d:  # fmt: skip
    if same:
        return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=bias)
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=bias)


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, act: Function | None, groups: int = 1,
         eps: float = 1e-5, bias: bool = False) -> list[nn.Module]:  # fmt: skip
    """Convolution, batch norm, and activation where there is one."""
    layers = [conv(inputs, outputs, kernel, stride, groups=groups, bias=bias), nn.BatchNorm2d(outputs, eps)]
    return [*layers, Act(act)] if act else layers


def pooled(x: Tensor) -> Tensor:
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


# torchvision's names


class V2Block(nn.Module):
    """With `flat`, convolutions and batch norms are not grouped, as in tonylins' repository."""

    def __init__(self, inputs: int, inner: int, row: Row, act: Function, flat: bool, always: bool = False) -> None:
        super().__init__()
        self.carries = row.stride == 1 and inputs == row.out
        expand = unit(inputs, inner, act=act) if always or inner != inputs else []
        depthwise = unit(inner, inner, 3, row.stride, groups=inner, act=act)
        grouped = [nn.Sequential(*steps) for steps in (expand, depthwise) if steps]
        self.conv = nn.Sequential(*([*expand, *depthwise] if flat else grouped), *unit(inner, row.out, act=None))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.carries else out


class TorchvisionV2(nn.Module):
    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int, stem_stride: int = 2,
                 flat: bool = False) -> None:  # fmt: skip
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(*unit(3, stem, 3, stem_stride, act=F.relu6))]
        inputs = stem
        for row in rows:
            features += [V2Block(*block, F.relu6, flat) for block in row.blocks(inputs)]
            inputs = row.out
        features.append(nn.Sequential(*unit(inputs, head, act=F.relu6)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pooled(self.features(x)))
        return logits


class DLi14V2(nn.Module):
    """tonylins' network with the head outside the features."""

    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int) -> None:
        super().__init__()
        plain = TorchvisionV2(stem, rows, head, classes, flat=True)
        self.features = plain.features[:-1]
        last = plain.features[-1]
        assert isinstance(last, nn.Sequential)
        self.conv = last
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pooled(self.conv(self.features(x))))
        return logits


class SE(nn.Module):
    def __init__(self, channels: int, squeezed: int, act: Function, gate: Function) -> None:
        super().__init__()
        self.fc1 = conv(channels, squeezed, bias=True)
        self.fc2 = conv(squeezed, channels, bias=True)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class CountedBlock(nn.Module):
    def __init__(self, inputs: int, inner: int, row: Row, eps: float, squeeze: tuple[Function, Function]) -> None:
        super().__init__()
        self.carries = row.stride == 1 and inputs == row.out
        steps: list[nn.Module] = []
        if inner != inputs:
            steps.append(nn.Sequential(*unit(inputs, inner, act=row.act, eps=eps)))
        depthwise = unit(inner, inner, row.kernel, row.stride, groups=inner, act=row.act, eps=eps)
        steps.append(nn.Sequential(*depthwise))
        if row.squeezed:
            steps.append(SE(inner, row.squeezed, *squeeze))
        self.block = nn.Sequential(*steps, nn.Sequential(*unit(inner, row.out, act=None, eps=eps)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out + x if self.carries else out


class TorchvisionV3(nn.Module):
    def __init__(self, stem: int, rows: Sequence[Row], head: int, hidden: int, classes: int) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(*unit(3, stem, 3, 2, act=F.hardswish, eps=1e-3))]
        inputs = stem
        for row in rows:
            features += [CountedBlock(*block, 1e-3, (F.relu, F.hardsigmoid)) for block in row.blocks(inputs)]
            inputs = row.out
        features.append(nn.Sequential(*unit(inputs, head, act=F.hardswish, eps=1e-3)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Linear(head, hidden), Act(F.hardswish), nn.Dropout(0.2), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pooled(self.features(x)))
        return logits


class TorchvisionEfficientNet(nn.Module):
    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int, eps: float = 1e-5) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(*unit(3, stem, 3, 2, act=F.silu, eps=eps))]
        inputs = stem
        for row in rows:
            blocks = [CountedBlock(*block, eps, (F.silu, torch.sigmoid)) for block in row.blocks(inputs)]
            features.append(nn.Sequential(*blocks))
            inputs = row.out
        features.append(nn.Sequential(*unit(inputs, head, act=F.silu, eps=eps)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pooled(self.features(x)))
        return logits


# timm's names


class TimmSE(nn.Module):
    def __init__(self, channels: int, squeezed: int, act: Function, gate: Function) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = conv(channels, squeezed, bias=True), conv(squeezed, channels, bias=True)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


class TimmBlock(nn.Module):
    def __init__(self, inputs: int, inner: int, row: Row, eps: float, same: bool,
                 squeeze: tuple[Function, Function]) -> None:  # fmt: skip
        super().__init__()
        self.row, self.carries, self.expands = row, row.stride == 1 and inputs == row.out, inner != inputs
        depthwise = conv(inner, inner, row.kernel, row.stride, groups=inner, same=same)
        if self.expands:
            self.conv_pw, self.bn1 = conv(inputs, inner), nn.BatchNorm2d(inner, eps)
            self.conv_dw, self.bn2 = depthwise, nn.BatchNorm2d(inner, eps)
            self.conv_pwl, self.bn3 = conv(inner, row.out), nn.BatchNorm2d(row.out, eps)
        else:
            self.conv_dw, self.bn1 = depthwise, nn.BatchNorm2d(inner, eps)
            self.conv_pw, self.bn2 = conv(inner, row.out), nn.BatchNorm2d(row.out, eps)
        self.se = TimmSE(inner, row.squeezed, *squeeze) if row.squeezed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        act = self.row.act
        out: Tensor
        if self.expands:
            out = act(self.bn1(self.conv_pw(x)))
            out = self.bn3(self.conv_pwl(self.se(act(self.bn2(self.conv_dw(out))))))
        else:
            out = self.bn2(self.conv_pw(self.se(act(self.bn1(self.conv_dw(x))))))
        return out + x if self.carries else out


class TimmLast(nn.Module):
    def __init__(self, inputs: int, outputs: int, eps: float, act: Function) -> None:
        super().__init__()
        self.conv, self.bn1, self.act = conv(inputs, outputs), nn.BatchNorm2d(outputs, eps), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))


class Timm(nn.Module):
    """timm's MobileNetV2 and EfficientNet; with `hidden` its MobileNetV3, whose head comes after pooling."""

    def __init__(self, stem: int, rows: Sequence[Sequence[Row]], head: int, classes: int, act: Function,
                 hidden: int = 0, eps: float = 1e-5, same: bool = False) -> None:  # fmt: skip
        super().__init__()
        squeeze = (F.relu, F.hardsigmoid) if hidden else (F.silu, torch.sigmoid)
        self.act, self.hidden = act, hidden
        self.conv_stem, self.bn1 = conv(3, stem, 3, 2, same=same), nn.BatchNorm2d(stem, eps)
        stages, inputs = [], stem
        for stage in rows:
            blocks = []
            for row in stage:
                blocks += [TimmBlock(*block, eps, same, squeeze) for block in row.blocks(inputs)]
                inputs = row.out
            stages.append(nn.Sequential(*blocks))
        if hidden:
            stages.append(nn.Sequential(TimmLast(inputs, head, eps, act)))
            self.conv_head = conv(head, hidden, bias=True)
        else:
            self.conv_head, self.bn2 = conv(inputs, head), nn.BatchNorm2d(head, eps)
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(hidden or head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        if self.hidden:
            x = self.act(self.conv_head(F.adaptive_avg_pool2d(x, 1))).flatten(1)
        else:
            x = pooled(self.act(self.bn2(self.conv_head(x))))
        logits: Tensor = self.classifier(x)
        return logits
