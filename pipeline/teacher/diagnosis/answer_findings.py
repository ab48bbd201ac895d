"""What a teacher's answers to noise say about it: what form they have, whether they depend on the image, how sure it is.

Noise cannot show what a teacher knows. It shows a teacher that answers without looking, and one put together wrongly.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from compress.pipeline.records import Finding, InputSpec, Output
from compress.pipeline.teacher.model import LEAST_PROBABILITY, Teacher
from compress.pipeline.teacher.noise import batch_norm_surprise, smooth_noise

MOST_IMAGES, LEAST_IMAGES = 32, 8
PIXELS = 32 * 64 * 64
"""Of all images of one kind of noise together, so that 224 x 224 takes seconds, too."""

SUM_TOLERANCE = 1e-3
"""How far probabilities may be from adding up to 1; float32 rounds a thousand of them far finer."""

CONSTANT = 1e-5
"""Largest change of a logit over all images, by the largest logit, that float32 makes of no change at all."""

OVERCONFIDENT = 0.99
"""Median top probability on either kind of noise. A ResNet-56 of CIFAR-10 has 0.998 on smooth and 0.76 on white noise,
the example's teacher of digits 0.94 and 0.997: one alone means nothing."""

UNDECIDED = 0.95
"""Median entropy on either kind of noise, by that of equal probabilities. An untrained ResNet-56 has 0.98, trained
networks 0.01 to 0.54."""

SURPRISING = 1.5
"""Five trained networks have 0.5 to 0.8 with the right normalisation, 0.55 to 260 with a wrong one, and an untrained one
has 2.4: small errors are not seen by this."""

MOST_NAMED = 5


def detect_output(outputs: Tensor) -> Output:
    """What outputs `[N, K]` for any N images are: probabilities add up to 1, and so do the exponentials of
    log-probabilities."""
    if bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < SUM_TOLERANCE).all()):
        return "probabilities"
    return "log-probabilities" if bool((outputs.logsumexp(1).abs() < SUM_TOLERANCE).all()) else "logits"


@torch.no_grad()
def output_of(teacher: Teacher) -> Output:
    """What the network itself puts out, for a teacher whose record still takes that for logits."""
    return detect_output(teacher.logits(torch.cat(_noise(teacher.record.input, count=4))))


