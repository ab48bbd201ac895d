"""The same two loops as a plain reading of the method would have them, in the style of its published code.

Everything is float32 and contiguous NCHW. Gradients also reach the weights of teacher and student while images are
made. Hooks take the statistics of every batch norm, also while the student learns and nobody asks for them; autograd
differentiates `mean` and `var`. Each noisy layer is a linear layer of its own. The pool is a folder of PNG files, read
through a DataLoader that decodes, crops, mirrors and normalises them one by one. Each step ends in `item`. The
arithmetic is that of this project's own loops, and nothing is slowed on purpose: images are read in the loop's own
process only so that none are prepared while the other loop is timed.
"""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.settings import Settings, SynthesisSettings
from compress.pipeline.students import build_student
from compress.pipeline.synthesis.augment import Augmentation
from compress.pipeline.synthesis.generator import upsamplings_for
from compress.pipeline.synthesis.latents import noisy_layers_for
from loops.setup import Setup


class StatisticsHook:
    """Keeps mean and biased variance `[C]` of what enters a batch norm."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.norm = norm
        self.mean = self.variance = torch.empty(0)
        norm.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        (features,) = arguments
        self.mean = features.mean((0, 2, 3))
        self.variance = features.var((0, 2, 3), unbiased=False)

    def distance(self, running: tuple[Tensor, Tensor] | None, momentum: float) -> Tensor:
        """`||M - m||_2 + ||V - v||_2` with the batch's statistics blended into those of the batches before."""
        mean, variance = self.mean, self.variance
        if running is not None:
            mean = (1 - momentum) * mean + momentum * running[0]
            variance = (1 - momentum) * variance + momentum * running[1]
        wanted_mean, wanted_variance = self.norm.running_mean, self.norm.running_var
        assert wanted_mean is not None and wanted_variance is not None
        distance: Tensor = torch.norm(wanted_variance - variance, 2) + torch.norm(wanted_mean - mean, 2)
        return distance


class NaiveGenerator(nn.Module):
    """Classes `[N]` to images `[N, C, H, W]` in [0, 1], with the sizes that the settings give."""

    def __init__(self, embeddings: Tensor, size: tuple[int, int], channels: int, settings: SynthesisSettings) -> None:
        super().__init__()
        layers = noisy_layers_for(settings.batch_size, len(embeddings), settings.max_noisy_layers)
        doublings, width = upsamplings_for(max(size)), settings.generator_width
        self.embeddings, self.size = embeddings, size
        self.start = tuple(math.ceil(side / 2**doublings) for side in size)
        self.norm = nn.BatchNorm1d(embeddings.shape[1])
        self.noisy = nn.ModuleList(nn.Linear(embeddings.shape[1], settings.latent) for _ in range(layers))
        self.project = nn.Linear(settings.latent, 2 * width * self.start[0] * self.start[1])
        stages: list[nn.Module] = [nn.BatchNorm2d(2 * width)]
        for index in range(doublings):
            after = 2 * width if index < doublings - 1 else width
            stages += [nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, after, 3, padding=1, bias=False)]
            stages += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.images = nn.Sequential(*stages, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def redraw(self) -> None:
        for layer in self.noisy:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, targets: Tensor) -> Tensor:
        rows = self.norm(self.embeddings[targets]).split(len(self.embeddings))
        latent = torch.cat([self.noisy[index % len(self.noisy)](block) for index, block in enumerate(rows)])
        images: Tensor = self.images(self.project(latent).unflatten(1, (-1, *self.start)))
        return images[:, :, : self.size[0], : self.size[1]]


