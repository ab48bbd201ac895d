"""Residual networks as other people's repositories write them, layer for layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.teacher.foreign import stages

WIDE = (1, 2, 1), (4, 8, 16)
DEEP = (2, 1), (4, 8)


def conv3(entering: int, leaving: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(entering, leaving, 3, stride, 1, bias=bias)


class XternalzBlock(nn.Module):
    """The block of xternalz/WideResNet-pytorch."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv3(entering, leaving, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(leaving), conv3(leaving, leaving)
        self.convShortcut = None if entering == leaving else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.convShortcut is not None:
            x = self.bn1(x).relu()
            carried, out = self.convShortcut(x), x
        else:
            carried, out = x, self.bn1(x).relu()
        out = self.conv2(self.bn2(self.conv1(out)).relu())
        return torch.add(carried, out)


class XternalzWide(nn.Module):
    """xternalz/WideResNet-pytorch, wideresnet.py."""

    def __init__(
        self, blocks: tuple[int, ...] = WIDE[0], widths: tuple[int, ...] = WIDE[1], stem: int = 6, classes: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = conv3(3, stem)
        for number, layer in enumerate(stages(XternalzBlock, blocks, widths, stem), start=1):
            block = nn.Module()
            block.layer = layer
            self.add_module(f"block{number}", block)
        self.bn1, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name, block in self.named_children():
            x = block.get_submodule("layer")(x) if name.startswith("block") else x
        logits: Tensor = self.fc(self.bn1(x).relu().mean((2, 3)))
        return logits


class MeliketoyBlock(nn.Module):
    """The block of meliketoy/wide-resnet.pytorch: biases, the stride in the second convolution, a raw shortcut."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv3(entering, leaving, bias=True)
        self.bn2, self.conv2 = nn.BatchNorm2d(leaving), conv3(leaving, leaving, stride, bias=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or entering != leaving:
            self.shortcut.append(nn.Conv2d(entering, leaving, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        carried: Tensor = self.shortcut(x)
        return torch.add(out, carried)


class MeliketoyWide(nn.Module):
    """meliketoy/wide-resnet.pytorch, networks/wide_resnet.py."""

    def __init__(
        self, blocks: tuple[int, ...] = WIDE[0], widths: tuple[int, ...] = WIDE[1], stem: int = 4, classes: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = conv3(3, stem, bias=True)
        self.layer1, self.layer2, self.layer3 = stages(MeliketoyBlock, blocks, widths, stem)
        self.bn1, self.linear = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(F.relu(self.bn1(x)).mean((2, 3)))
        return logits


class WeiaicunzaiWideBlock(nn.Module):
    """The block of weiaicunzai/pytorch-cifar100, wideresidual.py."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(entering), nn.ReLU(), conv3(entering, leaving, stride, bias=True)]
        second = [nn.BatchNorm2d(leaving), nn.ReLU(), nn.Dropout(), conv3(leaving, leaving, bias=True)]
        self.residual, self.shortcut = nn.Sequential(*first, *second), nn.Sequential()
        if stride != 1 or entering != leaving:
            self.shortcut.append(nn.Conv2d(entering, leaving, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out


class WeiaicunzaiWide(nn.Module):
    """weiaicunzai/pytorch-cifar100, wideresidual.py: nothing stands between the last batch norm and the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.init_conv = conv3(3, 4, bias=True)
        self.conv2, self.conv3, self.conv4 = stages(WeiaicunzaiWideBlock, *WIDE, 4)
        self.bn, self.linear = nn.BatchNorm2d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv4(self.conv3(self.conv2(self.init_conv(x))))
        logits: Tensor = self.linear(self.bn(x).mean((2, 3)))
        return logits


class KuangliuPreActBlock(nn.Module):
    """The basic block of kuangliu/pytorch-cifar, preact_resnet.py."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv3(entering, leaving, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(leaving), conv3(leaving, leaving)
        if stride != 1 or entering != leaving:
            self.shortcut = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        carried: Tensor = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return torch.add(out, carried)


class KuangliuPreActBottleneck(nn.Module):
    """Its bottleneck block, for which the widths here are those that it puts out."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        inner = leaving // 4
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), nn.Conv2d(entering, inner, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), conv3(inner, inner, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, leaving, 1, bias=False)
        if stride != 1 or entering != leaving:
            self.shortcut = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        carried: Tensor = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return torch.add(self.conv3(F.relu(self.bn3(out))), carried)


class KuangliuPreAct(nn.Module):
    """kuangliu/pytorch-cifar, preact_resnet.py: no batch norm follows the blocks."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        blocks: tuple[int, ...] = DEEP[0],
        widths: tuple[int, ...] = DEEP[1],
        stem: int = 4,
        classes: int = 3,
    ) -> None:
        super().__init__()
        self.conv1, self.linear = conv3(3, stem), nn.Linear(widths[-1], classes)
        for number, stage in enumerate(stages(block, blocks, widths, stem), start=1):
            self.add_module(f"layer{number}", stage)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class WeiaicunzaiPreActBottleneck(nn.Module):
    """The bottleneck block of weiaicunzai/pytorch-cifar100, preactresnet.py: the stride in the first convolution."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        inner = leaving // 4
        self.residual = nn.Sequential(
            nn.BatchNorm2d(entering), nn.ReLU(), nn.Conv2d(entering, inner, 1, stride),
            nn.BatchNorm2d(inner), nn.ReLU(), conv3(inner, inner, bias=True),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, leaving, 1),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or entering != leaving:
            self.shortcut = nn.Conv2d(entering, leaving, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out


class WeiaicunzaiPreAct(nn.Module):
    """weiaicunzai/pytorch-cifar100, preactresnet.py."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = nn.Sequential(conv3(3, 4, bias=True), nn.BatchNorm2d(4), nn.ReLU())
        self.stage1, self.stage2 = stages(WeiaicunzaiPreActBottleneck, (1, 2), (16, 32), 4)
        self.linear = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.stage2(self.stage1(self.pre(x))).mean((2, 3)))
        return logits


class PostActivationBlock(nn.Module):
    """A basic block whose shortcut, if it changes shape, is whatever a repository makes it."""

    def __init__(self, entering: int, leaving: int, stride: int, shortcut: nn.Module, name: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(entering, leaving, stride), nn.BatchNorm2d(leaving)
        self.conv2, self.bn2 = conv3(leaving, leaving), nn.BatchNorm2d(leaving)
        changes, self.name = stride != 1 or entering != leaving, name
        self.add_module(name, shortcut if changes else nn.Sequential())

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.get_submodule(self.name)(x))


class Centred(nn.Module):
    """Option A of akamaster/pytorch_resnet_cifar10."""

    def forward(self, x: Tensor) -> Tensor:
        missing = x.shape[1]
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing // 2), "constant", 0)


class Doubled(nn.Module):
    """Option A of D-X-Y/ResNeXt-DenseNet, models/resnet.py: the added channels are the others times zero."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, kernel_size=1, stride=2)
        return torch.cat((x, x.mul(0)), 1)


def option_a(shortcut: type[nn.Module]) -> Callable[[int, int, int], nn.Module]:
    return lambda entering, leaving, stride: PostActivationBlock(entering, leaving, stride, shortcut(), "downsample")


def kuangliu_block(entering: int, leaving: int, stride: int) -> nn.Module:
    projection = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))
    return PostActivationBlock(entering, leaving, stride, projection, "shortcut")


def timm_d_block(entering: int, leaving: int, stride: int) -> nn.Module:
    """Of timm with `avg_down`: pooling unless the stride is 1, where nothing takes its place in the sequence."""
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
    projection = nn.Sequential(pool, nn.Conv2d(entering, leaving, 1, bias=False), nn.BatchNorm2d(leaving))
    return PostActivationBlock(entering, leaving, stride, projection, "downsample")


class SmallStem(nn.Module):
    """The trunk of CIFAR repositories, such as kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        blocks: tuple[int, ...] = (2, 1, 1),
        widths: tuple[int, ...] = (4, 8, 16),
        classes: int = 3,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(3, widths[0]), nn.BatchNorm2d(widths[0])
        for number, stage in enumerate(stages(block, blocks, widths, widths[0]), start=1):
            self.add_module(f"layer{number}", stage)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class TimmDeepStem(nn.Module):
    """timm's resnet.py with `stem_type="deep"`."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        stem: tuple[int, int] = (3, 5),
        blocks: tuple[int, int] = (1, 2),
    ) -> None:
        super().__init__()
        first, second = stem
        self.conv1 = nn.Sequential(
            conv3(3, first, 2), nn.BatchNorm2d(first), nn.ReLU(),
            conv3(first, second), nn.BatchNorm2d(second), nn.ReLU(),
            conv3(second, 6),
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(6)
        self.layer1, self.layer2 = stages(block, blocks, (8, 16), 6)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        logits: Tensor = self.fc(self.layer2(self.layer1(x)).mean((2, 3)))
        return logits


class TorchvisionBottleneck(nn.Module):
    """The bottleneck block of torchvision's resnet.py, with four groups of three channels."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(entering, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, stride, 1, groups=4, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, leaving, 1, bias=False), nn.BatchNorm2d(leaving)
        self.downsample = None
        if stride != 1 or entering != leaving:
            convolution = nn.Conv2d(entering, leaving, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(leaving))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out)).relu()))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class TorchvisionResNet(nn.Module):
    """torchvision's resnet.py with one stage of bottleneck blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        (self.layer1,) = stages(TorchvisionBottleneck, (2,), (16,), 8)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(self.layer1(x), (1, 1)), 1))
        return logits
