"""What the teacher and every artifact answer to real images: figures only, nothing of the images themselves."""

from collections.abc import Callable, Mapping, Sequence
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

LEAST_IMAGES = 3
"""Of a class, for most of them to say something."""

MOST_TOLD = 4
"""Classes that are named; more say no more."""


def measure(
    holdout: Holdout,
    teacher: Teacher,
    runners: Mapping[str, Runner],
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
    labels: Sequence[str] = (),
) -> HoldoutRecord:
    """Agreement of every artifact, by name, with the teacher, and accuracy where the true classes are known.

    Each image is read once, and all are asked about it. Runners are entered, and left closed. With `labels`, classes that the
    teacher takes for others throughout are told of: either the labels are in another order than its outputs, or the folders.
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
        warning=_order_warning(wanted, holdout.classes, labels) if labels else "",
    )


def _order_warning(named: Answers, classes: Answers | None, labels: Sequence[str]) -> str:
    """Which classes the teacher takes for another on most of their images; empty where there are none."""
    if classes is None:
        return ""
    taken = {}
    for number, label in enumerate(labels):
        answers = named[(classes == number) & (named != NO_ANSWER)]
        if len(answers) < LEAST_IMAGES:
            continue
        counts = np.bincount(answers)
        if (most := int(counts.argmax())) != number and 2 * counts[most] > len(answers):
            taken[label] = labels[most]
    if not taken:
        return ""
    told = " and of ".join(f"{label} for {other}" for label, other in list(taken.items())[:MOST_TOLD])
    return f"The teacher takes most images of {told}: are the labels in the order of its outputs, and the images in the right places?"


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
