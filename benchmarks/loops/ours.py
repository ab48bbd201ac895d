"""This project's two loops, through the classes that a run uses."""

import torch

from compress.pipeline.distillation.learner import Learner
from compress.pipeline.synthesis.augment import Augmentation
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool
from compress.pipeline.synthesis.synthesiser import Synthesiser
from loops.setup import Setup


class Synthesis:
    """One unit is one batch of images: new noise, then the generator's steps against teacher and student."""

    def __init__(self, setup: Setup) -> None:
        teacher = setup.teacher.to(setup.compute.device, torch.channels_last)
        self.student = Learner(teacher, setup.plan, setup.settings, setup.compute).student
        self.synthesiser = Synthesiser(teacher, setup.embeddings, setup.settings.synthesis, setup.compute)

    def run(self) -> float:
        return self.synthesiser.make(self.student).loss


class Distillation:
    """One unit is one step of the student on images of the pool, the average that is shipped included."""

    def __init__(self, setup: Setup) -> None:
        self.batch_size = setup.settings.distill.batch_size
        teacher = setup.teacher.to(setup.compute.device, torch.channels_last)
        self.learner = Learner(teacher, setup.plan, setup.settings, setup.compute)
        self.augmentation = Augmentation.for_input(teacher.record.input, setup.settings.synthesis)
        self.pool = ImagePool(len(setup.images))
        self.pool.add(setup.images.to(setup.compute.device), torch.full((len(setup.images),), NO_CLASS))

    def run(self) -> float:
        images = self.augmentation(self.pool.at(self.pool.draw(self.batch_size))).contiguous(
            memory_format=torch.channels_last
        )
        return self.learner.step(images, self.learner.first_rate).item()
