"""Trains the example's teacher: a ResNet-32 on 8x8 handwritten digits, in plain PyTorch.

    python examples/digits/train_teacher.py [OUTPUT]

Takes a few minutes on one CPU core, prints the accuracy on the held-out quarter and writes the checkpoint, by default
`teacher.pt` beside this file. The same PyTorch on the same kind of machine writes the same weights.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_data import Split, load_splits
from torch import Tensor, nn

SEED = 0
EPOCHS = 60
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.1
WIDTHS = (16, 24, 32)
BLOCKS_PER_STAGE = 5


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Normalised grey images `[N, 1, 8, 8]` to logits `[N, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], stride=2)
        self.linear = nn.Linear(WIDTHS[2], 10)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        rest = [Block(channels, channels, 1) for _ in range(BLOCKS_PER_STAGE - 1)]
        return nn.Sequential(Block(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def shifted(images: Tensor) -> Tensor:
    """Each image `[N, 1, 8, 8]` moved by up to one pixel in both directions, zeros moving in."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images), 1, 1))
    rows, columns = rows + torch.arange(8).view(1, 8, 1), columns + torch.arange(8).view(1, 1, 8)
    picked = torch.arange(len(images)).view(-1, 1, 1)
    return padded[picked, 0, rows, columns].unsqueeze(1)


def train(model: DigitsNet, split: Split, mean: float, std: float) -> None:
    """Plain cross-entropy: honest confidences and batch-norm statistics are what distillation lives on."""
    images, classes = torch.from_numpy(split.images), torch.from_numpy(split.classes)
    optimizer = torch.optim.SGD(model.parameters(), PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = len(images) // BATCH_SIZE
    steps = EPOCHS * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.15)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(images))[: batches * BATCH_SIZE].view(batches, BATCH_SIZE):
            loss = F.cross_entropy(model((shifted(images[batch]) - mean) / std), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: loss {total / batches:.4f}", flush=True)


@torch.no_grad()
def accuracy(model: DigitsNet, split: Split, mean: float, std: float) -> float:
    """Share of images whose highest logit is their class."""
    model.eval()
    logits = model((torch.from_numpy(split.images) - mean) / std)
    return float((logits.argmax(1) == torch.from_numpy(split.classes)).float().mean())


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "teacher.pt"
    torch.set_num_threads(1)  # the order of additions, and with it the last bits, depends on the number of threads
    torch.manual_seed(SEED)
    train_split, held_out = load_splits()
    mean, std = float(train_split.images.mean()), float(train_split.images.std())
    model = DigitsNet()
    train(model, train_split, mean, std)
    torch.save({"state_dict": model.state_dict(), "input_size": 8, "mean": [mean], "std": [std]}, output)
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    print(f"accuracy on {len(held_out.classes)} held-out images: {accuracy(model, held_out, mean, std):.4f}")


if __name__ == "__main__":
    main()
