"""What the teacher and every artifact answer to real images: figures only, nothing of the images themselves."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray

from compress.exporters.runners import Images, Logits, Runner
from compress.pipeline import metrics
from compress.pipeline.holdout.images import Holdout
from compress.pipeline.proportions import proportion
from compress.pipeline.records import HoldoutRecord, HoldoutRow, Proportion
from compress.pipeline.teacher import Teacher

Answers = NDArray[np.int64]

NO_ANSWER = -1
"""Where there is NaN or infinity among the logits."""


def measure(
    holdout: Holdout,
    teacher: Teacher,
    runners: Mapping[str, Runner],
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> HoldoutRecord:
    """Agreement of every artifact, by name, with the teacher, and accuracy where the true classes are known.

    Each image is read once, and all are asked about it. Runners are entered, and left closed.
    """
    asked: dict[str, Callable[[Images], Logits]] = {"": lambda images: _logits(teacher, images), **runners}
    answers: dict[str, list[Answers]] = {name: [] for name in asked}
    done = 0
    with ExitStack() as stack:
        for runner in runners.values():
            stack.enter_context(runner)
        for images in holdout.batches():
            for name, run in asked.items():
                answers[name].append(_answers(run(images)))
            done += len(images)
            on_progress(done, len(holdout), "real images")
    wanted, *given = (np.concatenate(parts) for parts in answers.values())
    return HoldoutRecord(
        name=holdout.name,
        images=len(holdout),
        sha256=holdout.sha256,
        teacher_accuracy=_accuracy(wanted, holdout.classes),
        rows=tuple(
            HoldoutRow(artifact=name, agreement=_alike(wanted, other), accuracy=_accuracy(other, holdout.classes))
            for name, other in zip(runners, given, strict=True)
        ),
        notes=holdout.notes,
    )


@torch.inference_mode()
def _logits(teacher: Teacher, images: Images) -> Logits:
    logits = teacher.logits(torch.from_numpy(images).to(teacher.network.mean.device))
    return np.asarray(logits.float().cpu().numpy())


def _answers(logits: Logits) -> Answers:
    return np.where(metrics.finite_rows(logits), logits.argmax(axis=1), NO_ANSWER)


def _alike(one: Answers, other: Answers) -> Proportion:
    return proportion(int(((one == other) & (one != NO_ANSWER)).sum()), len(one))


def _accuracy(answers: Answers, classes: Answers | None) -> Proportion | None:
    return None if classes is None else _alike(answers, classes)
