"""Makes batches of images: a generator trained for a few steps against the frozen teacher.

Source: NAYER (Tran et al., CVPR 2024), algorithm 1, and its published code for batch-norm momentum and selection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.pipeline.device import Compute, on_device
from compress.pipeline.parallel.batch_norm import joint_statistics, with_joint_batch_norms
from compress.pipeline.settings import SynthesisSettings
from compress.pipeline.synthesis.augment import Augmentation
from compress.pipeline.synthesis.generator import Generator
from compress.pipeline.synthesis.latents import balanced_targets, noisy_layers_for
from compress.pipeline.synthesis.loss_parts import LossParts
from compress.pipeline.synthesis.losses import (
    Statistics,
    adversarial,
    batch_norm_matching,
    batch_statistics,
    blend,
    image_prior,
    one_hot,
)
from compress.pipeline.synthesis.pool import as_bytes
from compress.pipeline.synthesis.selection import BestOfSteps
from compress.pipeline.teacher import Teacher


class SyntheticBatch(NamedTuple):
    """Images `[N, C, H, W]` uint8, the classes `[N]` they were made for, and the loss of the step that they are from."""

    images: Tensor
    targets: Tensor
    loss: float


class Synthesiser:
    """A generator, the optimiser of the moment, and the running batch statistics that outlive the generator.

    Everything random comes from torch's global generator: seed it, and the same images come out. Several processes
    share the generator and the images of each batch; each has noisy layers of its own.
    """

    def __init__(self, teacher: Teacher, embeddings: Tensor, settings: SynthesisSettings, compute: Compute) -> None:
        self.teacher = teacher
        self.settings = settings
        self.compute, self.world = compute, compute.world
        self.embeddings = embeddings.to(compute.device)
        self.augmentation = Augmentation.for_input(teacher.record.input, settings)
        self.wanted = [Statistics(layer.mean, layer.variance) for layer in teacher.bn_statistics]
        self.running: list[Statistics] | None = None
        self.parts = LossParts()
        self.generator = self._fresh_generator()

    def renew(self) -> None:
        """Discard the generator and start a new one."""
        self.generator = self._fresh_generator()

    def make(self, student: nn.Module | None = None, targets: Tensor | None = None) -> SyntheticBatch:
        """Draw new noise, train the generator for the recipe's steps, return the images of its best step.

        Args:
            student: when given, images are also driven to where it is less sure than the teacher.
            targets: classes `[batch_size]` to make; by default all of them equally often, as far as they fit.

        Of several processes, each makes and returns its share of the batch; `targets` are those of its share.
        """
        self.generator.noisy.redraw()
        if targets is None:
            whole = self.world.share(self.settings.batch_size) * self.world.size
            targets = self.world.mine(balanced_targets(whole, len(self.embeddings)))
        targets = targets.to(self.compute.device)
        optimiser = torch.optim.Adam(self.generator.parameters(), self.settings.learning_rate, betas=(0.5, 0.999))
        best = BestOfSteps(self.settings.selection)
        with _frozen(student):
            for _ in range(self.settings.steps):
                images, loss, of_each, statistics = self._step(targets, student)
                best.see(images.detach(), self.world.average(loss.detach()), of_each.detach())
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self._average_gradients()
                optimiser.step()
        self._remember(statistics)
        return SyntheticBatch(as_bytes(best.images), targets, best.loss.item())

    def _step(self, targets: Tensor, student: nn.Module | None) -> tuple[Tensor, Tensor, Tensor, list[Statistics]]:
        """One forward pass: images, total loss, each image's own part of it, and the batch's statistics."""
        settings = self.settings
        with self.compute.autocast():
            images = self.generator(targets)
            augmented = self.augmentation(images).contiguous(memory_format=torch.channels_last)
            logits, bn_inputs = self.teacher.logits_and_bn_inputs(augmented)
            student_logits = None if student is None else student(augmented)
        statistics = joint_statistics([batch_statistics(features) for features in bn_inputs], self.world)
        named = one_hot(logits, targets)
        self.parts.seen("one_hot_loss", named.mean())
        of_each = settings.one_hot_weight * named
        if student_logits is not None:
            doubted = adversarial(logits, student_logits)
            self.parts.seen("adversarial_loss", doubted.mean())
            of_each = of_each + settings.adversarial_weight * doubted
        loss = self._likeness(images, statistics) + of_each.mean()
        return images, loss, of_each, statistics

    def _likeness(self, images: Tensor, statistics: list[Statistics]) -> Tensor:
        """The term that keeps images like those of the teacher's training: by its batch norms, or else by the prior."""
        if not self.wanted:
            normalised = self.teacher.network.normalise(images)
            prior = self.parts.seen("prior_loss", image_prior(normalised, self.world.average))
            return self.settings.prior_weight * prior
        matching = self.parts.seen("batch_norm_loss", batch_norm_matching(self._blended(statistics), self.wanted))
        return self.settings.batch_norm_weight * matching

    def _blended(self, statistics: list[Statistics]) -> list[Statistics]:
        """Statistics of the batch, mixed with those of the batches before; alone for the very first batch."""
        if self.running is None:
            return statistics
        momentum = self.settings.statistics_momentum
        return [blend(new, old, momentum) for new, old in zip(statistics, self.running, strict=True)]

    def _average_gradients(self) -> None:
        """Of what all processes share; a noisy layer belongs to one of them, and so has but its part of the mean."""
        noisy = self.generator.noisy
        own = {id(parameter): parameter for parameter in map(noisy.get_parameter, noisy.DRAWN)}
        self.world.average_gradients(value for value in self.generator.parameters() if id(value) not in own)
        for parameter in own.values():
            if parameter.grad is not None:
                parameter.grad /= self.world.size

    @torch.no_grad()
    def _remember(self, statistics: list[Statistics]) -> None:
        self.running = [Statistics(mean.detach(), variance.detach()) for mean, variance in self._blended(statistics)]

    def _fresh_generator(self) -> Generator:
        record, settings = self.teacher.record, self.settings
        generator = Generator(
            self.embeddings.cpu(),
            (record.input.height, record.input.width),
            record.input.channels,
            layers=noisy_layers_for(
                self.world.share(settings.batch_size), len(self.embeddings), settings.max_noisy_layers
            ),
            latent=settings.latent,
            width=settings.generator_width,
            latent_source=settings.latent_source,
        )
        on_device(generator, self.compute).train()
        self.world.copy_from_first(generator)
        with_joint_batch_norms(generator, self.world)
        return generator


@contextmanager
def _frozen(network: nn.Module | None) -> Iterator[None]:
    """Evaluate a network without gradients for its weights, then put it back as it was."""
    if network is None:
        yield
        return
    training = network.training
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter in learning:
            parameter.requires_grad_(True)
