"""The stage's entry: from a path to a teacher."""

from functools import partial
from pathlib import Path

import torch

from compress.pipeline.errors import InputError
from compress.pipeline.networks import NetworkSpec
from compress.pipeline.records import Finding
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.diagnosis import by_gravity, diagnose, output_of
from compress.pipeline.teacher.diagnosis.normalisation import assumption_finding, with_plausible_normalisation
from compress.pipeline.teacher.inputs import resolve_input, stated_size
from compress.pipeline.teacher.model import Teacher
from compress.pipeline.teacher.programs.factory import current_folder_importable, with_architecture
from compress.pipeline.teacher.reading import read_checkpoint
from compress.pipeline.teacher.understanding import assemble, understand


def open_teacher(
    path: Path,
    *,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    arch: str | None = None,
    allow_pickle: bool = False,
) -> Teacher:
    """Read a checkpoint, recognise its architecture, load it and diagnose it; nothing in it is executed.

    Args:
        path: a file in any of the formats of `formats.py`, or a Hugging Face folder.
        input_size: height and width of the images in pixels; else from the checkpoint, else what is usual.
        mean: what the teacher's input is normalised with, one number a channel, of images in [0, 1]; likewise.
        std: likewise.
        arch: `package.module:function` or `timm:NAME`, which builds the network that the weights belong to.
        allow_pickle: execute what a pickle says, where the file is one.

    Raises:
        UsageError: there is no such file, or an argument does not fit the teacher.
        UnsafeInputError: loading the file would execute code.
        InputError: its format or architecture is not supported, or its weights are not usable.
        MissingResourceError: a package that it takes is not installed.
    """
    checkpoint = _read(path, allow_pickle)
    if arch is not None:
        checkpoint = with_architecture(checkpoint, arch)
    images_for = partial(resolve_input, metadata=checkpoint.metadata, input_size=input_size, mean=mean, std=std)
    size = stated_size(checkpoint.metadata, input_size)
    understood = understand(checkpoint, images_for, size)
    _check_classes(understood.spec, checkpoint.file_name)
    teacher = assemble(checkpoint, understood, images_for(understood.spec))
    _check_answer(teacher)
    silent = {key for key, value in (("mean", mean), ("std", std)) if value is None and key not in checkpoint.metadata}
    if silent == {"mean", "std"}:
        teacher = assemble(checkpoint, understood, with_plausible_normalisation(teacher))
    assumptions = [_note("assumption", sentence) for sentence in understood.assumptions]
    any_size = size is None and not _takes_one_size(understood.spec, checkpoint.program)
    if any_size or silent:
        assumptions.append(assumption_finding(teacher.record.input, size=any_size, normalisation=bool(silent)))
    return _diagnosed(teacher, checkpoint, assumptions)


def _diagnosed(teacher: Teacher, checkpoint: Checkpoint, assumptions: list[Finding]) -> Teacher:
    """The teacher with what a pre-flight of seconds finds out about it in its record."""
    teacher.record = teacher.record.model_copy(update={"output": output_of(teacher)})
    read = [_note("checkpoint", warning) for warning in checkpoint.warnings]
    findings = by_gravity((*read, *assumptions, *diagnose(teacher, checkpoint)))
    teacher.record = teacher.record.model_copy(update={"findings": findings})
    return teacher


def _takes_one_size(spec: NetworkSpec, program: Program | None) -> bool:
    """Whether the network itself says how large its images are."""
    shape = program.input_shape if program else None
    return spec.minimum_size == spec.maximum_size or bool(shape and all(shape[2:]))


def _note(topic: str, message: str) -> Finding:
    return Finding(severity="note", topic=topic, message=message)


def _read(path: Path, allow_pickle: bool) -> Checkpoint:
    if not allow_pickle:
        return read_checkpoint(path)
    with current_folder_importable():  # where a pickled module's own code usually lies
        return read_checkpoint(path, allow_pickle=True)


def _check_classes(spec: NetworkSpec, name: str) -> None:
    if spec.num_classes < 2:
        raise InputError(
            f"'{name}' has {spec.num_classes} output; a classifier has one for each of at least two classes.",
            "A network with one logit for yes or no can be given a second, zero, row in its last layer.",
        )


def _check_answer(teacher: Teacher) -> None:
    """One blank image through the network, and that a gradient would come back to it."""
    images = teacher.record.input
    with torch.enable_grad():
        logits = teacher.logits(torch.zeros(1, images.channels, images.height, images.width, requires_grad=True))
    if not logits.requires_grad:
        raise InputError(
            f"'{teacher.record.file_name}' lets no gradient through to its images, which distillation needs.",
            "Take torch.no_grad and detach out of the network's forward.",
        )
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"'{teacher.record.file_name}' answers a blank image with NaN or infinity.",
            "Its weights are too large for float32; use a checkpoint from before training diverged.",
        )
