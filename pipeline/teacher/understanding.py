"""Which network a checkpoint is: a known architecture if its answers allow it, else the program that came with it.

A known architecture is preferred to a program that computes the same, since students start from its blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.networks import NetworkSpec
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import InputSpec, Output, TeacherRecord
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.families import Candidate
from compress.pipeline.teacher.inference import load, recognise
from compress.pipeline.teacher.model import Teacher
from compress.pipeline.teacher.noise import batch_norm_surprise, smooth_noise
from compress.pipeline.teacher.programs.modules import describe

EVIDENCE_IMAGES = 16
"""Images of noise that networks are compared on."""

SAME_ANSWERS = 1e-4
"""Largest difference between two networks' outputs, as a share of their spread, at which they count as one network:
float32 sums taken in another order differ by less, another activation or stride by far more."""

CLEARLY_LESS = 0.9
"""Share of the likeliest candidate's surprise below which another candidate takes its place."""

MOST_COMPARED = 4
"""Candidates that are built and compared at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """A network, without input normalisation, and what is known about it."""

    network: nn.Module
    spec: NetworkSpec
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...] = ()


def understand(
    checkpoint: Checkpoint, images_for: Callable[[NetworkSpec], InputSpec], stated_size: tuple[int, int] | None
) -> Understood:
    """The network of a checkpoint.

    Args:
        checkpoint: weights, and the program around them where there is one.
        images_for: what images a network of some spec takes.
        stated_size: height and width in pixels, where the user or the file's metadata give them.

    Raises:
        InputError: the architecture is not recognised, and there is no program that takes images.
    """
    if checkpoint.program is None:
        return _by_weights(checkpoint, images_for)
    return _by_program(checkpoint, checkpoint.program, stated_size)


def draft_record(checkpoint: Checkpoint, understood: Understood, images: InputSpec) -> TeacherRecord:
    """What is known before the teacher was asked anything."""
    spec, state = understood.spec, understood.network.state_dict()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return TeacherRecord(
        file_name=checkpoint.file_name,
        sha256=checkpoint.sha256,
        code_sha256=checkpoint.program.code_sha256 if checkpoint.program else "",
        format=checkpoint.format,
        name=spec.name,
        architecture=spec.title,
        spec=spec.model_dump(mode="json"),
        input=images,
        num_classes=spec.num_classes,
        labels=checkpoint.labels,
        parameters=sum(tensor.numel() for name, tensor in state.items() if not name.endswith(statistics)),
        batch_norm_layers=sum(name.endswith("running_mean") for name in state),
        reasons=understood.reasons,
    )


def assemble(checkpoint: Checkpoint, understood: Understood, images: InputSpec) -> Teacher:
    """The network behind its normalisation, as a teacher that has not been diagnosed yet."""
    network = Normalised(understood.network, images.mean, images.std)
    return Teacher(draft_record(checkpoint, understood, images), network)


def _by_weights(checkpoint: Checkpoint, images_for: Callable[[NetworkSpec], InputSpec]) -> Understood:
    """The candidate that fits; of several the one whose batch norms are least surprised by smooth noise."""
    candidates = recognise(_shapes(checkpoint), checkpoint.file_name)[:MOST_COMPARED]
    if len(candidates) == 1:
        return _understood(candidates[0], checkpoint)
    fitting = [_understood(candidate, checkpoint) for candidate in candidates]
    surprises = [_surprise(assemble(checkpoint, one, images_for(one.spec))) for one in fitting]
    chosen = least_surprised(surprises)
    others = ", ".join(f"{surprise:.2f}" for index, surprise in enumerate(surprises) if index != chosen)
    evidence = (
        f"{len(fitting)} variants fit alike; in this one the batch norms meet inputs nearest to those of training "
        f"(surprise {surprises[chosen]:.2f} against {others})."
        if surprises[chosen] < min(surprise for index, surprise in enumerate(surprises) if index != chosen)
        else f"{len(fitting)} variants fit alike; this is the usual one."
    )
    best = fitting[chosen]
    return Understood(
        network=best.network, spec=best.spec, reasons=(*best.reasons, evidence), assumptions=best.assumptions
    )


def least_surprised(surprises: Sequence[float]) -> int:
    """Index of the candidate to take: the first, which is the likeliest, unless another is clearly less surprised."""
    best = min(range(len(surprises)), key=lambda index: surprises[index])
    return best if surprises[best] < CLEARLY_LESS * surprises[0] else 0


def same_answers(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> Output | None:
    """What `other` puts out where `one` puts out logits and both are one network; None where they are not.

    Args:
        one: normalised images `[N, C, H, W]` to logits `[N, K]`.
        other: the same images to logits or probabilities.
        shape: `[C, H, W]` of the images.
    """
    images = torch.randn(EVIDENCE_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, answer = one(images), other(images)
    forms: dict[Output, Tensor] = {
        "logits": logits,
        "log-probabilities": logits.log_softmax(1),
        "probabilities": logits.softmax(1),
    }
    return next((form for form, wanted in forms.items() if _alike(wanted, answer)), None)


def _by_program(checkpoint: Checkpoint, program: Program, stated_size: tuple[int, int] | None) -> Understood:
    spec = describe(program, stated_size, checkpoint.file_name)
    height, width = stated_size or (spec.size, spec.size)
    for candidate in _known_forms(checkpoint):
        if not _takes(candidate.spec, spec, (height, width)):
            continue
        known = _understood(candidate, checkpoint)
        form = same_answers(known.network, program.network, (spec.channels, height, width))
        if form is not None:
            ending = "" if form == "logits" else f", but for the last step that makes {form} of its logits"
            reason = f"Its own network, {program.title}, answers the same on {EVIDENCE_IMAGES} images of noise{ending}."
            return Understood(network=known.network, spec=known.spec, reasons=(*known.reasons, reason))
    unknown = "No architecture known here answers as it does, so a student cannot start from its blocks."
    return Understood(
        network=program.network, spec=spec, reasons=(f"The network is the checkpoint's own: {program.title}.", unknown)
    )


def _takes(known: NetworkSpec, program: NetworkSpec, size: tuple[int, int]) -> bool:
    same_ends = (known.channels, known.num_classes) == (program.channels, program.num_classes)
    return same_ends and known.minimum_size <= min(size) and max(size) <= (known.maximum_size or max(size))


def _known_forms(checkpoint: Checkpoint) -> list[Candidate]:
    try:
        return recognise(_shapes(checkpoint), checkpoint.file_name)[:MOST_COMPARED]
    except InputError:
        return []


def _understood(candidate: Candidate, checkpoint: Checkpoint) -> Understood:
    network = load(candidate, checkpoint.tensors).eval()
    return Understood(
        network=network, spec=candidate.spec, reasons=candidate.reasons, assumptions=candidate.assumptions
    )


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}


def _surprise(teacher: Teacher) -> float:
    surprise = batch_norm_surprise(teacher, smooth_noise(EVIDENCE_IMAGES, teacher.record.input))
    return 0.0 if surprise is None else surprise


def _alike(wanted: Tensor, answer: Tensor) -> bool:
    if wanted.shape != answer.shape:
        return False
    return bool((wanted - answer).abs().max() <= SAME_ANSWERS * wanted.std().clamp_min(1e-12))