@torch.no_grad()
def answer_findings(teacher: Teacher) -> Iterator[Finding]:
    """All findings of this module."""
    images = teacher.record.input
    smooth, white = _noise(images, max(LEAST_IMAGES, min(MOST_IMAGES, PIXELS // (images.height * images.width))))
    on_smooth, on_white = teacher.logits(smooth), teacher.logits(white)
    logits = torch.cat([on_smooth, on_white])
    yield from form_findings(teacher.record.output, logits)
    useless = useless_finding(logits)
    if useless is not None:
        yield useless
        return
    yield from class_findings(logits)
    yield confidence_finding(on_smooth, on_white)
    surprise = batch_norm_surprise(teacher, smooth) if teacher.bn_statistics else None
    if surprise is not None:
        yield surprise_finding(surprise)


def form_findings(output: Output, logits: Tensor) -> Iterator[Finding]:
    """What is worth saying where a network does not put out logits.

    Args:
        output: what the network puts out.
        logits: what is taken for its logits, `[N, K]`.
    """
    if output != "logits":
        done = "their logarithms are used" if output == "probabilities" else "they are used as logits, which they are"
        yield Finding(severity="note", topic="outputs", message=f"The network puts out {output}; {done}.")
    elif bool(((logits >= 0) & (logits <= 1)).all()):
        yield Finding(
            severity="warning",
            topic="outputs",
            message="All outputs lie between 0 and 1 without adding up to 1, as if each class had a sigmoid of its own.",
            advice="Give a network whose outputs are the logits of classes that exclude each other.",
        )


def useless_finding(logits: Tensor) -> Finding | None:
    """Of logits `[N, K]` that are no numbers, or the same for all images; None where they can be learnt from."""
    broken = int(logits.isfinite().all(1).logical_not().sum())
    if broken:
        return Finding(
            severity="problem",
            topic="outputs",
            message=f"The teacher answers {broken} of {len(logits)} images of noise with NaN or infinity.",
            advice="Check --mean and --std, and use a checkpoint from before training diverged.",
        )
    if bool(_varying(logits).any()):
        return None
    return Finding(
        severity="problem",
        topic="outputs",
        message=f"The teacher gives the same answer to all of {len(logits)} different images of noise.",
        advice="Look whether the checkpoint holds trained weights; nothing can be learnt from this teacher.",
    )


def class_findings(logits: Tensor) -> Iterator[Finding]:
    """Classes that cannot be told from the image or from one another, and one that is always named.

    Args:
        logits: `[N, K]`, of images of any kind.
    """
    underflown = logits.amax(0) < math.log(LEAST_PROBABILITY) + 1
    dead = torch.nonzero(~_varying(logits) & ~underflown)[:, 0].tolist()
    if dead:
        yield Finding(
            severity="warning",
            topic="classes",
            message=f"The logits of {_numbered(dead)} never change, whatever the image.",
            advice="The student will learn nothing about them; their rows in the last layer were never trained.",
        )
    alike = duplicated_classes(logits)
    if alike:
        listed = "; ".join(" and ".join(map(str, group)) for group in alike[:MOST_NAMED])
        yield Finding(
            severity="warning",
            topic="classes",
            message=f"Some classes have the very same logits, whatever the image: {listed}.",
            advice="They cannot be told apart; look whether the last layer was loaded or trained as a whole.",
        )
    named = logits.argmax(1).unique()
    if len(named) == 1:
        yield Finding(
            severity="note",
            topic="classes",
            message=f"Class {int(named)} is the answer to all of {len(logits)} images of noise, which is not rare.",
        )


def duplicated_classes(logits: Tensor) -> list[list[int]]:
    """Groups of classes with the same logits in all of `[N, K]`, those left out whose logits never change."""
    classes = torch.nonzero(_varying(logits))[:, 0]
    classes = classes[logits[:, classes].mean(0).argsort()]  # which brings equal ones together
    same_as_before = logits[:, classes].diff(dim=1).abs().amax(0) <= CONSTANT * logits.abs().max()
    groups = [classes[:1].tolist()]
    for index, same in zip(classes[1:].tolist(), same_as_before.tolist(), strict=True):
        if same:
            groups[-1].append(index)
        else:
            groups.append([index])
    return sorted(sorted(group) for group in groups if len(group) > 1)


def confidence_finding(on_smooth: Tensor, on_white: Tensor) -> Finding:
    """How sure the teacher is of noise, from its logits `[N, K]` for smooth and for white noise."""
    tops = [logits.softmax(1).amax(1).median().item() for logits in (on_smooth, on_white)]
    message = f"The median top probability is {tops[0]:.1%} on smooth and {tops[1]:.1%} on white noise"
    if min(tops) > OVERCONFIDENT:
        return Finding(
            severity="warning",
            topic="confidence",
            message=f"{message}: the teacher is certain of whatever it sees.",
            advice="Check the normalisation; answers without doubt teach a student little more than labels would.",
        )
    if min(relative_entropy(on_smooth), relative_entropy(on_white)) > UNDECIDED:
        return Finding(
            severity="warning",
            topic="confidence",
            message=f"{message}, hardly more than chance: the teacher looks untrained or wrongly normalised.",
            advice="Check that the checkpoint is the trained one, and its --mean and --std.",
        )
    return Finding(severity="note", topic="confidence", message=f"{message}.")


def relative_entropy(logits: Tensor) -> float:
    """Median over images of the entropy of softmax(logits `[N, K]`), as a share of the largest, log(K)."""
    logarithms = logits.log_softmax(1)
    return -(logarithms.exp() * logarithms).sum(1).median().item() / math.log(logits.shape[1])


def surprise_finding(surprise: float) -> Finding:
    """Of what `batch_norm_surprise` gives for smooth noise."""
    message = f"Noise as smooth as photographs surprises the batch norms by {surprise:.2f}"
    if surprise <= SURPRISING:
        return Finding(severity="note", topic="batch norm", message=f"{message} (0.5 to 0.8 is usual).")
    return Finding(
        severity="warning",
        topic="batch norm",
        message=f"{message}, where 0.5 to 0.8 is usual.",
        advice="Check --mean, --std and --input-size, and that the architecture is the one that was trained.",
    )


def _noise(images: InputSpec, count: int) -> tuple[Tensor, Tensor]:
    """Smooth and white noise, `[count, C, H, W]` each."""
    white = torch.rand(count, images.channels, images.height, images.width, generator=torch.Generator().manual_seed(0))
    return smooth_noise(count, images), white


def _varying(logits: Tensor) -> Tensor:
    """Which logits `[K]` are not the same for all images."""
    return logits.amax(0) - logits.amin(0) > CONSTANT * logits.abs().max()


def _numbered(classes: list[int]) -> str:
    listed = ", ".join(map(str, classes[:MOST_NAMED]))
    more = f" and {len(classes) - MOST_NAMED:,} more" if len(classes) > MOST_NAMED else ""
    return f"{'class' if len(classes) == 1 else 'classes'} {listed}{more}"
