"""The stage's entry: from a path to a teacher."""

from pathlib import Path

import torch

from compress.pipeline.errors import InputError
from compress.pipeline.networks import NetworkSpec
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import InputSpec, TeacherRecord
from compress.pipeline.teacher.families import Candidate
from compress.pipeline.teacher.inference import load, recognise
from compress.pipeline.teacher.inputs import resolve_input
from compress.pipeline.teacher.model import Teacher
from compress.pipeline.teacher.reading import Checkpoint, read_checkpoint

_NO_BATCH_NORM = (
    "The teacher has no batch-norm layers, whose statistics are the main signal of image synthesis; "
    "expect a less faithful student."
)


def open_teacher(
    path: Path,
    *,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Teacher:
    """Read a checkpoint, recognise its architecture and load it; nothing in it is executed.

    Args:
        path: a state_dict or training checkpoint that torch.save wrote, or a safetensors file.
        input_size: height and width of the images in pixels; else from the checkpoint, else what is usual.
        mean: what the teacher's input is normalised with, one number a channel, of images in [0, 1]; likewise.
        std: likewise.

    Raises:
        UsageError: there is no such file, or an argument does not fit the teacher.
        UnsafeInputError: loading the file would execute code.
        InputError: its format or architecture is not supported, or its weights are not usable.
    """
    checkpoint = read_checkpoint(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    candidate = recognise(shapes, path.name)
    _check_classes(candidate.spec, path.name)
    images = resolve_input(candidate.spec, checkpoint.metadata, input_size=input_size, mean=mean, std=std)
    network = Normalised(load(candidate, checkpoint.tensors), images.mean, images.std)
    teacher = Teacher(_record(checkpoint, candidate, images), network)
    _check_answer(teacher)
    return teacher


def _record(checkpoint: Checkpoint, candidate: Candidate, images: InputSpec) -> TeacherRecord:
    names = candidate.names.items()
    norms = sum(name.endswith("running_mean") for name in candidate.names)
    statistics = ("running_mean", "running_var")
    parameters = sum(checkpoint.tensors[name].numel() for name, _ in names if not name.endswith(statistics))
    return TeacherRecord(
        file_name=checkpoint.file_name,
        sha256=checkpoint.sha256,
        format=checkpoint.format,
        architecture=candidate.spec.title,
        spec=candidate.spec.model_dump(mode="json"),
        input=images,
        num_classes=candidate.spec.num_classes,
        parameters=parameters,
        batch_norm_layers=norms,
        reasons=candidate.reasons,
        warnings=(*checkpoint.warnings, *candidate.assumptions, *(() if norms else (_NO_BATCH_NORM,))),
    )


def _check_classes(spec: NetworkSpec, name: str) -> None:
    if spec.num_classes < 2:
        raise InputError(
            f"'{name}' has {spec.num_classes} output; a classifier has one for each of at least two classes.",
            "A network with one logit for yes or no can be given a second, zero, row in its last layer.",
        )


@torch.no_grad()
def _check_answer(teacher: Teacher) -> None:
    """One blank image through the network."""
    images = teacher.record.input
    logits = teacher.logits(torch.zeros(1, images.channels, images.height, images.width))
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"'{teacher.record.file_name}' answers a blank image with NaN or infinity.",
            "Its weights are too large for float32; use a checkpoint from before training diverged.",
        )
