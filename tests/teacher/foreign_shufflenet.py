"""ShuffleNetV2 as other authors build it: their trees of modules and their arithmetic, at any width.

Written apart from `pipeline.networks`, so that equal outputs show that both mean the same.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.teacher.foreign_mobile import conv, pooled, unit


def interleaved(left: Tensor, right: Tensor) -> Tensor:
    """Channels of both in turn, `[N, 2 C, H, W]`."""
    return torch.stack((left, right), dim=2).flatten(1, 2)


class TorchvisionUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        entering = inputs if stride == 2 else half
        left = [*unit(inputs, inputs, 3, 2, groups=inputs, act=None), *unit(inputs, half, act=F.relu)]
        self.branch1 = nn.Sequential(*(left if stride == 2 else []))
        self.branch2 = nn.Sequential(
            *unit(entering, half, act=F.relu),
            *unit(half, half, 3, stride, groups=half, act=None),
            *unit(half, half, act=F.relu),
        )
        self.stride, self.kept = stride, half

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return interleaved(self.branch1(x), self.branch2(x))
        return interleaved(x[:, : self.kept], self.branch2(x[:, self.kept :]))


class TorchvisionShuffle(nn.Module):
    """With `small`, chenyaofo's, which neither strides in the stem nor pools."""

    def __init__(self, stem: int, widths: Sequence[int], repeats: Sequence[int], head: int, classes: int,
                 small: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Sequential(*unit(3, stem, 3, 1 if small else 2, act=F.relu))
        self.small, self.stages, inputs = small, len(widths), stem
        for index, (width, repeat) in enumerate(zip(widths, repeats, strict=True)):
            units = [TorchvisionUnit(inputs, width, 2), *(TorchvisionUnit(width, width, 1) for _ in range(repeat - 1))]
            self.add_module(f"stage{index + 2}", nn.Sequential(*units))
            inputs = width
        self.conv5 = nn.Sequential(*unit(inputs, head, act=F.relu))
        self.fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        for index in range(self.stages):
            x = self.get_submodule(f"stage{index + 2}")(x)
        logits: Tensor = self.fc(self.conv5(x).mean((2, 3)))
        return logits


class KuangliuBasic(nn.Module):
    def __init__(self, half: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 3, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, half), nn.BatchNorm2d(half)
        self.kept = half

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x[:, self.kept :])))
        out = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(out)))))
        return interleaved(x[:, : self.kept], out)


class KuangliuDown(nn.Module):
    def __init__(self, inputs: int, half: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, inputs, 3, 2, groups=inputs), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = conv(inputs, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(inputs, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv(half, half, 3, 2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return interleaved(left, F.relu(self.bn5(self.conv5(right))))


class KuangliuShuffle(nn.Module):
    """With a stem of one pixel, RepDistiller's."""

    def __init__(self, stem: int, widths: Sequence[int], repeats: Sequence[int], head: int, classes: int,
                 stem_kernel: int = 3) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.bn1 = conv(3, stem, stem_kernel), nn.BatchNorm2d(stem)
        self.stages, inputs = len(widths), stem
        for index, (width, repeat) in enumerate(zip(widths, repeats, strict=True), start=1):
            units = [KuangliuDown(inputs, width // 2), *(KuangliuBasic(width // 2) for _ in range(repeat - 1))]
            self.add_module(f"layer{index}", nn.Sequential(*units))
            inputs = width
        self.conv2, self.bn2 = conv(inputs, head), nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(self.stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        logits: Tensor = self.linear(pooled(F.relu(self.bn2(self.conv2(x)))))
        return logits


class WeiaicunzaiUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, entering = outputs // 2, inputs if stride == 2 else inputs // 2
        self.residual = nn.Sequential(
            *unit(entering, entering, act=F.relu, bias=True),
            *unit(entering, entering, 3, stride, groups=entering, act=None, bias=True),
            *unit(entering, half, act=F.relu, bias=True),
        )
        left = [
            *unit(inputs, inputs, 3, 2, groups=inputs, act=None, bias=True),
            *unit(inputs, half, act=F.relu, bias=True),
        ]
        self.shortcut = nn.Sequential(*(left if stride == 2 else []))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        return interleaved(self.shortcut(left), self.residual(right))


class WeiaicunzaiShuffle(nn.Module):
    """Has biases before batch norm and no activation in its stem."""

    def __init__(self, stem: int, widths: Sequence[int], repeats: Sequence[int], head: int, classes: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(*unit(3, stem, 3, act=None, bias=True))
        self.stages, inputs = len(widths), stem
        for index, (width, repeat) in enumerate(zip(widths, repeats, strict=True)):
            units = [WeiaicunzaiUnit(inputs, width, 2), *(WeiaicunzaiUnit(width, width, 1) for _ in range(repeat - 1))]
            self.add_module(f"stage{index + 2}", nn.Sequential(*units))
            inputs = width
        self.conv5 = nn.Sequential(*unit(inputs, head, act=F.relu, bias=True))
        self.fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for index in range(self.stages):
            x = self.get_submodule(f"stage{index + 2}")(x)
        logits: Tensor = self.fc(pooled(self.conv5(x)))
        return logits
