"""How much of distillation is left, and how long that takes; pure arithmetic."""

from typing import NamedTuple

from compress.pipeline.distillation.schedule import Schedule, Speed
from compress.pipeline.settings import DistillSettings


class Work(NamedTuple):
    """Pieces of work of each kind, in the order of `Speed`."""

    synthesis: int = 0
    """Synthetic batches made without the student: of the warm-up, and held-out ones."""
    adversarial_synthesis: int = 0
    """Synthetic batches made against the student."""
    kd_step: int = 0
    """Steps of the student."""

    def seconds(self, speed: Speed) -> float:
        """What it takes."""
        return (
            self.synthesis * speed.synthesis
            + self.adversarial_synthesis * speed.adversarial_synthesis
            + self.kd_step * speed.kd_step
        )


def work_left(schedule: Schedule, settings: DistillSettings, number: int, held_out: int) -> Work:
    """What has not begun before round `number`: the rounds from there on, and `held_out` batches of probes after them."""
    warmup = max(schedule.warmup_rounds - number, 0)
    rounds = max(schedule.total - max(number, schedule.warmup_rounds), 0)
    return Work(
        synthesis=warmup * settings.warmup_batches + held_out,
        adversarial_synthesis=rounds * settings.batches,
        kd_step=rounds * settings.kd_steps,
    )


def forecast(
    synthesis: float, synthesis_images: int, kd_images: int, teacher_image: float, student_image: float
) -> Speed:
    """Seconds for each kind of work, before any of it but synthesis was seen.

    A pass backwards through a network costs as much as one forwards for the gradient of its inputs, and as much again for
    that of its weights. So a batch made against the student takes 2 passes of the student more, and a step of the student
    one pass of the teacher and 3 of the student.

    Source: Kaplan et al., "Scaling Laws for Neural Language Models", arXiv 2001.08361, section 2.1.

    Args:
        synthesis: seconds for a batch made without the student.
        synthesis_images: images that the generator makes for a batch, over all steps.
        kd_images: images of a student step.
        teacher_image: seconds for one image through the teacher.
        student_image: the same through the student.
    """
    return Speed(
        synthesis=synthesis,
        adversarial_synthesis=synthesis + 2 * synthesis_images * student_image,
        kd_step=kd_images * (teacher_image + 3 * student_image),
    )