def synthesis_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    targets: Tensor,
    hooks: Sequence[StatisticsHook],
    running: Sequence[tuple[Tensor, Tensor]] | None,
    settings: SynthesisSettings,
) -> Tensor:
    """The weighted sum of batch-norm matching, class loss and decision-masked adversarial loss; a scalar."""
    distances = [
        hook.distance(None if running is None else running[index], settings.statistics_momentum)
        for index, hook in enumerate(hooks)
    ]
    matching = torch.stack(distances).sum()
    one_hot = F.cross_entropy(teacher_logits, targets)
    agree = (student_logits.max(1)[1] == teacher_logits.max(1)[1]).float()
    divergence = F.kl_div(F.log_softmax(student_logits, 1), F.softmax(teacher_logits, 1), reduction="none").sum(1)
    adversarial = -(divergence * agree).mean()
    return (
        settings.batch_norm_weight * matching
        + settings.one_hot_weight * one_hot
        + settings.adversarial_weight * adversarial
    )


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(teacher || student)` at temperature T, mean over images; a scalar."""
    wanted = F.softmax(teacher_logits / temperature, 1)
    found = F.log_softmax(student_logits / temperature, 1)
    return F.kl_div(found, wanted, reduction="batchmean") * temperature**2


def cropped_and_mirrored(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Each image `[N, C, H, W]` shifted over a black border and mirrored, one after the other."""
    padding, (count, _, height, width) = augmentation.padding, images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, count)).tolist()
    mirrored = (torch.rand(count) < 0.5).tolist() if augmentation.flip else [False] * count
    views = []
    for image, top, left, mirror in zip(F.pad(images, (padding,) * 4), *shifts, mirrored, strict=True):
        view = image[:, top : top + height, left : left + width]
        views.append(view.flip(2) if mirror else view)
    return torch.stack(views)


class Synthesis:
    """One unit is one batch of images."""

    def __init__(self, setup: Setup) -> None:
        self.settings, self.device = setup.settings.synthesis, setup.compute.device
        record = setup.teacher.record
        self.teacher, self.student = _networks(setup)
        self.augmentation = Augmentation.for_input(record.input, self.settings)
        self.hooks = _hooks(self.teacher)
        self.running: list[tuple[Tensor, Tensor]] | None = None
        size = (record.input.height, record.input.width)
        embeddings = setup.embeddings.to(self.device)
        self.generator = NaiveGenerator(embeddings, size, record.input.channels, self.settings).to(self.device)

    def run(self) -> float:
        """New noise, a new optimiser, the recipe's steps; the batch of the best one is kept as PNG files would be."""
        self.generator.redraw()
        classes = len(self.generator.embeddings)
        whole = torch.arange(classes).repeat(self.settings.batch_size // classes)
        rest = torch.randint(classes, (self.settings.batch_size % classes,))
        targets = torch.cat([whole, rest]).to(self.device)
        optimiser = torch.optim.Adam(self.generator.parameters(), self.settings.learning_rate, betas=(0.5, 0.999))
        best, best_loss = torch.empty(0), math.inf
        for _ in range(self.settings.steps):
            images, loss = self.step(targets)
            if loss.item() < best_loss:
                best, best_loss = images.detach(), loss.item()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._remember()
        best.mul(255).round().to(torch.uint8).cpu()
        return best_loss

    def step(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[N, C, H, W]` of the classes `[N]`, and their loss."""
        images = self.generator(targets)
        seen = cropped_and_mirrored(images, self.augmentation)
        return images, self.loss(seen, targets)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """What the generator descends on, of augmented images `[N, C, H, W]`."""
        return synthesis_loss(
            self.teacher(images), self.student(images), targets, self.hooks, self.running, self.settings
        )

    @torch.no_grad()
    def _remember(self) -> None:
        momentum = self.settings.statistics_momentum
        now = [(hook.mean.detach(), hook.variance.detach()) for hook in self.hooks]
        before = self.running or now
        self.running = [
            (momentum * old[0] + (1 - momentum) * new[0], momentum * old[1] + (1 - momentum) * new[1])
            for old, new in zip(before, now, strict=True)
        ]


class Distillation:
    """One unit is one step of the student on images of the pool."""

    def __init__(self, setup: Setup) -> None:
        self.temperature, self.device = setup.settings.distill.temperature, setup.compute.device
        self.teacher, self.student = _networks(setup)
        self.student.train()
        self.hooks = _hooks(self.teacher)
        folder = setup.folder / "pool"
        write_pool(setup.images, folder)
        augmentation = Augmentation.for_input(setup.teacher.record.input, setup.settings.synthesis)
        dataset = PngFolder(folder, augmentation, setup.teacher.network)
        self.batches = _endless(dataset, setup.settings.distill.batch_size)
        self.optimiser = _descent(self.student, setup.settings)

    def run(self) -> float:
        return self.step(next(self.batches).to(self.device))

    def step(self, images: Tensor) -> float:
        """One step on normalised images `[N, C, H, W]`; returns the loss."""
        with torch.no_grad():
            wanted = self.teacher.network(images)
        loss = distillation_loss(wanted, self.student.network(images), self.temperature)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


class PngFolder(Dataset[Tensor]):
    """PNG files to augmented, normalised images `[C, H, W]`, one by one."""

    def __init__(self, folder: Path, augmentation: Augmentation, normalised: Normalised) -> None:
        self.files = sorted(folder.glob("*.png"))
        self.augmentation = augmentation
        self.mean, self.std = normalised.mean[0].cpu(), normalised.std[0].cpu()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        padding = self.augmentation.padding
        with Image.open(self.files[index]) as image:
            width, height = image.size
            left, top = random.randint(0, 2 * padding), random.randint(0, 2 * padding)
            view = ImageOps.expand(image, padding).crop((left, top, left + width, top + height))
        if self.augmentation.flip and random.random() < 0.5:
            view = ImageOps.mirror(view)
        pixels = torch.from_numpy(np.array(view)).view(height, width, -1).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - self.mean) / self.std


def write_pool(images: Tensor, folder: Path) -> None:
    """Images uint8 `[N, C, H, W]`, C being 1 or 3, as PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(folder / f"{number:06}.png")


def _networks(setup: Setup) -> tuple[Normalised, Normalised]:
    """Teacher and student in evaluation mode, all weights with gradients, laid out as torch does by itself."""
    teacher = setup.teacher.network
    student = build_student(setup.plan, setup.teacher)
    for network in (teacher, student):
        network.to(setup.compute.device).eval().requires_grad_(True)
    return teacher, student


def _hooks(teacher: nn.Module) -> list[StatisticsHook]:
    return [StatisticsHook(module) for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]


def _descent(student: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    rates = settings.distill
    return torch.optim.SGD(
        student.parameters(), rates.inherited_learning_rate, rates.momentum, weight_decay=rates.weight_decay
    )


def _endless(dataset: PngFolder, batch_size: int) -> Iterator[Tensor]:
    sampler = RandomSampler(dataset, replacement=True, num_samples=2**31)
    return iter(DataLoader(dataset, batch_size, sampler=sampler))
