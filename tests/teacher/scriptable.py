"""Small classifiers that TorchScript can compile, each with what another family of networks does."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, CHANNELS = 5, 8


class Features(nn.Module):
    """A convolution with batch norm, and the last layer."""

    channels: Final = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)

    def head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean([2, 3]))
        return logits


class Plain(Features):
    """As VGG: a sequence, max pooling, dropout, and `view` with the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.AdaptiveAvgPool2d((2, 2)),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(4 * CHANNELS, 16), nn.BatchNorm1d(16), nn.ReLU(True), nn.Linear(16, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        logits: Tensor = self.classifier(x.view(x.size(0), -1))
        return logits


class SqueezeExcite(Features):
    """As MobileNetV3: a channel gate with in-place activations, and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(
            nn.Conv2d(CHANNELS, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, CHANNELS, 1), nn.Hardsigmoid(inplace=True)
        )
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.stem(x)))
        return self.head(x * self.gate(self.pool(x)))


class Shuffle(Features):
    """As ShuffleNet: halves, one of them changed, and channels that change places by arithmetic with sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        x = torch.cat((first, F.relu6(self.branch(second), inplace=True)), 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.head(x.view(batch, channels, height, width))


class Dense(Features):
    """As DenseNet: a list that grows, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.growing = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for _ in range(2):
            features.append(self.growing(features[-1]))
        return self.head(torch.cat(features, 1)[:, self.channels : 2 * self.channels])


class PaddedShortcut(Features):
    """As the CIFAR form of ResNet: a shortcut that subsamples and pads with zeros, and pooling over what there is."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = F.pad(x[:, :4, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0.0)
        zeros = torch.zeros(x.size(0), 2, x.size(2), x.size(3), device=x.device, dtype=x.dtype)
        x = F.max_pool2d(torch.cat((zeros, x[:, 2:]), 1), 2)
        x += shortcut
        x = F.avg_pool2d(x, x.size()[3])
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class Standardising(Features):
    """Takes pixels and normalises them itself, in place; casts to the type that it has; answers with probabilities."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        x = x.clone()
        x.sub_(self.mean.to(x.device)).div_(torch.tensor([0.2, 0.2, 0.3], device=x.device).view(1, -1, 1, 1))
        return F.softmax(self.head(self.stem(x).float()), dim=1)


class Attention(Features):
    """As transformers: tokens, multi-head attention and layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True, dropout=0.1)
        self.after = nn.LayerNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 4)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.after(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        logits: Tensor = self.fc(tokens.mean(1) * tokens.size(-1) ** 0.5)
        return logits


class Resizing(Features):
    """Resamples, to a factor and to the size of another tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        large = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(x + F.interpolate(large, size=x.shape[-2:], mode="nearest"))


CLASSIFIERS = (Plain, SqueezeExcite, Shuffle, Dense, PaddedShortcut, Standardising, Attention, Resizing)
