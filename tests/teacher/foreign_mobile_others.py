"""MobileNetV2 and EfficientNet as less general repositories build them, written apart as in `foreign_mobile`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.teacher.foreign_mobile import Act, Row, V2Block, conv, pooled, unit

# lukemelas' names


class LukemelasBlock(nn.Module):
    def __init__(self, inputs: int, inner: int, row: Row) -> None:
        super().__init__()
        self.expands, self.carries = inner != inputs, row.stride == 1 and inputs == row.out
        if self.expands:
            self._expand_conv, self._bn0 = conv(inputs, inner, same=True), nn.BatchNorm2d(inner, 1e-3)
        self._depthwise_conv = conv(inner, inner, row.kernel, row.stride, groups=inner, same=True)
        self._bn1 = nn.BatchNorm2d(inner, 1e-3)
        self._se_reduce = conv(inner, row.squeezed, bias=True, same=True)
        self._se_expand = conv(row.squeezed, inner, bias=True, same=True)
        self._project_conv, self._bn2 = conv(inner, row.out, same=True), nn.BatchNorm2d(row.out, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.silu(self._bn1(self._depthwise_conv(out)))
        squeezed = self._se_expand(F.silu(self._se_reduce(F.adaptive_avg_pool2d(out, 1))))
        projected: Tensor = self._bn2(self._project_conv(torch.sigmoid(squeezed) * out))
        return projected + x if self.carries else projected


class Lukemelas(nn.Module):
    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, stem, 3, 2, same=True), nn.BatchNorm2d(stem, 1e-3)
        self._blocks, inputs = nn.ModuleList(), stem
        for row in rows:
            self._blocks.extend(LukemelasBlock(*block) for block in row.blocks(inputs))
            inputs = row.out
        self._conv_head, self._bn1 = conv(inputs, head, same=True), nn.BatchNorm2d(head, 1e-3)
        self._fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        logits: Tensor = self._fc(pooled(F.silu(self._bn1(self._conv_head(x)))))
        return logits


# kuangliu's names


class KuangliuSE(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.se1, self.se2 = conv(channels, squeezed, bias=True), conv(squeezed, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.se2(F.silu(self.se1(F.adaptive_avg_pool2d(x, 1)))))


class KuangliuBlock(nn.Module):
    """Of the MobileNetV2 without squeeze-and-excite, of the EfficientNet with it, where `conv1` may be idle."""

    def __init__(self, inputs: int, inner: int, row: Row) -> None:
        super().__init__()
        self.row, self.idle = row, bool(row.squeezed) and inner == inputs
        self.conv1, self.bn1 = conv(inputs, inner), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, row.kernel, row.stride, groups=inner), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, row.out), nn.BatchNorm2d(row.out)
        if row.squeezed:
            self.se = KuangliuSE(inner, row.squeezed)
            self.carries = row.stride == 1 and inputs == row.out
        else:
            projects = row.stride == 1 and inputs != row.out
            self.shortcut = nn.Sequential(*(unit(inputs, row.out, act=None) if projects else []))
            self.carries = row.stride == 1

    def forward(self, x: Tensor) -> Tensor:
        act = self.row.act
        out = x if self.idle else act(self.bn1(self.conv1(x)))
        out = act(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.se(out) if self.row.squeezed else out))
        carried = x if self.row.squeezed else self.shortcut(x)
        summed: Tensor = out + carried if self.carries else out
        return summed


class Kuangliu(nn.Module):
    """The MobileNetV2, or without `head` the EfficientNet."""

    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int) -> None:
        super().__init__()
        self.act = rows[0].act
        self.conv1, self.bn1 = conv(3, stem, 3), nn.BatchNorm2d(stem)
        blocks, inputs = [], stem
        for row in rows:
            blocks += [KuangliuBlock(*block) for block in row.blocks(inputs)]
            inputs = row.out
        self.layers, self.head = nn.Sequential(*blocks), head
        if head:
            self.conv2, self.bn2 = conv(inputs, head), nn.BatchNorm2d(head)
        self.linear = nn.Linear(head or inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.act(self.bn1(self.conv1(x))))
        x = self.act(self.bn2(self.conv2(x))) if self.head else x
        logits: Tensor = self.linear(pooled(x))
        return logits


# RepDistiller's and weiaicunzai's names


class RepDistillerV2(nn.Module):
    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*unit(3, stem, 3, 2, act=F.relu))
        self.blocks, inputs = nn.ModuleList(), stem
        for row in rows:
            blocks = [V2Block(*block, F.relu, flat=True, always=True) for block in row.blocks(inputs)]
            self.blocks.append(nn.Sequential(*blocks))
            inputs = row.out
        self.conv2 = nn.Sequential(*unit(inputs, head, act=F.relu))
        self.classifier = nn.Sequential(nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        logits: Tensor = self.classifier(pooled(self.conv2(x)))
        return logits


class WeiaicunzaiBlock(nn.Module):
    def __init__(self, inputs: int, inner: int, row: Row) -> None:
        super().__init__()
        self.carries = row.stride == 1 and inputs == row.out
        self.residual = nn.Sequential(
            *unit(inputs, inner, act=F.relu6, bias=True),
            *unit(inner, inner, 3, row.stride, groups=inner, act=F.relu6, bias=True),
            *unit(inner, row.out, act=None, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x)
        return out + x if self.carries else out


class WeiaicunzaiV2(nn.Module):
    """Has a stem of one pixel with a border of zeros, biases before batch norm, and a convolution as classifier."""

    def __init__(self, stem: int, rows: Sequence[Row], head: int, classes: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, stem, 1, padding=1), nn.BatchNorm2d(stem), Act(F.relu6))
        inputs = stem
        for index, row in enumerate(rows, start=1):
            blocks = [WeiaicunzaiBlock(*block) for block in row.blocks(inputs)]
            self.add_module(f"stage{index}", blocks[0] if len(blocks) == 1 else nn.Sequential(*blocks))
            inputs = row.out
        self.conv1 = nn.Sequential(*unit(inputs, head, act=F.relu6, bias=True))
        self.conv2, self.stages = conv(head, classes, bias=True), len(rows)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for index in range(self.stages):
            x = self.get_submodule(f"stage{index + 1}")(x)
        logits: Tensor = self.conv2(F.adaptive_avg_pool2d(self.conv1(x), 1))
        return logits.flatten(1)
